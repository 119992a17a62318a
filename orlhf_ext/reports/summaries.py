"""A command's summary: a JSON file, with its table in Markdown and as CSV beside it, and a record for each prompt.

A record is ``{"id", "prompt", "answers": {NAME: {"text", "scores": {SCORE: number}}}, ...}``: an answer of each thing
that is compared, with the means over all of its answers as scores. ``orlhf-ext report`` reads it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..cli.flags import SEED
from ..files.outputs import add_overwrite, check_file
from ..files.records import Record, atomic_write, read_object, write_json, write_jsonl
from ..models.texts import Text
from .examples import plain

RECORDS = ".records.jsonl"


def add_flags(parser: argparse.ArgumentParser, *names: str, required: bool = True) -> None:
    """Add the flags of a command that writes a summary; ``names`` are others for ``--out``."""
    add = parser.add_argument
    add("--out", *names, required=required, metavar="FILE", help="the summary to write, a .json file")
    add("--run", metavar="FILE", help="a JSON file with an object whose keys are added to the summary")
    add("--seed", type=SEED, default=0, help="seed of the bootstrap (%(default)s)")
    add_overwrite(parser)


def check_flags(args: argparse.Namespace, command: str) -> None:
    """Refuse an ``--out`` that cannot be written, and read ``--run``: its keys, or none without it."""
    overwrite = args.__dict__.pop("overwrite")
    check_file(args.out, command=command, overwrite=overwrite, beside=(".md", ".csv", RECORDS), ends=(".json",))
    args.run = read_object(args.run, "give a file with a JSON object at --run") if args.run else {}


def answer(text: Text, scores: Mapping[str, float]) -> Record:
    """An answer of a record, without control characters."""
    return {"text": plain(text).strip(), "scores": dict(scores)}


def write_summary(
    path: str | Path, summary: Mapping[str, Any], markdown: str, csv: str, records: Iterable[Record] | None = None
) -> None:
    """Write ``O.json``, its table as ``O.md`` and ``O.csv``, and the records, if it has any, as ``O.records.jsonl``."""
    write_json(path, summary)
    for suffix, text in ((".md", markdown), (".csv", csv)):
        with atomic_write(Path(path).with_suffix(suffix)) as stream:
            stream.write(text)
    if records is not None:
        write_jsonl(Path(path).with_suffix(RECORDS), records)
