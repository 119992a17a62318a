"""Caps on probabilities: goldens of the formula, and what holds for any logits and any values."""

from __future__ import annotations

import pytest
import torch
from deadend_q import infeasible_rows
from hypothesis import given
from hypothesis import strategies as st

from orlhf_ext.cli.errors import UserError
from orlhf_ext.deadend.decoding import (
    align_vocabulary,
    caps,
    check_vocabulary,
    rectify,
    rectify_counted,
)

Z = [2.0, 1.0, 0.0, -1.0, -2.0]
Q = [-0.8, -0.1, -0.95, 0.05, -0.5]
GOLDEN = {
    0.0: (
        [0.202799563130, 1, -1.183494797990, -1, -2],
        [0.257721020892, 0.571965183989, 0.064430255223, 0.077407070177, 0.028476469719],
    ),
    0.1: (
        [-0.824953666468, 1, -14.640464224433, -1, -2],
        [0.119749989425, 0.742750222906, 1.197499894e-07, 0.100520311791, 0.036979356128],
    ),
    0.3: (
        [-14.948248910585, 0.659021116607, -14.948248910585, -1, -2],
        [1.322392120e-07, 0.793435272153, 1.322392120e-07, 0.151010722986, 0.055553740383],
    ),
}
LIMIT = [0.1, 0.759415176654, 1e-7, 0.102775668027, 0.037809055320]
double = torch.float64


def rows(*values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=double)


def near(found: torch.Tensor, wanted: list[float], tolerance: float = 1.1e-12) -> None:
    assert found.tolist() == pytest.approx(wanted, abs=tolerance, rel=0)


@pytest.mark.parametrize("epsilon", GOLDEN)
def test_two_passes(epsilon: float) -> None:
    z, q = rows(Z), rows(Q)
    found = rectify(z, q, epsilon)
    assert found.dtype == double and z.tolist() == [Z]
    near(found[0], GOLDEN[epsilon][0])
    near(found.softmax(-1)[0], GOLDEN[epsilon][1])
    single = rectify(z.float(), q.float(), epsilon)
    assert single.dtype == torch.float32
    near(single.softmax(-1)[0], GOLDEN[epsilon][1], 1e-6)
    assert rectify(z.bfloat16(), q.bfloat16()).dtype == torch.float32


def test_an_epsilon_for_each_row() -> None:
    found = rectify(rows(Z, Z, Z), rows(Q, Q, Q), torch.tensor(list(GOLDEN), dtype=double))
    for row, (wanted, _) in zip(found, GOLDEN.values(), strict=True):
        near(row, wanted)
    near(rectify(rows(Z), rows(Q), torch.tensor(0.1, dtype=double))[0], GOLDEN[0.1][0])


def test_one_pass_and_the_limit() -> None:
    one = rectify(rows(Z), rows(Q), 0.1, passes=1).softmax(-1)
    near(one[0], [0.264926692436, 0.620250762836, 2.649266924e-07, 0.083941812666, 0.030880467135])
    limit = rectify(rows(Z), rows(Q), 0.1, passes=None)
    near(limit.exp()[0], LIMIT)
    near(rectify(rows(Z), rows(Q), 0.1, passes=400).softmax(-1)[0], limit.exp()[0].tolist())


def test_when_every_token_looks_dead() -> None:
    z, q = rows(Z, Z), rows([-1.0] * 5, Q)
    assert rectify_counted(z, q)[1].tolist() == infeasible_rows(z, q).tolist() == [True, False]
    near(rectify(z, q).softmax(-1)[0], [0.2] * 5)
    near(rectify(z, q, passes=None).softmax(-1)[0], [0.2] * 5)
    fallback = rectify(z, q, infeasible="fallback", top_k=2)
    near(fallback.softmax(-1)[0], [*torch.tensor(Z[:2], dtype=double).softmax(-1).tolist(), 0, 0, 0])
    assert torch.equal(fallback[1], rectify(z, q)[1])
    # the largest caps come first, and among equal ones the likelier tokens
    some = rectify(rows(Z), rows([-1.0, -1.0, -0.9, -1.0, -0.7]), infeasible="fallback", top_k=3).softmax(-1)
    assert (some[0] > 0).tolist() == [True, False, True, False, True]
    # a token that the language model does not allow does not make a row feasible, and is never fallen back on
    blocked = rows([-torch.inf, 1.0, 0.0])
    values = rows([0.0, -0.9, -0.9])
    assert rectify_counted(blocked, values)[1].tolist() == infeasible_rows(blocked, values).tolist() == [True]
    assert rectify(blocked, values, infeasible="fallback")[0, 0] == -torch.inf


