"""The step ``prompts``: LitBench-Train -> writing prompts for a policy, whose stories a judge compares.

Rows are ``{"id", "prompt", "label"}``: the prompt behind an instruction, and the story that readers preferred. A prompt
with several pairs has one row, of the first of them. Training, validation and test prompts are those of the step
``pairs``, so that a judge that was trained on its training pairs has seen none of the others.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from orlhf_ext.cli.flags import COUNT
from orlhf_ext.files.built import Built, Counts, Reject
from orlhf_ext.files.records import Record

from . import pairs
from .leaks import prompt_key
from .sources import add_shared
from .splits import Convert, Found, Splits

DEFAULT = pairs.DEFAULT
INSTRUCTION = "Write a short story for this prompt."
SEEN = Reject("prompt of an earlier row")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this step."""
    add_shared(parser)
    add = parser.add_argument_group("prompts").add_argument
    add("--instruction", metavar="TEXT", default=INSTRUCTION, help="what comes before each prompt (%(default)s)")
    add(
        "--val_pairs",
        type=COUNT,
        metavar="N",
        default=pairs.VAL_PAIRS,
        help="validation pairs whose prompts are kept, at most a tenth of the training data (%(default)s)",
    )


def run(args: argparse.Namespace) -> Iterator[Built]:
    """Write the three files.

    Raises:
        UserError: as `Splits`.
    """
    splits = Splits(args, DEFAULT, lambda rows: max(1, min(args.val_pairs, rows // 10)))
    for split in ("train", "val", "test"):
        yield splits.build(split, args.out / f"prompts_{split}.jsonl", by_prompt(args.instruction.strip()))


def by_prompt(instruction: str) -> Convert:
    """What makes a row of each prompt."""

    def rows(pairs: Iterator[Found], counts: Counts) -> Iterator[list[Record]]:
        seen: set[int] = set()
        for where, pair in pairs:
            key = prompt_key(pair.prompt)
            if key in seen:
                counts.drop(where, SEEN)
                continue
            seen.add(key)
            text = f"{instruction}\n\n{pair.prompt}".strip()
            yield [{"id": pair.id, "prompt": text, "label": pair.chosen}]

    return rows
