"""The label of a record: the gold text, the conversation it is scored after, and the baseline once it is known.

A label is a JSON object **as text** (a data set library would unify the fields of objects across rows), with

    v         1, the version of this format
    id        the record's id, unique in its data
    adapter   "generic" (conversations) or "ncp" (next chapters)
    gold      the gold text, as it is to be scored: the content of an assistant message after `messages`
    messages  the baseline's conversation, ending in a user message
    plan      where a plan goes: {"message": int, "start": int, "end": int, "before": str, "after": str, "empty": str}
    base      once computed, the baseline: {"nll": float, "n": int, "fp": str}, see `Baseline`

With a plan (stripped, not empty) the content ``c`` of ``messages[plan["message"]]`` becomes

    c[:start] + before + PLAN + after + c[end:]

and with an empty plan ``c[:start] + empty + c[end:]``; ``start`` and ``end`` count characters (Python's indices).
`scoring_messages` does just this. Where ``start == end`` and ``after`` and ``empty`` are ``""``, an empty plan gives
the baseline itself, and an improvement of exactly 0.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ..cli.errors import UserError
from ..files.records import Record, is_number, parse_object, read_records
from ..models.chats import is_messages
from ..models.texts import Messages

VERSION = 1
Adapter = Literal["generic", "ncp"]

#: the way out of a missing or foreign baseline
COMPUTE_BASELINE = "compute it with orlhf-ext vrcli baseline"

_SPLICE = {"message": int, "start": int, "end": int, "before": str, "after": str, "empty": str}


class Baseline(NamedTuple):
    """How likely the gold text is without a plan."""

    #: mean over the scored tokens, in nats
    nll: float
    tokens: int
    #: digest of what the number depends on, see `fingerprint`
    fingerprint: str

    @property
    def as_field(self) -> dict[str, Any]:
        """The label's ``base``."""
        return {"nll": self.nll, "n": self.tokens, "fp": self.fingerprint}


class Label(NamedTuple):
    """A label that was read."""

    #: file and line, or what else the user knows the record by
    where: str
    fields: Mapping[str, Any]
    base: Baseline | None

    @property
    def id(self) -> str:
        """The record's id."""
        return self.fields["id"]

    @property
    def name(self) -> str:
        """Place and id, for messages."""
        return f"{self.where} (id {self.id!r})" if self.where else f"the record with id {self.id!r}"

    @property
    def gold(self) -> str:
        """The text that is scored."""
        return self.fields["gold"]

    @property
    def adapter(self) -> str:
        """``generic`` or ``ncp``."""
        return self.fields["adapter"]

    def messages(self, plan: str | None = None) -> Messages:
        """The conversation that the gold text follows; ``None`` gives the baseline's."""
        return scoring_messages(self.fields, plan)

    def with_base(self, base: Baseline) -> str:
        """The label as JSON text, with its baseline."""
        return as_text({**self.fields, "base": base.as_field})


#: a record with its label
Labelled = tuple[Record, Label]


def make_splice(
    messages: Messages, start: int, end: int, before: str, after: str = "", empty: str = ""
) -> dict[str, Any]:
    """A label's ``plan``: where one goes in the last message, see the module."""
    return {"message": len(messages) - 1, "start": start, "end": end, "before": before, "after": after, "empty": empty}


def make_fields(
    name: str, adapter: Adapter, gold: str, messages: Messages, splice: Mapping[str, Any]
) -> dict[str, Any]:
    """The fields of a label without a baseline.

    Args:
        name: the record's id.
        adapter: what kind of text is scored.
        gold: the text that is scored.
        messages: the baseline's conversation.
        splice: from `make_splice`.
    """
    return {"v": VERSION, "id": name, "adapter": adapter, "gold": gold, "messages": messages, "plan": splice}


def as_text(fields: Mapping[str, Any]) -> str:
    """A label's fields as the JSON text of a record's label column."""
    return json.dumps(fields, ensure_ascii=False)


def read_label(value: Any, where: str = "") -> Label:
    """Read and check the JSON text of a label.

    Args:
        value: the value of a record's label column.
        where: file and line, for messages.

    Raises:
        UserError: it is not a label of this format; the record and what is wrong are named.
    """
    fields = parse_object(value)
    wrong = fields if isinstance(fields, str) else _wrong(fields)
    if wrong:
        name = where or "a record"
        if isinstance(fields, dict) and isinstance(fields.get("id"), str):
            name += f" (id {fields['id']!r})"
        raise UserError(f"{name} has a label that VR-CLI cannot read: {wrong}; make the data with build_data story")
    assert isinstance(fields, dict)
    base = fields.get("base")
    return Label(where, fields, Baseline(float(base["nll"]), base["n"], base["fp"]) if base else None)


