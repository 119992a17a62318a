"""Real launchers on a tiny model: stock runs stay stock, a user's extension runs, torchrun and deepspeed work."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, free_port, scalars

pytest.importorskip("openrlhf")
pytestmark = pytest.mark.launcher

NULL_EXTENSION = """
from orlhf_ext.extensions import Extension

class Null(Extension):
    \"\"\"Subclasses that change nothing.\"\"\"
    name, launchers = "null", ("train_dpo",)
    replacements = {
        "openrlhf.trainer.dpo_trainer:DPOTrainer": "null_classes:NullTrainer",
        "openrlhf.datasets.reward_dataset:RewardDataset": "null_classes:NullDataset",
    }
    def add_flags(self, parser):
        parser.add_argument("--null.word", default="none")
"""
NULL_CLASSES = """
from openrlhf.datasets.reward_dataset import RewardDataset
from openrlhf.trainer.dpo_trainer import DPOTrainer

class NullDataset(RewardDataset): ...

class NullTrainer(DPOTrainer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        print("the word is", self.strategy.args.null.word, type(self.train_dataloader.dataset).__name__)
"""


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty-two pairs for the tiny model."""
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    with path.open("w") as stream:
        for i in range(32):
            row = {
                "prompt": f"\n\nHuman: {i} and {i + 1}?\n\nAssistant:",
                "chosen": f" {2 * i + 1}.",
                "rejected": " no",
            }
            stream.write(json.dumps(row) + "\n")
    return path


def flags(launcher: str, model: Path, pairs: Path, out: Path) -> list[str]:
    """The launcher's flags for two optimizer steps on the tiny model."""
    given = {
        "--model.model_name_or_path": model,
        "--data.dataset": pairs,
        "--data.max_len": 64,
        "--train.batch_size": 16,
        "--train.micro_batch_size": 4,
        "--adam.lr": 1e-3,
        "--ckpt.output_dir": out / "model",
        "--ckpt.path": out / "checkpoints",
        "--logger.tensorboard_dir": out / "tb",
        "--logger.wandb.run_name": "run",
        "--ds.attn_implementation": "sdpa",
    }
    if launcher == "train_sft":
        given |= {"--data.input_key": "prompt", "--data.output_key": "chosen"}
    else:
        given |= {"--data.prompt_key": "prompt"}
    if launcher == "train_rm":
        given |= {"--eval.dataset": pairs}
    if launcher == "train_dpo":
        given |= {"--ref.model_name_or_path": model}
    return [str(word) for pair in given.items() for word in pair]


def run(argv: list[str], cwd: Path, **env: str) -> str:
    """Run a command with the project importable; returns its output, fails with it."""
    done = subprocess.run(
        argv,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    return done.stdout


def weights(model: Path) -> dict[str, object]:
    """All tensors of a model folder, as bytes."""
    import torch
    from safetensors.torch import load_file

    tensors = load_file(model / "model.safetensors")
    return {name: tensor.contiguous().view(torch.uint8).numpy().tobytes() for name, tensor in tensors.items()}


@pytest.mark.parametrize("launcher", ["train_dpo", "train_rm", "train_sft"])
def test_without_extension_a_run_is_stock(launcher: str, tmp_path: Path, tiny_model: Path, pairs: Path) -> None:
    """Losses and weights equal, bit for bit, those of the backend alone; so do those of a null extension. The model has
    dropout."""
    model = tmp_path / "tiny"
    shutil.copytree(tiny_model, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.2}))
    (tmp_path / "null_ext.py").write_text(NULL_EXTENSION)
    (tmp_path / "null_classes.py").write_text(NULL_CLASSES)
    every = {out: flags(launcher, model, pairs, tmp_path / out) for out in ("alone", "launched")}
    runs = {
        "alone": [str(ROOT / "tests/bench/backend_alone.py"), f"openrlhf.cli.{launcher}", *every["alone"]],
        "launched": ["-m", "orlhf_ext.launch", launcher, *every["launched"]],
    }
    if launcher == "train_dpo":  # with the flags that the run before wrote down
        out = tmp_path / "null"
        given = ["--config", "launched/model.config.yaml", "--ext.use", "null_ext:Null", "--null.word", "x"]
        given += ["--ckpt.output_dir", str(out / "model"), "--logger.tensorboard_dir", str(out / "tb")]
        runs["null"] = ["-m", "orlhf_ext", launcher, *given]
    output = {}
    for name, argv in runs.items():
        output[name] = run([sys.executable, *argv], tmp_path)
    logged = scalars(tmp_path / "alone")
    assert len(logged["train/loss_mean"]) >= 2 and logged["train/grad_norm"][-1] > 0
    untrained = weights(tiny_model)
    for name in runs:
        assert scalars(tmp_path / name) == logged
        assert weights(tmp_path / name / "model") == weights(tmp_path / "alone" / "model")
        assert weights(tmp_path / name / "model") != untrained
    if launcher == "train_dpo":
        assert "the word is x NullDataset" in output["null"]
        assert output["null"].count("is now null_classes:") == 2
        assert "is now" not in output["launched"]


@pytest.mark.slow
def test_two_processes_with_torchrun_and_deepspeed(tmp_path: Path, tiny_model: Path, pairs: Path) -> None:
    """Data-parallel over gloo; both starters give the same weights; deepspeed puts --local_rank before our words."""
    bin_folder = Path(sys.executable).parent
    path = f"{bin_folder}:{os.environ['PATH']}"
    torchrun = [str(bin_folder / "torchrun"), "--nproc_per_node", "2", "--master_port", free_port(), "-m"]
    deepspeed = [str(bin_folder / "deepspeed"), "--num_gpus", "2", "--master_port", free_port(), "--module"]
    for name, starter in (("torchrun", torchrun), ("deepspeed", deepspeed)):
        out = tmp_path / name
        argv = [*starter, "orlhf_ext.launch", "train_dpo", *flags("train_dpo", tiny_model, pairs, out)]
        run(argv, tmp_path, PATH=path, DS_ACCELERATOR="cpu")
    assert weights(tmp_path / "torchrun" / "model") == weights(tmp_path / "deepspeed" / "model")
    assert weights(tmp_path / "torchrun" / "model") != weights(tiny_model)


def test_help_shows_both_sets_of_flags(tmp_path: Path) -> None:
    output = run([sys.executable, "-m", "orlhf_ext.launch", "train_dpo", "--ext.use", "exo", "--help"], tmp_path)
    assert "--exo.num_contrastive" in output and "--model.ipo_enable" in output
