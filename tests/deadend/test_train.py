"""``train_sft --ext.use dead-end``: what is refused before anything is loaded, the loss of a step, problems whose
answer is known, and real trainings."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import ROOT, failing, read, scalars, write

from orlhf_ext.cli.errors import UserError
from orlhf_ext.deadend import DeadEnd
from orlhf_ext.deadend.rows import parse_row
from orlhf_ext.extensions import run

OWN: dict[str, Any] = {
    "gamma": 1.0, "polyak": 0.1, "q_min": -1.0, "q_max": 0.0, "loss_norm": "tokens", "append_eos": False,
    "equal_rows": False,
}  # fmt: skip
WORDS = ["red", "blue", "a cat", "the dog", "runs", "sits", "home", "away", "green", "tree", "lake", "hill"]


def values(count: int, seed: int) -> list[dict[str, Any]]:
    """Texts, of which those that say "no" end badly."""
    generator = random.Random(seed)
    rows = []
    for _ in range(count):
        words = [generator.choice(WORDS) for _ in range(generator.randint(2, 6))]
        bad = generator.random() < 0.5
        if bad:
            words.insert(generator.randint(1, len(words)), "no")
        rows.append({"text": " ".join(words), "reward": [-1.0 if bad else 0.0]})
    return rows


# ---- what is refused


def check(train: Path, eval: Path | None = None, model: str = "base", **changes: Any) -> None:
    space = SimpleNamespace
    ds = {"load_in_4bit": False, "use_liger_kernel": False, "packing_samples": False}
    ds |= {"ring_attn_size": 1, "tensor_parallel_size": 1}
    data = {"multiturn": False, "apply_chat_template": False, "tokenizer_chat_template": None, "output_key": None}
    data |= {"input_template": "User: {}\nAssistant: ", "input_key": "input", "max_len": 64, "dataset_split": "train"}
    models = {"aux_loss_coef": 0, "pretrain_mode_enable": False}
    lora, batch, split = changes.pop("lora", 0), changes.pop("batch", 2), changes.pop("split", "train")
    for group in (ds, data, models):
        group.update({name: changes.pop(name) for name in list(changes) if name in group})
    args = space(
        deadend=space(**{**OWN, **changes}),
        ds=space(**ds, lora=space(rank=lora)),
        data=space(dataset=str(train), **data),
        model=space(model_name_or_path=model, **models),
        eval=space(dataset=str(eval) if eval else None, split=split),
        train=space(batch_size=batch),
    )
    DeadEnd().check(args)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"q_min": 0.5}, "--deadend.q_min 0.5 is not less than --deadend.q_max 0"),
        (
            {"q_min": -0.5},
            "train.jsonl line 1 has the reward -1, which --deadend.q_min -0.5 and --deadend.q_max 0 leave",
        ),
        ({"lora": 4}, "--ds.lora.rank does not go with --ext.use dead-end, which trains and saves whole weights"),
        ({"load_in_4bit": True}, "--ds.load_in_4bit does not go with"),
        ({"use_liger_kernel": True}, "--ds.use_liger_kernel does not go with"),
        (
            {"packing_samples": True},
            "--ds.packing_samples does not go with .* single texts with a reward; leave it out",
        ),
        ({"ring_attn_size": 2}, "--ds.ring_attn_size does not go with"),
        ({"tensor_parallel_size": 2}, "--ds.tensor_parallel_size does not go with"),
        ({"aux_loss_coef": 0.1}, "--model.aux_loss_coef does not go with"),
        ({"pretrain_mode_enable": True}, "--model.pretrain_mode_enable does not go with"),
        ({"multiturn": True}, "--data.multiturn does not go with"),
        ({"apply_chat_template": True}, "--data.apply_chat_template does not go with"),
        ({"tokenizer_chat_template": "x"}, "--data.tokenizer_chat_template does not go with"),
        ({"output_key": "reward"}, "--data.output_key does not go with"),
        ({"input_template": "Q: {}"}, "--data.input_template does not go with"),
        ({"input_key": "comment"}, "--data.input_key does not go with .* reads the columns 'text' and 'reward'"),
    ],
)
def test_flags_that_make_no_sense(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    train = write(tmp_path / "train.jsonl", [{"text": "a b", "reward": [-1.0]}, *values(7, 1)])
    check(train, train, gamma=0.5)
    with pytest.raises(UserError, match=said):
        check(train, train, **changes)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"text": None}, "line 3 has no 'text'; make value data with build_data jigsaw value"),
        ({"text": ""}, "line 3 has no 'text'"),
        ({"reward": None}, "line 3 has no 'reward' that is a number"),
        ({"reward": [True]}, "line 3 has no 'reward' that is a number"),
        ({"reward": [0.0, -1.0]}, "line 3 has no 'reward' that is a number"),
        ({"reward": [0.7]}, "line 3 has the reward 0.7; a text that ends badly has -1, any other 0"),
        ({"reward": [float("nan")]}, "line 3 has the reward nan"),
    ],
)
def test_records_that_cannot_be_trained_on(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    good, rows = write(tmp_path / "good.jsonl", values(8, 1)), values(8, 1)
    rows[2] |= change
    bad = write(tmp_path / "bad.jsonl", rows)
    for train, evaluation in ((bad, good), (good, bad)):
        with pytest.raises(UserError, match=f"bad.jsonl {said}"):
            check(train, evaluation)


def test_files_and_contexts(tiny_model: Path, tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", values(8, 1))
    check(train, model=str(tiny_model))
    with pytest.raises(UserError, match=r"--data.max_len 99999 is more than the \d+ positions of"):
        check(train, model=str(tiny_model), max_len=99999)
    with pytest.raises(UserError, match=r"train.jsonl.gz is packed, .* unpack it with gunzip"):
        check(Path(f"{train}.gz"))
    assert parse_row({"text": "a", "reward": -1}, "here") == ("a", -1.0)
    assert parse_row({"text": "a", "reward": [0]}, "here") == ("a", 0.0)


# ---- rows and the loss of a step


def test_rows_of_a_data_set(tiny_model: Path, strategy: Any) -> None:
    """What ``fit()`` sums is the number of actions; a text of one token is left out; EOS ends what is not cut."""
    import torch
    from datasets import Dataset

    from orlhf_ext.deadend.dataset import ACTION, REWARD, QDataset
    from orlhf_ext.models.folder import load_tokenizer

    tokenizer = load_tokenizer(tiny_model)
    strategy.args.deadend = SimpleNamespace(**OWN)
    texts = ["the cat sat on the mat", "a", "the dog ran\n", "x" * 50]
    ids = [tokenizer(text)["input_ids"] for text in texts]
    assert len(ids[1]) == 1
    data = Dataset.from_list([{"text": t, "reward": [-1.0 if i in (0, 3) else 0.0]} for i, t in enumerate(texts)])
    found = QDataset(data, tokenizer, 12, strategy)
    assert len(found) == 3
    inputs, masks, outcomes = found.collate_fn([found[i] for i in range(3)])
    width = max(min(len(row), 12) for row in ids)
    assert inputs.shape == masks.shape == (3, width) and outcomes.shape == (3, width, 3)
    lengths = [min(len(ids[i]), 12) for i in (0, 2, 3)]
    assert masks.sum(1).tolist() == lengths
    assert [inputs[k, : lengths[k]].tolist() for k in range(3)] == [ids[0][:12], ids[2][:12], ids[3][:12]]
    assert outcomes[:, :-1].sum((1, 2)).tolist() == [n - 1 for n in lengths]  # what fit() makes of a loss mask
    assert outcomes[..., ACTION].sum(1).tolist() == [n - 1 for n in lengths]
    for k, reward in enumerate((-1.0, 0.0, -1.0)):
        wanted = torch.zeros(width)
        wanted[lengths[k] - 2] = reward
        assert torch.equal(outcomes[k, :, REWARD], wanted)
    strategy.args.deadend.append_eos = True
    ended = QDataset(data, tokenizer, 12, strategy)
    assert len(ended) == 4 and ended[1][0].tolist() == [[*ids[1], tokenizer.eos_token_id]]
    assert ended[3][0].tolist() == [ids[3][:12]]
    with pytest.raises(UserError, match=r"row 2 has the reward 0\.5"):
        QDataset(data.map(lambda _, i: {"reward": [i / 2]}, with_indices=True), tokenizer, 12, strategy)
    strategy.args.deadend.append_eos = False
    with pytest.raises(UserError, match="have no text of two tokens or more"):
        QDataset(data.select([1]), tokenizer, 12, strategy)


@pytest.mark.parametrize("norm", ["tokens", "actions"])
def test_the_loss_of_a_step(tiny_model: Path, strategy: Any, norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Micro batches of different lengths, summed as DeepSpeed sums them, make the loss over all their texts."""
    import torch
    from datasets import Dataset
    from openrlhf.models import SFTLoss
    from openrlhf.utils.loss_utils import iter_grad_accum_global_norm

    from orlhf_ext.deadend.actor import QActor
    from orlhf_ext.deadend.dataset import QDataset
    from orlhf_ext.deadend.loss import sarsa_loss, sarsa_targets
    from orlhf_ext.deadend.trainer import QTrainer
    from orlhf_ext.models.folder import load_tokenizer

    strategy.args.deadend = SimpleNamespace(**{**OWN, "loss_norm": norm, "gamma": 0.9})
    tokenizer = load_tokenizer(tiny_model)
    data = QDataset(Dataset.from_list(values(12, 5)), tokenizer, 64, strategy)
    monkeypatch.setattr(run, "arguments", strategy.args)
    actor = QActor(str(tiny_model), attn_implementation="sdpa")
    saved = {"gamma": 0.9, "q_min": -1.0, "q_max": 0.0, "append_eos": False}
    assert saved.items() <= actor.model.config.dead_end.items()
    actor.eval()
    trainer = QTrainer(actor, strategy, None, None, None, None)
    assert isinstance(trainer.loss_fn, SFTLoss)
    window = [data.collate_fn([data[i] for i in range(start, start + 3)]) for start in range(0, 12, 3)]
    assert len({batch[0].shape[-1] for batch in window}) > 1
    total, parts = torch.zeros(()), []
    items = iter_grad_accum_global_norm(window, strategy, 4, lambda batch: batch[2].squeeze(1)[:, :-1])
    for (ids, mask, outcome), info in items:
        with torch.no_grad():
            q, target = actor(ids.squeeze(1), attention_mask=mask.squeeze(1))
        total += trainer.loss_fn((q, target), outcome.squeeze(1)[:, :-1], **info) / 4
        parts.append((q, target))
    pad = [max(q.shape[1] for q, _ in parts)] * len(parts)
    q, target = (
        torch.cat(
            [torch.nn.functional.pad(part[k], (0, n - part[k].shape[1])) for part, n in zip(parts, pad, strict=True)]
        )
        for k in (0, 1)
    )
    lengths = torch.tensor([len(tokenizer(row["text"])["input_ids"]) for row in values(12, 5)])
    rewards = torch.tensor([row["reward"][0] for row in values(12, 5)])
    wanted = sarsa_loss(q, sarsa_targets(target, rewards, lengths, 0.9), lengths, norm)
    assert total.item() == pytest.approx(wanted.item(), rel=1e-6)
    means = trainer.loss_fn.means(strategy)
    assert means["deadend/loss"] == pytest.approx(wanted.item(), rel=1e-6)
    assert set(means) == {f"deadend/{name}" for name in ("loss", "q", "target", "td_error")}


