"""Plans, improvements and rewards: the golden values, and what must hold for any input."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orlhf_ext.vrcli.improvement import KINDS, MARKERS
from orlhf_ext.vrcli.reward import extract_plan, improvement, map_reward

NUMBERS = st.floats(-1e3, 1e3)
IMPROVEMENTS = [  # perplexity without and with a plan, improvement, tiers, binary; those at a tier's edge are ill-posed
    (10, 11, -10.0, 0.0, 0.0),
    (10, 10, 0.0, 0.0, 1.0),
    (10, 9.996, 0.039999999999995595, 0.0, 1.0),
    (10, 9.9949, 0.051000000000005485, 0.5, 1.0),
    (10, 9.899, 1.0100000000000087, 0.9, 1.0),
    (8.25, 8, 3.0303030303030303, 1.0, 1.0),
    (2.718281828459045, 2.6, 4.351345295424988, 1.0, 1.0),
]


@pytest.mark.parametrize(
    ("response", "plan"),
    [
        ("A. In summary: go north. ", "go north."),
        ("In summary: a In summary: b", "b"),
        ("In summary, x In summary: y", "y"),
        ("Detailed Plan: p. In summary: q", "q"),
        ("In summary: q. Detailed Plan: p", "p"),
        ("no marker", "no marker"),
        ("text In summary:", ""),
        ("in summary: lower", "in summary: lower"),
        ("", ""),
        ("In summary: a\n\nIn summary, b\n", "b"),
    ],
)
def test_golden_plans(response: str, plan: str) -> None:
    assert extract_plan(response) == plan


def test_markers_of_ones_own() -> None:
    assert extract_plan("a PLAN: b In summary: c", markers=("PLAN:",)) == "b In summary: c"
    assert extract_plan("a PLAN: b ", markers=()) == "a PLAN: b"
    with pytest.raises(ValueError, match="empty marker"):
        extract_plan("a", markers=("",))


@given(st.lists(st.sampled_from([*MARKERS, " ", "\n", "x", "y.", "In summary", ":"])).map("".join))
def test_a_plan_ends_its_response_and_holds_no_marker(response: str) -> None:
    plan = extract_plan(response)
    assert response.rstrip().endswith(plan) and plan == plan.strip()
    assert not any(marker in plan for marker in MARKERS)
    assert extract_plan(plan) == plan
    if not any(marker in response for marker in MARKERS):
        assert plan == response.strip()


def test_golden_likelihood() -> None:
    nll = -np.mean([-1.5, -0.25, -3.0, -0.75])
    assert nll == 1.375 and math.exp(nll) == pytest.approx(3.955076722920577, rel=1e-12)


@pytest.mark.parametrize(("base", "plan", "wanted", "tiers", "binary"), IMPROVEMENTS)
def test_golden_improvements(base: float, plan: float, wanted: float, tiers: float, binary: float) -> None:
    found = improvement(math.log(base), math.log(plan))
    assert isinstance(found, float) and found == pytest.approx(wanted, rel=1e-9, abs=1e-12)
    assert map_reward(found) == map_reward(found, kind="tiers") == tiers
    assert map_reward(found, kind="binary") == (binary if wanted else float(found >= 0))
    assert map_reward(found, kind="positive") == max(found, 0)
    assert map_reward(found, kind="nonpositive") == min(found, 0)
    assert map_reward(found, kind="raw") == found


@pytest.mark.parametrize(
    ("drop", "wanted", "tiers"),
    [
        (0.0005, 0.04998750208307294, 0.0),
        (0.005, 0.4987520807317687, 0.5),
        (0.0101, 1.0049166284122697, 0.9),
        (0.0203, 2.009534219070699, 1.0),
        (-0.01, -1.0050167084168058, 0.0),
    ],
)
def test_golden_drops_of_the_likelihood(drop: float, wanted: float, tiers: float) -> None:
    assert improvement(drop, 0.0) == pytest.approx(wanted, rel=1e-12)
    assert map_reward(improvement(3.0, 3.0 - drop)) == tiers


def test_golden_tiers_in_nats() -> None:
    drops = [0.0005001250416822979, 0.010050335853501442, 0.02020270731751945]
    assert [improvement(drop, 0.0) for drop in drops] == pytest.approx([0.05, 1.0, 2.0], rel=1e-12)
    for drop, (below, above) in zip(drops, [(0, 0.5), (0.5, 0.9), (0.9, 1.0)], strict=True):
        assert map_reward(improvement(drop - 1e-9, 0.0)) == below
        assert map_reward(improvement(drop + 1e-9, 0.0)) == above


def test_a_tier_begins_at_its_threshold() -> None:
    just_below = [math.nextafter(edge, -math.inf) for edge in (0.05, 1.0, 2.0)]
    assert [map_reward(edge) for edge in (0.05, 1, 2)] == [0.5, 0.9, 1.0]
    assert [map_reward(edge) for edge in just_below] == [0.0, 0.5, 0.9]
    assert map_reward(torch.tensor([0.05, 1.0, 2.0])).tolist() == pytest.approx([0.5, 0.9, 1.0])


def test_no_epsilon_is_added() -> None:
    """1e-10 would keep a group of zeros above the strict lower bound of dynamic filtering."""
    for kind in KINDS:
        assert map_reward(0.0, kind=kind) in (0.0, 1.0)
    assert map_reward(-5.0) == 0.0 and map_reward(5.0) == 1.0


def test_thresholds_values_and_cap() -> None:
    assert [map_reward(i, thresholds=(1, 5), values=(-1, 3)) for i in (0.0, 1.0, 7.0)] == [0.0, -1.0, 3.0]
    assert [map_reward(i, kind="positive", cap=2.5) for i in (-1.0, 2.0, 40.0)] == [0.0, 2.0, 2.5]
    assert [map_reward(i, kind="raw", cap=2.5) for i in (-100.0, 40.0)] == [-100.0, 2.5]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kind": "tier"}, "unknown kind of reward 'tier'"),
        ({"thresholds": (1,)}, "1 thresholds and 3 values"),
        ({"thresholds": (), "values": ()}, "0 thresholds"),
        ({"thresholds": (1, 1, 2)}, "must rise"),
        ({"thresholds": (2, 1, 3)}, "must rise"),
        ({"thresholds": (0, 1, math.nan)}, "finite"),
        ({"values": (0, 1, math.inf)}, "finite"),
    ],
)
def test_what_cannot_be_mapped(options: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        map_reward(1.0, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_nan_is_not_hidden(kind: str) -> None:
    assert math.isnan(map_reward(math.nan, kind=kind))
    assert map_reward(torch.tensor([math.nan, 3.0]), kind=kind).isnan().tolist() == [True, False]


@given(NUMBERS, NUMBERS, st.sampled_from(KINDS), st.none() | st.floats(0.1, 10))
def test_a_better_plan_never_gets_less(a: float, b: float, kind: str, cap: float | None) -> None:
    low, high = sorted((a, b))
    assert map_reward(low, kind=kind, cap=cap) <= map_reward(high, kind=kind, cap=cap)


@given(st.floats(0, 20), st.floats(-5, 5), st.floats(-5, 5))
def test_improvements_compound(base: float, first: float, second: float) -> None:
    """What is left of the perplexity multiplies, as perplexities do."""
    one, two = improvement(base, base - first), improvement(base - first, base - first - second)
    both = improvement(base, base - first - second)
    assert (1 - one / 100) * (1 - two / 100) == pytest.approx(1 - both / 100, rel=1e-9)
    assert improvement(base, base) == 0.0 and both < 100


@given(st.lists(NUMBERS, min_size=1, max_size=5), st.sampled_from(KINDS), st.none() | st.floats(0.1, 10))
def test_floats_and_tensors_agree(given_: list[float], kind: str, cap: float | None) -> None:
    base = 2.0
    wanted_gain = [improvement(base, base + i / 1e3) for i in given_]
    wanted = [map_reward(i, kind=kind, cap=cap) for i in given_]
    tensor = torch.tensor(given_, dtype=torch.float64)
    gains, found = improvement(base, base + tensor / 1e3), map_reward(tensor, kind=kind, cap=cap)
    assert gains.tolist() == pytest.approx(wanted_gain, rel=1e-12, abs=1e-12)
    assert found.dtype == torch.float64 and found.tolist() == wanted


def test_shapes_and_kinds_of_numbers_stay() -> None:
    assert map_reward(torch.ones(2, 3, dtype=torch.bfloat16)).shape == (2, 3)
    assert map_reward(torch.ones(2, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert map_reward(torch.tensor([3, 0])).tolist() == [1.0, 0.0]
    assert isinstance(map_reward(np.float64(3)), float) and isinstance(map_reward(3), float)
    assert improvement(torch.tensor([2.0]), torch.tensor([2.0])).tolist() == [0.0]
    assert improvement(3, 3) == 0.0
    nothing = improvement(2.0, 2.0)  # -0.0
    assert [math.copysign(1, map_reward(nothing, kind=kind)) for kind in ("positive", "nonpositive")] == [1, 1]


GROUPS = [
    ([0, 0, 0.5, 0.5, 0.9, 0.9, 1, 1], [-1.425572887] * 2 + [-0.237595481] * 2 + [0.712786443] * 2 + [0.950381924] * 2),
    ([1, 0, 0, 0, 0, 0, 0, 0], [2.474873727] + [-0.353553390] * 7),
    ([0.9, 0.9, 0.9, 1], [-0.49999999] * 3 + [1.49999997]),
    ([0, 0.5, 0.9, 1], [-1.319824032, -0.219970672, 0.659912016, 0.879882688]),
    ([0.0] * 8, [0.0] * 8),
    ([0.5] * 8, [0.0] * 8),
]


@pytest.mark.parametrize(("rewards", "wanted"), GROUPS)
def test_golden_group_norm_of_the_launcher(rewards: list[float], wanted: list[float]) -> None:
    """OpenRLHF's own normalisation, on which the tiers rely, spreads one number over all tokens."""
    from orlhf_ext import backends

    backends.install()
    from openrlhf.trainer.ppo_utils.experience_maker import Experience, RemoteExperienceMaker
    from openrlhf.trainer.ppo_utils.kl_controller import FixedKLController

    count = len(rewards)
    args = SimpleNamespace(
        rollout=SimpleNamespace(n_samples_per_prompt=count, max_new_tokens=4),
        reward=SimpleNamespace(clip_range=(-10, 10), overlong_buffer_len=None, stop_properly_penalty_coef=None),
        algo=SimpleNamespace(advantage=SimpleNamespace(estimator="group_norm", gamma=1.0, lambd=1.0)),
    )
    maker = object.__new__(RemoteExperienceMaker)
    maker.strategy = SimpleNamespace(args=args)
    maker.advantage_estimator = "group_norm"
    maker.kl_ctl = FixedKLController(0.0)
    experience = Experience(
        index=list(range(count)),
        rewards=torch.tensor(rewards),
        kl=torch.zeros(count, 3),
        action_mask=torch.ones(count, 3, dtype=torch.bool),
        info={},
    )
    (found,) = maker.compute_advantages_and_returns([experience])
    for column in found.advantages.T:
        assert column.tolist() == pytest.approx(wanted, abs=1e-6)


def test_golden_k3_of_the_launcher() -> None:
    from orlhf_ext import backends

    backends.install()
    from openrlhf.models.utils import compute_approx_kl

    ratios = torch.tensor([-0.5, 0.01, 0.5, 2.0])
    found = compute_approx_kl(ratios, torch.zeros(4), kl_estimator="k3").tolist()
    assert found == pytest.approx(
        [0.1487212707001282, 4.9833749168106886e-05, 0.10653065971263342, 1.1353352832366128], rel=1e-3, abs=1e-6
    )
