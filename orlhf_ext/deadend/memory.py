"""GPU memory of a value function beside vLLM's, which does not measure it: an upper bound, and room for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..backends.resources import kv_bytes_per_token
from ..cli.errors import UserError
from .stepper import PREFILL_TOKENS, columns

#: sequences at a time, of our own engines: that many keep a GPU busy, and Q_D's keys and values small
SEQUENCES = 256
_WORK_BYTES = 96  # for a token of the vocabulary of each row: values, caps, and `rectify`'s copies in float64
_CUDA_SHARE = 0.02  # of a GPU, for CUDA's own
_MIN_VLLM_SHARE = 0.1  # of a GPU

_GIB = 2**30


def q_bytes(config: Any, weights: int, rows: int, length: int, element_bytes: int) -> int:
    """The most that Q_D takes while ``rows`` sequences of up to ``length`` tokens are decoded.

    Args:
        config: of its trunk (transformers').
        weights: parameters of the whole model.
        rows: sequences at a time.
        length: tokens of the longest.
        element_bytes: of a number of the trunk.
    """
    text = config.get_text_config()
    # Twice: where sequences come or go, rows are copied before the old ones are freed.
    cache = 2 * rows * columns(length) * kv_bytes_per_token(config, element_bytes)
    wide = 4 * text.hidden_size + (getattr(text, "intermediate_size", None) or 4 * text.hidden_size)
    prefill = max(PREFILL_TOKENS, length) * 2 * wide * element_bytes
    return weights * element_bytes + cache + prefill + rows * config.vocab_size * _WORK_BYTES


def needed_bytes(folder: Path, rows: int, length: int, dtype: str) -> int:
    """`q_bytes` of a folder's model, whose weights' sizes are read from the headers of its files."""
    from safetensors import safe_open
    from transformers import AutoConfig

    weights = 0
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - it is not a dictionary
                shape: Sequence[int] = tensors.get_slice(name).get_shape()
                count = 1
                for size in shape:
                    count *= size
                weights += count
    return q_bytes(AutoConfig.from_pretrained(folder), weights, rows, length, 4 if dtype == "float32" else 2)


def free_part(needed: int, total: int) -> float:
    """The part of a GPU that Q_D leaves; below 0 where it does not fit at all."""
    return 1 - _CUDA_SHARE - needed / total


def leave_room(asked: float, needed: int, total: int) -> float:
    """The part of a GPU that is left for vLLM, at most what was asked for.

    Args:
        asked: ``--gpu_memory_utilization``.
        needed: bytes of `q_bytes`.
        total: bytes of the GPU.

    Raises:
        UserError: that is too little for vLLM.
    """
    left = min(asked, free_part(needed, total))
    if left < _MIN_VLLM_SHARE:
        raise UserError(
            f"the value function takes up to {needed / _GIB:.1f} GiB of the GPU's {total / _GIB:.1f}, which leaves "
            "vLLM nothing to start with; give --q_dtype bfloat16, shorter texts, or a smaller value function"
        )
    return left


def say_room(asked: float, left: float, needed: int, total: int, rows: int) -> str:
    """One line about that."""
    lower = f", so that vLLM gets {left:.2f} of it instead of {asked:g}" if left < asked else ""
    return (
        f"Q_D takes up to {needed / _GIB:.1f} of the GPU's {total / _GIB:.1f} GiB beside vLLM, for {rows} sequences at "
        f"a time{lower}"
    )