# ---- problems whose answer is known


def learn(texts: list[tuple[int, ...]], rewards: list[float], vocab: int, steps: int, gamma: float = 1.0) -> Any:
    """A tiny Q_D, trained on all texts at once."""
    import torch
    from deadend_q import new_q_model
    from transformers import LlamaConfig

    from orlhf_ext.deadend.loss import polyak_update, sarsa_loss, sarsa_targets

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=8, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = new_q_model(config, gamma=gamma)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, steps)
    ids, outcome = torch.tensor(texts), torch.tensor(rewards)
    lengths = torch.full((len(texts),), ids.shape[1])
    for _ in range(steps):
        q, target = model(ids)
        optimizer.zero_grad()
        sarsa_loss(q, sarsa_targets(target, outcome, lengths, gamma), lengths).backward()
        optimizer.step()
        schedule.step()
        polyak_update(model.target_head.buffers(), model.q_head.parameters(), 0.1)
    return model.eval()


@pytest.mark.launcher
def test_a_token_that_always_ends_badly() -> None:
    """A chain of two tokens: 7 is a dead end, wherever it comes, and rectified decoding avoids it."""
    import torch

    from orlhf_ext.deadend.decoding import rectify

    texts = [(1, a, b) for a in range(3, 10) for b in range(3, 10)]
    model = learn(texts, [-1.0 if 7 in text else 0.0 for text in texts], 10, 100)
    with torch.no_grad():
        values = model.q_head(model.hidden_states(torch.tensor([(1, a) for a in range(3, 10)])))
    first, second = values[0, 0, 3:], values[:, 1, 3:]
    wanted = torch.full((7,), -1 / 7)
    wanted[4] = -1
    torch.testing.assert_close(first, wanted, rtol=0, atol=0.05)
    wanted = torch.zeros(7, 7)
    wanted[4] = wanted[:, 4] = -1
    torch.testing.assert_close(second, wanted, rtol=0, atol=0.05)
    logits = torch.zeros(1, 10)
    logits[:, :3] = -torch.inf
    assert rectify(logits, values[0, :1]).softmax(-1)[0, 7] < 0.05


