"""Groups: what a YAML file may say, gold scores, the draw, pairs, and rows held out."""

from __future__ import annotations

import math
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT
from helpers import draw_groups as draw_at_once
from hypothesis import given
from hypothesis import strategies as st

from orlhf_ext.cli.errors import UserError
from orlhf_ext.groups.assign import best_and_worst, groups_of, held_out, stream_groups
from orlhf_ext.groups.config import Group, group_scores, odd_weights, read_groups

RECIPES = ROOT / "recipes" / "groups"
HELPFUL = [[0.5, 1, -1, 2, 0, 0.25], [0.4, 2, 1, 2, 0.5, 0.25]]
HARMLESS = [[-1, 1.5, 0.5, -3, 0, 0.25], [1, 0.5, -0.5, -3, -0.3, 0.25]]


def yaml(folder: Path, text: str) -> Path:
    path = folder / "groups.yaml"
    path.write_text(text)
    return path


def test_the_two_files_of_the_recipes():
    assert read_groups(RECIPES / "hh.yaml") == [
        Group("minority", 0.1, {"helpful": 1.0}),
        Group("majority", 0.9, {"helpful": 0.3, "harmless": 0.7}),
    ]
    groups = read_groups(RECIPES / "words.yaml", 0.25)
    assert groups == [
        Group("minority", 0.25, {"conciseness": 0.3, "positiveness": 0.7}),
        Group("majority", 0.75, {"conciseness": 1.0}),
    ]
    assert odd_weights(groups) == []


def test_any_number_of_groups(tmp_path: Path):
    path = yaml(tmp_path, "groups:\n" + "".join(f"  - {{name: g{n}, weights: {{t: {n}}}}}\n" for n in range(3)))
    groups = read_groups(path)
    assert [(group.name, group.proportion, group.weights["t"]) for group in groups] == [
        ("g0", None, 0.0),
        ("g1", None, 1.0),
        ("g2", None, 2.0),
    ]
    said = odd_weights(groups)
    assert len(said) == 2 and "'g2' add up to 2, not to 1" in said[1]
    with pytest.raises(
        UserError, match=r"--proportion 0\.1 is the share of the first of two groups, but .* has 3; leave"
    ):
        read_groups(path, 0.1)
    tenths = yaml(
        tmp_path, "groups:\n" + "".join(f"- {{name: g{n}, proportion: 0.1, weights: {{t: 1}}}}\n" for n in range(10))
    )
    assert len(read_groups(tenths)) == 10  # whose plain sum is not 1


ONE = "groups: [{name: a, proportion: %s, weights: {t: 1}}, {name: %s, proportion: %s, weights: {t: 1}}]"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ONE % (0.1, "b", 0.8), "the proportions 0.1, 0.8 add up to 0.9, not to 1; fix them"),
        (ONE % (0.1, "b", 0.90000001), "add up to 1.00000001, not to 1"),
        (ONE % (0.5, "a", 0.5), "has two groups named 'a'; give each"),
        (ONE % (0.5, "b", "null"), "group 'b' has no proportion, but another has; give all of them one, or none"),
        (ONE % (0, "b", 1), r"group 1 \(a\): proportion is 0, not a number above 0 and at most 1; fix it"),
        (ONE % (0.5, "b", "half"), r"group 2 \(b\): proportion is 'half', not a number"),
        (ONE % (0.5, "no", 0.5), "group 2: name is False, not text"),
        ("groups: [{name: a, weights: {}}]", r"group 1 \(a\): weights is {}, not {trait: weight}"),
        ("groups: [{name: a, weights: {t: .nan}}]", r"group 1 \(a\): weight of t is nan, not a number"),
        ("groups: [{name: a, weights: {1: 1}}]", "a trait's name is 1, not text"),
        ("groups: [{name: a, weight: {t: 1}}]", "group 1 has 'weight', which means nothing here; known: name, prop"),
        ("groups: [a]", "group 1 is not {name, proportion, weights}"),
        ("groups: []", "has no list of groups; write groups:"),
        ("", "has no list of groups"),
        ("seed: 1\ngroups: [{name: a, weights: {t: 1}}]", "has 'seed' beside groups"),
        ("groups:\n  - {name: a\n  - b", "groups.yaml line 3 is not valid YAML"),
        ("groups: !!python/object/apply:os.getcwd []", "is not valid YAML"),
    ],
)
def test_a_file_that_makes_no_sense(tmp_path: Path, text: str, message: str):
    with pytest.raises(UserError, match=message) as caught:
        read_groups(yaml(tmp_path, text))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_no_file_and_a_wrong_proportion(tmp_path: Path):
    with pytest.raises(UserError, match="does not exist; give a YAML file"):
        read_groups(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="--proportion 1 is not between 0 and 1"):
        read_groups(RECIPES / "hh.yaml", 1.0)


# --- gold scores ---------------------------------------------------------------------------------------------------


