"""What is installed, one line each: ``orlhf-ext list``."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path

from ..cli.errors import UserError, command
from ..cli.flags import make_parser
from ..extensions import BUILDERS, EXTENSIONS, REWARDS, extension, names, resolve

_RECIPES = Path(__file__).parents[2] / "recipes"
_PARTS = ("common", "setup")  # what recipes share
_WIDTH = 71  # columns of a description, so that a line has 100 at most


def _line(kind: str, name: str) -> str:
    if kind == BUILDERS:
        return resolve(kind, name).help
    found = type(extension(name)) if kind == EXTENSIONS else resolve(kind, name)
    return (inspect.getdoc(found) or "").partition("\n\n")[0]


def entries(kind: str) -> Iterator[tuple[str, str]]:
    """Name and description of everything in an entry-point group; one that cannot be loaded says why instead."""
    for name in sorted(names(kind)):
        try:
            yield name, _line(kind, name)
        except UserError as error:
            yield name, f"(cannot be loaded: {error})"


def recipes() -> Iterator[tuple[str, str]]:
    """Path and head comment of every recipe; none where the package is installed without them."""
    for path in sorted(_RECIPES.glob("*.sh")):
        if path.stem not in _PARTS:
            comment = takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines()[1:])
            yield f"recipes/{path.name}", " ".join(line.lstrip("# ") for line in comment)


def short(text: str) -> str:
    """The first sentence up to a semicolon, without backquotes and brackets, cut between words to `_WIDTH`."""
    plain = re.sub(r" \([^()]*\)", "", text.replace("`", ""))
    clause = re.split(r"[.;](?:\s|$)", plain, maxsplit=1)[0]
    return textwrap.shorten(clause, _WIDTH, placeholder=" ...")


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Print the list."""
    make_parser("orlhf-ext list", __doc__).parse_args(argv)
    groups = {
        "extensions (--ext.use NAME)": entries(EXTENSIONS),
        "rewards (--ext.reward NAME)": entries(REWARDS),
        "builders (orlhf-ext build_data NAME)": entries(BUILDERS),
        "recipes (bash FILE)": recipes(),
    }
    for heading, lines in groups.items():
        if found := list(lines):
            print(f"{heading}:")
            for name, what in found:
                print(f"  {name:<26} {short(what)}")
            print()


if __name__ == "__main__":
    main()