@pytest.mark.launcher
@pytest.mark.parametrize("gamma", [1.0, pytest.param(0.8, marks=pytest.mark.slow)])
def test_a_random_decision_process(gamma: float) -> None:
    """Three actions, three steps, a behaviour and outcomes drawn at random; the true Q_D is counted."""
    import torch

    generator = random.Random(4)
    texts, rewards = [], []
    for actions in itertools.product((3, 4, 5), repeat=3):
        chance = generator.choice([0.0, 0.5, 1.0])
        copies = 2 * generator.randint(1, 2)
        texts += [(1, *actions)] * copies
        rewards += [-1.0] * round(copies * chance) + [0.0] * (copies - round(copies * chance))
    visits: Counter[tuple[int, ...]] = Counter()
    summed: Counter[tuple[int, ...]] = Counter()
    for text, reward in zip(texts, rewards, strict=True):
        for end in range(2, 5):
            visits[text[:end]] += 1
            summed[text[:end]] += reward * gamma ** (4 - end)  # type: ignore[assignment]
    model = learn(texts, rewards, 6, 160, gamma)
    worst = 0.0
    with torch.no_grad():
        for prefix, count in visits.items():
            q, _ = model(torch.tensor([prefix]))
            worst = max(worst, abs(q[0, -1].item() - summed[prefix] / count))
    assert len(visits) == 3 + 9 + 27 and worst < 0.05


