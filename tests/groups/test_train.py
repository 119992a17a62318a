"""``train_rm --ext.use group-rm``: what is refused before anything is loaded, and real trainings on opposed groups."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import ROOT, read, scalars, write

from orlhf_ext.cli.errors import UserError
from orlhf_ext.groups import GroupReward, GroupRM, trained_groups

FLAGS: dict[str, Any] = {
    "head": "shared", "k": None, "squash": "tanh", "weighting": "proportional", "centering": 0.0,
    "train_backbone": False, "only": None, "names": None, "style": None, "eos": "append", "aggregate": "min",
    "cache_features": None,
}  # fmt: skip
NAMES = ["minority", "majority"]


def pairs(count: int, seed: int, split: str = "train") -> list[dict[str, Any]]:
    """Two groups with opposed tastes: one likes what says yes, the other what says no. Every fourth is minority's."""
    generator = random.Random(seed)
    rows = []
    for i in range(count):
        group = 0 if i % 4 == 0 else 1
        texts = [" yes" * generator.randint(1, 6), " no" * generator.randint(1, 6)]
        chosen, rejected = texts if group == 0 else texts[::-1]
        rows.append(
            {
                "id": f"{split}-{i}", "group_id": group, "group": NAMES[group], "style": "hh",
                "prompt": f"\n\nHuman: are you {generator.randint(0, 99)}?\n\nAssistant:",
                "chosen": chosen, "rejected": rejected,
            }
        )  # fmt: skip
    return rows


# ---- what is refused


