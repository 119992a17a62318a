"""Names, defaults and limits of the K-wise losses. Pure Python: read by the flags, the checks and the loss."""

from __future__ import annotations

from types import SimpleNamespace

from ..cli.errors import UserError, suggest

LOSS_TYPES = ("exo-pref", "exo-rw", "dpo-pref", "dpo-rw", "pl", "lipo", "nca")

SHARING = ("auto", "on", "off")  # of a prompt, by the completions of a record

_EPSILON = {"exo-pref": 1e-3, "dpo-pref": 0.0}


def default_epsilon(loss_type: str) -> float:
    """The paper's 1e-3 for ``exo-pref``; 0, plain DPO, for ``dpo-pref``; the others have none (KeyError)."""
    return _EPSILON[loss_type]


def from_rewards(loss_type: str) -> bool:
    """Whether the loss learns from a reward for each completion; else from which one is the best, as people say."""
    return loss_type not in _EPSILON


def for_pairs(loss_type: str) -> str:
    """The loss that learns from pairs without rewards what this one learns from rewards."""
    return "exo-pref" if loss_type.startswith("exo") else "dpo-pref"


def taking_apart(ds: SimpleNamespace) -> str | None:
    """The flag by which a record's completions are packed, or spread over processes; None where they are not."""
    if ds.packing_samples:
        return "--ds.packing_samples"
    return next((f"--ds.{name}" for name in ("ring_attn_size", "tensor_parallel_size") if getattr(ds, name) > 1), None)


def check_loss_type(loss_type: str) -> None:
    """Raises ValueError for an unknown loss, with the nearest known one."""
    if loss_type not in LOSS_TYPES:
        raise ValueError(f"unknown loss {loss_type!r}{suggest(loss_type, list(LOSS_TYPES))}")


def check_loss_flags(own: SimpleNamespace, prefix: str) -> None:
    """Look at the flags ``--PREFIX.loss_type`` and ``--PREFIX.epsilon``. Raises UserError that names the flag."""
    try:
        check_loss_type(own.loss_type)
    except ValueError as error:
        raise UserError(f"--{prefix}.loss_type: {error}") from error
    try:
        check_epsilon(own.loss_type, own.epsilon)
    except ValueError as error:
        raise UserError(f"--{prefix}.epsilon: {error}") from error


def check_epsilon(loss_type: str, epsilon: float | None) -> None:
    """Raises ValueError for an epsilon that the loss does not allow; None, the default, always is."""
    if epsilon is None:
        return
    if from_rewards(loss_type):
        raise ValueError(f"epsilon smooths preference labels, and {loss_type} learns from rewards; leave it out")
    if loss_type == "exo-pref" and not 0 < epsilon < 1:
        raise ValueError(f"epsilon of exo-pref must lie between 0 and 1, both excluded (log 0), not {epsilon}")
    if not 0 <= epsilon < 1:
        raise ValueError(f"epsilon of {loss_type} must be at least 0 and less than 1, not {epsilon}")
