"""Jigsaw's comments -> data for a toxicity classifier and for the dead-end value function.

Four steps; without a step the first two are done.

- ``reward``: the CSV of the Toxic Comment Classification Challenge -> ``rm_train.json``, ``rm_valid.json``, rows
  ``{"text": str, "label": 0 | 1}``
- ``prompts``: that of Unintended Bias in Toxicity Classification -> ``prompts.jsonl``, rows
  ``{"prompt": {"text": str}}``: the first tokens of comments
- ``policy``: the toxic comments of the first -> ``policy.jsonl``, rows ``{"text": str}``, to tune a policy that needs
  Q_D
- ``value``: ``prompts_and_gens.jsonl``, scored continuations of these prompts -> ``train.jsonl``, ``val.jsonl``, rows
  ``{"text": str, "reward": [-1.0 | 0.0]}``

All files are JSON Lines. Rows are drawn in the order of the source with Python's generator and the seed, in the same
order of draws as the authors' code, so that the same rows are kept. Its oddities are kept too, and fixed by
options: ``--label_columns``, ``--keep_na``, ``--one_threshold``, ``--no_repeat``.
"""

from __future__ import annotations

import argparse
import contextlib
import random
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from orlhf_ext.cli.errors import UserError
from orlhf_ext.cli.flags import COUNT, SHARE, whole
from orlhf_ext.files.built import Built, Counts, Reject
from orlhf_ext.files.csv_files import Table, open_table
from orlhf_ext.files.records import BadLine

from ..common import SAMPLES, merge_out, none_kept, progress
from .cut import GPT2, cut, load_tokenizer
from .download import fetch_competition, unpack
from .table import find_csv, number_of, text_fault
from .value import build_value
from .write import built_pair, writers

#: what --raw_dir may name instead of a folder
BUNDLED = {"sample": SAMPLES / "jigsaw", "generated": SAMPLES / "jigsaw_generated"}
TEXT = "comment_text"
#: comments whose tokens are cut at once
BATCH = 2000
#: a target from here on is toxic
TOXIC = 0.5
#: a comment goes to the validation file with one draw in ten
VALID_SHARE = 0.1

NO_LABEL = Reject("label that is neither 0 nor 1", bad=True)
NO_TARGET = Reject("target that is no number from 0 to 1", bad=True)
NOT_TOXIC = "not toxic"
AT_RANDOM = "not toxic, left out at random (--drop_rate)"
LABELS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1}


class Source(NamedTuple):
    """Where a step's CSV comes from, and what marks it."""

    competition: str
    columns: tuple[str, str]
    licence: str


SOURCES = {
    "reward": Source(
        "jigsaw-toxic-comment-classification-challenge",
        (TEXT, "toxic"),
        "CC0-1.0, the comments themselves CC-BY-SA-3.0 (Wikipedia)",
    ),
    "prompts": Source("jigsaw-unintended-bias-in-toxicity-classification", (TEXT, "target"), "CC0-1.0"),
}
STEPS = {
    "reward": "comments with labels, for a toxicity classifier",
    "prompts": "the first tokens of comments",
    "policy": "the toxic comments, to tune a policy on",
    "value": "scored continuations of the prompts, for the value function",
    "both": "reward and prompts (without a STEP)",
}
DROP_RATES = {"reward": 0.3, "prompts": 0.9, "value": 0.5}


