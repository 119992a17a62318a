"""Plackett-Luce, LiPO-lambda and NCA against their papers' formulas, written out with Python's own numbers."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orlhf_ext.cli.errors import UserError
from orlhf_ext.exo.losses import kwise_loss
from orlhf_ext.exo.rows import Rules, parse_record

LOSSES = ("pl", "lipo", "nca")
H, REWARDS = [2.0, 0.5, -1.5, -2.25], [2.0, 0.5, -1.0, 1.25]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def plackett_luce(s: list[float], r: list[float], beta_r: float) -> float:
    """Minus the log of equation 20's product, over the ranking from the best to the worst."""
    ranking = sorted(range(len(s)), key=lambda i: -r[i])
    product = 1.0
    for k in range(len(s)):
        product *= math.exp(s[ranking[k]]) / sum(math.exp(s[j]) for j in ranking[k:])
    return -math.log(product)


def lipo(s: list[float], r: list[float], beta_r: float) -> float:
    psi = [sum(sigmoid((a - b) / beta_r) for b in r) / len(r) for a in r]
    order = sorted(range(len(s)), key=lambda i: (-s[i], -r[i]))
    rank = {i: place for place, i in enumerate(order, 1)}
    total = 0.0
    for i, j in itertools.permutations(range(len(s)), 2):
        if psi[i] > psi[j]:
            gain = abs((2 ** psi[i] - 1) - (2 ** psi[j] - 1))
            discount = abs(1 / math.log(1 + rank[i]) - 1 / math.log(1 + rank[j]))
            total += gain * discount * math.log(1 + math.exp(-(s[i] - s[j])))
    return total


def nca(s: list[float], r: list[float], beta_r: float) -> float:
    weights = [math.exp(x / beta_r) for x in r]
    q = [w / sum(weights) for w in weights]
    return -sum(q[i] * math.log(sigmoid(s[i])) + math.log(sigmoid(-s[i])) / len(s) for i in range(len(s)))


FORMULAS = {"pl": plackett_luce, "lipo": lipo, "nca": nca}


def f64(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def loss_and_gradient(h: list[float], r: list[float], loss: str, beta_pi=0.5, beta_r=0.5) -> tuple[float, list[float]]:
    policy = f64([x - 40 for x in h]).requires_grad_()
    value = kwise_loss(policy, f64([-40.0] * len(h)), f64(r), loss, beta_pi, beta_r)
    return value.item(), torch.autograd.grad(value, policy)[0][0].tolist()


@pytest.mark.parametrize(
    ("loss", "h", "expected", "gradient"),
    [
        ("pl", H, 2.739607134931, [-0.216805893, 0.307805759, 0.297175131, -0.388174996]),
        ("lipo", H, 0.330099770718, [-0.081103515, 0.053287584, 0.054181129, -0.026365198]),
        ("nca", H, 1.218122501912, [-0.014052157, 0.061726502, 0.039442665, -0.035400453]),
        ("lipo", [0.0] * 4, 0.799377978451, [-0.241344282, 0.079880146, 0.172923835, -0.011459700]),
    ],
)
def test_golden_values(loss, h, expected, gradient) -> None:
    value, slopes = loss_and_gradient(h, REWARDS, loss)
    assert value == pytest.approx(expected, abs=1e-11)
    assert slopes == pytest.approx(gradient, abs=1e-9)


@pytest.mark.parametrize("loss", LOSSES)
@given(
    rows=st.lists(
        st.tuples(st.integers(-40, 40), st.integers(-40, 40)), min_size=2, max_size=6, unique_by=lambda row: row[1]
    ),
    betas=st.tuples(st.floats(0.05, 2), st.floats(0.3, 2)),
    seed=st.integers(0, 2**31),
)
def test_the_papers_formulas(loss, rows, betas, seed) -> None:
    """Rewards differ; log ratios may tie. Slopes are those of the formula where ranks do not change, and the order of
    completions makes no difference."""
    h, r = ([row[place] / 8 for row in rows] for place in (0, 1))
    value, slopes = loss_and_gradient(h, r, loss, *betas)
    expected = FORMULAS[loss]([betas[0] * x for x in h], r, betas[1])
    assert value == pytest.approx(expected, rel=1e-8, abs=1e-9)
    order = torch.randperm(len(h), generator=torch.Generator().manual_seed(seed)).tolist()
    again, turned = loss_and_gradient([h[i] for i in order], [r[i] for i in order], loss, *betas)
    assert again == pytest.approx(value, abs=1e-9)
    assert turned == pytest.approx([slopes[i] for i in order], abs=1e-9)
    if len(set(h)) == len(h):
        step = 1e-6
        for i in range(len(h)):
            ends = [loss_and_gradient([*h[:i], h[i] + d, *h[i + 1 :]], r, loss, *betas)[0] for d in (step, -step)]
            assert slopes[i] == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-6)
    if loss != "nca":  # only differences of log ratios count
        assert sum(slopes) == pytest.approx(0, abs=1e-9)


