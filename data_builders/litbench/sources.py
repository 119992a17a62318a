"""LitBench's tables: reading them, what makes a pair of a row, and where the test pairs are.

Test pairs are looked for in this order: ``--test_file``; the test file that SOURCE brings along (the bundled sample
does); ``rehydrated_test_data.csv`` in the folder of ``--out``, which the step ``rehydrate`` writes there; the hub's
LitBench-Test, if it has texts (the public one has ids only, and no training run may end without a test set for that);
with ``--allow_train_holdout`` a share of the training prompts, and its sidecar says that it is that.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from orlhf_ext.cli.errors import UserError
from orlhf_ext.cli.flags import COUNT, INNER
from orlhf_ext.files.built import Reject
from orlhf_ext.files.csv_files import open_table
from orlhf_ext.files.records import BadLine, Line, Record, is_number, read_lines
from orlhf_ext.litbench.prompts import LABELS, Label, other

from ..common import SAMPLES, SUFFIXES, locate
from .tombstones import status_of

#: the bundled sources; `data_builders.litbench.graded` writes the second one
BUNDLED = {"sample": SAMPLES / "litbench", "graded": SAMPLES / "litbench_graded"}
HUB_TEST = "SAA-Lab/LitBench-Test"
#: what the step ``rehydrate`` writes
REHYDRATED = "rehydrated_test_data.csv"
HELD_OUT = 0.05
TABLES = (".parquet", *(suffix for suffix in SUFFIXES if suffix != ".parquet"), ".csv")
LICENCES = {
    **dict.fromkeys(BUNDLED, "Apache-2.0"),
    "SAA-Lab/LitBench-Train": "MIT (from euclaise/WritingPrompts_preferences); the stories are their authors'",
}

#: the names of the columns of a pair, LitBench's first
SIDES = {"chosen": ("chosen_story", "chosen"), "rejected": ("rejected_story", "rejected")}
#: small facts that are kept, by LitBench's names in its training set and in the rehydrated one
FACTS = {"upvotes": ("_upvotes", "_comment_score"), "timestamp": ("_timestamp",), "comment_id": ("_comment_id",)}

NO_PROMPT = Reject("no prompt")
NO_STORY = Reject("no story")
GONE = Reject("deleted or removed story")
SAME = Reject("equal stories")
NOT_TEXT = Reject("prompt or story that is no text", bad=True)
NOT_UTF8 = Reject("text that is not UTF-8", bad=True)
NO_LABEL = Reject("no label A or B", bad=True)


class Pair(NamedTuple):
    """One comparison. ``label``: the place of the chosen story in the source, if it says so."""

    id: str
    prompt: str
    chosen: str
    rejected: str
    facts: Record
    label: Label | None = None
    rationale: str | None = None

    def words(self) -> list[int]:
        """Words of the chosen and the rejected story."""
        return [len(self.chosen.split()), len(self.rejected.split())]


class Source(NamedTuple):
    """The files of a data set; ``tests`` are those of its own test split, if it has one."""

    label: str
    files: list[Path]
    tests: list[Path]
    licence: str


class Test(NamedTuple):
    """Where test pairs come from: files, or a share of the training prompts (then the files are none)."""

    label: str
    files: list[Path]
    held_out: float = 0.0


def add_shared(parser: argparse.ArgumentParser) -> None:
    """Add the options that ``pairs`` and ``rationales`` share."""
    add = parser.add_argument_group("pairs and rationales").add_argument
    add(
        "--test_file",
        metavar="FILE",
        help=f"test pairs: a file, a folder or a hub name with prompt, chosen_story and rejected_story ({REHYDRATED} "
        "in the folder of --out)",
    )
    add(
        "--allow_train_holdout",
        nargs="?",
        type=INNER,
        const=HELD_OUT,
        metavar="SHARE",
        help=f"where there are no test pairs, hold out this share of the training prompts ({HELD_OUT})",
    )
    add(
        "--keep_leaks",
        action="store_true",
        help="keep training rows with the prompt of a test pair, or a story nearly identical to one of the test or "
        "validation pairs; they are only counted",
    )
    add("--min_words", type=COUNT, metavar="N", help="drop training rows with a shorter story")
    add("--max_words", type=COUNT, metavar="N", help="drop training rows with a longer story")
    add("--limit_test", type=COUNT, metavar="N", help="only the first N test pairs")


def find_source(spec: str, flag: str = "SOURCE") -> Source:
    """The files that a path, a hub name, ``sample`` or ``graded`` names.

    Raises:
        UserError: there are none.
    """
    path = locate(spec, BUNDLED, [f"*{suffix}" for suffix in TABLES])
    licence = LICENCES.get(spec, "that of the source")
    if path.is_file():
        return Source(spec, [path], [], licence)
    if not path.is_dir():
        raise UserError(
            f"{flag}: {spec} does not exist; give a file or a folder of {', '.join(TABLES)}, a hub name, sample, or "
            "graded"
        )
    files = [one for one in sorted(path.rglob("*")) if is_table(one.relative_to(path)) and one.is_file()]
    for suffix in TABLES:  # one kind of file: the same rows may lie there in several
        of_kind = [one for one in files if one.name.endswith(suffix)]
        tests = [one for one in of_kind if one.name.startswith("test")]
        train = [one for one in of_kind if one.name.startswith("train")] or [one for one in of_kind if one not in tests]
        if train:
            return Source(spec, train, tests, licence)
    raise UserError(f"{flag}: {spec} has no file of training rows ({', '.join(TABLES)}); name another folder")


def is_table(path: Path) -> bool:
    """Whether a path inside a folder can be a data file: not hidden, not a sidecar, not a hub's list."""
    return (
        path.name.endswith(TABLES)
        and not path.name.endswith((".meta.json", "_infos.json"))
        and not any(part.startswith(".") for part in path.parts)
    )


