"""Checkpoints that a training cannot go on from."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orlhf_ext import openrlhf_fixes
from orlhf_ext.openrlhf_fixes import resuming

pytest.importorskip("openrlhf")

MODEL, OPTIMIZER = "mp_rank_00_model_states.pt", "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"
UNREADABLE = (
    r"^the newest checkpoint in .*/ckpt cannot be used \(.+\); write the name of an older one into .*/ckpt/latest"
)


def prepared(strategy: Any, folder: Path) -> Any:
    """DeepSpeed's engine of a model."""
    from transformers import AutoModelForCausalLM

    adam = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.0}
    cfg = {"optim": "adam", "adam": adam, "scheduler_steps": 4}
    return strategy.prepare((AutoModelForCausalLM.from_pretrained(folder, dtype="bfloat16"), cfg))[0]


@pytest.fixture(scope="module")
def engine(strategy: Any, tiny_model: Path) -> Any:
    openrlhf_fixes.install()
    return prepared(strategy, tiny_model)


@pytest.fixture(scope="module")
def saved(strategy: Any, engine: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, which a run could go on from."""
    folder = tmp_path_factory.mktemp("checkpoints") / "ckpt"
    strategy.save_ckpt(engine, str(folder), "global_step1", 3, 1000, {"consumed_samples": 4})
    path, states = strategy.load_ckpt(engine, str(folder))
    assert path is not None and states["consumed_samples"] == 4
    assert not any(name.startswith("orlhf_ext") for name in states)
    return folder


DAMAGE: dict[str, Callable[[Path], object]] = {
    f"{name} {how}": (lambda folder, name=name, change=change: change(folder / "global_step1" / name))  # type: ignore[misc]
    for name in (MODEL, OPTIMIZER)
    for how, change in {
        "missing": Path.unlink,
        "empty": lambda path: path.write_bytes(b""),
        "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        "text": lambda path: path.write_text("no weights"),
    }.items()
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged(
    fault: Any, damage: Callable[[Path], object], strategy: Any, engine: Any, saved: Path, tmp_path: Path
) -> None:
    shutil.copytree(saved, tmp_path / "ckpt")
    damage(tmp_path / "ckpt")
    fault.call(strategy.load_ckpt, engine, str(tmp_path / "ckpt"), says=UNREADABLE)


def test_of_another_model(fault: Any, strategy: Any, saved: Path, tmp_path: Path) -> None:
    from orlhf_ext.models.small_models import make_tiny

    other = prepared(strategy, make_tiny(tmp_path / "other", positions=64))
    other.module.resize_token_embeddings(300)
    fault.call(strategy.load_ckpt, other, str(saved), says=UNREADABLE)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (
            {"train_batch_size": 8},
            r"is of another run \(--train.batch_size: 1 there, 8 here\), and this one would skip or",
        ),
        ({"seed": 7}, r"\(--train.seed: 42 there, 7 here\), .* give another --ckpt.path"),
    ],
    ids=["batch", "seed"],
)
def test_of_another_run(
    fault: Any, changed: dict[str, int], says: str, strategy: Any, engine: Any, saved: Path, monkeypatch: Any
) -> None:
    for name, value in changed.items():
        monkeypatch.setattr(strategy, name, value)
    fault.call(strategy.load_ckpt, engine, str(saved), says=says)


@pytest.mark.parametrize(
    ("there", "here", "says"),
    [
        ({"records": 10}, {"records": 12}, r"^the checkpoint in ckpt is of another run \(records: 10 there, 12 here\)"),
        ({"prompts": 10}, {"prompts": 9}, r"\(prompts: 10 there, 9 here\)"),
        ({"--train.seed": 1, "records": 3}, {"--train.seed": 1, "records": 4}, r"\(records: 3 there, 4 here\)"),
    ],
)
def test_of_other_data(fault: Any, there: dict[str, int], here: dict[str, int], says: str) -> None:
    fault.call(resuming.check_run, there, here, "ckpt", says=says)
    resuming.check_run(there, there, "ckpt")
    resuming.check_run(there, {}, "ckpt")  # what a run does not know it does not compare
    resuming.check_run({}, here, "ckpt")
