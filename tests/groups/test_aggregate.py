"""Heads, losses and aggregation of group rewards: worked examples in float64, and what must hold for any numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch: Any = pytest.importorskip(
    "torch", reason="no torch (the tests of Python 3.12 run without)", exc_type=ImportError
)

from orlhf_ext.groups.aggregate import aggregate, standardise, worst_group  # noqa: E402
from orlhf_ext.groups.losses import balanced_weights, group_pair_loss  # noqa: E402
from orlhf_ext.models.group_heads import IndependentHead, SharedHead, initialise, make_head  # noqa: E402
from orlhf_ext.models.head_settings import HOW, HeadSettings  # noqa: E402

GROUPS = [1, 1, 0, 1]
CHOSEN = [[1, 0, 2], [0.5, -1, 0], [-1, 2, 1], [0, 0.5, -0.5]]
REJECTED = [[0, 1, 0.5], [1, 1, 1], [0.5, 0.5, 0.5], [2, -1, 0]]
MARGINS = [0.02, 0.03, -0.04, 0.05]
GOLD = [[1.5, -1], [-0.2, 1.3], [0.9, 0.9], [2, 3]]  # helpful, harmless
FLOOR, CEILING = 0.1269280110, 2.1269280110


def exact(values: Any) -> Any:
    return torch.tensor(values, dtype=torch.float64)


def near(found: Any, wanted: Any, digits: int = 11) -> None:
    torch.testing.assert_close(found, exact(wanted), rtol=0, atol=0.6 * 10**-digits)


def shared() -> Any:
    head = SharedHead(3, 2, 2).double()
    with torch.no_grad():
        head.proj.weight.copy_(exact([[0.2, -0.1, 0.4], [-0.3, 0.5, 0.1]]))
        head.proj.bias.copy_(exact([0.05, -0.02]))
        head.weight.copy_(exact([[1, -0.5], [0.25, 0.75]]))
    return head


def independent() -> Any:
    head = IndependentHead(3, 2).double()
    with torch.no_grad():
        head.weight.copy_(exact([[0.3, -0.2, 0.1], [-0.1, 0.4, 0.2]]))
    return head


def selected(head: Any) -> tuple[Any, Any]:
    rows = torch.arange(4)
    return head(exact(CHOSEN))[rows, GROUPS], head(exact(REJECTED))[rows, GROUPS]


def test_scores_of_a_shared_head() -> None:
    head = shared()
    near(head(exact(CHOSEN)), [[1.11, 0.1725], [0.585, -0.44], [-0.64, 1.0475], [-0.29, 0.085]], 14)
    near(head(exact(REJECTED)), [[-0.115, 0.435], [0.41, 0.3475], [0.235, 0.1725], [1.11, -0.7025]], 14)
    near(head.weight @ head.proj.weight, [[0.35, -0.35, 0.35], [-0.175, 0.35, 0.175]], 14)
    near(head.weight @ head.proj.bias, [0.06, -0.0025], 14)


@pytest.mark.parametrize(
    ("squash", "pairs", "mean", "with_margin", "centred"),
    [
        (
            "identity",
            [0.832985845283, 1.162492723023, 1.223444581005, 0.374992723023],
            0.8984789680835679,
            0.9034565988400864,
            0.9007863274585679,
        ),
        (
            "tanh",
            [0.819592622267, 1.135378016662, 1.168113060909, 0.406265437849],
            0.8823372844217071,
            0.8876570432665197,
            0.8841530724039202,
        ),
    ],
)
def test_pair_losses(squash: str, pairs: list[float], mean: float, with_margin: float, centred: float) -> None:
    chosen, rejected = selected(shared())
    for i, wanted in enumerate(pairs):
        near(group_pair_loss(chosen[i : i + 1], rejected[i : i + 1], squash), wanted)
    near(group_pair_loss(chosen, rejected, squash), mean, 15)
    near(group_pair_loss(chosen, rejected, squash, margin=exact(MARGINS)), with_margin, 15)
    near(group_pair_loss(chosen, rejected, squash, centering=0.01), centred, 15)


def test_upstreams_loss_on_the_selected_scores_is_the_same() -> None:
    from orlhf_ext import backends

    backends.install()
    from openrlhf.models import PairWiseLoss

    chosen, rejected = selected(shared())
    assert PairWiseLoss()(chosen, rejected).item() == group_pair_loss(chosen, rejected, "identity").item()
    assert PairWiseLoss()(chosen.tanh(), rejected.tanh()).item() == group_pair_loss(chosen, rejected).item()


def test_gradients_of_the_tanh_loss() -> None:
    head = shared()
    group_pair_loss(*selected(head)).backward()
    near(head.weight.grad, [[0.043061894388, -0.140660148344], [-0.031731730955, 0.140343716592]], 12)
    near(head.proj.bias.grad, [0.035964331738, -0.052396963423], 12)
    near(
        head.proj.weight.grad,
        [[0.211404908947, -0.074658858468, -0.041040306435], [-0.061708109071, 0.311656301872, 0.001993386906]],
        12,
    )


def test_gradients_of_the_identity_loss_leave_the_offset_alone() -> None:
    head = shared()
    group_pair_loss(*selected(head), "identity").backward()
    near(head.proj.bias.grad, [0.0, 0.0], 16)
    near(head.weight.grad, [[0.044111564240, -0.220557821199], [-0.017002024725, 0.153456279091]], 12)


def test_balanced_weights_give_the_mean_of_the_groups_means() -> None:
    chosen, rejected = selected(shared())
    groups = torch.tensor(GROUPS)
    of_group = [group_pair_loss(chosen[groups == g], rejected[groups == g]) for g in (0, 1)]
    near(torch.stack(of_group), [1.1681130609087087, 0.7870786922593732], 15)
    weights = balanced_weights(groups, [1, 3])
    assert weights.tolist() == pytest.approx([2 / 3, 2 / 3, 2, 2 / 3])
    found = group_pair_loss(chosen, rejected, weights=weights.double())
    torch.testing.assert_close(found, exact(0.9775958765840409), rtol=0, atol=1e-7)  # weights are float32
    assert balanced_weights(torch.tensor([1, 1]), [0, 2]).tolist() == [1, 1]  # a group without pairs counts nothing
    with pytest.raises(ValueError, match="count is 0"):
        balanced_weights(groups, [0, 3])


def test_independent_heads() -> None:
    head, groups = independent(), torch.tensor(GROUPS)
    chosen, rejected = selected(head)
    losses = [group_pair_loss(chosen[groups == g], rejected[groups == g], "identity") for g in (0, 1)]
    near(torch.stack(losses), [1.103186048885458, 0.8260937750393338], 15)
    near(aggregate(head(exact(CHOSEN)), "min"), [0.3, -0.45, -0.6, -0.15], 14)


def test_heads_by_their_settings() -> None:
    head = make_head(5, HeadSettings(["a", "b", "c"], k=4))
    assert {name: tuple(p.shape) for name, p in head.named_parameters()} == {
        "weight": (3, 4),
        "proj.weight": (4, 5),
        "proj.bias": (4,),
    }
    alone = make_head(5, HeadSettings(["a", "b", "c"], head="independent", k=None))
    assert {name: tuple(p.shape) for name, p in alone.named_parameters()} == {"weight": (3, 5)}
    initialise(head, torch.Generator().manual_seed(0))
    again = make_head(5, HeadSettings(["a", "b", "c"], k=4))
    initialise(again, torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(head.parameters(), again.parameters(), strict=True))
    bias = head.get_parameter("proj.bias")
    assert not bias.any() and 0 < head.get_parameter("weight").abs().max() < 0.1
    # bf16 weights and states give float32 scores
    low = head.bfloat16()(torch.ones(2, 5, dtype=torch.bfloat16))
    assert low.dtype == torch.float32 and low.shape == (2, 3)


def test_minimum_over_heads() -> None:
    head = shared()
    for hidden, wanted, who in (
        (CHOSEN, [0.1725, -0.44, -0.64, -0.29], [1, 1, 0, 0]),
        (REJECTED, [-0.115, 0.3475, 0.1725, -0.7025], [0, 1, 1, 1]),
    ):
        scores = head(exact(hidden))
        near(aggregate(scores, "min"), wanted, 14)
        assert scores.argmin(1).tolist() == who


def test_rewards_of_the_gold_example() -> None:
    scores = exact(GOLD)
    groups = torch.stack([scores[:, 0], scores @ exact([0.3, 0.7])], 1)
    near(aggregate(groups, "min"), [-0.25, -0.2, 0.9, 2], 14)
    near(aggregate(scores, "weighted", weights=[0.3, 0.7]), [-0.25, 0.85, 0.9, 2.7], 14)
    near(aggregate(scores, "softmin"), [-0.3857, 0.2917, 0.9, 2.3799], 4)
    near(aggregate(scores, "mean"), [0.25, 0.55, 0.9, 2.5], 14)
    near(aggregate(scores, "index", index=1), [-1, 1.3, 0.9, 3], 14)


def test_minimum_after_standardising() -> None:
    scores = exact(GOLD)
    near(aggregate(scores, "min"), [-1, -0.2, 0.9, 2], 14)
    z = standardise(scores, scores.mean(0).tolist(), scores.std(0).tolist())
    near(aggregate(z, "min"), [-1.2484, -1.3201, -0.1584, 1.0032], 4)
    assert z.argmin(1).tolist() == scores.argmin(1).tolist() == [1, 0, 0, 0]
    assert standardise(scores.float(), [0, 0], [1, 2]).dtype == torch.float32


def test_worst_group_is_no_minimum_of_each_response() -> None:
    rewards = exact([[1, 0], [0, 1], [0.6, 0.1]])
    near(aggregate(rewards, "min"), [0, 0, 0.1], 14)
    found, index = worst_group(rewards)
    assert index == 1 and found.tolist() == [0, 1, 0.1]


numbers = st.floats(-50, 50)
matrices = st.integers(1, 4).flatmap(
    lambda groups: st.lists(st.lists(numbers, min_size=groups, max_size=groups), min_size=1, max_size=5)
)
pairs = st.lists(st.tuples(numbers, numbers), min_size=1, max_size=6)


@given(matrices, st.floats(0.05, 100))
def test_softmin_lies_between_minimum_and_mean(rows: list[list[float]], tau: float) -> None:
    rewards = exact(rows)
    soft = aggregate(rewards, "softmin", tau=tau)
    assert (soft >= aggregate(rewards, "min") - 1e-9).all() and (soft <= aggregate(rewards, "mean") + 1e-9).all()


@given(matrices)
def test_softmin_reaches_both_ends(rows: list[list[float]]) -> None:
    rewards = exact(rows)
    cold, warm = aggregate(rewards, "softmin", tau=1e-4), aggregate(rewards, "softmin", tau=1e6)
    torch.testing.assert_close(cold, aggregate(rewards, "min"), rtol=0, atol=1e-3)
    torch.testing.assert_close(warm, aggregate(rewards, "mean"), rtol=0, atol=1e-2)


@given(pairs, numbers)
def test_identity_loss_does_not_see_an_offset(values: list[tuple[float, float]], offset: float) -> None:
    chosen, rejected = exact(values).T
    found = group_pair_loss(chosen + offset, rejected + offset, "identity")
    torch.testing.assert_close(found, group_pair_loss(chosen, rejected, "identity"), rtol=0, atol=1e-9)


@given(pairs)
def test_tanh_loss_has_a_floor_and_a_ceiling(values: list[tuple[float, float]]) -> None:
    chosen, rejected = exact(values).T
    assert FLOOR - 1e-9 <= group_pair_loss(chosen, rejected).item() <= CEILING + 1e-9
    assert group_pair_loss(chosen, chosen).item() == pytest.approx(math.log(2))


def test_tanh_loss_reaches_floor_and_ceiling() -> None:
    high, low = exact([50.0]), exact([-50.0])
    assert group_pair_loss(high, low).item() == pytest.approx(FLOOR, abs=1e-10)
    assert group_pair_loss(low, high).item() == pytest.approx(CEILING, abs=1e-10)


@pytest.mark.parametrize(
    ("how", "more", "said"),
    [
        ("max", {}, "how is 'max', none of min, mean, weighted, softmin, index"),
        ("weighted", {}, "weighted needs 2 weights"),
        ("weighted", {"weights": [1.0]}, "weighted needs 2 weights"),
        ("softmin", {"tau": 0.0}, "tau is 0.0"),
        ("index", {}, "index is None, not 0 to 1"),
        ("index", {"index": 2}, "index is 2, not 0 to 1"),
    ],
)
def test_wrong_ways_to_aggregate(how: str, more: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        aggregate(exact(GOLD), how, **more)


def test_wrong_shapes() -> None:
    for how in HOW:
        with pytest.raises(ValueError, match=r"shape \(2,\), not \(B, U\)"):
            aggregate(exact([1, 2]), how)
    scores = exact([1, 2])
    for more in ({"rejected": exact([[1], [2]])}, {"margin": exact([[1], [2]])}, {"weights": exact([1])}):
        with pytest.raises(ValueError, match=f"{next(iter(more))} has the shape"):
            group_pair_loss(**{"chosen": scores, "rejected": scores, **more})
    with pytest.raises(ValueError, match="squash is 'relu'"):
        group_pair_loss(scores, scores, "relu")
