"""Texts side by side on the terminal, such as answers before and after training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from ..models.texts import Sample, Text

T = TypeVar("T")


def spread(items: Sequence[T], count: int) -> Sequence[T]:
    """``count`` of the items (or all, where there are fewer), evenly spread over them."""
    return items[:: max(1, len(items) // count)][:count] if count else items[:0]


def print_examples(count: int, before: Mapping[str, Sample], name: str, after: Mapping[str, Sample]) -> None:
    """Some prompts, evenly spread over the file, with the first answer of SFT and of the final policy."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    for identifier in spread(list(before), count):
        old, new = before[identifier], after[identifier]
        console.rule(f"prompt {identifier}")
        console.print(plain(old.prompt).strip())
        console.print(f"\n-- SFT: {plain(old.completions[0]).strip()}")
        console.print(f"-- {name}: {plain(new.completions[0]).strip()}\n")


def plain(text: Text) -> str:
    """A string without control characters, or messages with their roles (a lone one without)."""
    if isinstance(text, str):
        return "".join(c if c.isprintable() or c == "\n" else " " for c in text)
    if len(text) == 1:
        return plain(text[0]["content"])
    return "\n\n".join(f"{plain(message['role'])}: {plain(message['content'])}" for message in text)
