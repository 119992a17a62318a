"""From a judge's verdicts on pairs to a number for each sample. Pure functions, in double precision.

The judge sees each pair in both orders. What it says of one order is a *lean*: above 0 for the sample shown as A, below
0 for the one shown as B, in nats (``log p(A) - log p(B)``), or 1 and -1 for a letter that it wrote; None where no
letter can be read. A constant leaning to A adds the same to both orders of a pair and cancels in their difference.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np

Pairs = Literal["round_robin", "pivot", "circle"]

#: what a sample that wins without a call is ahead by, in nats
WALKOVER = 5.0
#: of `bradley_terry`: without it, who has won everything is infinitely strong
PRIOR = 0.1


class Game(NamedTuple):
    """Two samples, compared in both orders or, if ``points`` says who wins, without a call."""

    first: int
    second: int
    #: with ``first`` shown as A, and with ``second``
    leans: tuple[float | None, float | None] = (None, None)
    #: those of ``first`` where the judge is not asked: 1, 1/2 or 0
    points: float | None = None


def pairs_of(size: int, how: Pairs, pivot: int = 0) -> list[tuple[int, int]]:
    """Who of ``size`` samples is compared: everyone with everyone, with the pivot, or with the next one of a circle."""
    if how == "pivot":
        return [(i, pivot) for i in range(size) if i != pivot]
    if how == "circle":
        return [(i, (i + 1) % size) for i in range(size if size > 2 else size - 1)]
    return list(itertools.combinations(range(size), 2))


def sigmoid(x: float) -> float:
    """``1 / (1 + exp(-x))``, for any x."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def difference(game: Game) -> float:
    """How far ``first`` is ahead, in nats: half the difference of the two leans, of which one that cannot be read is
    0."""
    if game.points is not None:
        return WALKOVER * (2 * game.points - 1)
    one, other = (lean or 0.0 for lean in game.leans)
    return (one - other) / 2


def points(game: Game, letters: bool) -> float:
    """The share of the game that ``first`` wins.

    Args:
        game: one.
        letters: leans are letters: a win in one order counts 1/2, no verdict 1/4; otherwise they are nats, whose
            difference becomes a probability.
    """
    if game.points is not None:
        return game.points
    if not letters:
        return sigmoid(difference(game))
    one, other = ((1 + (lean or 0.0)) / 2 for lean in game.leans)
    return (one + 1 - other) / 2


def win_rates(size: int, games: Sequence[Game], letters: bool, pivot: int | None = None) -> list[float]:
    """The mean of each sample's points over its games, in [0, 1]; 1/2 without a game, and for the pivot."""
    won: list[list[float]] = [[] for _ in range(size)]
    for game in games:
        share = points(game, letters)
        won[game.first].append(share)
        won[game.second].append(1 - share)
    return [math.fsum(found) / len(found) if found and i != pivot else 0.5 for i, found in enumerate(won)]


def strengths(size: int, games: Sequence[Game]) -> list[float]:
    """The Bradley-Terry scores that fit margins best, by least squares: ``s_i - s_j = d_ij``, their sum 0.

    Where everyone meets everyone, ``s_i`` is the sum of ``d_ij`` over j, divided by the number of samples.
    """
    table = np.zeros((len(games), size))
    for row, game in enumerate(games):
        table[row, game.first], table[row, game.second] = 1.0, -1.0
    wanted = np.array([difference(game) for game in games], dtype=np.float64)
    found: list[float] = np.linalg.lstsq(table, wanted, rcond=None)[0].tolist()  # of least norm, so that the sum is 0
    return found


def bradley_terry(size: int, games: Sequence[Game], letters: bool = True, prior: float = PRIOR) -> list[float]:
    """The most likely Bradley-Terry scores of points: the maximum of
    ``sum w_ij log sigmoid(s_i - s_j) - prior / 2 * sum s_i^2``, by Newton's method."""
    first, second = (np.array([game[i] for game in games], dtype=int) for i in (0, 1))
    won = np.array([points(game, letters) for game in games], dtype=np.float64)
    scores = np.zeros(size)
    for _ in range(100):
        chance = 1 / (1 + np.exp(scores[second] - scores[first]))
        slope, bend = -prior * scores, prior * np.eye(size)
        weight = chance * (1 - chance)
        for here, there, sign in ((first, second, 1), (second, first, -1)):
            np.add.at(slope, here, sign * (won - chance))
            np.add.at(bend, (here, here), weight)
            np.add.at(bend, (here, there), -weight)
        step = np.linalg.solve(bend, slope)
        scores = scores + step
        if np.abs(step).max() < 1e-14:
            break
    return [float(score) for score in scores]


def brpo(size: int, games: Sequence[Game], pivot: int, letters: bool, most_skew: float = 1.0) -> list[float]:
    """1 for who beats the pivot in both orders, -1 for all others, 0 for the pivot (Writing-Zero, 2506.00103).

    All are 0, so that nothing is learned, where ``|sum| / size`` is more than ``most_skew``.
    """
    found = [0.0] * size
    for game in games:
        sample, sign = (game.first, 1) if game.second == pivot else (game.second, -1)
        wins = [sign * lean > 0 for lean in (game.leans[0] or 0.0, -(game.leans[1] or 0.0))]
        beaten = all(wins) if game.points is None else sign * (game.points - 0.5) > 0
        found[sample] = 1.0 if beaten else -1.0
    return found if abs(math.fsum(found)) / size <= most_skew else [0.0] * size


# what says how a judge judges; None where there is nothing to count


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return math.fsum(found) / len(found) if found else None


def _called(games: Iterable[Game]) -> list[Game]:
    return [game for game in games if game.points is None]


def _both(games: Iterable[Game]) -> list[tuple[float, float]]:
    return [(a, b) for a, b in (game.leans for game in _called(games)) if a is not None and b is not None]


def share_a(games: Iterable[Game]) -> float | None:
    """How often A wins, among verdicts that can be read; a lean of 0 counts 1/2."""
    leans = (lean for game in _called(games) for lean in game.leans if lean is not None)
    return _mean((1 + (lean > 0) - (lean < 0)) / 2 for lean in leans)


def consistency(games: Iterable[Game]) -> float | None:
    """The share of pairs with the same winner in both orders, among those with two verdicts that can be read."""
    return _mean(float(a * b < 0) for a, b in _both(games))


def bias(games: Iterable[Game]) -> float | None:
    """What being shown as A is worth, in nats."""
    return _mean((a + b) / 2 for a, b in _both(games))


def margin(games: Iterable[Game]) -> float | None:
    """The mean of what winners are ahead by, in nats."""
    return _mean(abs(a - b) / 2 for a, b in _both(games))


def unreadable(games: Iterable[Game]) -> float | None:
    """The share of verdicts that cannot be read."""
    return _mean(float(lean is None) for game in _called(games) for lean in game.leans)


def ties(games: Sequence[Game], letters: bool) -> float | None:
    """The share of pairs that nobody wins."""
    return _mean(float(points(game, letters) == 0.5) for game in games)


def skipped(games: Sequence[Game]) -> float | None:
    """The share of pairs that are decided without a call."""
    return _mean(float(game.points is not None) for game in games)


def correlation(scores: Sequence[float], sizes: Sequence[float]) -> float | None:
    """Pearson's correlation; None where either is the same everywhere."""
    x, y = (np.asarray(values, dtype=np.float64) - np.mean(values) for values in (scores, sizes))
    norm = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / norm if norm > 1e-12 else None