def read_labelled(path: str | Path) -> list[Labelled]:
    """The records of a file with their labels.

    Raises:
        UserError: as `read_records` and `read_label`; an id is there twice, or is another one in the label; no record.
    """
    found: dict[str, Labelled] = {}
    for line in read_records(path):
        label = read_label(line.record.get("label"), line.where)
        if line.record.get("id", label.id) != label.id:
            raise UserError(f"{label.name} is called {line.record['id']!r} outside of its label; build the data again")
        if label.id in found:
            raise UserError(f"{label.name} has the id of {found[label.id][1].where}; give each record its own")
        found[label.id] = (line.record, label)
    if not found:
        raise UserError(f"{path} has no record; build the data again")
    return list(found.values())


def baseline_of(label: Label, fingerprint: str | None = None) -> Baseline:
    """The baseline in a label.

    Args:
        label: a record's.
        fingerprint: what it must have been computed with; None: anything.

    Raises:
        UserError: there is none, or one of another model or setting; the record is named.
    """
    if label.base is None:
        raise UserError(f"{label.name} has no baseline; {COMPUTE_BASELINE}")
    if fingerprint is not None and label.base.fingerprint != fingerprint:
        raise UserError(f"{label.name} has a baseline of another model or setting; {COMPUTE_BASELINE} again")
    return label.base


def _wrong(fields: Mapping[str, Any]) -> str | None:
    if fields.get("v") != VERSION:
        return f"its version v is {fields.get('v')!r}, not {VERSION}"
    if not isinstance(fields.get("id"), str) or not fields["id"]:
        return "its id is not text"
    if fields.get("adapter") not in ("generic", "ncp"):
        return f"its adapter is {fields.get('adapter')!r}, not 'generic' or 'ncp'"
    if not isinstance(fields.get("gold"), str) or not fields["gold"].strip():
        return "its gold text is empty or no text"
    messages = fields.get("messages")
    if not isinstance(messages, list) or not is_messages(messages) or messages[-1]["role"] != "user":
        return "its messages are not a chat of texts that ends with the user"
    return _wrong_splice(fields.get("plan"), messages) or _wrong_base(fields.get("base"))


def _wrong_splice(splice: Any, messages: Messages) -> str | None:
    if not isinstance(splice, dict) or any(
        not isinstance(splice.get(key), kind) or isinstance(splice[key], bool) for key, kind in _SPLICE.items()
    ):
        return f"its plan is not an object with {', '.join(_SPLICE)}"
    if not 0 <= splice["message"] < len(messages):
        return f"its plan goes into message {splice['message']} of {len(messages)}"
    if not 0 <= splice["start"] <= splice["end"] <= len(messages[splice["message"]]["content"]):
        return f"its plan goes to {splice['start']}:{splice['end']}, outside of the message"
    return None


def _wrong_base(base: Any) -> str | None:
    if base is None:
        return None
    if not isinstance(base, dict) or not is_number(base.get("nll")):
        return "its base has no number nll"
    if base["nll"] < 0:
        return f"its base has an nll of {base['nll']}"
    if type(base.get("n")) is not int or base["n"] < 1 or not isinstance(base.get("fp"), str):
        return "its base lacks n (scored tokens) or fp (fingerprint)"
    return None


def scoring_messages(label: Mapping[str, Any], plan: str | None = None) -> Messages:
    """The messages that the gold text (an assistant message) is scored after.

    Args:
        label: a label's fields.
        plan: the plan; ``None`` for the baseline, which has none. A plan of white space is an empty one.
    """
    messages = [dict(message) for message in label["messages"]]
    if plan is None:
        return messages
    splice, plan = label["plan"], plan.strip()
    words = splice["before"] + plan + splice["after"] if plan else splice["empty"]
    message = messages[splice["message"]]
    message["content"] = message["content"][: splice["start"]] + words + message["content"][splice["end"] :]
    return messages


def with_system(messages: Sequence[Mapping[str, str]], how: str) -> Messages:
    """The messages with the system ones kept, left out (``drop``), or put before the first user text (``merge``)."""
    copies = [dict(message) for message in messages]
    if how == "keep":
        return copies
    others = [message for message in copies if message["role"] != "system"]
    system = [message["content"] for message in copies if message["role"] == "system"]
    if how == "merge" and system:
        first = next((message for message in others if message["role"] == "user"), None)
        if first:
            first["content"] = "\n\n".join([*system, first["content"]])
    return others
