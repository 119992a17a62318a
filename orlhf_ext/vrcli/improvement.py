"""From a response to its plan, from two likelihoods to an improvement, from that to a reward. Pure functions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, TypeVar, get_args

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

#: a float or a tensor of any shape; the result is of the same kind
Number = TypeVar("Number", float, "Tensor")

#: what introduces a plan, in the order of the authors' code
MARKERS = ("In summary:", "In summary,", "Detailed Plan:")
Kind = Literal["tiers", "positive", "binary", "nonpositive", "raw"]
KINDS = get_args(Kind)
THRESHOLDS = (0.05, 1.0, 2.0)
VALUES = (0.5, 0.9, 1.0)


def extract_plan(text: str, markers: Sequence[str] = MARKERS) -> str:
    """The plan of a response: what follows the last marker; without any, the whole response.

    One marker after the other is looked for (case matters), each in what the one before has left; white space around
    the plan goes.

    Raises:
        ValueError: a marker is empty.
    """
    if not all(markers):
        raise ValueError("an empty marker matches everywhere; leave it out")
    text = text.strip()
    for marker in markers:
        text = text.rpartition(marker)[2].strip()
    return text


def improvement(baseline_nll: Number, policy_nll: Number) -> Number:
    """By how many percent of the baseline's a plan lowers the gold text's perplexity.

    ``100 (ppl_base - ppl_plan) / ppl_base = -100 expm1(nll_plan - nll_base)``: at most 100, negative for a plan that
    makes the text less likely. The second form stays exact where the two are close.

    Args:
        baseline_nll: mean negative log-likelihood of a token of the gold text without a plan, in nats.
        policy_nll: the same with the plan; of the same shape.
    """
    change = policy_nll - baseline_nll
    return -100.0 * (float(np.expm1(change)) if isinstance(change, int | float) else change.expm1())


def map_reward(
    improvement: Number,
    kind: str = "tiers",
    thresholds: Sequence[float] = THRESHOLDS,
    values: Sequence[float] = VALUES,
    cap: float | None = None,
) -> Number:
    """The reward of an improvement in percent. NaN stays NaN.

    Args:
        improvement: of any shape.
        kind: ``tiers``: the value of the highest threshold that is reached, below the first 0; ``positive``:
            max(I, 0); ``binary``: 0 for I < 0, else 1; ``nonpositive``: min(I, 0); ``raw``: I.
        thresholds: of ``tiers``, in percent, rising.
        values: of ``tiers``, one for each threshold.
        cap: no reward is above it.

    Raises:
        ValueError: an unknown kind, or thresholds and values that do not fit.
    """
    import torch

    check_mapping(kind, thresholds, values)
    if not isinstance(improvement, torch.Tensor):
        return map_reward(torch.tensor(improvement, dtype=torch.float64), kind, thresholds, values, cap).item()
    given = improvement if improvement.is_floating_point() else improvement.float()
    if kind == "tiers":
        reward = torch.zeros_like(given)
        for threshold, value in zip(thresholds, values, strict=True):
            reward = reward.masked_fill(given >= threshold, value)
    elif kind == "binary":
        reward = (given >= 0).to(given.dtype)
    elif kind == "positive":
        reward = torch.where(given > 0, given, 0.0)
    elif kind == "nonpositive":
        reward = torch.where(given < 0, given, 0.0)
    else:
        reward = given
    if cap is not None:
        reward = torch.where(reward > cap, cap, reward)
    return torch.where(given.isnan(), given, reward)


def check_mapping(kind: str, thresholds: Sequence[float], values: Sequence[float]) -> None:
    """Raises ValueError for what `map_reward` cannot use."""
    if kind not in KINDS:
        raise ValueError(f"unknown kind of reward {kind!r}; known: {', '.join(KINDS)}")
    if kind != "tiers":
        return
    if not thresholds or len(thresholds) != len(values):
        raise ValueError(f"{len(thresholds)} thresholds and {len(values)} values; give one value for each threshold")
    if not all(map(math.isfinite, [*thresholds, *values])):
        raise ValueError("thresholds and values must be finite numbers")
    if any(a >= b for a, b in itertools.pairwise(thresholds)):
        raise ValueError(f"thresholds must rise, and do not: {', '.join(f'{t:g}' for t in thresholds)}")
