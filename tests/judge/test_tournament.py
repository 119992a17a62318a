"""The arithmetic of a judge's verdicts, against numbers of an independent implementation and by its properties."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from helpers import ROOT
from hypothesis import given
from hypothesis import strategies as st

from orlhf_ext.judge import tournament
from orlhf_ext.judge.tournament import Game, pairs_of

GOLDEN: dict[str, Any] = json.loads((ROOT / "tests/goldens/rewards2.json").read_text())["judge"]
LEANS = {"A": 1.0, "B": -1.0, None: None}
SAID = {(i, j): LEANS[said] for i, j, said in GOLDEN["written"]["verdicts"]}
margins = st.floats(-20, 20)


def games_of(leans: Any, pairs: list[tuple[int, int]]) -> list[Game]:
    """A game for each pair; ``leans(i, j)`` is the lean with i as A."""
    return [Game(i, j, (leans(i, j), leans(j, i))) for i, j in pairs]


def near(wanted: Any) -> Any:
    return pytest.approx(wanted, rel=0, abs=1e-12)


@pytest.mark.parametrize("name", ["additive", "cycle"])
def test_margins(name: str) -> None:
    golden = GOLDEN[name]
    games = games_of(lambda i, j: golden["margins"][i][j], pairs_of(4, "round_robin"))
    assert tournament.win_rates(4, games, letters=False) == near(golden["win_rate"])
    assert tournament.strengths(4, games) == near(golden["strength"])
    assert tournament.bias(games) == near(golden["position_bias_nats"])
    assert tournament.share_a(games) == near(golden["share_a"])
    assert tournament.consistency(games) == near(golden["consistency"])


def test_written_verdicts() -> None:
    golden = GOLDEN["written"]
    games = games_of(lambda i, j: SAID[i, j], pairs_of(4, "round_robin"))
    wanted = {(i, j): share for i, j, share in golden["points_over_both_orders"]}
    assert {(g.first, g.second): tournament.points(g, True) for g in games} == {
        pair: near(wanted[pair]) for pair in pairs_of(4, "round_robin")
    }
    assert tournament.win_rates(4, games, letters=True) == near(golden["win_rate"])
    assert tournament.bradley_terry(4, games) == near(golden["bradley_terry_prior_0.1"])
    assert tournament.unreadable(games) == near(1 - golden["parse_rate"])
    assert tournament.share_a(games) == near(golden["share_a"])
    assert tournament.consistency(games) == near(golden["consistency_of_readable_pairs"])
    assert tournament.ties(games, letters=True) == near(golden["ties"] / 6)


@pytest.mark.parametrize("pivot", range(4))
def test_a_pivot(pivot: int) -> None:
    games = games_of(lambda i, j: SAID[i, j], pairs_of(4, "pivot", pivot))
    assert tournament.win_rates(4, games, letters=True, pivot=pivot) == near(GOLDEN["pivot_soft"][pivot])
    golden = GOLDEN["brpo"][pivot]
    assert tournament.brpo(4, games, pivot, letters=True) == golden["reward"]
    kept = tournament.brpo(4, games, pivot, letters=True, most_skew=0.6)
    assert kept == (golden["reward"] if golden["kept_at_0.6"] else [0.0] * 4)
    turned = [Game(g.second, g.first, g.leans[::-1], g.points) for g in games]
    assert tournament.brpo(4, turned, pivot, letters=True) == golden["reward"]


@pytest.mark.parametrize("golden", GOLDEN["brpo_16"], ids=lambda golden: f"{golden['wins']} wins")
def test_a_group_that_is_too_skewed_teaches_nothing(golden: dict[str, Any]) -> None:
    games = [Game(i, 0, points=float(i <= golden["wins"])) for i in range(1, 16)]
    assert any(tournament.brpo(16, games, 0, letters=True, most_skew=0.6)) == golden["kept"]


@pytest.mark.parametrize("size", [2, 4, 8, 16])
def test_how_many_calls(size: int) -> None:
    golden = GOLDEN["calls"][str(size)]
    for how, wanted in (("round_robin", "round_robin"), ("pivot", "pivot"), ("circle", "circular_both_orders")):
        pairs = pairs_of(size, how, pivot=size - 1)  # type: ignore[arg-type]
        assert 2 * len(pairs) == golden[wanted] and len({frozenset(pair) for pair in pairs}) == len(pairs)


def test_one_sample_has_nobody_to_meet() -> None:
    assert [pairs_of(1, how) for how in ("round_robin", "pivot", "circle")] == [[]] * 3
    assert tournament.win_rates(1, [], False) == [0.5] and tournament.strengths(1, []) == [0.0]
    assert tournament.bradley_terry(1, []) == [0.0] and tournament.share_a([]) is None


@given(st.lists(st.tuples(margins, margins), min_size=6, max_size=6), margins, st.permutations(range(4)))
def test_order_and_a_leaning_to_a_change_nothing(leans: Any, lean: float, order: list[int]) -> None:
    games = [Game(i, j, found) for (i, j), found in zip(pairs_of(4, "round_robin"), leans, strict=True)]
    moved = [  # the samples have other numbers, the pairs are the other way round, and A is worth more
        Game(order[g.second], order[g.first], (g.leans[1] + lean, g.leans[0] + lean)) for g in reversed(games)
    ]
    rates, others = tournament.win_rates(4, games, False), tournament.win_rates(4, moved, False)
    assert [others[order[i]] for i in range(4)] == pytest.approx(rates, abs=1e-12)
    assert math.fsum(rates) == pytest.approx(2)
    scores, others = tournament.strengths(4, games), tournament.strengths(4, moved)
    assert [others[order[i]] for i in range(4)] == pytest.approx(scores, abs=1e-9)
    closed = [sum(tournament.difference(g) * ((g.first == i) - (g.second == i)) for g in games) / 4 for i in range(4)]
    assert scores == pytest.approx(closed, abs=1e-9)


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=6, max_size=6))
def test_bradley_terry_is_where_its_slope_is_zero(shares: list[float]) -> None:
    games = [Game(i, j, points=share) for (i, j), share in zip(pairs_of(4, "round_robin"), shares, strict=True)]
    scores = tournament.bradley_terry(4, games, prior=0.1)
    for i in range(4):
        own = [(g.points if g.first == i else 1 - g.points, g.second if g.first == i else g.first)
               for g in games if i in (g.first, g.second) and g.points is not None]  # fmt: skip
        slope = math.fsum(won - tournament.sigmoid(scores[i] - scores[j]) for won, j in own) - 0.1 * scores[i]
        assert slope == pytest.approx(0, abs=1e-9)


def test_a_margin_that_cannot_be_read_is_none() -> None:
    games = [Game(0, 1, (None, None)), Game(0, 2, (2.0, None)), Game(1, 2, (1.0, -1.0))]
    assert [tournament.difference(game) for game in games] == [0.0, 1.0, 1.0]
    assert tournament.unreadable(games) == 0.5 and tournament.margin(games) == 1.0 and tournament.bias(games) == 0.0


def test_who_wins_without_a_call() -> None:
    games = [Game(0, 1, points=1.0), Game(0, 2, (0.5, -0.5)), Game(1, 2, points=0.5)]
    assert tournament.skipped(games) == near(2 / 3) and tournament.share_a(games) == near(0.5)
    assert tournament.win_rates(3, games, False)[1] == near(0.25)
    assert tournament.strengths(3, games) == near([(5 + 0.5) / 3, -5 / 3, -0.5 / 3])