def test_golden_scores_and_labels():
    groups = read_groups(RECIPES / "hh.yaml")
    wins: list[list[int]] = [[], []]
    majority: list[list[float]] = [[], []]
    for row in range(6):
        traits = {"helpful": [side[row] for side in HELPFUL], "harmless": [side[row] for side in HARMLESS]}
        scores = group_scores(groups, traits, "here")
        for group in (0, 1):
            wins[group].append(best_and_worst([one[group] for one in scores])[0])
        for side in (0, 1):
            assert scores[side][0] == HELPFUL[side][row]
            majority[side].append(scores[side][1])
    assert wins == [[0, 1, 1, 0, 1, 0], [1, 0, 0, 0, 0, 0]]
    assert majority[0] == pytest.approx([-0.55, 1.35, 0.05, -1.5, 0, 0.25], abs=1e-15)
    assert majority[1] == pytest.approx([0.82, 0.95, -0.05, -1.5, -0.06, 0.25], abs=1e-15)


@pytest.mark.parametrize(
    ("traits", "message"),
    [
        ({"helpful": [1.0]}, "row 7 has no trait 'harmless'; score it again, with helpful, harmless"),
        (
            {"helpful": [1.0], "harmless": [math.nan]},
            "row 7 has a score of trait 'harmless' that is not a finite number",
        ),
        ({"helpful": [1.0], "harmless": [1.0, 2.0]}, "row 7 has another number of scores of trait 'harmless' than"),
        ({"helpful": [True], "harmless": [1.0]}, "that is not a finite number"),
        ({"helpful": 1.0, "harmless": [1.0]}, "no list of scores as trait 'helpful'"),
        (None, "row 7 has no traits"),
    ],
)
def test_traits_that_cannot_be_weighed(traits, message: str):
    with pytest.raises(UserError, match=message):
        group_scores(read_groups(RECIPES / "hh.yaml"), traits, "row 7")


# --- the draw ------------------------------------------------------------------------------------------------------


def draw_groups(count: int, shares: list[float], seed: int) -> np.ndarray:
    """The first groups of a stream."""
    return np.array(list(islice(stream_groups(shares, seed), count)))


def test_golden_draws():
    for share, wanted in ((0.1, "1111110111"), (0.2, "1111000111"), (0.5, "0111000111")):
        assert draw_groups(10, [share, 1 - share], 42).tolist() == [int(one) for one in wanted]
    counts = [int((draw_groups(10_000, [p, 1 - p], 42) == 0).sum()) for p in (0.01, 0.05, 0.1, 0.15, 0.2)]
    assert counts == [95, 493, 1031, 1534, 2043]
    assert draw_groups(6, [0.4, 0.6], 7).tolist() == [0, 1, 1, 1, 1, 1]


@given(
    seed=st.integers(0, 2**32 - 1),
    shares=st.lists(st.floats(0.001, 0.999), min_size=2, max_size=2).map(sorted),
    count=st.integers(1, 3000),
)
def test_the_first_group_at_a_smaller_share_is_within_that_at_a_larger(seed: int, shares: list[float], count: int):
    small, large = (draw_groups(count, [p, 1 - p], seed) for p in shares)
    assert not ((small == 0) & (large != 0)).any()
    numbers = np.random.RandomState(seed).random_sample(count)
    assert (small == np.where(numbers < shares[0], 0, 1)).all()
    assert draw_at_once(count, [shares[0], 1 - shares[0]], seed).tolist() == small.tolist()


def test_more_groups_and_the_end_of_the_range():
    found = groups_of(np.array([0.0, 0.1999, 0.2, 0.4999, 0.5, np.nextafter(1, 0)]), [0.2, 0.3, 0.5])
    assert found.tolist() == [0, 0, 1, 1, 2, 2]
    tenths = [0.1] * 10  # whose running sum ends below 1
    assert groups_of(np.array([np.nextafter(1, 0)]), tenths).tolist() == [9]
    counts = np.bincount(draw_groups(30_000, [0.2, 0.3, 0.5], 3))
    assert np.abs(counts - [6000, 9000, 15_000]).max() < 5 * 87  # the largest standard deviation is 87


# --- pairs, and rows held out --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "wanted"),
    [
        ([1.0, 2.0], (1, 0)),
        ([1.0, 1.0], (0, 1)),
        ([2.0, 3.0, 1.0], (1, 2)),
        ([2.0, 1.0, 2.0, 1.0], (0, 1)),
        ([1.0, 1.0, 1.0], (0, 1)),
    ],
)
def test_best_and_worst(scores: list[float], wanted: tuple[int, int]):
    assert best_and_worst(scores) == wanted


@given(groups=st.lists(st.integers(0, 3), max_size=200), share=st.floats(0.001, 0.999), seed=st.integers(0, 99))
def test_rows_are_held_out_of_each_group(groups: list[int], share: float, seed: int):
    test = held_out(groups, share, seed)
    assert test == held_out(groups, share, seed)
    total, held = Counter(groups), Counter(groups[place] for place in test)
    for group, count in total.items():
        if count < 2:
            assert held[group] == 0
        else:
            assert 1 <= held[group] <= count - 1
            assert abs(held[group] - count * share) <= 1


def test_the_seed_decides_what_is_held_out():
    assert held_out([0] * 100, 0.1, 1) != held_out([0] * 100, 0.1, 2)