def read_table(files: Sequence[Path]) -> Iterator[Line | BadLine]:
    """The rows of CSV, JSON, JSON Lines and Parquet files.

    Raises:
        UserError: a file is missing, or cannot be read.
    """
    for path in files:
        yield from read_csv(path) if path.suffix == ".csv" else read_lines(path)


def read_csv(path: Path) -> Iterator[Line | BadLine]:
    """The rows of a CSV file with a header, each with the line that it begins in.

    Raises:
        UserError: no such file, an empty one, or one that is not CSV to its end.
    """
    with open_table(path, strict=True) as table:
        for row in table.rows():
            yield row if isinstance(row, BadLine) else Line(table.where, dict(zip(table.header, row, strict=True)))


def lacking(record: Record) -> list[str]:
    """The columns that a row of pairs needs and does not have."""
    missing = [] if "prompt" in record else ["prompt"]
    if not {"story_a", "story_b"} <= record.keys():
        missing += [names[0] for names in SIDES.values() if not record.keys() & set(names)]
    return missing


def first_row(files: Sequence[Path]) -> Line | None:
    """The first row that is not broken."""
    return next((line for line in read_table(files) if isinstance(line, Line)), None)


def check_columns(files: Sequence[Path]) -> None:
    """Check that the first row has the columns of a pair.

    Raises:
        UserError: it has not; the missing columns and those that are there are named.
    """
    line = first_row(files)
    if line and (missing := lacking(line.record)):
        there = ", ".join(list(map(str, line.record))[:12])
        raise UserError(
            f"{line.where} has no column {' and no column '.join(missing)} (it has {there}); give a table with "
            "prompt, chosen_story and rejected_story, or prompt, story_a, story_b and chosen_story (A or B)"
        )


