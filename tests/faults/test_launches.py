"""Faults in the user's own parts of a real launch, each in a process of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import write

pytest.importorskip("openrlhf", reason="no OpenRLHF (the tests of Python 3.12 run without)", exc_type=ImportError)
pytestmark = pytest.mark.launcher

EXTENSION = """
from orlhf_ext.extensions import Extension

class It(Extension):
    name = "it"
    launchers = ("train_dpo",)
    replacements = {"openrlhf.trainer.dpo_trainer:DPOTrainer": "my_trainer:Trainer"}

    def check(self, args):
        pass  # check
"""
TRAINER = """
pass  # import
from openrlhf.trainer.dpo_trainer import DPOTrainer

class Trainer(DPOTrainer):
    def fit(self, *words, **named):
        pass  # fit
        super().fit(*words, **named)

    def save_logs_and_checkpoints(self, args, step, *words):
        super().save_logs_and_checkpoints(args, step, *words)
        pass  # step
"""
EXIT = "import sys; sys.exit(0)"
INTERRUPT = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"


@pytest.fixture
def command(tmp_path: Path, tiny_model: Path) -> Callable[..., list[object]]:
    """A training of four records, in which one line is the fault."""

    def make(place: str, line: str, *flags: object) -> list[object]:
        for name, text in (("my_extension", EXTENSION), ("my_trainer", TRAINER)):
            (tmp_path / f"{name}.py").write_text(text.replace(f"pass  # {place}\n", f"{line}\n"))
        rows = [{"prompt": f"say {i}", "chosen": "yes", "rejected": "no"} for i in range(4)]
        data = write(tmp_path / "d.jsonl", rows)
        words: list[object] = [sys.executable, "-m", "orlhf_ext.launch", "train_dpo", "--ext.use", "my_extension:It"]
        words += ["--model.model_name_or_path", tiny_model, "--ref.model_name_or_path", tiny_model, "--data.dataset"]
        words += [data, "--data.max_len", 64, "--train.batch_size", 2, "--train.micro_batch_size", 2]
        return [*words, "--ckpt.output_dir", "out", "--ckpt.path", "ckpt", *flags]

    return make


@pytest.mark.parametrize(
    ("place", "line", "says"),
    [
        (
            "check",
            EXIT,
            r"error: extension 'it' cannot check the run: SystemExit: sys.exit\(0\) \(my_extension.py line",
        ),
        ("check", "1 / 0", r"cannot check the run: ZeroDivisionError: division by zero \(my_extension.py line 10\)"),
        (
            "import",
            EXIT,
            r"Trainer' cannot be imported: SystemExit: sys.exit\(0\) \(my_trainer.py line 2\)",
        ),
        ("import", "def (", r"cannot be imported: SyntaxError: invalid syntax \(my_trainer.py line 2\)"),
        ("fit", EXIT, r"train_dpo was ended before its time by SystemExit: sys.exit\(0\) \(my_trainer.py line 7\)"),
    ],
)
def test_what_ends_a_launch(fault, command: Callable, place: str, line: str, says: str) -> None:
    fault.run(
        command(place, line),
        says=f"{says}.*\n?$",
        makes=("*.pyc", "*.arrow", "*.json", "*.lock"),
        timeout=400,
    )


def test_ctrl_c_before_a_checkpoint(fault, command: Callable) -> None:
    says = r"\norlhf-ext: interrupted; no checkpoint was saved yet \(--ckpt.save_steps\)\n"
    fault.run(command("fit", INTERRUPT), says=says, rc=130, makes=("*.pyc",), timeout=400)


def test_ctrl_c_after_a_checkpoint(fault, command: Callable, tmp_path: Path) -> None:
    says = r"orlhf-ext: interrupted; the checkpoints in ckpt are kept: add --ckpt.load_enable to go on from the last"
    words = command("step", INTERRUPT, "--ckpt.save_steps", 1)
    made = ("*.pyc", "*.pt", "latest", "zero_to_fp32.py", "*.json")
    fault.run(words, says=says, rc=130, timeout=400, makes=made)
    assert (tmp_path / "ckpt" / "global_step1").is_dir() and not list((tmp_path / "out").iterdir())


def test_a_key_of_wandb(fault, command: Callable) -> None:
    words = command("nowhere", "", "--logger.wandb.key", "0123456789")
    assert "0123456789" not in fault.run(words, says="--logger.wandb.key takes no key", makes=("*.pyc",), timeout=400)
