"""The step ``pairs``: LitBench-Train -> pairs for a Bradley-Terry reward model.

Rows are ``{"id", "prompt", "chosen", "rejected"}`` with the facts that the source has: upvotes, times (Unix seconds)
and comment ids of both stories. An id is that of the two comments, or else a hash of the texts, so that it depends on
no order. `train_rm` reads the stories alone, as LitBench does, unless it is given ``--data.prompt_key prompt``.

Validation pairs are training pairs with prompts of their own. The authors draw them from the test set instead, which
``--val_source test`` does, too; they stay test pairs, and a run that is steered by them has seen its test set.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from orlhf_ext.cli.flags import COUNT
from orlhf_ext.files.built import Built, Counts
from orlhf_ext.files.records import Record

from .sources import add_shared
from .splits import Found, Splits

DEFAULT = "SAA-Lab/LitBench-Train"
VAL_PAIRS = 500


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this step."""
    add_shared(parser)
    add = parser.add_argument_group("pairs").add_argument
    add(
        "--val_pairs",
        type=COUNT,
        metavar="N",
        default=VAL_PAIRS,
        help="validation pairs, at most a tenth of the training data, or a quarter of the test data (%(default)s)",
    )
    add(
        "--val_source",
        choices=("train", "test"),
        default="train",
        help="where validation pairs are drawn from; test is the authors' way, and they stay test pairs (%(default)s)",
    )


def run(args: argparse.Namespace) -> Iterator[Built]:
    """Write the three files.

    Raises:
        UserError: as `Splits`.
    """
    from_test = args.val_source == "test"
    most = 4 if from_test else 10
    splits = Splits(args, DEFAULT, lambda rows: max(1, min(args.val_pairs, rows // most)), val_of_test=from_test)
    for split in ("train", "val", "test"):
        yield splits.build(split, args.out / f"pairs_{split}.jsonl", as_rows)


def as_rows(pairs: Iterator[Found], counts: Counts) -> Iterator[list[Record]]:
    """One row for each pair."""
    for _, pair in pairs:
        columns = {"id": pair.id, "prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}
        yield [{**columns, **pair.facts}]