def check(train: Path, eval: Path | None = None, model: str = "base", **changes: Any) -> trained_groups.Training:
    """What is trained, as the classes of a run read it from its arguments."""
    space = SimpleNamespace
    ds = {"packing_samples": False, "load_in_4bit": False, "lora_rank": 0, "loss_type": "sigmoid"}
    ds |= {name: changes.pop(name) for name in list(changes) if name in ds}
    args = space(
        groups=space(**{**FLAGS, **changes}),
        ds=space(
            packing_samples=ds["packing_samples"], load_in_4bit=ds["load_in_4bit"], lora=space(rank=ds["lora_rank"])
        ),
        model=space(model_name_or_path=model, loss_type=ds["loss_type"]),
        data=space(dataset=str(train)),
        train=space(batch_size=changes.pop("batch_size", 2)),
        eval=space(dataset=str(eval) if eval else None),
    )
    made = GroupRM()
    made.check(args)  # type: ignore[arg-type]
    made.configure(args)  # type: ignore[arg-type]
    json.dumps(args.groups.training)  # plain values, which travel to other processes
    found = trained_groups.from_args(args)  # type: ignore[arg-type]
    assert found is not None
    return found


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"k": 4, "head": "independent"}, "--groups.k is the width of a shared layer; leave it out"),
        ({"only": "minority", "weighting": "balanced"}, "--groups.weighting balanced has no effect"),
        ({"head": "single", "weighting": "balanced"}, "--groups.weighting balanced has no effect with --groups.head"),
        ({"head": "single", "only": "minority"}, "--groups.head single learns from all pairs"),
        ({"head": "single", "k": 4}, "--groups.k is the width of a shared layer"),
        ({"only": "minority", "batch_size": 4}, "--groups.only minority has 2 pairs, fewer than --train.batch_size 4"),
        ({"only": "minorty"}, "--groups.only minorty is not a group of the pairs; did you mean 'minority'?"),
        ({"train_backbone": True, "lora_rank": 4}, "--ds.lora.rank trains adapters"),
        ({"cache_features": "x", "lora_rank": 4}, "a backbone that does not change; leave it or --ds.lora.rank out"),
        ({"cache_features": "x", "train_backbone": True}, "leave it or --groups.train_backbone out"),
        ({"load_in_4bit": True}, "--ds.load_in_4bit does not go with"),
        ({"packing_samples": True}, "--ds.packing_samples does not go with .* one hidden state of each text"),
        ({"loss_type": "logexp"}, "--model.loss_type logexp has no effect"),
        ({"names": ["a", "a"]}, "--groups.names a a: give two names or more, all different"),
        ({"names": ["majority", "minority"]}, "is of group 'minority' and has the group_id 0; correct one"),
        ({"style": "chat"}, "train.jsonl line 1 has the style 'hh', and the reward model is to be of style 'chat'"),
    ],
)  # fmt: skip
def test_flags_that_contradict_each_other(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    train = write(tmp_path / "train.jsonl", pairs(8, 1))
    check(train)
    with pytest.raises(UserError, match=said):
        check(train, **changes)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"group_id": None, "group": None}, r"line 3 \(id 'train-2'\) has no group_id; make pairs with build_data"),
        ({"group_id": [1]}, r"line 3 \(id 'train-2'\) has the group_id \[1\]; give a text or a number"),
        ({"group_id": ""}, "has the group_id ''; give a text or a number"),
        ({"group": "majorty"}, "line 3 calls group 1 'majorty', and others call it 'majority'|unknown group 'majorty'"),
        ({"group_id": None, "group": "majorty"}, "unknown group 'majorty'; did you mean 'majority'?"),
        ({"group_id": 5}, "has two groups, 1 and 5, that are called 'majority'; give each a name of its own"),
        ({"group_id": "majority", "group": None}, "has two groups, 1 and majority, that are called 'majority'"),
        ({"style": "legacy"}, "line 3 has the style 'legacy', and the reward model is to be of style 'hh'"),
    ],
)
def test_pairs_that_cannot_be_trained_on(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    rows = pairs(8, 1)
    rows[2] |= change
    with pytest.raises(UserError, match=said):
        check(write(tmp_path / "train.jsonl", rows))


def test_what_is_trained_is_noted(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", pairs(8, 1))
    now = check(train, only="majority", squash="identity")
    assert now.settings.names == ["majority"] and now.only == "majority"
    assert (now.settings.head, now.settings.k, now.settings.squash) == ("independent", None, "identity")
    assert [now.group_of(row) for row in pairs(5, 1)] == [None, 0, 0, 0, None]
    bare = [{"group_id": row["group_id"], "chosen": "a", "rejected": "b"} for row in pairs(8, 1)]
    now = check(write(tmp_path / "bare.jsonl", bare))
    assert now.names == ("0", "1") and now.settings.k == 16
    now = check(write(tmp_path / "bare.jsonl", bare), names=["rare", "common"])
    assert now.settings.style == "hh" and now.names == ("rare", "common")
    with pytest.raises(UserError, match="has no pairs with a group_id; make them with build_data hh-groups"):
        check(write(tmp_path / "none.jsonl", [{"chosen": "a", "rejected": "b"}]))
    with pytest.raises(UserError, match="has no pair of group 'minority'; raise its proportion, take another seed"):
        check(write(tmp_path / "one.jsonl", [row for row in pairs(8, 1) if row["group_id"]]), names=NAMES)


def test_a_single_head_takes_every_pair(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", pairs(8, 0))
    found = check(tmp_path / "train.jsonl", head="single")
    assert (found.settings.names, found.settings.head, found.settings.k) == (["all"], "independent", None)
    assert found.only is None and {found.group_of(pair) for pair in pairs(8, 0)} == {0}


def test_a_reward_model_for_the_policys_ids(tiny_model: Path, reward_model: Path, tmp_path: Path) -> None:
    space = SimpleNamespace

    def args(path: str | None) -> SimpleNamespace:
        return space(reward=space(model_name_or_path=path), actor=space(model_name_or_path=str(tiny_model)))

    with pytest.raises(UserError, match=r"has no effect without --reward.model_name_or_path"):
        GroupReward().check(args(None))
    with pytest.raises(UserError, match=r"is not a reward model of groups; leave --ext.use group-reward out"):
        GroupReward().check(args(str(reward_model)))
    folder = tmp_path / "rm"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"group_reward": {"names": NAMES}}))
    tokenizer = json.loads((tiny_model / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    GroupReward().check(args(str(folder)))
    tokenizer["model"]["vocab"]["another"] = len(tokenizer["model"]["vocab"])
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match=r"has another vocabulary than the policy .* use --ext.reward groups"):
        GroupReward().check(args(str(folder)))


# ---- trainings


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    write(folder / "train.jsonl", pairs(64, 1))
    write(folder / "test.jsonl", pairs(16, 2, "test"))
    return folder


def train(out: Path, model: Path, data: Path, *flags: str, processes: int = 1) -> str:
    """Two epochs of 64 pairs, 8 a step; what it printed."""
    command = [sys.executable, "-m"]
    if processes > 1:
        command += ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "-m"]
    command += ["orlhf_ext.launch", "train_rm", "--ext.use", "group-rm", "--model.model_name_or_path", str(model)]
    command += ["--data.dataset", str(data / "train.jsonl"), "--eval.dataset", str(data / "test.jsonl")]
    command += ["--data.prompt_key", "prompt", "--data.max_len", "64", "--train.batch_size", "8"]
    command += [
        "--train.micro_batch_size",
        "4",
        "--adam.lr",
        "1e-2",
        "--lr_warmup_ratio",
        "0",
        "--train.max_epochs",
        "2",
    ]
    command += ["--ckpt.output_dir", str(out / "model"), "--logger.tensorboard_dir", str(out / "tb")]
    command += ["--logger.wandb.run_name", "run", *flags]
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


