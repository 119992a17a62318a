"""The launcher's command line: what it refuses, in one sentence, before anything heavy is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, run_python

from orlhf_ext.backends import machine
from orlhf_ext.extensions.releases import OPENRLHF_VERSION

pytest.importorskip("openrlhf")

MINE = """
from orlhf_ext.backends import machine
from orlhf_ext.extensions import Extension

class Mine(Extension):
    name, launchers = "mine", ("train_dpo",)
    replacements = {"openrlhf.trainer.dpo_trainer:DPOTrainer": "my_ext:Trainer"}

class Wrong(Mine):
    name = "wrong"
    def add_flags(self, parser):
        parser.add_argument("--exo.loss_type")

class NotOne: ...
"""


def launch(*argv: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the launcher in a fresh process."""
    return subprocess.run(
        [sys.executable, "-m", "orlhf_ext.launch", *argv],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["train_dop"], "unknown launcher 'train_dop'; did you mean 'train_dpo'?"),
        (["train_dpo", "--ext.use", "exoo"], "'exoo' is none of the extensions"),
        (["train_dpo", "--ext.use", "exoo"], "did you mean 'exo'?"),
        (["train_dpo", "--ext.use", "exo", "--ext.use", "exo"], "--ext.use exo is given twice"),
        (["train_sft", "--ext.use", "exo"], "works with train_dpo, not with train_sft"),
        (["train_dpo", "--exo.loss_type", "exo-rw"], "add --ext.use exo"),
        (["train_dpo", "--ext.use", "exo", "--exo.los_type", "exo-rw"], "did you mean '--exo.loss_type'?"),
        (["train_dpo", "--ext.usee", "exo"], "did you mean '--ext.use'?"),
        (["train_dpo", "--ext.use", "no.such.module:X"], "there is no module 'no'"),
        (["train_dpo", "--ext.use", "my_ext:Absent"], "has no 'Absent'; known: Extension, Mine, NotOne, Wrong"),
        (["train_dpo", "--ext.use", "my_ext:NotOne"], "is not a subclass of orlhf_ext.extensions.Extension"),
        (["train_dpo", "--ext.use", "my_ext:Wrong"], "its flags begin with --wrong."),
        (["train_dpo", "--ext.use", "exo", "--ext.use", "my_ext:Mine"], "both replace openrlhf.trainer.dpo_trainer"),
    ],
)
def test_one_sentence(argv: list[str], said: str, tmp_path: Path) -> None:
    (tmp_path / "my_ext.py").write_text(MINE)
    done = launch(*argv, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) == 1


