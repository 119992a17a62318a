"""From one reward for each group to one reward: pure functions of ``(B, U)`` tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..models.head_settings import HOW

if TYPE_CHECKING:
    import torch


def aggregate(
    rewards: torch.Tensor,
    how: str,
    tau: float = 1.0,
    weights: Sequence[float] | torch.Tensor | None = None,
    index: int | None = None,
) -> torch.Tensor:
    """One reward for each response.

    Args:
        rewards: ``(B, U)``, a reward for each response and group.
        how: ``min``, the least group's (as SharedRep's authors do it for each response); ``mean``; ``weighted``, the
            sum with ``weights``; ``softmin``, ``-tau * log mean exp(-r / tau)``; ``index``, that of one group.
        tau: temperature of ``softmin``: towards 0 it is ``min``, towards infinity ``mean``.
        weights: ``(U,)``, used as they are.
        index: 0 to U - 1.

    Returns:
        ``(B,)``

    Raises:
        ValueError: another ``how``, or an argument that it needs is missing or of a wrong shape or size.
    """
    if rewards.dim() != 2 or not rewards.shape[1]:
        raise ValueError(f"rewards have the shape {tuple(rewards.shape)}, not (B, U)")
    groups = rewards.shape[1]
    if how == "min":
        return rewards.amin(1)
    if how == "mean":
        return rewards.mean(1)
    if how == "weighted":
        if weights is None or len(weights) != groups:
            raise ValueError(f"weighted needs {groups} weights, one for each group")
        import torch

        return rewards @ torch.as_tensor(weights, dtype=rewards.dtype, device=rewards.device)
    if how == "softmin":
        if not tau > 0:
            raise ValueError(f"tau is {tau}, not more than 0")
        return -tau * ((-rewards / tau).logsumexp(1) - math.log(groups))
    if how == "index":
        if index is None or not 0 <= index < groups:
            raise ValueError(f"index is {index}, not 0 to {groups - 1}")
        return rewards[:, index]
    raise ValueError(f"how is {how!r}, none of {', '.join(HOW)}")


def standardise(rewards: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Each group's rewards less their mean, over their deviation: ``(B, U)`` in and out.

    A preference loss leaves the offset of a group's head open, and a minimum over groups depends on it.
    """
    import torch

    centre = torch.as_tensor(mean, dtype=rewards.dtype, device=rewards.device)
    return (rewards - centre) / torch.as_tensor(std, dtype=rewards.dtype, device=rewards.device)


def worst_group(rewards: torch.Tensor) -> tuple[torch.Tensor, int]:
    """The rewards ``(B,)`` of the group whose mean over the batch is the least, and its index.

    This is the objective of MaxMin-RLHF (Chakraborty et al., ICML 2024), a minimum over expectations; ``min`` of
    `aggregate` is one over responses.
    """
    index = int(rewards.mean(0).argmin())
    return rewards[:, index], index