def score(out: Path, rows: list[dict[str, Any]]) -> Any:
    """Scores ``(pairs, 2, U)`` of a saved model, read from text again."""
    import torch

    from orlhf_ext import backends

    backends.install()
    from orlhf_ext.groups.model import get_llm_for_sequence_regression
    from orlhf_ext.groups.render import encode
    from orlhf_ext.models.head_settings import read_settings
    from orlhf_ext.models.reward_models import RewardModel

    folder = out / "model"
    model, settings = RewardModel(str(folder), single=False), read_settings(folder, "--model")
    texts = [(row["prompt"], row[side]) for row in rows for side in ("chosen", "rejected")]
    encoded = encode(model.tokenizer, texts, settings.eos, 64)
    model.load("bfloat16", "sdpa", get_llm_for_sequence_regression)
    found = model.score([text.ids for text in encoded], 64 * len(encoded))
    return torch.tensor(found).view(len(rows), 2, -1)


@pytest.mark.launcher
def test_opposed_groups_are_told_apart(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    """Shared head, frozen backbone: both groups learnt, nothing but the head changed, what is logged holds for what is
    saved, and hidden states that are read from the cache give the same losses."""
    import torch
    from safetensors.torch import load_file

    from orlhf_ext.groups.losses import group_pair_loss
    from orlhf_ext.models.head_settings import read_settings

    printed = train(tmp_path / "a", tiny_model, data)
    assert "RewardModelTrainer is now orlhf_ext.groups.trainer:GroupTrainer (extension group-rm)" in printed
    assert "pairs of groups: minority 16, majority 48" in printed
    base, found = load_file(tiny_model / "model.safetensors"), weights(tmp_path / "a")
    assert set(found) - set(base) == {"score.weight", "score.proj.weight", "score.proj.bias"}
    assert found["score.weight"].shape == (2, 16)
    assert all(torch.equal(weight, base[name]) for name, weight in found.items() if name in base)

    logged, rows = scalars(tmp_path / "a"), read(data / "test.jsonl")
    scores = score(tmp_path / "a", rows)
    for number, name in enumerate(NAMES):
        own = torch.tensor([row["group_id"] == number for row in rows])
        chosen, rejected = scores[own, 0, number], scores[own, 1, number]
        assert logged[f"eval/groups/{name}/acc"][-1] == (chosen > rejected).float().mean() > 0.95
        assert logged[f"eval/groups/{name}/pairs"][-1] == own.sum()
        wanted = group_pair_loss(chosen, rejected, "tanh").item()
        assert logged[f"eval/groups/{name}/loss"][-1] == pytest.approx(wanted, abs=0.01)  # weights are saved as bf16
        # the other group's head thinks the opposite
        assert (scores[own, 0, 1 - number] < scores[own, 1, 1 - number]).float().mean() > 0.95
    norm = read_settings(tmp_path / "a" / "model", "--model").norm
    assert norm is not None
    flat = scores.view(-1, 2)
    assert norm["mean"] == pytest.approx(flat.mean(0).tolist(), abs=0.1)
    assert norm["std"] == pytest.approx(flat.std(0).tolist(), rel=0.05)

    cached = train(tmp_path / "b", tiny_model, data, "--groups.cache_features", str(tmp_path / "kept"))
    count = re.search(r"hidden states of (\d+) texts: 0 read, (\d+) computed", cached)
    assert count and count[1] == count[2]
    again = scalars(tmp_path / "b")
    for tag in ("train/loss", "eval/groups/minority/loss", "eval/groups/majority/loss"):
        assert again[tag] == pytest.approx(logged[tag], abs=2e-3), tag


@pytest.mark.slow
@pytest.mark.launcher
def test_other_ways_to_train(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    """ZeRO-3 gives ZeRO-2's losses; two processes, balanced weights and independent heads learn, too; a second run on
    cached texts computes none; one group alone, adapters, and all weights."""
    import torch
    from safetensors.torch import load_file

    base = load_file(tiny_model / "model.safetensors")
    train(tmp_path / "z2", tiny_model, data)
    train(tmp_path / "z3", tiny_model, data, "--ds.zero_stage", "3")
    first, third = scalars(tmp_path / "z2"), scalars(tmp_path / "z3")
    assert third["train/loss"] == pytest.approx(first["train/loss"], abs=1e-3)

    heads = ["--groups.head", "independent", "--groups.squash", "identity", "--groups.weighting", "balanced"]
    kept = ["--groups.cache_features", str(tmp_path / "kept")]
    printed = train(tmp_path / "two", tiny_model, data, *heads, *kept, processes=2)
    assert "hidden states of 149 texts: 0 read, 149 computed" in printed or "0 read" in printed
    found = weights(tmp_path / "two")
    assert found["score.weight"].shape == (2, 128)
    last = scalars(tmp_path / "two")
    assert all(last[f"eval/groups/{name}/acc"][-1] > 0.95 for name in NAMES)
    assert last["eval/groups/majority/pairs"][-1] == 12
    printed = train(tmp_path / "again", tiny_model, data, *kept, "--ds.zero_stage", "3")
    assert " 0 computed" in printed

    train(tmp_path / "only", tiny_model, data, "--groups.only", "minority", "--groups.squash", "identity")
    assert weights(tmp_path / "only")["score.weight"].shape == (1, 128)
    assert scalars(tmp_path / "only")["eval/groups/minority/acc"][-1] == 1

    lora = ["--ds.lora.rank", "4", "--ds.lora.alpha", "16", "--adam.lr", "3e-3"]
    for stage in ("2", "3"):
        out = tmp_path / f"lora{stage}"
        train(out, tiny_model, data, *lora, "--ds.zero_stage", stage)
        found = weights(out)
        changed = [name for name in base if name in found and not torch.equal(base[name], found[name])]
        assert len(changed) == 14 and all("_proj" in name for name in changed)  # two layers of seven matrices
        rows, logged = read(data / "test.jsonl"), scalars(out)
        scores = score(out, rows)
        for number, name in enumerate(NAMES):
            own = torch.tensor([row["group_id"] == number for row in rows])
            accuracy = (scores[own, 0, number] > scores[own, 1, number]).float().mean().item()
            assert logged[f"eval/groups/{name}/acc"][-1] == accuracy > 0.95

    train(tmp_path / "all", tiny_model, data, "--groups.train_backbone", "--adam.lr", "1e-3")
    found = weights(tmp_path / "all")
    assert sum(not torch.equal(base[name], found[name]) for name in base if name in found) > 15
