"""SARSA targets and loss of Q_D: goldens in float64, gradients, what is masked, the target head's average."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="no torch (the tests of Python 3.12 run without)", exc_type=ImportError)

from orlhf_ext.deadend.loss import polyak_update, sarsa_loss, sarsa_targets  # noqa: E402

IDS = torch.tensor([[1, 3, 2, 4], [5, 0, 9, 9]])  # 9 pads
LENGTHS = torch.tensor([4, 2])
REWARDS = torch.tensor([-1.0, 0.0], dtype=torch.float64)


def taken() -> tuple[Any, Any]:
    """Values of the actions taken, online and target, from tables over (row, place, token)."""
    b, t, a = (torch.arange(n, dtype=torch.float64) for n in (2, 4, 10))
    b, t, a = b[:, None, None], t[None, :, None], a[None, None]
    online = -0.05 * (b + 1) - 0.1 * t - 0.02 * a
    target = -0.15 * (b + 1) - 0.2 * t + 0.01 * a - 0.03
    pick = IDS[:, 1:, None]
    return tuple(table[:, :-1].gather(-1, pick).squeeze(-1) for table in (online, target))  # type: ignore[return-value]


def close(found: Any, wanted: list) -> None:
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=1e-12)


def test_values_of_the_actions_taken() -> None:
    q, target_q = taken()
    close(q, [[-0.11, -0.19, -0.33], [-0.10, -0.38, -0.48]])
    close(target_q, [[-0.15, -0.36, -0.54], [-0.33, -0.44, -0.64]])


@pytest.mark.parametrize(
    "gamma, targets, tokens, actions",
    [
        (1.0, [-0.36, -0.54, -1.0], 0.10731666666666666, 0.160975),
        (0.9, [-0.324, -0.486, -1.0], 0.09871866666666666, 0.148078),
    ],
)
def test_goldens(gamma: float, targets: list[float], tokens: float, actions: float) -> None:
    q, target_q = taken()
    y = sarsa_targets(target_q, REWARDS, LENGTHS, gamma)
    close(y, [targets, [0, 0, 0]])
    assert sarsa_loss(q, y, LENGTHS).item() == pytest.approx(tokens, abs=1e-12)
    assert sarsa_loss(q, y, LENGTHS, norm="actions").item() == pytest.approx(actions, abs=1e-12)
    y32 = sarsa_targets(target_q.float(), REWARDS.float(), LENGTHS, gamma)
    assert y32.dtype == torch.float32
    assert sarsa_loss(q.float(), y32, LENGTHS).item() == pytest.approx(tokens, abs=1e-6)
    assert sarsa_loss(q.bfloat16(), y32, LENGTHS).dtype == torch.float32


def test_gradient() -> None:
    q, target_q = (tensor.requires_grad_() for tensor in taken())
    sarsa_loss(q, sarsa_targets(target_q, REWARDS, LENGTHS), LENGTHS).backward()
    close(q.grad * 12, [[1.0, 1.4, 2.68], [-0.4, 0, 0]])
    assert target_q.grad is None


def test_targets_are_clipped_and_values_are_not() -> None:
    q, target_q = taken()
    close(sarsa_targets(3 * target_q, REWARDS, LENGTHS), [[-1, -1, -1], [0, 0, 0]])
    close(sarsa_targets(target_q + 1, REWARDS, LENGTHS), [[0, 0, -1], [0, 0, 0]])
    close(sarsa_targets(target_q, REWARDS, LENGTHS, q_min=-0.5, q_max=-0.4), [[-0.4, -0.5, -0.5], [-0.4, 0, 0]])
    far = sarsa_loss(q - 5, sarsa_targets(target_q, REWARDS, LENGTHS), LENGTHS)
    assert far > 10


def test_padding_says_nothing() -> None:
    """Not even where it is not a number, and neither does a row of one token, which takes no action."""
    q, target_q = taken()
    wanted = sarsa_loss(q, sarsa_targets(target_q, REWARDS, LENGTHS), LENGTHS, norm="actions")
    q, target_q = (torch.cat([tensor, torch.full((1, 3), torch.nan)]) for tensor in (q, target_q))
    q[1, 1:] = target_q[1, 1:] = torch.nan
    rewards, lengths = torch.cat([REWARDS, REWARDS[:1]]), torch.tensor([4, 2, 1])
    y = sarsa_targets(target_q, rewards, lengths)
    assert y[2].tolist() == [0, 0, 0]
    q.requires_grad_()
    found = sarsa_loss(q, y, lengths, norm="actions")
    assert found.item() == wanted.item()
    found.backward()
    assert torch.isfinite(q.grad).all()
    with pytest.raises(ValueError, match="norm is 'rows', not tokens or actions"):
        sarsa_loss(q, y, lengths, norm="rows")


def test_a_batch_of_nothing() -> None:
    lengths = torch.tensor([1])
    y = sarsa_targets(torch.zeros(1, 1), torch.tensor([-1.0]), lengths)
    assert sarsa_loss(torch.ones(1, 1), y, lengths, norm="actions").item() == 0


def test_polyak() -> None:
    target, found = [torch.ones(1, dtype=torch.float64)], []
    for _ in range(5):
        polyak_update(target, [torch.zeros(1, dtype=torch.float64)], 0.1)
        found.append(target[0].item())
    assert found == pytest.approx([0.9, 0.81, 0.729, 0.6561, 0.59049], abs=1e-12)


def test_a_float32_target_follows_a_bf16_head() -> None:
    """In bf16 a tenth of the way from -0.5 to -0.51 is nothing at all."""
    online = torch.full((1,), -0.51, dtype=torch.bfloat16)
    exact, rounded = torch.full((1,), -0.5), torch.full((1,), -0.5, dtype=torch.bfloat16)
    for _ in range(100):
        polyak_update([exact, rounded], [online, online], 0.1)
    assert exact.item() == pytest.approx(online.item(), abs=1e-6)
    assert rounded.item() == -0.5
