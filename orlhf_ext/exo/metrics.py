"""What is logged of groups of completions, offline and online alike."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F


class Column(NamedTuple):
    """A metric of many groups: its values, and which of them count."""

    values: torch.Tensor
    where: torch.Tensor


def group_metrics(ratios: torch.Tensor, labels: torch.Tensor, beta_pi: float) -> dict[str, Column]:
    """Metrics by name.

    ranking_acc: share of groups in which the best-labelled completion has the highest implicit reward ``beta_pi * h``.
    margin: its implicit reward minus the highest of the others'. log_ratio: ``h`` in nats a completion. entropy: that
    of ``p`` in nats. Groups whose labels are all equal have no best completion and count for neither ranking_acc nor
    margin.

    Args:
        ratios: ``(groups, K)``, ``h``: log pi - log pi_ref of whole completions, without a gradient.
        labels: ``(groups, K)``.
        beta_pi: multiplies ``h``.
    """
    implicit = beta_pi * ratios
    log_p = F.log_softmax(implicit, dim=-1)
    is_best = labels == labels.amax(-1, keepdim=True)
    decided = ~is_best.all(-1)
    margin = implicit.where(is_best, -torch.inf).amax(-1) - implicit.where(~is_best, -torch.inf).amax(-1)
    return {
        "ranking_acc": Column(margin > 0, decided),
        "margin": Column(margin, decided),
        "log_ratio": Column(ratios, torch.ones_like(ratios, dtype=torch.bool)),
        "entropy": Column(-(log_p.exp() * log_p).sum(-1), torch.ones_like(decided)),
    }
