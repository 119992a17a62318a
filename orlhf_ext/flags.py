"""What the command lines of several commands have in common."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from .errors import UserError

DTYPES = ("bfloat16", "float16", "float32")


def make_parser(program: str, description: str | None, **settings: Any) -> argparse.ArgumentParser:
    """A parser whose help shows a module's docstring as it stands."""
    return argparse.ArgumentParser(
        prog=program, description=description, formatter_class=argparse.RawDescriptionHelpFormatter, **settings
    )


def add_compute(
    parser: argparse.ArgumentParser, batch_tokens: int = 16384, dtypes: Sequence[str] = DTYPES, choice: str = ""
) -> None:
    """Add the flags that say how a model computes; ``choice`` is how to choose numeric type and attention."""
    add = parser.add_argument
    add("--batch_tokens", type=int, default=batch_tokens, help="padded tokens in a batch (%(default)s)")
    add("--dtype", choices=dtypes, default=dtypes[0], help=f"{choice} (%(default)s)".lstrip())
    add("--attn_implementation", default="sdpa", help=f"{choice or 'as in transformers'} (%(default)s)")


def check_least(args: argparse.Namespace, **least: int) -> None:
    """Hold numbers that were given against the least that makes sense.

    Raises:
        UserError: one is smaller; its flag is named.
    """
    for name, bound in least.items():
        if (value := getattr(args, name)) is not None and value < bound:
            raise UserError(f"--{name} {value} is too small; give at least {bound}")
