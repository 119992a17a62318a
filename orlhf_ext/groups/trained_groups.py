"""What a run of ``train_rm`` trains, and the ids of groups in its pairs."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from types import SimpleNamespace
from typing import Any

from ..cli.errors import UserError, suggest
from ..models.head_settings import HeadSettings, from_config

_MAX_SHOWN = 10  # names in a message


@dataclass(frozen=True)
class Training:
    """A reward model that is trained, and what of it."""

    settings: HeadSettings
    #: all weights learn, not the head alone
    train_backbone: bool = False
    #: names of all groups in the data, which `settings` has one of with ``--groups.only``
    names: tuple[str, ...] = ()
    #: the name of each id, see `id_text`; by default ids are places in `names`
    ids: Mapping[str, str] | None = None
    #: all pairs are of the one group in `settings`, whatever they say
    pooled: bool = False

    @property
    def only(self) -> str | None:
        """The one group that is trained, if it is one."""
        return self.settings.names[0] if len(self.settings.names) < len(self.names) else None

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self.settings.names)}

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.names)

    @cached_property
    def _ids(self) -> Mapping[str, str]:
        return by_place(self.names) if self.ids is None else self.ids

    def group_of(self, record: Mapping[str, Any], where: str = "a record") -> int | None:
        """The place of a pair's group in `settings`; None for a group that is not trained.
        Raises UserError if the pair has no group, or one that is not known."""
        if self.pooled:
            return 0
        return self._places.get(group_name(record, self._known, self._ids, where))


def put(training: Training, args: SimpleNamespace) -> None:
    """Write what is trained into a run's arguments, as plain values."""
    args.groups.training = {**asdict(training), "names": list(training.names)}


def from_args(args: SimpleNamespace | None) -> Training | None:
    """What `put` wrote into a run's arguments; None where no model of groups is trained."""
    found = getattr(getattr(args, "groups", None), "training", None)
    if found is None:
        return None
    settings = from_config(found["settings"], "--ext.use group-rm")
    return Training(**{**found, "settings": settings, "names": tuple(found["names"])})


def id_text(value: Any) -> str | None:
    """A group's or annotator's id as text, by which it is known: 7, 7.0 and "7" are one id. None where there is none.
    Raises ValueError if it is a list, an object, no finite number, or an empty text."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, float) or not isinstance(value, str | int | None) or value == "":
        raise ValueError("an id is a text or a number")
    return None if value is None else str(value)


def in_order(ids: Iterable[str]) -> list[str]:
    """Ids in the order of the groups: numbers by their value, then texts by their characters."""

    def key(text: str) -> tuple[bool, float, str]:
        number = math.nan
        with contextlib.suppress(ValueError):
            number = float(text)
        return (not math.isfinite(number), number if math.isfinite(number) else 0.0, text)

    return sorted(ids, key=key)


def by_place(names: Collection[str]) -> dict[str, str]:
    """The name of each id where ids are the groups' places, or their names."""
    return {**{name: name for name in names}, **{str(place): name for place, name in enumerate(names)}}


def group_name(record: Mapping[str, Any], names: Collection[str], ids: Mapping[str, str], where: str) -> str:
    """The group of a pair: its ``group``, or the name of its ``group_id``.

    Args:
        record: the pair.
        names: of all groups.
        ids: the name of each id.
        where: the pair's place, for messages.

    Raises:
        UserError: it has neither, one that is not known, or two that differ.
    """
    name, number = record.get("group"), record.get("group_id")
    identifier = f" (id {record['id']!r})" if record.get("id") is not None else ""
    if name is None and number is None:
        raise UserError(f"{where}{identifier} has no group_id; make pairs with build_data hh-groups, or add it")
    try:
        own = id_text(number)
    except ValueError as error:
        raise UserError(f"{where}{identifier} has the group_id {number!r}; give a text or a number") from error
    if name is not None and (not isinstance(name, str) or name not in names):
        raise UserError(f"{where}{identifier} is of the unknown group {name!r}{suggest(str(name), list(names))}")
    if own is not None and own not in ids:
        shown = ", ".join(list(names)[:_MAX_SHOWN]) + (", ..." if len(names) > _MAX_SHOWN else "")
        raise UserError(f"{where}{identifier} has the group_id {number}, and there are {len(names)} groups: {shown}")
    if name is not None and own is not None and ids[own] != name:
        raise UserError(f"{where}{identifier} is of group {name!r} and has the group_id {number}; correct one of them")
    return name if name is not None else ids[own]  # type: ignore[index]
