"""What the command lines of several commands have in common."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from .errors import UserError

DTYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True)
class Number:
    """The numbers that a flag takes: its ``type`` in argparse, or a mark in a reward's ``Annotated`` argument.

    Attributes:
        kind: int or float.
        least, most: bounds that belong to the range.
        above, below: bounds that do not.
        also: numbers outside of it that mean something, such as -1 for "all".
    """

    kind: type[int] | type[float]
    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    also: tuple[float, ...] = ()

    def __call__(self, text: str) -> Any:
        """The number in a text; argparse names the flag in front of the error."""
        try:
            value = self.kind(text)
        except ValueError:
            what = "a whole number" if self.kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text} is not {what}") from None
        if fault := self.fault(value):
            raise argparse.ArgumentTypeError(f"{text} {fault}")
        return value

    def fault(self, value: float) -> str | None:
        """What is wrong with a number, or None."""
        if value in self.also:
            return None
        besides = "".join(f", or {one:g}" for one in self.also)
        if not math.isfinite(value):
            return "is not a finite number"
        if value < self.least:
            return f"is too small; give at least {self.least:g}{besides}"
        if value <= self.above:
            return f"is too small; give more than {self.above:g}{besides}"
        if value > self.most:
            return f"is too large; give at most {self.most:g}{besides}"
        if value >= self.below:
            return f"is too large; give less than {self.below:g}{besides}"
        return None


def whole(least: int = 0, most: float = math.inf, also: tuple[float, ...] = ()) -> Number:
    """Whole numbers from ``least`` to ``most``."""
    return Number(int, least=least, most=most, also=also)


COUNT = whole(1)
SEED = whole(0, 2**32 - 1)  # what numpy takes, too
LENGTH = whole(2)
FINITE = Number(float)
POSITIVE = Number(float, above=0)
NOT_NEGATIVE = Number(float, least=0)
SHARE = Number(float, least=0, most=1)
PART = Number(float, above=0, most=1)
INNER = Number(float, above=0, below=1)


def named_paths(specs: Iterable[str], flag: str = "", what: str = "NAME=FILE") -> dict[str, str]:
    """The files or folders of ``NAME=FILE`` words, by name.
    Raises UserError if a word is something else, or names what another one has named."""
    found: dict[str, str] = {}
    for spec in specs:
        name, _, path = spec.partition("=")
        given = f"{flag} {spec}".lstrip()
        if not (name and path):
            raise UserError(f"{given} must be {what}")
        if name in found:
            raise UserError(f"{given} names {name!r} a second time; give each its own name")
        found[name] = path
    return found


class Parser(argparse.ArgumentParser):
    """Mistakes in a command line end in one sentence, as all others do."""

    def error(self, message: str) -> NoReturn:
        """Raises a `UserError`, with the flag in front of what is said of its value."""
        raise UserError(
            re.sub(r"^argument ([^ ]+(?:/[^ ]+)*): (?!invalid|expected|not allowed|ignored)", r"\1 ", message)
        )


def make_parser(program: str, description: str | None, **settings: Any) -> argparse.ArgumentParser:
    """A parser whose help shows a module's docstring unchanged."""
    return Parser(
        prog=program, description=description, formatter_class=argparse.RawDescriptionHelpFormatter, **settings
    )


def add_workers(parser: argparse.ArgumentParser) -> None:
    """Add the flag that says how many workers share the work."""
    parser.add_argument(
        "--workers",
        type=COUNT,
        default=1,
        metavar="N",
        help="several share the work by Ray, each with a GPU where there are GPUs (%(default)s: no Ray)",
    )


def add_compute(
    parser: argparse.ArgumentParser, batch_tokens: int = 16384, dtypes: Sequence[str] = DTYPES, choice: str = ""
) -> None:
    """Add the flags that say how a model computes; ``choice`` is how to choose numeric type and attention."""
    add = parser.add_argument
    add("--batch_tokens", type=LENGTH, default=batch_tokens, help="padded tokens in a batch (%(default)s)")
    add("--dtype", choices=dtypes, default=dtypes[0], help=f"{choice} (%(default)s)".lstrip())
    add("--attn_implementation", default="sdpa", help=f"{choice or 'as in transformers'} (%(default)s)")
