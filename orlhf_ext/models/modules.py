"""What is inside of a model: transformers' own in its wrappers, and the positions that reach its output layer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


def unwrap(model: Any) -> Any:
    """The model of transformers inside of OpenRLHF's Actor, DeepSpeed's engine and peft's adapters."""
    while (engine := _in_engine(model)) is not None or not hasattr(model, "get_decoder"):
        model = engine if engine is not None else model.model
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def without_actor(model: Any) -> Any:
    """What takes transformers' words: the engine inside of OpenRLHF's Actor, or the model itself."""
    while _in_engine(model) is None and not hasattr(model, "get_decoder"):
        model = model.model
    return model


def _in_engine(model: Any) -> Any:
    import torch

    inner = getattr(model, "module", None)
    return inner if isinstance(inner, torch.nn.Module) else None


@contextlib.contextmanager
def scored_positions(head: nn.Module, positions: Tensor) -> Iterator[None]:
    """Meanwhile only some positions reach a model's output layer, which makes its largest tensors.

    A hook hands it those hidden states alone, so that whatever the model does to its logits afterwards (scaling, soft
    caps) stays its own. Logits are then ``(1, positions, vocabulary)``.

    Args:
        head: the output layer.
        positions: ``(rows, length)``, true where logits are needed.
    """
    hook = head.register_forward_pre_hook(lambda _, inputs: (inputs[0][positions][None], *inputs[1:]))
    try:
        yield
    finally:
        hook.remove()
