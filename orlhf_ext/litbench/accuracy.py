"""How often a judge of story pairs is right, and how much of that is the stories' lengths.

A judge is an array of margins, one for each pair: above 0 where it prefers the chosen story, below 0 where the rejected
one, and 0 for a tie or no verdict, which counts as an error. Lengths are in words.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ..reports.statistics import bootstrap, wilson

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

#: a story is much longer than another if it has at least so many times its words (a ratio: buckets are symmetric)
MUCH_LONGER_RATIO = 1.25
#: what the chosen story is, compared with the rejected one
BUCKETS = ("much_shorter", "shorter", "longer", "much_longer")


def share(key: str, marks: NDArray[np.bool_]) -> dict[str, float | None]:
    """``KEY``, ``KEY_low`` and ``KEY_high``: the share of marks that are set, and Wilson's interval."""
    right, count = int(marks.sum()), len(marks)
    return {key: right / count if count else None, **wilson(right, count).of(key)}


def length_ratio(words: Array) -> Array:
    """The logarithm of chosen over rejected words, ``(pairs,)`` of ``(pairs, 2)``; a story has at least one word."""
    return np.log(np.maximum(words[:, 0], 1)) - np.log(np.maximum(words[:, 1], 1))


def length_controlled(margins: Array, ratios: Array) -> dict[str, float | None]:
    """Accuracy as it would be if the better story were the longer one in half of the pairs.

    The mean of two accuracies: on pairs whose chosen story is the longer one, and on those where it is the shorter.
    Whoever goes by length alone gets one half. LitBench trims its pairs until the histogram of length differences is
    symmetric for the same end (Fein et al., 2025); the two sides are weighted here instead, so that no pair
    is lost. (Length-controlled AlpacaEval, Dubois et al., 2024, regresses on the length difference and sets it to 0,
    which needs many pairs, and has no estimate for a judge that is always right.)

    The interval joins Wilson's of the two sides: ``sqrt(sum((p - low)^2)) / 2`` below, and so above (Newcombe, 1998,
    method 10; Zou & Donner, 2008). All are None where a side has no pair.
    """
    key = "length_controlled"
    sides = [share(key, margins[side] > 0) for side in (ratios > 0, ratios < 0)]
    if any(side[key] is None for side in sides):
        return {key: None, f"{key}_low": None, f"{key}_high": None}
    ends = np.array([[side[key], side[f"{key}_low"], side[f"{key}_high"]] for side in sides], dtype=np.float64)
    mean = float(ends[:, 0].mean())
    below, above = (float(np.linalg.norm(ends[:, 0] - ends[:, i])) / 2 for i in (1, 2))
    return {key: mean, f"{key}_low": mean - below, f"{key}_high": mean + above}


def length_correlation(margins: Array, ratios: Array) -> float | None:
    """Spearman's correlation of a judge's margin with how much longer a story is; None if either is always 0.

    Over each pair in both directions, so that it does not matter which story was chosen: the judge's own leaning to
    length, in ranks.
    """
    from scipy import stats

    if not margins.any() or not ratios.any():
        return None
    return float(stats.spearmanr(np.r_[margins, -margins], np.r_[ratios, -ratios]).statistic)


def measure(margins: Array, words: Array) -> dict[str, Any]:
    """All numbers of a judge.

    Args:
        margins: ``(pairs,)``, see above.
        words: ``(pairs, 2)``, of the chosen and the rejected story.

    Returns:
        ``pairs``, ``correct``, ``ties``; ``accuracy`` (ties are errors) and ``accuracy_without_ties`` (they are left
        out), ``length_controlled``, each with ``_low`` and ``_high``; for each of `BUCKETS` ``accuracy_BUCKET`` with
        its ends, and ``pairs_BUCKET``, beside ``pairs_equal`` for stories of equal length; ``picks_longer``, the share
        of decisions for the longer story among those on stories of unequal length; ``length_correlation``. None where
        there is no pair to count.
    """
    right, decided, ratios = margins > 0, margins != 0, length_ratio(words)
    out: dict[str, Any] = {"pairs": len(margins), "correct": int(right.sum()), "ties": int((~decided).sum())}
    out |= share("accuracy", right) | share("accuracy_without_ties", right[decided])
    out |= length_controlled(margins, ratios)
    bound = math.log(MUCH_LONGER_RATIO) * (
        1 - 1e-12
    )  # 5 words to 4 are 1.25 times as many, whatever logarithms round to
    much = np.abs(ratios) >= bound
    sides = (much & (ratios < 0), ~much & (ratios < 0), ~much & (ratios > 0), much & (ratios > 0))
    out["pairs_equal"] = int((ratios == 0).sum())
    for name, side in zip(BUCKETS, sides, strict=True):
        out[f"pairs_{name}"] = int(side.sum())
        out |= share(f"accuracy_{name}", right[side])
    leaning = np.sign(margins) * np.sign(ratios)
    out |= share("picks_longer", leaning[leaning != 0] > 0)
    out["length_correlation"] = length_correlation(margins, ratios)
    return out


def measure_orders(first: Array, second: Array, seed: int) -> dict[str, Any]:
    """Numbers of a judge that saw each pair in both orders.

    Args:
        first: ``(pairs,)``, margins in one order.
        second: in the other.
        seed: of the bootstrap.

    Returns:
        ``both_orders``, the accuracy averaged over both orders, with the bootstrap's interval over pairs;
        ``consistency``, the share of pairs in which both orders gave a decision, and for the same story; ``joined``,
        how often the two margins' sum is for the chosen story, to which a leaning to A or B adds nothing; these two
        with Wilson's interval.
    """
    rates = ((first > 0).astype(np.float64) + (second > 0)) / 2
    out = {"both_orders": float(rates.mean()), **bootstrap(rates, seed).of("both_orders")}
    return out | share("consistency", first * second > 0) | share("joined", first + second > 0)
