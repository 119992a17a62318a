"""The label of an RL prompt, JSON text ``{"v": 1, "id": ..., "style": ...}``: which record a rollout answers, and how
its prompt was rendered."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from ..cli.errors import UserError
from ..files.records import parse_object
from ..models.head_settings import STYLES

VERSION = 1


class Label(NamedTuple):
    """A label that was read."""

    #: of the record, the same in the data and in all results
    id: str
    #: of the prompt's text
    style: str


def write_label(label: Label) -> str:
    """The JSON text of a record's label column."""
    return json.dumps({"v": VERSION, "id": label.id, "style": label.style}, ensure_ascii=False)


def read_label(value: Any, where: str) -> Label:
    """Read and check a label.

    Args:
        value: the value of the label column.
        where: file and line, or the sample, for messages.

    Raises:
        UserError: it is not a label of this format; ``where`` and what is wrong are named.
    """
    fields = parse_object(value)
    wrong = fields if isinstance(fields, str) else _wrong(fields)
    if wrong:
        name = where
        if isinstance(fields, dict) and isinstance(fields.get("id"), str):
            name += f" (id {fields['id']!r})"
        raise UserError(
            f"{name} has a label that group rewards cannot read: {wrong}; make the prompts with build_data hh-prompts"
        )
    assert isinstance(fields, dict)
    return Label(fields["id"], fields["style"])


def _wrong(fields: dict[str, Any]) -> str | None:
    if fields.get("v") != VERSION:
        return f"its version v is {fields.get('v')!r}, not {VERSION}"
    if not isinstance(fields.get("id"), str) or not fields["id"]:
        return "its id is not text"
    if fields.get("style") not in STYLES:
        return f"its style is {fields.get('style')!r}, none of {', '.join(STYLES)}"
    return None
