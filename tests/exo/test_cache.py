"""Cached reference log-probabilities: what is stored, found, refused, freed, and equal to the uncached run."""

from __future__ import annotations

import copy
import random
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import launch, write


def records(count: int) -> list[dict]:
    """Records with K = 2 or 4 and rewards."""
    generator = random.Random(2)

    known = ["apple", "pear", "kind", "help", "please", "the", "cat", "sat"]

    def text(words: int) -> str:
        return " " + " ".join(generator.choices(known, k=words))

    made = []
    for i in range(count):
        k = generator.choice([2, 4])
        completions = [text(generator.randint(1, 9)) for _ in range(k)]
        rewards = [generator.gauss(0, 1) for _ in range(k)]
        made.append({"id": f"k{i}", "prompt": text(8), "completions": completions, "rewards": rewards})
    return made


@pytest.fixture(scope="module")
def actor(tiny_model):
    """The tiny model as OpenRLHF loads it, to be copied."""
    from openrlhf.models import Actor

    return Actor(str(tiny_model), attn_implementation="sdpa")


@pytest.fixture
def make(strategy, actor, tiny_model, tmp_path):
    """A function that makes a data set and a trainer over it; arguments are changed and put back."""
    from datasets import Dataset
    from torch.utils.data import DataLoader
    from transformers import AutoTokenizer

    from orlhf_ext.exo.dataset import KwiseDataset
    from orlhf_ext.exo.trainer import KwiseTrainer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    before = {name: vars(getattr(strategy.args, name)).copy() for name in ("exo", "train", "ref")}

    def make(rows=None, cache="cache", **flags):
        for name, values in before.items():
            setattr(strategy.args, name, SimpleNamespace(**values))
        strategy.args.exo.cache_reference = str(tmp_path / cache) if cache else None
        for flag, value in flags.items():
            section, _, name = flag.partition("__")
            setattr(getattr(strategy.args, section), name, value)
        dataset = KwiseDataset(Dataset.from_list(rows or records(5)), tokenizer, 96, strategy, is_dpo=True)
        loader = DataLoader(dataset, batch_size=1, collate_fn=dataset.collate_fn)
        trainer = KwiseTrainer(
            model=copy.deepcopy(actor),
            ref_model=copy.deepcopy(actor),
            strategy=strategy,
            tokenizer=tokenizer,
            optim=None,
            train_dataloader=loader,
            eval_dataloader=None,
            scheduler=None,
        )
        return trainer, dataset, loader

    yield make
    for name, values in before.items():
        setattr(strategy.args, name, SimpleNamespace(**values))


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first of a module's runs stores what `stored` hands out."""
    return tmp_path_factory.mktemp("known")


@pytest.fixture
def stored(make, known: Path, tmp_path: Path) -> torch.Tensor:
    """What ``make()`` computes and stores, as if it had run; it runs once for all tests."""
    from safetensors.torch import load_file

    if not any(known.iterdir()):
        make(cache=str(known))
    shutil.copytree(known, tmp_path / "cache")
    (file,) = files(tmp_path)
    return load_file(file)["logps"].clone()  # which is not the file itself, as tests write over it


def files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").glob("*"))


def forward(trainer, model, batch) -> torch.Tensor:
    ids, mask, rewards, _, rows = batch
    with torch.no_grad():
        return trainer.concatenated_forward(model, ids, mask, rewards.squeeze(1), rewards.squeeze(1), rows)[0]


def test_cached_values_equal_the_reference_bit_for_bit(make, capsys, tmp_path):
    """With one record a batch, batches are the same as in training; policy and reference start equal."""
    trainer, dataset, loader = make(train__micro_batch_size=1)
    assert "stored in" in capsys.readouterr().out and len(files(tmp_path)) == 1
    for batch in loader:
        assert batch[4].reference is not None
        assert torch.equal(forward(trainer, trainer.ref_model, batch), forward(trainer, trainer.model, batch))
    assert dataset.reference_logps.shape == dataset.row_lengths.shape
    assert dataset.reference_logps.dtype == torch.float32


def test_larger_batches_are_within_bf16_noise(make):
    trainer, _, loader = make(train__micro_batch_size=3)
    for batch in loader:
        cached, computed = forward(trainer, trainer.ref_model, batch), forward(trainer, trainer.model, batch)
        assert torch.allclose(cached, computed, rtol=2e-3, atol=0.05)


def test_second_run_reads_what_the_first_stored(make, capsys, tmp_path, monkeypatch):
    first = make()[1].reference_logps  # not `stored`: what it computed, not what it wrote
    capsys.readouterr()
    monkeypatch.setattr("orlhf_ext.exo.reference_cache._compute", None)  # computing would fail
    _, again, _ = make()
    assert torch.equal(again.reference_logps, first) and len(files(tmp_path)) == 1
    assert f"reference log-probabilities of {len(first)} completions read from" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change",
    [
        {"exo__temperature": 1.0},
        {"train__micro_batch_size": 1},
        {"rows": records(4)},
        {"exo__max_completion_len": 3},
    ],
    ids=str,
)
def test_whatever_moves_the_numbers_makes_another_file(make, stored, tmp_path, change):
    make(**change)
    assert len(files(tmp_path)) == 2


def test_what_does_not_move_them_finds_the_same_file(make, stored, tmp_path):
    rewarded = [{**r, "id": None, "rewards": [-1.0] * len(r["rewards"])} for r in records(5)]
    make(rows=rewarded, exo__beta_pi=0.1, exo__loss_type="dpo-rw")
    assert len(files(tmp_path)) == 1