def test_arguments_that_make_no_sense() -> None:
    for wrong in ({"passes": 0}, {"p_min": 0.0}, {"infeasible": "uniform"}, {"top_k": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            rectify(rows(Z), rows(Q), **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"\(1, 5\).*\(1, 4\)"):
        rectify(rows(Z), rows(Q[:4]))


def test_vocabularies_of_two_sizes(tiny_model: object) -> None:
    q = rows(Q)
    assert align_vocabulary(q, 3).tolist() == [Q[:3]]
    assert caps(align_vocabulary(q, 7), 0.9)[0, 5:].tolist() == [1, 1]
    from orlhf_ext.models.folder import load_tokenizer

    real = len(load_tokenizer(tiny_model))  # type: ignore[arg-type]
    check_vocabulary(real, "q", real + 9, "lm", str(tiny_model))  # the rest is padding
    with pytest.raises(UserError, match=f"q knows {real - 1} tokens and the language model lm has {real}"):
        check_vocabulary(real - 1, "q", real + 9, "lm", str(tiny_model))


number = st.floats(-30, 30)
value = st.floats(-1.5, 0.5)


@st.composite
def cases(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    count = draw(st.integers(1, 8))
    z = draw(st.lists(number, min_size=count, max_size=count))
    blocked = draw(st.lists(st.booleans(), min_size=count - 1, max_size=count - 1))
    z = [z[0]] + [-torch.inf if block else x for x, block in zip(z[1:], blocked, strict=True)]
    return rows(z), rows(draw(st.lists(value, min_size=count, max_size=count)))


@given(cases(), st.floats(0, 1))
def test_the_limit_keeps_to_its_caps(case: tuple[torch.Tensor, torch.Tensor], epsilon: float) -> None:
    z, q = case
    limit = rectify(z, q, epsilon, passes=None)
    assert not limit.isnan().any() and torch.equal(limit == -torch.inf, z == -torch.inf)
    c, p, before = caps(q, epsilon)[0], limit.exp()[0], z.softmax(-1)[0]
    assert (p <= c + 1e-9).all()
    if infeasible_rows(z, q, epsilon):
        near(limit.softmax(-1)[0], (c * (z[0] > -torch.inf) / c[z[0] > -torch.inf].sum()).tolist(), 1e-9)
        return
    assert p.sum().item() == pytest.approx(1, abs=1e-9)
    free = (p < c * (1 - 1e-9)) & (z[0] > -torch.inf)
    if free.any():  # uncapped tokens keep their proportions, and so their order
        k = (p[free] / before[free]).log()
        assert (k.max() - k.min()).item() < 1e-9 and k.min() > -1e-9


@given(cases(), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_epsilon_takes_from_the_capped(
    case: tuple[torch.Tensor, torch.Tensor], one: float, other: float
) -> None:
    z, q = case
    small, large = sorted((one, other))
    assert (caps(q, large) <= caps(q, small)).all()
    if infeasible_rows(z, q, large):
        return
    first, second = (rectify(z, q, epsilon, passes=None).exp() for epsilon in (small, large))
    capped = first >= caps(q, small) * (1 - 1e-9)
    uncapped = second < caps(q, large) * (1 - 1e-9)
    assert (second[uncapped] >= first[uncapped] - 1e-9).all()  # what is still free can only have gained
    both = capped & ~uncapped
    assert (second[both] <= first[both] + 1e-9).all()


@given(cases(), st.floats(0, 1), st.integers(1, 4), st.sampled_from(["normalize", "fallback"]))
def test_passes_never_raise_a_logit(
    case: tuple[torch.Tensor, torch.Tensor], epsilon: float, passes: int, infeasible: str
) -> None:
    z, q = case
    for dtype in (double, torch.float32):
        found = rectify(z.to(dtype), q.to(dtype), epsilon, passes, infeasible=infeasible)  # type: ignore[arg-type]
        assert not found.isnan().any() and found.softmax(-1).sum().item() == pytest.approx(1, abs=1e-6)
        assert (found <= z.to(dtype)).all() and (found[z == -torch.inf] == -torch.inf).all()
