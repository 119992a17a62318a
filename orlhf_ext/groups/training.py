"""What the run in this process trains: OpenRLHF makes its model without passing the run's arguments on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import UserError, suggest
from .settings import HeadSettings


@dataclass(frozen=True)
class Training:
    """A reward model that is trained, and what of it."""

    settings: HeadSettings
    #: all weights learn, not the head alone
    train_backbone: bool = False
    #: names of all groups in the data, which `settings` has one of with ``--groups.only``
    names: tuple[str, ...] = ()

    @property
    def only(self) -> str | None:
        """The one group that is trained, if it is one."""
        return self.settings.names[0] if len(self.settings.names) < len(self.names) else None

    def group_of(self, record: Mapping[str, Any], where: str = "a record") -> int | None:
        """The place of a pair's group in `settings`; None for a group that is not trained.

        Raises:
            UserError: the pair has no group, or one that is not known.
        """
        name = group_name(record, self.names, where)
        return self.settings.names.index(name) if name in self.settings.names else None


#: set by the extension's check, in each process of a run
current: Training | None = None


def group_name(record: Mapping[str, Any], names: tuple[str, ...], where: str) -> str:
    """The group of a pair: its ``group``, or the name of its ``group_id``.

    Raises:
        UserError: it has neither, one that is not known, or two that differ.
    """
    name, number = record.get("group"), record.get("group_id")
    identifier = f" (id {record['id']!r})" if record.get("id") is not None else ""
    if name is None and number is None:
        raise UserError(f"{where}{identifier} has no group_id; make pairs with build_data hh-groups, or add it")
    if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 0):
        raise UserError(f"{where}{identifier} has the group_id {number!r}; give a whole number, 0 for the first group")
    if name is not None and name not in names:
        raise UserError(f"{where}{identifier} is of the unknown group {name!r}{suggest(str(name), list(names))}")
    if number is not None and number >= len(names):
        raise UserError(
            f"{where}{identifier} has the group_id {number}, and there are {len(names)} groups: {', '.join(names)}"
        )
    if name is not None and number is not None and names[number] != name:
        raise UserError(f"{where}{identifier} is of group {name!r} and has the group_id {number}; mend one of them")
    return str(name) if name is not None else names[number]  # type: ignore[index]