# ---- calibration


def test_bins() -> None:
    from scipy.stats import binomtest

    from orlhf_ext.deadend.calibration import Prediction, calibrate

    predictions = [Prediction(i % 3, 0.25 + 0.001 * (i % 2), i % 4 == 0) for i in range(8)]
    predictions += [Prediction(9, 1.2, True), Prediction(10, -0.1, False)]
    found = calibrate(predictions, bins=4)
    first, second, third, last = found["bins"]
    assert (first["count"], second["count"], third["count"], last["count"]) == (1, 8, 0, 1)
    assert second["texts"] == 3 and second["observed"] == 0.25 and second["predicted"] == pytest.approx(0.2505)
    interval = binomtest(2, 8).proportion_ci(method="wilson")
    assert second["interval"] == pytest.approx([interval.low, interval.high])
    assert third["predicted"] is third["observed"] is third["interval"] is None
    assert found["expected_calibration_error"] == pytest.approx((8 * 0.0005 + 0.2 + 0.1) / 10)
    assert found["actions"] == 10 and found["observed"] == 0.3
    with pytest.raises(ValueError, match="no prediction"):
        calibrate([])


def test_calibration_of_a_model(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command's numbers are those of the model, text by text."""
    import torch

    from orlhf_ext.deadend import calibration
    from orlhf_ext.deadend.model import load_q_model, open_model
    from orlhf_ext.models.folder import load_tokenizer

    model = open_model(str(tiny_model), torch.float32, "sdpa", {})
    with torch.no_grad():
        model.q_head.values.bias.uniform_(-1, 0, generator=torch.Generator().manual_seed(0))
    model.save_pretrained(tmp_path / "q")
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.save_pretrained(tmp_path / "q")
    rows = values(20, 3)
    data, out = write(tmp_path / "val.jsonl", rows), tmp_path / "cal.json"
    words = ["--q_model_name_or_path", str(tmp_path / "q"), "--data_file", str(data), "--save_file", str(out)]
    calibration.main([*words, "--last", "2", "--batch_tokens", "64"])
    found = json.loads(out.read_text())
    loaded = load_q_model(tmp_path / "q")
    said = []
    for row in rows:
        with torch.no_grad():
            said += (-loaded(torch.tensor([tokenizer(row["text"])["input_ids"]]))[0][0, -2:]).tolist()
    assert found["actions"] == 40 and found["texts"] == 20 and found["last"] == 2
    assert found["predicted"] == pytest.approx(sum(said) / 40, abs=1e-5)
    assert found["observed"] == pytest.approx(-sum(row["reward"][0] for row in rows) / 20)
    meta = json.loads((tmp_path / "cal.meta.json").read_text())
    assert meta["counts"] == {"texts": 20, "left_out": 0, "cut": 0}
    assert list(meta["arguments"])[:4] == ["q_model_name_or_path", "data_file", "save_file", "last"]
    assert "20 texts; predicted" in capsys.readouterr().out
    other = ["--q_model_name_or_path", str(tiny_model), *words[2:]]
    assert "is not a value function" in failing(capsys, calibration.main, *other)
    assert "--last 0 is too small" in failing(capsys, calibration.main, *words, "--last", "0")
    assert "must end in .json" in failing(capsys, calibration.main, *words[:-1], tmp_path / "x.txt")


# ---- trainings


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("values")
    write(folder / "train.jsonl", values(48, 1))
    write(folder / "val.jsonl", values(16, 2))
    return folder


@pytest.fixture(scope="module")
def gpt2(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GPT-2, which has dropout, with the tiny model's tokenizer."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from orlhf_ext.models.folder import load_tokenizer, read_config

    folder = tmp_path_factory.mktemp("models") / "gpt2"
    size = read_config(tiny_model)["vocab_size"]
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=size, n_embd=32, n_layer=2, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=2)
    GPT2LMHeadModel(config).save_pretrained(folder)
    load_tokenizer(tiny_model).save_pretrained(folder)
    return folder


def train(out: Path, model: Path, data: Path, *flags: str, processes: int = 1) -> str:
    """Two epochs of 48 texts, 16 a step; what it printed."""
    command = [sys.executable, "-m"]
    if processes > 1:
        command += ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "-m"]
    command += ["orlhf_ext.launch", "train_sft", "--ext.use", "dead-end", "--model.model_name_or_path", str(model)]
    command += ["--data.dataset", str(data / "train.jsonl"), "--eval.dataset", str(data / "val.jsonl")]
    command += ["--data.max_len", "64", "--train.batch_size", "16", "--train.micro_batch_size", "4"]
    command += ["--adam.lr", "1e-3", "--lr_warmup_ratio", "0", "--train.max_epochs", "2"]
    command += ["--ckpt.output_dir", str(out / "model"), "--ckpt.path", str(out / "ckpt")]
    command += ["--logger.tensorboard_dir", str(out / "tb"), "--logger.wandb.run_name", "run", *flags]
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")}
    env |= {"HF_DATASETS_CACHE": str(out / "datasets"), "PYTHONPATH": str(ROOT)}
    out.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        command, env=env, cwd=out, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def weights(out: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(out / "model" / "model.safetensors")


def same(first: Path, second: Path) -> None:
    import torch

    a, b = weights(first), weights(second)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def by_hand(model: Path, rows: list[dict[str, Any]]) -> tuple[float, float]:
    """Loss and norm of its gradient over all texts, of the model that a run with seed 42 starts from."""
    import torch

    from orlhf_ext.deadend.loss import sarsa_loss, sarsa_targets
    from orlhf_ext.deadend.model import open_model
    from orlhf_ext.models.folder import load_tokenizer

    torch.manual_seed(42)
    q_model, tokenizer = open_model(str(model), torch.bfloat16, "sdpa", {}).float(), load_tokenizer(model)
    batch = tokenizer([row["text"] for row in rows], padding=True, padding_side="right", return_tensors="pt")
    q, target = q_model(batch["input_ids"], batch["attention_mask"])
    lengths = batch["attention_mask"].sum(1)
    loss = sarsa_loss(q, sarsa_targets(target, torch.tensor([row["reward"][0] for row in rows]), lengths), lengths)
    loss.backward()
    return loss.item(), torch.stack([p.grad.norm() for p in q_model.parameters()]).norm().item()


@pytest.mark.launcher
def test_training(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    """One step over all texts has the loss and the gradient of the formula, in one process and in two; what is saved is
    a Q_D whose target head lags, and whose losses are those that were logged."""
    import torch

    from orlhf_ext.deadend.loss import sarsa_loss, sarsa_targets
    from orlhf_ext.deadend.model import load_q_model, open_model
    from orlhf_ext.models.folder import load_tokenizer

    loss, norm = by_hand(tiny_model, read(data / "train.jsonl"))
    whole = ["--train.batch_size", "48", "--train.max_epochs", "4"]
    printed = train(tmp_path / "one", tiny_model, data, *whole)
    assert "Actor is now orlhf_ext.deadend.actor:QActor (extension dead-end)" in printed
    train(tmp_path / "two", tiny_model, data, *whole, processes=2)
    one, two = scalars(tmp_path / "one"), scalars(tmp_path / "two")
    for found in (one, two):
        assert found["train/deadend/loss"][0] == pytest.approx(loss, rel=0.01)  # bf16 in the trunk
        assert found["train/grad_norm"][0] == pytest.approx(norm, rel=0.02)
    assert one["train/loss_mean"] == pytest.approx(one["train/deadend/loss"], rel=1e-4)
    # what else is logged is of single micro batches, or of one process
    whole_steps = [name for name in one if "deadend" in name or name == "train/grad_norm"]
    assert len(whole_steps) == 9
    for name in whole_steps:
        assert two[name] == pytest.approx(one[name], rel=0.05, abs=1e-3), name
    first, second = weights(tmp_path / "one"), weights(tmp_path / "two")
    torch.manual_seed(42)
    start = open_model(str(tiny_model), torch.bfloat16, "sdpa", {}).state_dict()
    apart, moved = (
        torch.cat([(weight.float() - other[name].float()).flatten() for name, weight in first.items()])
        for other in (second, start)
    )
    assert apart.norm() < 0.1 * moved.norm()  # what bf16 and Adam's first steps, which are all of one size, leave

    model, tokenizer = load_q_model(tmp_path / "one" / "model"), load_tokenizer(tmp_path / "one" / "model")
    assert (model.settings.gamma, model.settings.append_eos) == (1.0, False)
    assert {weight.dtype for name, weight in first.items() if name.startswith("target_head")} == {torch.float32}
    trained = model.q_head.values.bias.nonzero()
    taken = {i for row in read(data / "train.jsonl") for i in tokenizer(row["text"])["input_ids"][1:]}
    assert set(trained.flatten().tolist()) == taken and tokenizer.eos_token_id not in taken
    assert 0 < model.target_head.values.bias.norm() < 0.5 * model.q_head.values.bias.norm()

    rows = read(data / "val.jsonl")
    assert len(one["eval/deadend/loss"]) == 5 and one["eval/deadend/loss"][-1] < one["eval/deadend/loss"][0]
    batch = tokenizer([row["text"] for row in rows], padding=True, padding_side="right", return_tensors="pt")
    lengths, rewards = batch["attention_mask"].sum(1), torch.tensor([row["reward"][0] for row in rows])
    with torch.no_grad():
        q, target = model(batch["input_ids"], batch["attention_mask"])
    wanted = sarsa_loss(q, sarsa_targets(target, rewards, lengths), lengths).item()
    assert one["eval/deadend/loss"][-1] == pytest.approx(wanted, rel=0.01)


def resume(whole: Path, out: Path, step: int) -> None:
    """A run's folder as it was after a step."""
    shutil.copytree(whole / "ckpt" / f"global_step{step}", out / "ckpt" / f"global_step{step}")
    (out / "ckpt" / "latest").write_text(f"global_step{step}")


@pytest.mark.launcher
def test_a_run_that_goes_on(gpt2: Path, data: Path, tmp_path: Path) -> None:
    """From a checkpoint in the middle of an epoch, with dropout, the same weights come out, and both heads' too."""
    flags = ["--ckpt.save_steps", "2", "--ckpt.load_enable", "--ckpt.max_num", "9", "--deadend.append_eos"]
    train(tmp_path / "whole", gpt2, data, *flags)
    resume(tmp_path / "whole", tmp_path / "again", 2)
    printed = train(tmp_path / "again", gpt2, data, *flags)
    assert "consumed_samples: 32" in printed and "evaluation at step 0" not in printed
    same(tmp_path / "whole", tmp_path / "again")
    assert json.loads((tmp_path / "again" / "model" / "config.json").read_text())["dead_end"]["append_eos"]


@pytest.mark.slow
@pytest.mark.launcher
def test_other_ways_to_train(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    """ZeRO-3 gives ZeRO-2's weights, in two processes, from a language model, from a Q_D, and from a checkpoint; the
    other normalisation gives another loss; gradient checkpointing gives the same."""
    kept = ["--ckpt.save_steps", "2", "--ckpt.load_enable", "--ckpt.max_num", "9"]
    train(tmp_path / "z2", tiny_model, data, processes=2)
    train(tmp_path / "z3", tiny_model, data, "--ds.zero_stage", "3", *kept, processes=2)
    same(tmp_path / "z2", tmp_path / "z3")
    resume(tmp_path / "z3", tmp_path / "z3again", 4)
    train(tmp_path / "z3again", tiny_model, data, "--ds.zero_stage", "3", *kept, processes=2)
    same(tmp_path / "z3", tmp_path / "z3again")
    for stage in ("2", "3"):
        train(tmp_path / f"on{stage}", tmp_path / "z2" / "model", data, "--ds.zero_stage", stage)
    same(tmp_path / "on2", tmp_path / "on3")
    started = scalars(tmp_path / "on2")["eval/deadend/loss"][0]
    assert started == pytest.approx(scalars(tmp_path / "z2")["eval/deadend/loss"][-1], rel=0.01)

    train(tmp_path / "one", tiny_model, data)
    train(tmp_path / "saving", tiny_model, data, "--model.gradient_checkpointing_enable")
    same(tmp_path / "one", tmp_path / "saving")
    train(tmp_path / "actions", tiny_model, data, "--deadend.loss_norm", "actions")
    tokens, actions = (scalars(tmp_path / name)["eval/deadend/loss"][0] for name in ("one", "actions"))
    from orlhf_ext.models.folder import load_tokenizer

    tokenizer = load_tokenizer(tiny_model)
    lengths = [len(tokenizer(row["text"])["input_ids"]) for row in read(data / "val.jsonl")]
    assert actions / tokens == pytest.approx(sum(lengths) / sum(n - 1 for n in lengths), rel=1e-4)