class Builder:
    """``build_data jigsaw``."""

    name = "jigsaw"
    help = "Jigsaw's comments into data for a toxicity classifier, value prompts and value data (dead ends)"

    default_step = "both"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the steps, each with its options."""
        steps = parser.add_subparsers(dest="step", metavar="STEP")
        for step, what in STEPS.items():
            add_options(steps.add_parser(step, help=what, description=what, allow_abbrev=False), step)

    def run(self, args: argparse.Namespace) -> Iterator[Built]:
        """Write the files of the step.

        Raises:
            UserError: options of another step, no source, a source that cannot be read, or no row left.
        """
        settle(args)
        if args.step == "value":
            path = args.file or args.out / "prompts_and_gens.jsonl"
            yield from build_value(path, args, "that of the source")
            return
        if args.step == "policy":
            yield from build_policy(*find_source("reward", args), args)
            return
        # all sources first: nothing is written if one is missing
        found = {step: find_source(step, args) for step in SOURCES if args.step in (step, None)}
        for step, (path, licence) in found.items():
            drop_rate = args.drop_rate if args.step else getattr(args, f"{step}_drop_rate")
            yield from (build_reward if step == "reward" else build_prompts)(path, args, drop_rate, licence)


def add_options(parser: argparse.ArgumentParser, step: str) -> None:
    """Add the options of one step."""
    add = parser.add_argument
    if step != "both":
        what = "the file of generations (prompts_and_gens.jsonl in the folder of --out)"
        add("-f", "--file", type=Path, help=what if step == "value" else "a CSV file, instead of --raw_dir")
    if step != "value":
        add(
            "--raw_dir",
            metavar="FOLDER",
            help="a folder with Jigsaw's CSV files or zips, found by their columns, or sample or generated (bundled); "
            "without it they are fetched from Kaggle with your credentials",
        )
    as_out = "the folder to write to, as --out" + ("; also a file.jsonl" if step == "prompts" else "")
    add("-s", "--save_dir", "--save_path", dest="save", type=Path, metavar="PATH", help=as_out)
    for name in ("reward", "prompts") if step == "both" else () if step == "policy" else (step,):
        flag = f"--{name}_drop_rate" if step == "both" else "--drop_rate"
        what = "clean prompts" if step == "value" else "comments that are not toxic"
        text = f"share of {what} to leave out at random (%(default)s)"
        add(flag, type=SHARE, default=DROP_RATES[name], metavar="R", help=text)
    if step in ("reward", "policy", "both"):
        text = "the label is the largest of these columns (toxic)"
        add("--label_columns", nargs="+", default=["toxic"], metavar="NAME", help=text)
    if step in ("prompts", "both"):
        text = "tokens to keep of a comment; 0 for all (%(default)s)"
        add("--max_len", type=whole(), default=20, metavar="N", help=text)
        add(
            "--tokenizer",
            default=GPT2,
            help="a hub name, a folder with a tokenizer.json, or that file (%(default)s; where it cannot be fetched, "
            "SmolLM2's is used unless --strict is set)",
        )
        text = "remove spaces before punctuation, as transformers 4 decodes"
        add("--clean_up_tokenization_spaces", action="store_true", help=text)
    if step != "value":
        add("--keep_na", action="store_true", help="keep comments such as NA and null, which pandas reads as missing")
        return
    add("--toxicity_type", default="toxicity", metavar="NAME", help="the score's name in a generation (%(default)s)")
    add(
        "--mode",
        choices=("most", "sample", "all"),
        default="most",
        help="use the worst and the best generation of a prompt, some, or all (%(default)s)",
    )
    add("--sample_num", type=COUNT, default=6, metavar="N", help="generations of a prompt with sample (%(default)s)")
    add("--one_threshold", action="store_true", help="a prompt with a score of exactly 0.5 is not clean either")
    add("--shuffle_rewards", action="store_true", help="give each text the reward of another one, as a control")
    add("--no_repeat", action="store_true", help="with most, write one row for a prompt with one generation")


def settle(args: argparse.Namespace) -> None:
    """Merge options that are two names of one thing.

    Raises:
        UserError: both are given.
    """
    if args.step == Builder.default_step:
        args.step = None
    if getattr(args, "file", None) and getattr(args, "raw_dir", None):
        raise UserError(f"-f {args.file} and --raw_dir {args.raw_dir} are both given; leave one out")
    save = args.__dict__.pop("save")
    if args.step in (None, "prompts"):
        args.prompts_file = "prompts.jsonl"
    as_file = save if args.step == "prompts" and save and save.suffix in (".json", ".jsonl") else None
    if as_file:
        args.prompts_file = as_file.name
    args.out = merge_out(args.out, as_file.parent if as_file else save, "-s", Builder.name)


def find_source(step: str, args: argparse.Namespace) -> tuple[Path, str]:
    """The CSV file of a step, and its licence: given, found in a folder by its columns, or fetched.

    Raises:
        UserError: there is none.
    """
    source = SOURCES[step]
    if getattr(args, "file", None):
        return args.file, "that of the source"
    fetched = args.out / "raw" / source.competition
    if args.raw_dir is None:
        path = find_csv(fetched, source.columns) or fetch_competition(source.competition, fetched, source.columns)
        return path, source.licence
    folder = BUNDLED.get(args.raw_dir, Path(args.raw_dir))
    if not folder.is_dir():
        raise UserError(f"--raw_dir: {folder} is not a folder; give one with Jigsaw's CSV files, sample or generated")
    if found := find_csv(folder, source.columns):
        return found, "Apache-2.0" if args.raw_dir in BUNDLED else "that of the source"
    for archive in sorted(folder.glob("*.zip")):
        if unpacked := unpack(archive, fetched, source.columns):
            return unpacked, "that of the source"
    raise UserError(
        f"{folder} has no CSV file with the columns {' and '.join(source.columns)}; add the train.csv of Kaggle's "
        f"{source.competition}"
    )


def rows_of(table: Table, counts: Counts) -> Iterator[list[str]]:
    """The rows of a CSV file, counted, with a progress bar; those of another width than the header are dropped."""
    with contextlib.closing(progress(table.rows(), table.path.name)) as rows:
        for row in rows:
            counts.read += 1
            if isinstance(row, BadLine):
                counts.drop(row.where, Reject(row.reason, bad=True))
            else:
                yield row


def read_label(fields: Sequence[str]) -> int | None:
    """The largest of a row's labels, or nothing if one is neither 0 nor 1."""
    labels = [LABELS.get(field) for field in fields]
    return None if None in labels else int(1 in labels)


