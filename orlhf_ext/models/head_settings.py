"""What a reward model with one score for each group knows about itself: ``group_reward`` in its config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..cli.errors import UserError
from .folder import read_config

HEADS = ("shared", "independent")
SQUASHES = ("tanh", "identity")
KEY = "group_reward"


@dataclass(frozen=True)
class HeadSettings:
    """The head of a reward model, and how the texts that it was trained on were made."""

    #: names of the groups; a group's id is its place
    names: list[str]
    #: ``shared``: d -> k -> U (SharedRep); ``independent``: d -> U (MaxMin)
    head: str = "shared"
    #: width of the shared layer; None for ``independent``
    k: int | None = 16
    #: what the loss was computed on; scores are never squashed
    squash: str = "tanh"
    style: str = "hh"
    eos: str = "append"
    #: how scores become one reward where a single number is asked for
    aggregate: str = "min"
    #: ``{"mean": [...], "std": [...]}``, a number for each group, over the evaluation texts; None before evaluation
    norm: dict[str, list[float]] | None = field(default=None)
    #: the id of each group in the pairs (see `training.id_text`), where it is not its place
    ids: list[str] | None = None

    def __post_init__(self) -> None:
        self._check(bool(self.names) and len(set(self.names)) == len(self.names), "names", "different names")
        self._check(self.head in HEADS, "head", " or ".join(HEADS))
        self._check((self.k is None) == (self.head == "independent"), "k", "a number with head shared only")
        self._check(self.k is None or self.k >= 1, "k", "at least 1")
        self._check(self.squash in SQUASHES, "squash", " or ".join(SQUASHES))
        self._check(self.style in STYLES, "style", " or ".join(STYLES))
        self._check(self.eos in EOS, "eos", " or ".join(EOS))
        self._check(self.aggregate in HOW, "aggregate", " or ".join(HOW))
        norm = self.norm
        if norm is not None:
            rows = [norm.get("mean"), norm.get("std")]
            self._check(all(row is not None and len(row) == len(self.names) for row in rows), "norm", "one for a group")

        self._check(self.ids is None or len(self.ids) == len(self.names), "ids", "one for a group")

    def _check(self, fits: bool, name: str, wanted: str) -> None:
        if not fits:
            raise ValueError(f"{name} is {getattr(self, name)!r}, not {wanted}")

    @property
    def num_groups(self) -> int:
        """U, the number of groups."""
        return len(self.names)

    def as_config(self) -> dict[str, Any]:
        """What is written into config.json."""
        return {key: value for key, value in asdict(self).items() if key != "ids" or value is not None}


def from_config(value: Mapping[str, Any], where: str) -> HeadSettings:
    """Read ``group_reward``. Raises UserError if a key is missing, unknown or wrong; ``where`` is named."""
    try:
        return HeadSettings(**value)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where} has a group_reward in its config.json that cannot be read: {error}") from error


def read_settings(folder: Path, flag: str) -> HeadSettings:
    """The settings of a saved reward model.
    Raises UserError if it is not a reward model with one score for each group."""
    value = read_config(folder).get(KEY)
    if not isinstance(value, dict):
        raise UserError(
            f"{flag} {folder} is not a reward model of groups: its config.json has no {KEY}; give a folder that "
            "train_rm --ext.use group-rm wrote"
        )
    return from_config(value, f"{flag} {folder}")


#: ways to aggregate the rewards of a response
HOW = ("min", "mean", "weighted", "softmin", "index")


Style = Literal["hh", "chat", "legacy"]


STYLES: tuple[Style, ...] = ("hh", "chat", "legacy")


#: ``append``: OpenRLHF's rule for reward models, a space and EOS; ``none``: a text ends where it ends
Eos = Literal["append", "none"]


EOS: tuple[Eos, ...] = ("append", "none")
