"""Dialogues in HH's text form: turns, the pair that two dialogues make, message lists.

A line of HH has two whole dialogues, ``chosen`` and ``rejected``, that share their first turns. The first turn in
which they differ has the two responses; what comes before it is the prompt, what comes after it is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from orlhf_ext.files.built import Reject

from ..common import Messages

ANSWER = "Assistant:"
ROLES = {"Human": "user", "Assistant": "assistant"}
LABEL = re.compile(r"(?:\A|\n\n)\n*(Human(?=s?:)|Assistant(?=:))s?:")
INLINE_LABEL = re.compile(r"Humans?: ")

SAME = Reject("chosen and rejected do not differ")
EMPTY = Reject("empty response")
NO_START = Reject("does not begin with a Human turn", bad=True)
NO_ANSWER = Reject("the first difference is not in an Assistant turn", bad=True)
NO_QUESTION = Reject("the prompt does not end with a Human turn, as a chat must")


class Turn(NamedTuple):
    """One turn of a dialogue; ``speaker`` is ``Human`` or ``Assistant``."""

    speaker: str
    text: str

    def __str__(self) -> str:
        return f"{self.speaker}: {self.text}" if self.text else f"{self.speaker}:"


class Pair(NamedTuple):
    """A prompt that ends in ``Assistant:``, two responses, and the prompt's turns (none under ``--compat``)."""

    prompt: str
    chosen: str
    rejected: str
    turns: tuple[Turn, ...] = ()


def split_turns(text: str) -> list[Turn]:
    r"""The turns of a dialogue, without surrounding white space; empty if it does not begin with one.

    A label (``Human:``, ``Humans:``, ``Assistant:``) opens a turn at the start and after a blank line. A ``Human: ``
    left inside an assistant's turn becomes a space, as in the authors' code.
    """
    text = text.replace("\r\n", "\n").strip()
    labels = list(LABEL.finditer(text))
    if not labels or labels[0].start():
        return []
    ends = [label.start() for label in labels[1:]] + [len(text)]
    turns = []
    for label, end in zip(labels, ends, strict=True):
        body = text[label.end() : end]
        if label[1] == "Assistant":
            body = INLINE_LABEL.sub(" ", body)
        turns.append(Turn(label[1], body.strip()))
    return turns


def first_difference(ours: Sequence, theirs: Sequence) -> int | None:
    """The first place, inside the shorter of two lists, where they differ."""
    places = enumerate(zip(ours, theirs, strict=False))
    return next((place for place, (one, other) in places if one != other), None)


def make_pair(chosen: str, rejected: str) -> Pair | Reject:
    """The pair that two dialogues make, or why they make none. Both sides are treated alike."""
    chosen_turns, rejected_turns = split_turns(chosen), split_turns(rejected)
    if any(not turns or turns[0].speaker != "Human" for turns in (chosen_turns, rejected_turns)):
        return NO_START
    place = first_difference(chosen_turns, rejected_turns)
    if place is None:
        return SAME
    ours, theirs = chosen_turns[place], rejected_turns[place]
    if not ours.speaker == theirs.speaker == "Assistant":
        return NO_ANSWER
    if not (ours.text and theirs.text):
        return EMPTY
    turns = tuple(chosen_turns[:place])
    prompt = "".join(f"\n\n{turn}" for turn in turns) + f"\n\n{ANSWER}"
    return Pair(prompt, f" {ours.text}", f" {theirs.text}", turns)


def compat_turns(text: str, strip: bool) -> list[str] | None:
    """Turns by the authors' rules, an empty one first; ``None`` where they stop (text before the first blank line).

    ``strip`` removes white space after ``Assistant: ``; the authors do so on the chosen side alone. ``Assistant:``
    without the space opens no turn.
    """
    first, *pieces = text.split("\n\n")
    if first:
        return None
    turns, turn = [], ""
    for piece in pieces:
        if piece.startswith(("Human: ", "Humans: ")):
            turns.append(turn)
            turn = piece.replace("Humans: ", "Human: ")
        elif piece.startswith(f"{ANSWER} "):
            turns.append(turn)
            turn = INLINE_LABEL.sub(" ", piece)
            if strip:
                turn = f"{ANSWER} " + turn[len(ANSWER) + 1 :].lstrip()
        else:
            turn += f"\n\n{piece}"
    return [*turns, turn]


def make_compat_pair(chosen: str, rejected: str) -> Pair | Reject:
    """The pair that the authors' preprocessing makes of a line, or why it makes none (``bad``: it crashes there)."""
    chosen_turns, rejected_turns = compat_turns(chosen, strip=True), compat_turns(rejected, strip=False)
    if chosen_turns is None or rejected_turns is None:
        return Reject("does not begin with a blank line", bad=True)
    place = first_difference(chosen_turns, rejected_turns)
    if place is None:
        return SAME
    ours, theirs = chosen_turns[place], rejected_turns[place]
    if not (ours.startswith(ANSWER) and theirs.startswith(ANSWER)):
        return NO_ANSWER
    prompt, chosen, rejected = [*chosen_turns[:place], ANSWER], ours.removeprefix(ANSWER), theirs.removeprefix(ANSWER)
    return Pair("\n\n".join(prompt), chosen, rejected) if chosen.strip() and rejected.strip() else EMPTY


def chat_messages(turns: Iterable[Turn]) -> Messages:
    """Turns as a message list; neighbouring turns of one speaker become one message."""
    messages: Messages = []
    for turn in turns:
        if messages and messages[-1]["role"] == ROLES[turn.speaker]:
            messages[-1]["content"] += f"\n\n{turn.text}"
        else:
            messages.append({"role": ROLES[turn.speaker], "content": turn.text})
    return messages


def as_chat(pair: Pair) -> dict[str, Messages] | Reject:
    """``prompt``, ``chosen`` and ``rejected`` as message lists."""
    if pair.turns[-1].speaker != "Human":
        return NO_QUESTION
    answers = {side: chat_messages([Turn("Assistant", getattr(pair, side).strip())]) for side in ("chosen", "rejected")}
    return {"prompt": chat_messages(pair.turns), **answers}
