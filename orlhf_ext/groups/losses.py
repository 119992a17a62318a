"""The preference loss of reward models with one score for each group (SharedRep-RLHF, arXiv 2509.03672)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F


def group_pair_loss(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    squash: str = "tanh",
    margin: torch.Tensor | None = None,
    centering: float = 0.0,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """``-mean(w log sigmoid(f(chosen) - f(rejected) - margin)) + c mean((f(chosen) + f(rejected))^2)``, a scalar.

    Args:
        chosen: ``(B,)``, for each pair the score that its own group's head gives the chosen response.
        rejected: ``(B,)``, the same for the rejected one.
        squash: f: ``tanh`` (SharedRep) or ``identity`` (MaxMin). With tanh the loss lies between 0.127 and 2.127.
        margin: ``(B,)``, or none.
        centering: c, which pulls the scores of a pair towards a sum of 0.
        weights: ``(B,)``, see `balanced_weights`; none weighs each pair 1.

    Raises:
        ValueError: another squash, or a shape that differs.
    """
    losses = pair_losses(chosen, rejected, squash, margin)
    if weights is not None:
        _check_shape("weights", weights, chosen)
        losses = weights * losses
    loss = losses.mean()
    if centering:
        loss = loss + centering * (_squashed(chosen, squash) + _squashed(rejected, squash)).square().mean()
    return loss


def pair_losses(
    chosen: torch.Tensor, rejected: torch.Tensor, squash: str = "tanh", margin: torch.Tensor | None = None
) -> torch.Tensor:
    """`group_pair_loss` of each pair, ``(B,)``, without weights and centering; arguments and errors are the same."""
    _check_shape("rejected", rejected, chosen)
    gap = _squashed(chosen, squash) - _squashed(rejected, squash)
    if margin is not None:
        _check_shape("margin", margin, chosen)
        gap = gap - margin
    return -F.logsigmoid(gap)


def _squashed(scores: torch.Tensor, squash: str) -> torch.Tensor:
    if squash not in ("tanh", "identity"):
        raise ValueError(f"squash is {squash!r}, not tanh or identity")
    return scores.tanh() if squash == "tanh" else scores


def _check_shape(name: str, value: torch.Tensor, chosen: torch.Tensor) -> None:
    if value.shape != chosen.shape:
        raise ValueError(f"{name} has the shape {tuple(value.shape)}, chosen {tuple(chosen.shape)}")


def balanced_weights(groups: torch.Tensor, counts: Sequence[int] | torch.Tensor) -> torch.Tensor:
    """``N / (U N_g)`` for each pair: with them a mean over pairs is the mean of the groups' means.

    Args:
        groups: ``(B,)``, ids of groups.
        counts: ``(U,)``, the pairs N_g of each group, in the whole data set or in the batch.

    Returns:
        ``(B,)`` float32

    Raises:
        ValueError: a pair is of a group without any.
    """
    sizes = torch.as_tensor(counts, dtype=torch.float32, device=groups.device)
    if not (own := sizes[groups]).all():
        raise ValueError("a pair is of a group whose count is 0")
    return sizes.sum() / ((sizes > 0).sum() * own)
