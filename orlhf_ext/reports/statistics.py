"""Means, win rates, and 95 % intervals: the bootstrap's, Student's and Wilson's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

CONFIDENCE = 0.95
_RESAMPLES = 9999
_MAX_DRAWS = 10_000_000  # numbers that a bootstrap has in memory at once

#: for each prompt, a number for each completion
Lists = list[list[float]]


class Interval(NamedTuple):
    """A 95 % interval; both ends are None where there is too little to tell."""

    low: float | None
    high: float | None

    def of(self, key: str) -> dict[str, float | None]:
        """``{KEY_low, KEY_high}``, as summaries have it."""
        return {f"{key}_low": self.low, f"{key}_high": self.high}


def prompt_means(values: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """The mean over the completions of each prompt, ``(prompts,)``."""
    return np.array([np.mean(row) for row in values], dtype=np.float64)


def mean_and_error(values: NDArray[np.float64]) -> tuple[float, float | None]:
    """Mean over prompts and its standard error (sample deviation / sqrt n); no error for one prompt."""
    error = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
    return float(values.mean()), error


def win_rates(
    ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]], tie: float = 0.5
) -> NDArray[np.float64]:
    """For each prompt, how often one of ours is above one of theirs, over all pairs; a tie counts ``tie``."""
    rates = []
    for a, b in zip(ours, theirs, strict=True):
        gap = np.asarray(a, dtype=np.float64)[:, None] - np.asarray(b, dtype=np.float64)[None, :]
        rates.append(((gap > 0) + tie * (gap == 0)).mean())
    return np.array(rates)


def kl_estimate(policy: Sequence[Sequence[float]], sft: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """For each prompt, the mean of ``log pi(y) - log pi_sft(y)`` over completions y of the policy, in nats a response.

    The mean of it estimates KL(pi || pi_sft); single values may well be negative.
    """
    return prompt_means([np.subtract(a, b).tolist() for a, b in zip(policy, sft, strict=True)])


def bootstrap(values: NDArray[np.float64], seed: int) -> Interval:
    """Percentile bootstrap over prompts of the mean (Wilson's interval is not made for averaged fractions)."""
    if len(values) < 2:
        return Interval(None, None)
    if np.ptp(values) == 0:
        return Interval(float(values[0]), float(values[0]))
    return _percentiles((values,), np.mean, seed)


def ratio_interval(sums: NDArray[np.float64], counts: NDArray[np.float64], seed: int) -> Interval:
    """Percentile bootstrap over prompts of a sum over another: of a mean over all completions, of any number each."""
    if len(sums) < 2:
        return Interval(None, None)
    if np.ptp(sums / counts) == 0:
        return Interval(float(sums[0] / counts[0]), float(sums[0] / counts[0]))
    return _percentiles((sums, counts), lambda a, b, axis: a.sum(axis=axis) / b.sum(axis=axis), seed)


def _percentiles(columns: tuple[NDArray[np.float64], ...], statistic: Callable[..., Any], seed: int) -> Interval:
    from scipy import stats

    found = stats.bootstrap(
        columns,
        statistic,
        n_resamples=_RESAMPLES,
        batch=max(1, _MAX_DRAWS // (len(columns) * len(columns[0]))),
        confidence_level=CONFIDENCE,
        method="percentile",
        paired=len(columns) > 1,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(float(found.low), float(found.high))


@cache
def wilson(hits: int, count: int) -> Interval:
    """Wilson's interval of a share (Wilson, 1927); none without a trial."""
    from scipy import stats

    if not count:
        return Interval(None, None)
    found = stats.binomtest(hits, count).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(float(found.low), float(found.high))


def t_interval(values: NDArray[np.float64]) -> Interval:
    """Student's interval of the mean."""
    from scipy import stats

    if len(values) < 2:
        return Interval(None, None)
    mean, error = mean_and_error(values)
    if not error:
        return Interval(mean, mean)
    low, high = stats.t.interval(CONFIDENCE, len(values) - 1, loc=mean, scale=error)
    return Interval(float(low), float(high))


def at_equal_length(ours: Lists, our_lengths: Lists, theirs: Lists, their_lengths: Lists, seed: int) -> dict[str, Any]:
    """How much higher our values are than theirs once what length explains is taken away.

    The coefficient of "ours" in a regression of all completions' values on it, on their length, and on their prompt:
    what length brings is told from completions of one prompt and one model as well. Values and lengths have a list for
    each prompt. The interval is the bootstrap's over prompts; ``mean`` is None where length and model cannot be told
    apart.
    """
    sums = []
    for a, b, c, d in zip(ours, theirs, our_lengths, their_lengths, strict=True):
        value, length = np.array([*a, *b]), np.array([*c, *d])
        mine = np.array([1.0] * len(a) + [0.0] * len(b))
        value, length, mine = (x - x.mean() for x in (value, length, mine))  # what is the prompt's own goes
        sums.append([length @ length, length @ mine, mine @ mine, length @ value, mine @ value])

    def coefficient(ll: Any, lm: Any, mm: Any, lv: Any, mv: Any, axis: int = -1) -> Any:
        ll, lm, mm, lv, mv = (x.sum(axis=axis) for x in (ll, lm, mm, lv, mv))
        alone = ll * mm - lm**2
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(ll == 0, mv / mm, (ll * mv - lm * lv) / np.where(alone > 1e-9 * ll * mm, alone, np.nan))

    columns = tuple(np.array(sums, dtype=np.float64).T)
    mean = float(coefficient(*columns))
    if math.isnan(mean):
        return {"mean": None, "low": None, "high": None}
    ends = _percentiles(columns, coefficient, seed) if len(sums) > 1 else Interval(None, None)
    low, high = (end if end is not None and math.isfinite(end) else None for end in ends)
    return {"mean": mean, "low": low, "high": high}


def least_mean_gain(ours: Sequence[Lists], theirs: Sequence[Lists], seed: int) -> dict[str, float | None]:
    """How much the least of our columns' means is above the least of theirs, of the same prompts in the same order.

    The interval is the bootstrap's over prompts, with all columns of a prompt together.
    """

    def gain(*columns: NDArray[np.float64], axis: int = -1) -> Any:
        means = [column.mean(axis=axis) for column in columns]
        return np.min(means[: len(ours)], axis=0) - np.min(means[len(ours) :], axis=0)

    columns = tuple(prompt_means(column) for column in (*ours, *theirs))
    interval = _percentiles(columns, gain, seed) if len(columns[0]) > 1 else Interval(None, None)
    return {"mean": float(gain(*columns)), "low": interval.low, "high": interval.high}


def paired_difference(gap: NDArray[np.float64], seed: int) -> dict[str, float | None]:
    """The mean of paired differences, with Student's and the bootstrap's interval."""
    student, drawn = t_interval(gap), bootstrap(gap, seed)
    return {
        "mean": float(gap.mean()),
        "low": student.low,
        "high": student.high,
        "bootstrap_low": drawn.low,
        "bootstrap_high": drawn.high,
    }
