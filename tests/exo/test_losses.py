"""The K-wise losses with a target distribution against golden values, closed forms, gradients and invariances."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from orlhf_ext.exo.losses import kwise_loss, preference_targets

GOLDENS = json.loads((Path(__file__).parents[1] / "goldens" / "exo.json").read_text())
# The original project's constant of -10 is this label smoothing; its loss, with a target that is not normalised, is
# less than ours by this constant.
EPSILON_10, CONSTANT_10 = 1 / (1 + math.e**10), math.log1p(math.e**-10)
PREF, RW = ("exo-pref", "dpo-pref"), ("exo-rw", "dpo-rw")
TARGETED = PREF + RW
E1 = ([-42.0, -45.5], [-43.0, -44.0])
E2 = ([-120.25, -98.5], [-118.0, -101.0])
E3 = ([-60.0, -61.0, -75.5, -58.25], [-62.0, -60.5, -74.0, -60.0])


def f64(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def loss_of(logp, reference, labels, loss_type, beta_pi=0.5, beta_r=0.5, epsilon=None):
    return kwise_loss(f64(logp), f64(reference), f64(labels), loss_type, beta_pi, beta_r, epsilon)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("case", GOLDENS, ids=lambda c: f"{c['loss_type']}-{c['labels']}-{c.get('epsilon')}")
def test_golden_losses_and_gradients(case, dtype, tolerance):
    compatible = case["upstream_compat"] and case["loss_type"] == "exo-pref"
    epsilon, constant = (EPSILON_10, CONSTANT_10) if compatible else (case.get("epsilon"), 0.0)
    logp = torch.tensor([case["logp"]], dtype=dtype, requires_grad=True)
    others = (torch.tensor([case[k]], dtype=dtype) for k in ("ref_logp", "labels"))
    loss = kwise_loss(logp, *others, case["loss_type"], case["beta_pi"], case["beta_r"], epsilon)
    (gradient,) = torch.autograd.grad(loss, logp)
    assert loss.dtype == dtype and loss.ndim == 0
    assert loss.item() == pytest.approx(case["loss"] + constant, abs=tolerance)
    assert gradient[0].tolist() == pytest.approx(case["grad_logp"], abs=tolerance)


@pytest.mark.parametrize(
    "loss_type, inputs, labels, beta, epsilon, expected",
    [
        ("exo-pref", E1, [1, 0], 0.5, None, 1.008831493494),
        ("exo-pref", E2, [1, 0], 0.1, None, 3.593754153568),
        ("exo-pref", E1, [0, 1], 0.5, 0.1, 1.282958619714),
        ("dpo-pref", E1, [1, 0], 0.5, None, 0.251929081345),
        ("dpo-pref", E2, [1, 0], 0.1, 0.1, 0.911089087871),
        ("dpo-pref", E1, [0, 1], 0.5, 1e-3, 1.500679081345),
        ("exo-pref", E3, [1, 0, 0, 0], 0.5, 0.1, 0.813295047574),
        ("dpo-pref", E3, [1, 0, 0, 0], 0.5, 0.1, 0.955503065267),
    ],
)
def test_default_and_given_epsilon(loss_type, inputs, labels, beta, epsilon, expected):
    assert loss_of(*inputs, labels, loss_type, beta, beta, epsilon).item() == pytest.approx(expected, abs=1e-9)


def test_groups_are_averaged():
    both = kwise_loss(f64(E1[0], E2[0]), f64(E1[1], E2[1]), f64([1.2, -0.7], [-0.3, 0.4]), "exo-rw", 0.5, 0.5)
    assert both.item() == pytest.approx(0.193293432338, abs=1e-9)
    pairs = [f64(row).view(2, 2) for row in (*E3, [2, 0.5, -1, 1.25])]
    assert kwise_loss(*pairs, "exo-rw", 0.5, 0.5).item() == pytest.approx(0.245335726732, abs=1e-9)
    assert kwise_loss(*pairs, "dpo-rw", 0.5, 0.5).item() == pytest.approx(0.254404919989, abs=1e-9)


def test_gradients_of_golden_pairs_are_opposite_and_sum_to_zero():
    for case in GOLDENS:
        assert sum(case["grad_logp"]) == pytest.approx(0, abs=1e-12)


numbers = st.floats(-30, 30, width=32)
betas = st.floats(0.05, 2)


@st.composite
def groups(draw, min_k=2, max_k=6):
    """Log-probabilities, reference log-probabilities and rewards of up to three groups, float64."""
    shape = (draw(st.integers(1, 3)), draw(st.integers(min_k, max_k)))
    values = st.lists(numbers, min_size=shape[0] * shape[1], max_size=shape[0] * shape[1])
    return tuple(torch.tensor(draw(values), dtype=torch.float64).view(shape) for _ in range(3))


def labels_for(loss_type: str, rewards: torch.Tensor) -> torch.Tensor:
    if loss_type in RW:
        return rewards
    return torch.nn.functional.one_hot(rewards.argmax(-1), rewards.shape[-1]).double()


@pytest.mark.parametrize("loss_type", TARGETED)
@given(data=groups(), beta_pi=betas, beta_r=betas)
def test_gradient_formula_and_zero_sum(loss_type, data, beta_pi, beta_r):
    policy, reference, rewards = data
    policy = policy.requires_grad_()
    labels = labels_for(loss_type, rewards)
    loss = kwise_loss(policy, reference, labels, loss_type, beta_pi, beta_r)
    (gradient,) = torch.autograd.grad(loss, policy)
    with torch.no_grad():
        p = torch.softmax(beta_pi * (policy - reference), -1)
        if loss_type in RW:
            log_q = torch.log_softmax(labels / beta_r, -1)
        else:
            others = (1e-3 if loss_type == "exo-pref" else 0.0) / (labels.shape[-1] - 1)
            log_q = torch.where(labels > 0, 1 - others * (labels.shape[-1] - 1), others).double().log()
        if loss_type.startswith("exo"):
            difference = p.log() - log_q
            formula = p * (difference - (p * difference).sum(-1, keepdim=True))
            formula = torch.where(p > 0, formula, 0)  # the formula, unlike the code, takes log 0
        else:
            formula = p - log_q.exp()
    assert torch.allclose(gradient, beta_pi * formula / len(policy), rtol=1e-7, atol=1e-10)
    assert gradient.sum(-1).abs().max() < 1e-9


@pytest.mark.parametrize("loss_type", TARGETED)
@given(data=groups(), seed=st.integers(0, 2**31), shift=numbers)
def test_permutation_and_shift_invariance(loss_type, data, seed, shift):
    policy, reference, rewards = data
    labels = labels_for(loss_type, rewards)
    arguments = (loss_type, 0.5, 0.7)
    loss = kwise_loss(policy, reference, labels, *arguments)
    order = torch.randperm(policy.shape[-1], generator=torch.Generator().manual_seed(seed))
    permuted = kwise_loss(policy[:, order], reference[:, order], labels[:, order], *arguments)
    shifted = kwise_loss(policy + shift, reference, labels, *arguments)
    assert torch.allclose(permuted, loss, rtol=1e-9, atol=1e-9)
    assert torch.allclose(shifted, loss, rtol=1e-7, atol=1e-7)
    moved = kwise_loss(policy, reference, labels + shift, *arguments)  # only differences of labels count
    assert torch.allclose(moved, loss, rtol=1e-7, atol=1e-7)


@given(data=groups(max_k=2), beta_pi=betas, beta_r=betas)
def test_closed_forms_for_pairs(data, beta_pi, beta_r):
    policy, reference, rewards = data
    ratio = policy - reference
    s = beta_pi * (ratio[:, 0] - ratio[:, 1])
    sg, sp = torch.sigmoid, torch.nn.functional.softplus
    for loss_type, t in (("exo-rw", (rewards[:, 0] - rewards[:, 1]) / beta_r), ("exo-pref", math.log(0.999 / 1e-3))):
        t = torch.as_tensor(t).double().expand_as(s)
        labels = rewards if loss_type == "exo-rw" else f64([1, 0]).expand_as(policy)
        expected = (sg(s) * (s - t) + sp(t) - sp(s)).mean()
        actual = kwise_loss(policy, reference, labels, loss_type, beta_pi, beta_r)
        assert torch.allclose(actual, expected, rtol=1e-6, atol=1e-6)
    t = (rewards[:, 0] - rewards[:, 1]) / beta_r
    actual = kwise_loss(policy, reference, rewards, "dpo-rw", beta_pi, beta_r)
    assert torch.allclose(actual, (sp(s) - sg(t) * s).mean(), rtol=1e-6, atol=1e-6)
    assert kwise_loss(policy, reference, rewards, "exo-rw", beta_pi, beta_r) >= -1e-9  # a KL divergence


@pytest.mark.parametrize("epsilon", [0.0, 1e-3, 0.1])
def test_pairs_equal_openrlhf_dpo_loss(epsilon):
    from orlhf_ext import backends

    backends.install()
    from openrlhf.models import DPOLoss

    torch.manual_seed(0)
    policy, reference = torch.randn(2, 8, 2, dtype=torch.float64) * 20 - 50
    theirs, _, _ = DPOLoss(0.3, epsilon)(policy[:, 0], policy[:, 1], reference[:, 0], reference[:, 1])
    labels = f64([1, 0]).expand(8, 2)
    ours = kwise_loss(policy, reference, labels, "dpo-pref", 0.3, 0.5, epsilon)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-12)


@settings(max_examples=20)
@given(data=groups(max_k=2))
def test_epsilon_of_the_original_constant(data):
    """With log q = (0, -10) in the place of a distribution, only a constant is added to the loss."""
    policy, reference, _ = data
    log_p = torch.log_softmax(0.5 * (policy - reference), -1)
    unnormalised = (log_p.exp() * (log_p - f64([0.0, -10.0]))).sum(-1).mean()
    ours = kwise_loss(policy, reference, f64([1, 0]).expand_as(policy), "exo-pref", 0.5, 0.5, EPSILON_10)
    assert (ours - unnormalised).item() == pytest.approx(CONSTANT_10, abs=1e-9)


def test_ties_share_the_best_target():
    labels = f64([1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0])
    targets = preference_targets(labels, 0.1)
    assert targets[0].tolist() == pytest.approx([0.45, 0.45, 0.05, 0.05])
    assert targets[1].tolist() == pytest.approx([0.9, 0.1 / 3, 0.1 / 3, 0.1 / 3])
    assert targets[2].tolist() == targets[3].tolist() == pytest.approx([0.25] * 4)
    assert torch.allclose(targets.sum(-1), torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize("loss_type", TARGETED)
def test_extreme_values_stay_finite(loss_type):
    policy = torch.tensor([[-1e4, -1.0], [-1.0, -1e4]], requires_grad=True)
    labels = torch.tensor([[1.0, 0.0], [1.0, 0.0]]) * (1.0 if loss_type in PREF else 1e5)
    loss = kwise_loss(policy, torch.zeros(2, 2), labels, loss_type, 1.0, 0.1)
    (gradient,) = torch.autograd.grad(loss, policy)
    assert torch.isfinite(loss) and torch.isfinite(gradient).all()


def test_low_precision_is_computed_in_float32():
    policy = torch.tensor([[-42.0, -45.5]], dtype=torch.bfloat16)
    loss = kwise_loss(policy, f64(E1[1]).bfloat16(), torch.tensor([[1, 0]]), "dpo-pref", 0.5, 0.5)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(0.251929081345, abs=1e-6)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"loss_type": "exo-prefs"}, "did you mean 'exo-pref'"),
        ({"loss_type": "exo-rw", "epsilon": 0.1}, "leave it out"),
        ({"loss_type": "dpo-rw", "epsilon": 0.0}, "leave it out"),
        ({"loss_type": "exo-pref", "epsilon": 0.0}, "log 0"),
        ({"loss_type": "exo-pref", "epsilon": 1.0}, "between 0 and 1"),
        ({"loss_type": "dpo-pref", "epsilon": -0.1}, "at least 0"),
        ({"loss_type": "dpo-pref", "epsilon": math.nan}, "at least 0"),
        ({"beta_pi": 0.0}, "greater than 0"),
        ({"loss_type": "exo-rw", "beta_r": -1.0}, "greater than 0"),
        ({"labels": f64([1, math.nan])}, "not a number"),
        ({"loss_type": "exo-rw", "labels": f64([1, math.inf])}, "finite"),
        ({"labels": f64([1, 0, 0])}, "shape"),
        ({"policy_logps": f64([1])}, "K >= 2"),
        ({"policy_logps": torch.zeros(0, 2)}, "groups"),
        ({"policy_logps": torch.zeros(2)}, "K >= 2"),
    ],
)
def test_bad_input(change, message):
    good = {"policy_logps": f64(E1[0]), "reference_logps": f64(E1[1]), "labels": f64([1, 0]), "loss_type": "exo-pref"}
    with pytest.raises(ValueError, match=message):
        kwise_loss(**{**good, "beta_pi": 0.5, "beta_r": 0.5, **change})
