"""What a value function Q_D knows about itself: ``dead_end`` in its config.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..cli.errors import UserError
from ..models.folder import check_kind, read_config

KEY = "dead_end"
VERSION = 1
_UNREAD = ("reward_threshold",)  # which the config of a saved Q_D may have


@dataclass(frozen=True, kw_only=True)
class QSettings:
    """How a Q_D was trained, as far as decoding has to know it."""

    #: of this record
    version: int = VERSION
    #: discount of a step; with 1, ``-Q_D(s, a)`` is the probability that a text with ``a`` after ``s`` ends badly
    gamma: float = 1.0
    #: bounds of the training targets
    q_min: float = -1.0
    q_max: float = 0.0
    #: V, the number of tokens that have a value
    vocab_size: int
    #: texts were trained with an EOS token at their end; without, the value of EOS means nothing
    append_eos: bool = False

    def __post_init__(self) -> None:
        self._check(self.version == VERSION, "version", str(VERSION))
        self._check(0 < self.gamma <= 1, "gamma", "greater than 0 and at most 1")
        self._check(-math.inf < self.q_min < self.q_max < math.inf, "q_min", f"less than q_max {self.q_max}")
        self._check(self.vocab_size >= 1, "vocab_size", "at least 1")

    def _check(self, fits: bool, name: str, wanted: str) -> None:
        if not fits:
            raise ValueError(f"{name} is {getattr(self, name)!r}, not {wanted}")

    def as_config(self) -> dict[str, Any]:
        """What is written into config.json."""
        return asdict(self)


def from_config(value: Mapping[str, Any], where: str) -> QSettings:
    """Read ``dead_end``. Raises UserError if a key is missing, unknown or wrong; ``where`` is named."""
    try:
        return QSettings(**{key: one for key, one in value.items() if key not in _UNREAD})
    except (TypeError, ValueError) as error:
        raise UserError(f"{where} has a {KEY} in its config.json that cannot be read: {error}") from error


def read_settings(folder: Path, flag: str) -> QSettings:
    """The settings of a saved Q_D. Raises UserError if the folder has none."""
    check_kind(folder, f"{flag} {folder}")
    value = read_config(folder).get(KEY)
    if not isinstance(value, dict):
        raise UserError(
            f"{flag} {folder} is not a value function: its config.json has no {KEY}; give a folder that "
            "train_sft --ext.use dead-end wrote"
        )
    return from_config(value, f"{flag} {folder}")
