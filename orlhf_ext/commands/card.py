"""Model cards of what a recipe has trained: ``orlhf-ext card outputs/RUN/sft... --summary FILE``

Each model gets a ``README.md`` beside its weights: what it is, its base model, the data and their licences, results,
the versions, and the command that made it, with front matter for Hugging Face's hub. A ``README.md`` of your own stays.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..cli.errors import UserError, command
from ..cli.flags import make_parser
from ..reports.card import read_card, write_card


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = make_parser("orlhf-ext card", __doc__)
    add = parser.add_argument
    add("models", nargs="+", type=Path, metavar="MODEL", help="a folder that a stage of a recipe made")
    add("--summary", type=Path, metavar="FILE", help="a result, a .json file with its table beside it")
    args = parser.parse_args(argv)
    for folder in args.models:
        if not any(folder.glob("*.safetensors")):
            raise UserError(f"{folder} has no weights (*.safetensors); give the folder of a model")
    if args.summary and not args.summary.with_suffix(".md").is_file():
        raise UserError(f"--summary {args.summary} has no table beside it ({args.summary.with_suffix('.md').name})")
    return args


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Write the card of each model."""
    args = parse(argv)
    for folder in args.models:
        if (card := read_card(folder, args.summary)) is None:
            print(f"{folder}: no card, no stage of a recipe made it")
        elif write_card(folder, card):
            print(f"{folder}/README.md")
        else:
            print(f"{folder}/README.md is not of this command and stays")


if __name__ == "__main__":
    main()
