"""Means, win rates and intervals over prompts, against formulas, scipy, and what must hold for any numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from orlhf_ext.reports.statistics import (
    at_equal_length,
    bootstrap,
    kl_estimate,
    paired_difference,
    prompt_means,
    ratio_interval,
    t_interval,
    wilson,
    win_rates,
)

numbers = st.integers(-8, 8).map(lambda n: n / 4)  # exact in floating point, with many ties
tables = st.integers(1, 6).flatmap(
    lambda n: st.tuples(*[st.lists(st.lists(numbers, min_size=1, max_size=4), min_size=n, max_size=n)] * 2)
)


def test_kl_of_the_specification() -> None:
    policy, sft = [[-10, -12.5], [-8, -9.25]], [[-11, -12], [-9.5, -9]]
    assert kl_estimate(policy, sft).mean() == 0.4375


def test_win_rates_by_hand() -> None:
    assert win_rates([[1.0, 3.0], [0.0]], [[2.0], [0.0, 0.0]]).tolist() == [0.5, 0.5]
    assert win_rates([[1.0, 3.0], [0.0]], [[2.0], [0.0, 0.0]], tie=0).tolist() == [0.5, 0.0]
    assert win_rates([[1.0, 3.0, 2.0]], [[2.0, 0.0]]).tolist() == [pytest.approx((1 + 2 + 1.5) / 6)]


@given(tables)
def test_win_rates_are_fractions_that_add_up(pair: tuple[list, list]) -> None:
    ours, theirs = pair
    rates = win_rates(ours, theirs)
    assert ((rates >= 0) & (rates <= 1)).all()
    np.testing.assert_allclose(rates + win_rates(theirs, ours), 1.0, rtol=0, atol=1e-12)
    assert (win_rates(ours, ours) == 0.5).all()
    # only the order of rewards counts
    np.testing.assert_array_equal(rates, win_rates(*([[3 * x + 1 for x in row] for row in side] for side in pair)))


@given(tables)
def test_a_higher_reward_never_wins_less(pair: tuple[list, list]) -> None:
    ours, theirs = pair
    raised = [[x + 0.25 for x in row] for row in ours]
    assert (win_rates(raised, theirs) >= win_rates(ours, theirs)).all()


@given(st.lists(numbers, min_size=2, max_size=30))
def test_intervals_hold_the_mean_and_follow_the_seed(values: list[float]) -> None:
    array = np.array(values)
    low, high = bootstrap(array, 3)
    assert low is not None and high is not None
    assert array.min() <= low <= array.mean() <= high <= array.max()
    assert bootstrap(array, 3) == (low, high)


def test_intervals_against_scipy() -> None:
    values = np.random.default_rng(0).normal(0.3, 1.0, 60)
    wanted = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    np.testing.assert_allclose(t_interval(values), [wanted.low, wanted.high], rtol=1e-12)
    # for a mean of 60 normal values, the two kinds of interval nearly agree
    np.testing.assert_allclose(bootstrap(values, 0), t_interval(values), atol=0.04)
    assert t_interval(np.array([1.0])) == bootstrap(np.array([1.0]), 0) == (None, None)
    assert t_interval(np.array([2.0, 2.0])) == bootstrap(np.array([2.0, 2.0]), 0) == (2.0, 2.0)


def test_prompt_means_weigh_prompts_equally() -> None:
    assert prompt_means([[1.0, 1.0, 1.0], [3.0]]).mean() == 2.0


@given(tables)
def test_strict_rates_leave_ties_out(pair: tuple[list, list]) -> None:
    ours, theirs = pair
    ties = 1 - win_rates(ours, theirs, tie=0) - win_rates(theirs, ours, tie=0)
    np.testing.assert_allclose(win_rates(ours, theirs), win_rates(ours, theirs, tie=0) + ties / 2, rtol=0, atol=1e-12)


def test_wilsons_interval() -> None:
    # by the formula (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)
    z, p, n = stats.norm.ppf(0.975), 0.78, 50
    middle, half = p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert wilson(39, 50) == pytest.approx(((middle - half) / (1 + z**2 / n), (middle + half) / (1 + z**2 / n)))
    assert wilson(0, 0) == (None, None)
    assert wilson(20, 20).low == pytest.approx(1 / (1 + z**2 / 20)) and wilson(20, 20).high == 1


def test_the_interval_of_a_ratio() -> None:
    """With one completion for each prompt, the mean over all completions is the mean over prompts."""
    values = np.random.default_rng(2).random(40)
    assert ratio_interval(values, np.ones(40), 5) == pytest.approx(bootstrap(values, 5), abs=1e-12)
    low, high = ratio_interval(values, np.arange(1.0, 41.0), 5)
    assert low is not None and high is not None and low < values.sum() / 820 < high
    assert ratio_interval(values[:1], np.ones(1), 0) == (None, None)
    assert ratio_interval(np.array([1.0, 2.0]), np.array([2.0, 4.0]), 0) == (0.5, 0.5)


def test_a_gain_at_equal_length() -> None:
    """Rewards that are 0.1 a token and 0.5 for the policy, whose answers are longer; against least squares."""
    draw = np.random.default_rng(1)
    lengths = [draw.integers(5, 30, (2, 3)) + np.array([[6], [0]]) for _ in range(40)]
    bases = draw.normal(size=40)
    noise = draw.normal(0, 0.05, (40, 2, 3))
    values = [b + 0.1 * n + np.array([[0.5], [0]]) + e for b, n, e in zip(bases, lengths, noise, strict=True)]
    ours, theirs = ([v[i].tolist() for v in values] for i in (0, 1))
    long, short = ([n[i].tolist() for n in lengths] for i in (0, 1))
    found = at_equal_length(ours, long, theirs, short, 0)
    design = np.zeros((240, 42))
    design[np.arange(240), np.repeat(np.arange(40), 6)] = 1
    design[:, 40] = np.array(lengths).flatten()
    design[:, 41] = np.tile([1, 1, 1, 0, 0, 0], 40)
    wanted = np.linalg.lstsq(design, np.array(values).flatten(), rcond=None)[0][41]
    assert found["mean"] == pytest.approx(wanted)
    assert found["mean"] == pytest.approx(0.5, abs=0.03) and 0.01 < found["high"] - found["low"] < 0.05
    assert paired_difference(prompt_means(ours) - prompt_means(theirs), 0)["mean"] > 1  # what length brings is in it
    alone = at_equal_length([[1.0], [2.0]], [[6], [7]], [[0.0], [1.0]], [[5], [6]], 0)
    assert alone == {"mean": None, "low": None, "high": None}  # all are longer by one token
    even = at_equal_length([[1.0], [2.0]], [[5], [6]], [[0.0], [1.5]], [[5], [6]], 0)
    assert even["mean"] == pytest.approx(0.75) and even["low"] >= 0.5
    assert at_equal_length([[1.0, 2.0]], [[5, 9]], [[0.0, 0.3]], [[5, 6]], 0)["low"] is None