def test_other_weights_make_another_file(make, tmp_path, tiny_model):
    from safetensors.torch import load_file, save_file

    from orlhf_ext.models.folder import content_digest

    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    assert content_digest(other) == content_digest(tiny_model)
    tensors = load_file(other / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] + 1
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    assert content_digest(other) != content_digest(tiny_model)


@pytest.mark.parametrize("damage", ["cut", "text", "shape", "nan"])
def test_broken_file_is_computed_again(make, stored, capsys, tmp_path, damage):
    from safetensors.torch import load_file, save_file

    (file,) = files(tmp_path)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-9])
    elif damage == "text":
        file.write_text("not a tensor")
    else:
        save_file({"logps": stored[:-1].clone() if damage == "shape" else stored * torch.nan}, file)
    capsys.readouterr()
    assert torch.equal(make()[1].reference_logps, stored)
    lines = [line for line in capsys.readouterr().out.splitlines() if "again" in line]
    assert len(lines) == 1 and str(file) in lines[0]
    assert torch.equal(load_file(file)["logps"], stored)


def test_full_disk_costs_the_cache_not_the_run(make, capsys, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("orlhf_ext.exo.reference_cache.atomic_write", full)
    _, dataset, _ = make()
    assert torch.isfinite(dataset.reference_logps).all() and not files(tmp_path)
    assert "cannot be written (No space left on device)" in capsys.readouterr().out


def test_reference_weights_are_let_go(make):
    """Nothing of the reference's parameters stays in memory, whoever still holds them."""
    trainer, _, _ = make(cache=None)
    held = list(trainer.ref_model.parameters())
    from orlhf_ext.exo.reference_cache import attach

    trainer.args.exo.cache_reference = trainer.args.exo.cache_reference or "unused"
    attach(trainer, [])
    assert sum(p.untyped_storage().nbytes() for p in held) == 0
    assert not list(trainer.ref_model.parameters())
    trainer.ref_model.eval()  # as fit() calls it
    assert sum(p.untyped_storage().nbytes() for p in trainer.model.parameters()) > 0


def test_unknown_hub_model_is_one_sentence(tmp_path):
    from orlhf_ext.cli.errors import UserError
    from orlhf_ext.exo.reference_cache import reference_folder

    with pytest.raises(UserError, match=r"nobody/no-such-model.* leave --exo.cache_reference out"):
        reference_folder("nobody/no-such-model")


def test_hub_model_is_hashed_from_its_snapshot(tiny_model, tmp_path, monkeypatch):
    """A name stands for the files of its snapshot in the hub's local cache."""
    from orlhf_ext.exo.reference_cache import reference_folder
    from orlhf_ext.models.folder import content_digest

    repository = tmp_path / "hub" / "models--someone--tiny"
    snapshot = repository / "snapshots" / ("a" * 40)
    shutil.copytree(tiny_model, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert content_digest(reference_folder("someone/tiny")) == content_digest(tiny_model)


# ---- through the launcher


def launch_cached(out: Path, model: Path, *flags: str, **how: Any) -> str:
    """A launcher run; training and evaluation data are written first."""
    data = write(out / "data.jsonl", records(9))
    flags = ("--eval.dataset", str(write(out / "eval.jsonl", records(3))), "--eval.split", "train", *flags)
    return launch(out, model, data, "--exo.loss_type", "exo-rw", "--data.max_len", "96", *flags, **how)


@pytest.mark.slow
@pytest.mark.parametrize("processes, flags", [(1, []), (1, ["--ds.zero_stage", "3"]), (2, ["--ds.zero_stage", "3"])])
def test_cached_training_equals_uncached_bit_for_bit(tiny_model, tmp_path, processes, flags):
    from safetensors.torch import load_file

    cached = ["--exo.cache_reference", str(tmp_path / "reference")]
    trained = []
    for name, more in {"uncached": [], "computed": cached, "read": cached}.items():
        out = tmp_path / name
        log = launch_cached(out, tiny_model, "--train.micro_batch_size", "1", *flags, *more, processes=processes)
        assert ("read from" in log) == (name == "read") and ("stored in" in log) == (name == "computed")
        trained.append(load_file(out / "model" / "model.safetensors"))
    assert len(list((tmp_path / "reference").iterdir())) == 2  # training and evaluation data
    for other in trained[1:]:
        assert all(torch.equal(trained[0][name], other[name]) for name in trained[0])


WEIGHING = """
from orlhf_ext.exo.trainer import KwiseTrainer

class Weighs(KwiseTrainer):
    def __init__(self, **arguments):
        held = list(arguments["ref_model"].parameters())
        held += [p.ds_tensor for p in held if hasattr(p, "ds_tensor")]
        weigh = lambda: sum(tensor.untyped_storage().nbytes() for tensor in held)
        before = weigh()
        super().__init__(**arguments)
        print(f"reference weights: {before} bytes, then {weigh()}", flush=True)
"""
WEIGHER = """
from orlhf_ext.exo import EXO

class Weigher(EXO):
    replacements = {**EXO.replacements, "openrlhf.trainer.dpo_trainer:DPOTrainer": "weighing:Weighs"}
"""


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["2", "3"])
def test_deepspeeds_reference_weights_are_let_go(tiny_model, tmp_path, stage):
    (tmp_path / "weighing.py").write_text(WEIGHING)
    (tmp_path / "weigher.py").write_text(WEIGHER)
    flags = ["--train.micro_batch_size", "2", "--ds.zero_stage", stage, "--exo.cache_reference", "reference"]
    log = launch_cached(tmp_path, tiny_model, *flags, use="weigher:Weigher")
    before, after = re.findall(r"reference weights: (\d+) bytes, then (\d+)", log)[0]
    assert int(before) > 500_000 and int(after) == 0
