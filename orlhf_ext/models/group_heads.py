"""Heads that give one score for each group.

Both have a tensor named ``weight`` with U rows: OpenRLHF's own loader, which knows one score only, then stops at the
shape instead of making a head at random.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .head_settings import HeadSettings

STD = 0.02  # GPT-2's, which SharedRep's authors start from


class IndependentHead(nn.Module):
    """``r = W h``: a linear score for each group (MaxMin), computed in float32.

    Args:
        d: width of the hidden states.
        groups: U.
    """

    def __init__(self, d: int, groups: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(groups, d))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """``(B, d)`` to ``(B, U)``."""
        return F.linear(_exact(hidden), _exact(self.weight))


class Projection(nn.Module):
    """``z = W1 h + b1``, the layer that groups share."""

    def __init__(self, d: int, k: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(k, d))
        self.bias = nn.Parameter(torch.empty(k))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """``(B, d)`` to ``(B, k)``."""
        return F.linear(_exact(hidden), _exact(self.weight), _exact(self.bias))


class SharedHead(nn.Module):
    """``r = W2 (W1 h + b1)``: a layer of k features that all groups share, and a linear read-out for each (SharedRep).

    No activation, no constraint. With k >= U it spans what independent heads with a bias span; only the way there
    differs.

    Args:
        d: width of the hidden states.
        k: width of the shared layer.
        groups: U.
    """

    def __init__(self, d: int, k: int, groups: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(groups, k))
        self.proj = Projection(d, k)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """``(B, d)`` to ``(B, U)``."""
        return F.linear(self.proj(hidden), _exact(self.weight))


def _exact(tensor: torch.Tensor) -> torch.Tensor:
    """bf16 scores near 1 come in steps of 1/128; a head is small enough for float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def make_head(d: int, settings: HeadSettings) -> nn.Module:
    """The head that a reward model's settings ask for; its weights are not set yet."""
    if settings.head == "independent":
        return IndependentHead(d, settings.num_groups)
    assert settings.k is not None  # checked by `HeadSettings`
    return SharedHead(d, settings.k, settings.num_groups)


@torch.no_grad()
def initialise(head: nn.Module, generator: torch.Generator | None = None) -> None:
    """Weights from N(0, 0.02^2), biases 0."""
    for name, parameter in head.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
        else:
            parameter.copy_(torch.empty(parameter.shape).normal_(0.0, STD, generator=generator))