def test_pairs_are_their_papers_pairs() -> None:
    """Two completions: Plackett-Luce is DPO, LiPO-lambda a weighted DPO, and NCA with labels its `nca_pair`."""
    h = [0.75, -0.5]
    dpo = -math.log(sigmoid(0.5 * (h[0] - h[1])))
    assert loss_and_gradient(h, [3.0, 1.0], "pl")[0] == pytest.approx(dpo, abs=1e-12)
    certain = (2**0.75 - 2**0.25) * (1 / math.log(2) - 1 / math.log(3))  # win rates of 3/4 and 1/4, itself a half
    assert loss_and_gradient(h, [300.0, 1.0], "lipo")[0] == pytest.approx(certain * dpo, abs=1e-12)
    s = [0.5 * x for x in h]
    pair = -math.log(sigmoid(s[0])) - math.log(sigmoid(-s[0])) / 2 - math.log(sigmoid(-s[1])) / 2
    assert loss_and_gradient(h, [300.0, 1.0], "nca")[0] == pytest.approx(pair, abs=1e-12)


def test_ties_do_not_compete() -> None:
    for loss in ("pl", "lipo"):
        value, slopes = loss_and_gradient(H, [0.7] * 4, loss)
        assert value == 0 and slopes == [0] * 4
    both = loss_and_gradient([1.0, 1.0, 0.0], [2.0, 2.0, 1.0], "pl")
    alone = loss_and_gradient([1.0, 0.0], [2.0, 1.0], "pl")
    assert both[0] == pytest.approx(2 * alone[0]) and both[1][:2] == pytest.approx([alone[1][0]] * 2)
    slopes = loss_and_gradient([0.0] * 3, [2.0, 2.0, 1.0], "lipo")[1]
    assert slopes[0] == slopes[1] < 0 < slopes[2]


@pytest.mark.parametrize("loss", LOSSES)
def test_extreme_values_stay_finite(loss) -> None:
    policy = torch.tensor([[-1e4, -1.0, -5.0], [-1.0, -1e4, -1e4]], requires_grad=True)
    value = kwise_loss(policy, torch.zeros(2, 3), torch.tensor([[1e5, 0.0, -1e5]] * 2), loss, 1.0, 0.1)
    (gradient,) = torch.autograd.grad(value, policy)
    assert torch.isfinite(value) and torch.isfinite(gradient).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_rewards_are_needed(loss) -> None:
    record = {"prompt": "p", "completions": ["a", "b"], "rewards": [0.3, 0.1]}
    assert parse_record(record, "x", Rules(loss, 2)).rewards == [0.3, 0.1]
    with pytest.raises(UserError, match=rf"{loss} cannot learn from; .* use --exo.loss_type dpo-pref"):
        parse_record({"prompt": "p", "chosen": "a", "rejected": "b"}, "x", Rules(loss, 2))
    with pytest.raises(ValueError, match=f"{loss} learns from rewards; leave it out"):
        kwise_loss(f64(H), f64(H), f64(REWARDS), loss, 0.5, 0.5, 0.1)
    with pytest.raises(ValueError, match="finite"):
        kwise_loss(f64(H), f64(H), f64([1, 2, 3, math.inf]), loss, 0.5, 0.5)
