"""Q_D's memory beside vLLM's: the bound holds for what the stepper really keeps."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from deadend_q import make_q
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from orlhf_ext.cli.errors import UserError
from orlhf_ext.deadend import sampling
from orlhf_ext.deadend.decoding import rectify_counted
from orlhf_ext.deadend.memory import SEQUENCES, leave_room, needed_bytes, q_bytes, say_room
from orlhf_ext.deadend.model import load_q_model
from orlhf_ext.deadend.stepper import QStepper

GIB = 2**30


class Live(TorchDispatchMode):
    """Bytes of all tensors that operators made and that are still there."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if key not in self._known:
                    self._known.add(key)
                    self.now += size
                    weakref.finalize(storage, self._gone, key, size)
        self.most = max(self.most, self.now)
        return out


@pytest.fixture(scope="module")
def folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_q(tmp_path_factory.mktemp("q") / "q", tiny_model)


@pytest.mark.parametrize(("rows", "length"), [(4, 60), (32, 40), (16, 200)])
@pytest.mark.parametrize("passes", [2, None])
def test_the_bound_holds_for_real_decoding(folder: Path, rows: int, length: int, passes: int | None) -> None:
    """Prompts, steps, sequences that end and come, and caps."""
    model = load_q_model(folder)
    weights = sum(weight.nbytes for weight in model.parameters())
    bound = needed_bytes(folder, rows, length, "float32")
    stepper = QStepper(model)
    texts = [[(7 * i + j) % 90 + 3 for j in range(length - 6)] for i in range(rows)]
    with Live() as live, torch.inference_mode():
        for step in range(6):
            values = stepper.values(texts)
            logits = torch.randn(values.shape)
            rectify_counted(logits, values, torch.full((rows,), 0.3), passes, 1e-7, "fallback", 50)
            texts = [[*ids, step + 3] for ids in texts]
            if step == 2:
                texts[0] = texts[0][: length // 2]  # one has ended, another one has come
    assert weights + live.most <= bound
    assert weights + live.most > 2 * rows * length * 32 * 2 * 4  # what is measured has the keys and values in it


def test_the_bound_grows_with_all_that_it_depends_on(folder: Path) -> None:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    base = q_bytes(config, 1000, 8, 50, 4)
    for more in ((2000, 8, 50, 4), (1000, 9, 50, 4), (1000, 8, 51, 4)):
        assert q_bytes(config, *more) > base
    assert q_bytes(config, 1000, 8, 50, 2) < base
    gpt2 = AutoConfig.for_model("gpt2")
    assert 5 * GIB < q_bytes(gpt2, 163_000_000, 1024, 40, 4) < 20 * GIB  # as vLLM's own bound of sequences allows


def test_vllm_gets_what_is_left() -> None:
    assert leave_room(0.8, 4 * GIB, 80 * GIB) == 0.8  # there is room beside it
    assert leave_room(0.8, 20 * GIB, 80 * GIB) == pytest.approx(0.73)
    with pytest.raises(UserError, match=r"takes up to 75.0 GiB of the GPU's 80.0.*give --q_dtype bfloat16"):
        leave_room(0.8, 75 * GIB, 80 * GIB)
    assert say_room(0.8, 0.73, 20 * GIB, 80 * GIB, 256).endswith("so that vLLM gets 0.73 of it instead of 0.8")


def test_decode_bounds_and_says_it(
    folder: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """What vLLM is started with on a GPU."""
    from orlhf_ext.deadend import decode_prompts

    class Started(Exception):
        pass

    def load(*args: Any, **settings: Any) -> None:
        raise Started(settings)

    monkeypatch.setattr(sampling, "device_memory", lambda: GIB)
    monkeypatch.setattr(sampling, "load_vllm", load)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "hello"}\n' * 2)
    words = f"--model_name_or_path {tiny_model} --q_model_name_or_path {folder} --gpu_memory_utilization 0.97"
    words += f" --data_file {tmp_path}/prompts.jsonl --save_file {tmp_path}/out.jsonl --num_returns 200"
    with pytest.raises(Started) as started:
        decode_prompts.main(words.split())
    (settings,) = started.value.args
    assert settings["more"]["max_num_seqs"] == SEQUENCES
    assert settings["gpu_memory_utilization"] < 0.97
    assert "for 256 sequences at a time, so that vLLM gets 0.9" in capsys.readouterr().out
