"""The loss of Q_D: SARSA with a lagging target (Cao et al., ICLR 2023). Pure torch.

A text of n tokens takes K = n - 1 actions: at step t the prefix is its first t + 1 tokens, and the action is the next
one. Prompts count like continuations.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

NORMS = ("tokens", "actions")


def action_mask(lengths: torch.Tensor, steps: int) -> torch.Tensor:
    """Which of ``steps`` places have an action, ``(B, steps)``; lengths ``(B,)`` are in tokens."""
    return torch.arange(steps, device=lengths.device) < lengths[:, None] - 1


@torch.no_grad()
def sarsa_targets(
    target_q: torch.Tensor,
    rewards: torch.Tensor,
    lengths: torch.Tensor,
    gamma: float = 1.0,
    q_min: float = -1.0,
    q_max: float = 0.0,
) -> torch.Tensor:
    """``y_t = gamma Q'(s_{t+1}, a_{t+1})`` of the text's own next action, and the reward at its last one; clipped.

    The reward is neither discounted nor added to a value of what would follow: nothing does.

    Args:
        target_q: ``(B, T-1)``, values that the target head gives to the actions taken.
        rewards: ``(B,)``, 0 or -1, of whole texts.
        lengths: ``(B,)``, tokens of each text, without padding.
        gamma: discount of a step.
        q_min: least target.
        q_max: greatest target.

    Returns:
        ``(B, T-1)``, without gradient, in at least float32; 0 where there is no action.
    """
    values = target_q if target_q.dtype == torch.float64 else target_q.float()
    taken = action_mask(lengths, values.shape[1])
    targets = torch.zeros_like(values)
    targets[:, :-1] = gamma * values[:, 1:]
    last = taken & ~action_mask(lengths - 1, values.shape[1])
    targets = rewards.to(values.dtype)[:, None].where(last, targets)
    return targets.clamp(q_min, q_max).where(taken, 0)


def sarsa_loss(
    q: torch.Tensor,
    targets: torch.Tensor,
    lengths: torch.Tensor,
    norm: str = "tokens",
    total: float | torch.Tensor | None = None,
) -> torch.Tensor:
    """``sum (Q(s_t, a_t) - y_t)^2`` over all actions, divided by the number of tokens or of actions.

    Args:
        q: ``(B, T-1)``, values that the online head gives to the actions taken.
        targets: ``(B, T-1)``, of `sarsa_targets`.
        lengths: ``(B,)``, tokens of each text.
        norm: ``tokens`` divides by ``sum n`` as the authors do, ``actions`` by ``sum (n - 1)``.
        total: what to divide by instead, where this is a part of a larger batch.

    Returns:
        a scalar, in at least float32.

    Raises:
        ValueError: ``norm`` is neither.
    """
    if norm not in NORMS:
        raise ValueError(f"norm is {norm!r}, not {' or '.join(NORMS)}")
    values = q if q.dtype == torch.float64 else q.float()
    errors = (values - targets).where(action_mask(lengths, q.shape[1]), 0)
    if total is None:
        total = max(1, int((lengths if norm == "tokens" else (lengths - 1).clamp(min=0)).sum()))
    return errors.square().sum() / total


@torch.no_grad()
def polyak_update(targets: Iterable[torch.Tensor], online: Iterable[torch.Tensor], alpha: float) -> None:
    """``target <- alpha online + (1 - alpha) target``, in place and in the targets' own dtype."""
    for target, parameter in zip(targets, online, strict=True):
        target.lerp_(parameter.to(target.dtype), alpha)
