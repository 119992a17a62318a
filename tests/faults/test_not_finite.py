"""A training whose loss is not finite stops at once, and saves nothing under the model's name."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import write

torch = pytest.importorskip("torch")
pytest.importorskip("openrlhf")
from safetensors.torch import load_file, save_file  # noqa: E402

PAIRS = [
    {"prompt": f"say {i} ", "chosen": f"ok {i}", "rejected": f"no {i}", "input": "a", "output": "b"} for i in range(120)
]


@pytest.fixture(scope="module")
def broken(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with NaN among its weights, which headers do not show."""
    folder = tmp_path_factory.mktemp("models") / "broken"
    shutil.copytree(tiny_model, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.launcher
@pytest.mark.parametrize("launcher", ["train_sft", "train_rm", "train_dpo"])
def test_training(fault: Any, broken: Path, tmp_path: Path, launcher: str) -> None:
    keys = ("--data.input_key", "input", "--data.output_key", "output") if launcher == "train_sft" else ()
    command = [sys.executable, "-m", "orlhf_ext.launch", launcher, "--model.model_name_or_path", broken, *keys]
    command += ["--data.dataset", write(tmp_path / "data.jsonl", PAIRS), "--data.max_len", 64]
    command += ["--train.batch_size", 4, "--train.micro_batch_size", 2, "--ckpt.output_dir", tmp_path / "model"]
    command += ["--ckpt.path", tmp_path / "ckpt", "--ckpt.save_steps", 1]
    says = r"error: the loss is nan in step 1, so that training stops and saves nothing more"
    fault.run(command, says, timeout=300, HF_DATASETS_CACHE=str(tmp_path / ".datasets"))


class _Engine(torch.nn.Linear):
    """What the checks read of DeepSpeed's engine."""

    global_steps = 6

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.optimizer = SimpleNamespace(overflow=False)
        self.done: list[str] = []

    def backward(self, loss: Any) -> None:
        self.done.append("backward")

    def step(self) -> None:
        self.done.append("step")


@pytest.fixture
def strategy() -> Any:
    """OpenRLHF's strategy with the checks, and nothing set up."""
    from orlhf_ext import backends, openrlhf_fixes

    backends.install()
    openrlhf_fixes.install()
    from openrlhf.utils.deepspeed import DeepspeedStrategy

    made = DeepspeedStrategy.__new__(DeepspeedStrategy)
    made.param_dtype = "bf16"
    return made


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_loss(fault: Any, strategy: Any, value: str) -> None:
    engine = _Engine()
    strategy.backward(torch.tensor(1.5), engine, None)
    says = rf"^the loss is {value} in step 7, so that training stops"
    fault.call(strategy.backward, torch.tensor(float(value)), engine, None, says=says)
    assert engine.done == ["backward"]


def test_gradients(fault: Any, strategy: Any) -> None:
    """DeepSpeed leaves such a step out without a word."""
    engine = _Engine()
    strategy.optimizer_step(None, engine, None)
    engine.optimizer.overflow = True
    fault.call(strategy.optimizer_step, None, engine, None, says="^gradients have NaN or infinite numbers in step 7")
    strategy.param_dtype = "fp16"  # another scale of the loss is tried
    strategy.optimizer_step(None, engine, None)


@pytest.mark.parametrize("save", ["save_model", "save_ckpt"])
def test_weights(fault: Any, strategy: Any, tmp_path: Path, save: str) -> None:
    engine = _Engine()
    engine.weight.data[0, 1] = torch.inf
    words = (engine, None, str(tmp_path / "out")) if save == "save_model" else (engine, str(tmp_path / "out"))
    fault.call(getattr(strategy, save), *words, says="^weight has NaN or infinite numbers, so that the model is not")


def test_classifier(fault: Any, broken: Path, tmp_path: Path) -> None:
    rows = [{"text": f"text {i}", "label": i % 2} for i in range(8)]
    words = ("--train_file", write(tmp_path / "train.jsonl", rows), "--output_dir", tmp_path / "out")
    fault("deadend.classifier", "--model_name_or_path", broken, *words, says="has NaN in .*up_proj.weight")


def test_classifier_that_diverges(fault: Any, tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"text": f"text {i}", "label": i % 2} for i in range(16)]
    words = ("--train_file", write(tmp_path / "train.jsonl", rows), "--output_dir", tmp_path / "out")
    more = ("--learning_rate", "1e38", "--per_device_train_batch_size", 2, "--lr_scheduler_type", "constant")
    fault(
        "deadend.classifier", "--model_name_or_path", tiny_model, *words, *more, says="the loss is nan after .* nothing"
    )


def test_groups_of_annotators(fault: Any, tmp_path: Path) -> None:
    from orlhf_ext.groups.em import EM
    from orlhf_ext.models.head_settings import HeadSettings

    settings = HeadSettings(["a", "b"], "independent", None, "identity")
    hidden = 1e4 * torch.randn(12, 2, 4, generator=torch.Generator().manual_seed(0))
    em = EM(settings, rounds=2, epochs=2, lr=1e37, batch_size=4)
    fault.call(em.best, hidden, torch.arange(12) % 4, 0, 1, says="the loss of the heads is (nan|inf), so that nothing")