def as_pair(record: Record) -> Pair | Reject:
    """The pair of a row of LitBench's training or rehydrated test set, of its rationales, or of our pairs."""
    label: Label | None = None
    if "story_a" in record and "story_b" in record:
        said = record.get("preferred") or record.get("chosen_story")
        label = next((one for one in LABELS if isinstance(said, str) and said.strip() == one), None)
        if not label:
            return NO_LABEL
        texts = [record[f"story_{side.lower()}"] for side in (label, other(label))]
    else:
        texts = [next((record[name] for name in names if name in record), None) for names in SIDES.values()]
    if fault := text_fault(record.get("prompt"), texts):
        return fault
    prompt, rationale = record["prompt"], record.get("rationale")
    if not isinstance(rationale, str) or not rationale.strip():
        rationale = None
    facts = facts_of(record)
    names = [str(facts.get(f"{side}_comment_id", "")).removeprefix("t1_") for side in SIDES]
    if not all(names):
        parts = (prompt, *texts)
        names = [hashlib.blake2b("\0".join(parts).encode(), digest_size=8).hexdigest()]
    return Pair("-".join(names), prompt, texts[0], texts[1], facts, label, rationale)


def text_fault(prompt: Any, stories: Sequence[Any]) -> Reject | None:
    """Why a row's texts cannot be used, if they cannot."""
    texts = (prompt, *stories)
    if not all(text is None or isinstance(text, str) for text in texts):
        return NOT_TEXT
    if not all(story and story.strip() for story in stories):
        return NO_STORY
    if any(status_of(story) != "ok" for story in stories):
        return GONE
    if not prompt or status_of(prompt) != "ok":
        return NO_PROMPT
    first, second = stories
    if first.split(None, 1)[0] == second.split(None, 1)[0] and first.split() == second.split():
        return SAME
    try:
        for text in texts:
            if not text.isascii():
                text.encode()
    except UnicodeEncodeError:
        return NOT_UTF8
    return None


def facts_of(record: Record) -> Record:
    """Upvotes, times (Unix seconds) and comment ids of both stories, where they are known. No user's name."""
    facts: Record = {}
    for name, endings in FACTS.items():
        for side in SIDES:
            value = next((record[side + ending] for ending in endings if record.get(side + ending) is not None), None)
            if name == "comment_id":
                found: Any = value if isinstance(value, str) and value.strip() else None
            else:
                found = number(value)
            if found is not None:
                facts[f"{side}_{name}"] = found
    return facts


def number(value: Any) -> float | int | None:
    """The finite number in a field, as text or as a time; integers stay integers."""
    if isinstance(value, datetime.datetime):
        zone = value.tzinfo or datetime.UTC
        return value.replace(tzinfo=zone).timestamp()
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if not is_number(value):
        return None
    return int(value) if value == int(value) else value


def find_test(args: argparse.Namespace, source: Source) -> Test:
    """Where the test pairs come from: see the module.

    Raises:
        UserError: nowhere; the ways out are named, the first being the step ``rehydrate``.
    """
    rehydrated = args.out / REHYDRATED
    test = None
    if args.test_file:
        found = find_source(args.test_file, "--test_file")
        test = Test(f"--test_file {args.test_file}", found.tests or found.files)
    elif source.tests:
        test = Test(f"the test file of {source.label}", source.tests)
    elif rehydrated.is_file():
        test = Test(str(rehydrated), [rehydrated])
    if test:
        check_columns(test.files)
        return test
    try:
        files = find_source(HUB_TEST).files
        first = first_row(files)
    except UserError:
        why = f"{HUB_TEST} cannot be fetched"
    else:
        if first and not lacking(first.record):
            return Test(f"{HUB_TEST} (it has texts)", files)
        why = f"{HUB_TEST} has ids only"
    if args.allow_train_holdout:
        said = f"held out of the training set: {args.allow_train_holdout:g} of its prompts, not LitBench's test set"
        return Test(said, [], args.allow_train_holdout)
    raise UserError(
        f"there are no test pairs: no {rehydrated}, and {why}; run python -m orlhf_ext.build_data litbench rehydrate "
        f"--out {args.out}, or give --test_file FILE, or hold out training prompts with --allow_train_holdout"
    )