def build_reward(path: Path, args: argparse.Namespace, drop_rate: float, licence: str) -> Iterator[Built]:
    """Write ``rm_train.json`` and ``rm_valid.json``.

    For each row in order a number is drawn if its label is 0, and the row is left out if that is at most
    ``drop_rate``; for each row that is kept another one, which puts it in the validation file if it is at most 0.1.
    """
    counts = Counts(args.strict, args.max_count_of_reported)
    draw = random.Random(args.seed).random
    with open_table(path) as table, writers(args.out, ("rm_train.json", "rm_valid.json"), path) as (train, valid):
        place, *labels = table.places([TEXT, *args.label_columns])
        for row in rows_of(table, counts):
            label = read_label([row[column] for column in labels])
            if label == 0 and draw() <= drop_rate:
                counts.dropped[AT_RANDOM] += 1
                continue
            writer = valid if draw() <= VALID_SHARE else train
            text = row[place]
            if fault := NO_LABEL if label is None else text_fault(text, args.keep_na):
                counts.drop(table.where, fault)
                continue
            writer.add({"text": text, "label": label})
            if train.count == args.limit:
                break
        if not train.count:
            raise none_kept(path, train.path.name, counts)
    kept = (train.count, valid.count)
    details = {"label_columns": args.label_columns, "drop_rate": drop_rate}
    yield from built_pair(train, valid, kept, counts, [path], licence=licence, details=details)


def build_policy(path: Path, licence: str, args: argparse.Namespace) -> Iterator[Built]:
    """Write ``policy.jsonl``: the comments whose label is 1."""
    counts = Counts(args.strict, args.max_count_of_reported)
    with open_table(path) as table, writers(args.out, ("policy.jsonl",), path) as (writer,):
        place, *labels = table.places([TEXT, *args.label_columns])
        for row in rows_of(table, counts):
            label, text = read_label([row[column] for column in labels]), row[place]
            if fault := NO_LABEL if label is None else text_fault(text, args.keep_na):
                counts.drop(table.where, fault)
            elif label == 0:
                counts.dropped[NOT_TOXIC] += 1
            else:
                writer.add({"text": text})
            if writer.count == args.limit:
                break
        if not writer.count:
            raise none_kept(path, writer.path.name, counts)
    counts.kept = writer.count
    yield Built(writer.path, counts, [path], licence, {"label_columns": args.label_columns})


def build_prompts(path: Path, args: argparse.Namespace, drop_rate: float, licence: str) -> Iterator[Built]:
    """Write ``prompts.jsonl``: the first tokens of the comments that are kept."""
    sources, details = [path], {"max_len": args.max_len, "drop_rate": drop_rate}
    tokenizer = None
    if args.max_len > 0:
        tokenizer, file, said = load_tokenizer(args.tokenizer, args.out, args.strict)
        sources.append(file)
        details |= {"tokenizer": said, "clean_up_tokenization_spaces": args.clean_up_tokenization_spaces}
        if said != args.tokenizer:
            details["tokenizer_asked_for"] = args.tokenizer
            print(f"tokenizer: {said}")
    counts = Counts(args.strict, args.max_count_of_reported)
    with open_table(path) as table, writers(args.out, (args.prompts_file,), path) as (writer,):
        texts = islice(kept_comments(table, args, drop_rate, counts), args.limit)
        while batch := list(islice(texts, BATCH)):
            for text in cut(batch, tokenizer, args.max_len, args.clean_up_tokenization_spaces):
                writer.add({"prompt": {"text": text}})
        if not writer.count:
            raise none_kept(path, writer.path.name, counts)
    counts.kept = writer.count
    yield Built(writer.path, counts, sources, licence, details)


def kept_comments(table: Table, args: argparse.Namespace, drop_rate: float, counts: Counts) -> Iterator[str]:
    """The comments that become prompts.

    For each row in order a number is drawn if its target is below 0.5, and the row is left out if that is at most
    ``drop_rate``.
    """
    draw = random.Random(args.seed).random
    text_place, target_place = table.places(SOURCES["prompts"].columns)
    for row in rows_of(table, counts):
        target = number_of(row[target_place], 0, 1)
        if target is not None and target < TOXIC and draw() <= drop_rate:
            counts.dropped[AT_RANDOM] += 1
        elif fault := NO_TARGET if target is None else text_fault(row[text_place], args.keep_na):
            counts.drop(table.where, fault)
        else:
            yield row[text_place]
