"""Prompts with generations and their toxicity scores, as the commands of this folder read them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from ..cli.errors import UserError
from ..files.records import Line, Record, is_share, read_records

#: texts with at least this score count as toxic
TOXICITY_THRESHOLD = 0.5


def generations_of(line: Line) -> list[Record]:
    """The generations of a record. Raises UserError if it has none, or one without text."""
    found = line.record.get("generations")
    if not isinstance(found, list):
        raise UserError(f"{line.where} has no generations; sample them first, with orlhf-ext deadend continuations")
    for number, one in enumerate(found, 1):
        if not isinstance(one, dict) or not isinstance(one.get("text"), str):
            raise UserError(f"{line.where} has a generation {number} without a text; sample again")
    return found


def prompt_of(line: Line) -> str:
    """The text of a record's prompt. Raises UserError if it has none."""
    prompt = line.record.get("prompt")
    text = prompt.get("text") if isinstance(prompt, dict) else prompt
    if not isinstance(text, str):
        raise UserError(f'{line.where} has no prompt {{"text": ...}}; build the prompts again')
    return text


@dataclass(frozen=True)
class Generated:
    """One file's prompts and generations, in order; a list for each prompt."""

    path: str
    prompts: list[str]
    #: the prompts' own scores, where they have any
    prompt_scores: list[float | None]
    texts: list[list[str]]
    scores: list[list[float | None]]

    def pairs(self, most: int = 0) -> list[tuple[str, str]]:
        """The continuations with their prompts: the first ``most`` of each prompt, or all."""
        rows = zip(self.prompts, self.texts, strict=True)
        return [(prompt, text) for prompt, texts in rows for text in texts[: most or None]]


def read_generated(path: str, key: str) -> Generated:
    """Read prompts with scored generations.

    Raises:
        UserError: a record has no generation, no text has a score, or one is not from 0 to 1; the record is named.
    """
    found = Generated(path, [], [], [], [])
    for line in read_records(path):
        generations = generations_of(line)
        if not generations:
            raise UserError(f"{line.where} has no generation; sample again")
        found.prompts.append(prompt_of(line))
        prompt = line.record["prompt"]
        own = prompt.get("toxicity") if isinstance(prompt, dict) else None
        found.prompt_scores.append(_number(own, line.where, "toxicity"))
        found.texts.append([one["text"] for one in generations])
        found.scores.append([_number(one.get(key), line.where, key) for one in generations])
    if not found.prompts:
        raise UserError(f"{path} has no record; sample again")
    if all(value is None for row in found.scores for value in row):
        raise UserError(f"{path} has no score named {key!r}; run orlhf-ext deadend score, or give its --toxicity_type")
    return found


def _number(value: Any, where: str, key: str) -> float | None:
    if value is None:
        return None
    if not is_share(value):
        raise UserError(f"{where} has {value!r} under {key!r}, which is not a score from 0 to 1; score the file again")
    return float(value)


def in_order(one: Generated, like: Generated) -> Generated:
    """The same file in another file's order of prompts; equal prompts keep their own order.
    Raises UserError if the files do not have the same prompts."""
    if one.prompts == like.prompts:
        return one
    here, there = Counter(one.prompts), Counter(like.prompts)
    if here != there:
        only = sum(((here - there) + (there - here)).values())
        raise UserError(
            f"{one.path} and {like.path} differ in {only} prompts; give files that were sampled on the same prompts"
        )
    places: dict[str, list[int]] = {}
    for index, prompt in enumerate(one.prompts):
        places.setdefault(prompt, []).append(index)
    order = [places[prompt].pop(0) for prompt in like.prompts]
    columns = (one.prompts, one.prompt_scores, one.texts, one.scores)
    return Generated(one.path, *([column[i] for i in order] for column in columns))  # type: ignore[arg-type]
