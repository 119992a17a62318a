"""From a response to its plan, from two likelihoods to an improvement, from that to a reward. Pure functions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

#: a float, an array or a tensor; the result is of the same kind
Number = TypeVar("Number", float, np.ndarray, "Tensor")

#: what a plan may stand behind, in upstream's order
MARKERS = ("In summary:", "In summary,", "Detailed Plan:")
Kind = Literal["tiers", "positive", "binary", "nonpositive", "raw"]
KINDS = get_args(Kind)
THRESHOLDS = (0.05, 1.0, 2.0)
VALUES = (0.5, 0.9, 1.0)


def extract_plan(text: str, markers: Sequence[str] = MARKERS) -> str:
    """The plan of a response: what stands behind the last marker; without any, the whole response.

    One marker after the other is looked for (case matters), each in what the one before has left; white space around
    the plan goes.

    Raises:
        ValueError: a marker is empty.
    """
    if not all(markers):
        raise ValueError("an empty marker stands everywhere; leave it out")
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
    change: Any = policy_nll - baseline_nll  # type: ignore[operator]
    if hasattr(change, "expm1"):
        return -100.0 * change.expm1()
    return _plain(-100.0 * np.expm1(change))


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
    check_mapping(kind, thresholds, values)
    given: Any = improvement
    if hasattr(given, "expm1"):
        import torch

        given = given if given.is_floating_point() else given.float()
        return _map(torch, given, kind, thresholds, values, cap)
    return _plain(_map(np, np.asarray(given, dtype=np.float64), kind, thresholds, values, cap))


def check_mapping(kind: str, thresholds: Sequence[float], values: Sequence[float]) -> None:
    """Raises ValueError for what `map_reward` cannot use."""
    if kind not in KINDS:
        raise ValueError(f"unknown kind of reward {kind!r}; known: {', '.join(KINDS)}")
    if kind != "tiers":
        return
    if not thresholds or len(thresholds) != len(values):
        raise ValueError(f"{len(thresholds)} thresholds and {len(values)} values; give one value for each threshold")
    if not np.isfinite([*thresholds, *values]).all():
        raise ValueError("thresholds and values must be finite numbers")
    if any(a >= b for a, b in itertools.pairwise(thresholds)):
        raise ValueError(f"thresholds must rise, and do not: {', '.join(f'{t:g}' for t in thresholds)}")


def _map(
    library: Any, given: Any, kind: str, thresholds: Sequence[float], values: Sequence[float], cap: float | None
) -> Any:
    """`map_reward` in the library (torch or numpy) whose array is given."""
    zeros = library.zeros_like(given)
    if kind == "tiers":
        reward = zeros
        for threshold, value in zip(thresholds, values, strict=True):
            reward = library.where(given >= threshold, zeros + value, reward)
    elif kind == "binary":
        reward = library.where(given < 0, zeros, zeros + 1)
    elif kind == "positive":
        reward = library.where(given > 0, given, zeros)
    elif kind == "nonpositive":
        reward = library.where(given < 0, given, zeros)
    else:
        reward = given
    if cap is not None:
        reward = library.where(reward > cap, zeros + cap, reward)
    return library.where(library.isnan(given), given, reward)


def _plain(found: Any) -> Any:
    """A float for a number, an array for an array."""
    return found if np.ndim(found) else float(found)