@pytest.mark.launcher
def test_another_openrlhf_is_compared_first(tmp_path: Path) -> None:
    """Where its seams hold one line says that nobody tried it; where one does not the run is refused."""
    other = tmp_path / "openrlhf-0.12.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: openrlhf\nVersion: 0.12.0\n")
    done = launch("train_dpo", "--help", PYTHONPATH=f"{ROOT}:{tmp_path}", cwd=tmp_path)
    assert done.returncode == 0 and "OpenRLHF 0.12.0 was not tested" in done.stdout
    (tmp_path / "openrlhf" / "utils").mkdir(parents=True)
    for name in ("__init__", "utils/__init__", "utils/config"):
        (tmp_path / "openrlhf" / f"{name}.py").touch()
    done = launch("train_dpo", PYTHONPATH=f"{ROOT}:{tmp_path}", cwd=tmp_path)
    assert done.returncode == 2 and "OpenRLHF 0.12.0: openrlhf." in done.stderr and "is missing" in done.stderr
    assert f"pip install openrlhf=={OPENRLHF_VERSION}" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"--model.model_name_or_path": "./nowhere"}, "./nowhere is not a folder"),
        ({"--model.model_name_or_path": "."}, "config.json is missing"),
        ({"--model.model_name_or_path": "./bare"}, "has no weights"),
        ({"--data.dataset": "gone.jsonl"}, "gone.jsonl does not exist"),
        ({"--data.dataset": "bad.jsonl"}, "bad.jsonl line 2 is not JSON"),
        ({"--data.dataset": "empty.jsonl"}, "empty.jsonl has no record"),
        ({"--train.batch_size": "64"}, "has 2 records, fewer than --train.batch_size 64"),
        ({"--deadend.gamma": "1", "--train.batch_size": "64"}, "has 2 records, fewer than --train.batch_size 64"),
        ({"--train.micro_batch_size": "3"}, "--train.batch_size 2 is not a multiple of --train.micro_batch_size 3"),
        ({"--ds.packing_samples": None}, "needs flash-attn"),
    ],
)
def test_preflight(change: dict[str, str | None], said: str, tmp_path: Path, tiny_model: Path) -> None:
    """`check_arguments` on the launcher's own namespace, in process: an import of a launcher takes ten seconds."""
    from openrlhf.utils.config import hierarchize

    from orlhf_ext.backends import machine
    from orlhf_ext.cli.errors import UserError
    from orlhf_ext.launch.preflight import check_arguments

    if "--ds.packing_samples" in change and machine.flash_attn_present():
        pytest.skip("flash-attn is installed")
    (tmp_path / "good.jsonl").write_text('{"chosen": "a", "rejected": "b"}\n' * 2)
    (tmp_path / "bad.jsonl").write_text('{"chosen": "a", "rejected": "b"}\n{oops\n')
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text("{}")
    from argparse import Namespace

    flags: dict[str, object] = {
        "model.model_name_or_path": str(tiny_model),
        "ref.model_name_or_path": str(tiny_model),
        "data.dataset": "good.jsonl",
        "data.max_samples": 1000,
        "eval.dataset": None,
        "train.batch_size": 2,
        "train.micro_batch_size": 1,
        "ds.ring_attn_size": 1,
        "ds.tensor_parallel_size": 1,
        "ds.packing_samples": False,
    }
    for flag, value in change.items():
        flags[flag[2:]] = True if value is None else int(value) if value.isdigit() else value
    old = os.getcwd()
    os.chdir(tmp_path)
    try:
        with pytest.raises(UserError) as told:
            launcher = "train_sft" if "--deadend.gamma" in change else "train_dpo"
            check_arguments(launcher, hierarchize(Namespace(**flags)))
    finally:
        os.chdir(old)
    assert said in str(told.value)


@pytest.mark.launcher
def test_a_launch_switches_on_what_its_rewards_need() -> None:
    """The swaps that would travel to Ray's workers; only the run itself is left out."""
    code = (
        "import os, sys; from orlhf_ext.launch import launcher\n"
        "launcher.runpy.run_module = lambda *_, **__: print('swaps', os.environ['ORLHF_EXT_SWAPS'])\n"
        "launcher.main(sys.argv[1:])\n"
    )
    words = [
        "-c",
        code,
        "train_ppo_ray",
        "--ext.reward",
        "groups",
        "--groups.kind",
        "gold",
        "--groups.config",
        "g.yaml",
    ]
    words += ["--groups.traits", "short=conciseness"]
    for aggregate, on in (("batch-min", True), ("min", False)):
        done = run_python(*words, "--groups.aggregate", aggregate)
        assert done.returncode == 0, done.stderr
        assert ("orlhf_ext.groups.experience:WorstGroup" in done.stdout.partition("swaps ")[2]) is on


@pytest.mark.launcher
@pytest.mark.skipif(machine.flash_attn_present(), reason="flash-attn is installed")
def test_dynamic_batches_need_flash_attn(tmp_path: Path, tiny_model: Path) -> None:
    words = ("--actor.model_name_or_path", str(tiny_model), "--train.dynamic_batch_enable")
    done = launch("train_ppo_ray", *words, cwd=tmp_path)
    assert done.returncode == 2 and "--train.dynamic_batch_enable packs samples, so it needs flash-attn" in done.stderr
