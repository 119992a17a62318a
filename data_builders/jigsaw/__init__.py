"""Jigsaw's comments -> data for a toxicity classifier and for the dead-end value function.

Three steps, each from its own source; without the name of a step the first two are done.

- ``reward``: the CSV of the Toxic Comment Classification Challenge -> ``rm_train.json``, ``rm_valid.json``, rows
  ``{"text": str, "label": 0 | 1}``
- ``prompts``: that of Unintended Bias in Toxicity Classification -> ``prompts.jsonl``, rows
  ``{"prompt": {"text": str}}``: the first tokens of comments
- ``value``: ``prompts_and_gens.jsonl``, scored continuations of these prompts -> ``train.jsonl``, ``val.jsonl``, rows
  ``{"text": str, "reward": [-1.0 | 0.0]}``

All files are JSON Lines. Rows are drawn in the order of the source with Python's generator and the seed, in the same
order of draws as the upstream project, so that the same rows are kept. Its oddities are kept too, and mended by
options: ``--label_columns``, ``--keep_na``, ``--one_threshold``, ``--no_repeat``.
"""

from __future__ import annotations

import argparse
import contextlib
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from orlhf_ext.cli.errors import UserError
from orlhf_ext.cli.flags import COUNT, SHARE, whole
from orlhf_ext.files.built import Built, Counts, Reject
from orlhf_ext.files.csv_files import Table, open_table
from orlhf_ext.files.records import BadLine

from ..common import SAMPLES, progress
from .cut import Cutter, load_tokenizer
from .download import fetch_competition, unpack
from .table import find_csv, number_of, text_fault
from .value import build_value
from .write import built_pair, hold_some, writers

SAMPLE = SAMPLES / "jigsaw"
TEXT = "comment_text"
#: comments whose tokens are cut at once
BATCH = 2000
#: a target from here on is toxic
TOXIC = 0.5
#: a comment goes to the validation file with one draw in ten
VALID_SHARE = 0.1

NO_LABEL = Reject("label that is neither 0 nor 1", bad=True)
NO_TARGET = Reject("target that is no number from 0 to 1", bad=True)
AT_RANDOM = "not toxic, left out at random (--drop_rate)"


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
STEPS = (*SOURCES, "value")

#: the options of each step with their defaults; "" stands for no step: the first two
OPTIONS: dict[str, dict[str, Any]] = {
    "reward": {"file": None, "raw_dir": None, "drop_rate": 0.3, "label_columns": ["toxic"], "keep_na": False},
    "prompts": {
        "file": None,
        "raw_dir": None,
        "drop_rate": 0.9,
        "max_len": 20,
        "tokenizer": "gpt2",
        "keep_na": False,
        "clean_up_tokenization_spaces": False,
    },
    "value": {
        "file": None,
        "drop_rate": 0.5,
        "toxicity_type": "toxicity",
        "mode": "most",
        "sample_num": 6,
        "one_threshold": False,
        "no_repeat": False,
    },
}
OPTIONS[""] = {
    **OPTIONS["reward"],
    **OPTIONS["prompts"],
    "reward_drop_rate": OPTIONS["reward"]["drop_rate"],
    "prompts_drop_rate": OPTIONS["prompts"]["drop_rate"],
}
for _name in ("file", "drop_rate"):
    del OPTIONS[""][_name]
ALL_OPTIONS = sorted({name for options in OPTIONS.values() for name in options})


class Builder:
    """``build_data jigsaw``."""

    name = "jigsaw"
    help = "Jigsaw's comments into data for a toxicity classifier, value prompts and value data (dead ends)"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add this builder's own options."""
        add = parser.add_argument
        # an option that is not given is None or False: `settle` puts in the default of the step
        add("step", metavar="STEP", nargs="?", choices=STEPS, help="reward, prompts or value (reward and prompts)")
        add("-f", "--file", type=Path, help="the step's source: a CSV file, or for value prompts_and_gens.jsonl")
        add(
            "--raw_dir",
            metavar="FOLDER",
            help="a folder with Jigsaw's CSV files (or zips), found by their columns, or sample for the bundled one; "
            "without it they are fetched from Kaggle with your credentials",
        )
        add(
            "-s",
            "--save_dir",
            "--save_path",
            dest="save",
            type=Path,
            metavar="PATH",
            help="the folder to write to, as --out; for prompts also a file.jsonl",
        )
        add("--drop_rate", type=SHARE, metavar="R", help="share left out (0.3 reward, 0.9 prompts, 0.5 value)")
        add("--reward_drop_rate", type=SHARE, metavar="R", help="of reward when no STEP is given (0.3)")
        add("--prompts_drop_rate", type=SHARE, metavar="R", help="of prompts when no STEP is given (0.9)")
        add("--label_columns", nargs="+", metavar="NAME", help="reward: the label is the largest of these (toxic)")
        add("--max_len", type=whole(), metavar="N", help="prompts: tokens that are kept; 0 for the whole comment (20)")
        add(
            "--tokenizer",
            help="prompts: a hub name, a folder with a tokenizer.json, or that file (gpt2; where it cannot be fetched "
            "SmolLM2's stands in, unless --strict is set)",
        )
        add(
            "--clean_up_tokenization_spaces",
            action="store_true",
            help="prompts: no space before punctuation, as transformers 4 decodes",
        )
        add("--keep_na", action="store_true", help="keep comments such as NA and null, which pandas takes for missing")
        add("--toxicity_type", metavar="NAME", help="value: the score's name in each generation (toxicity)")
        add("--mode", choices=("most", "sample", "all"), help="value: the worst and the best, some, or all (most)")
        add("--sample_num", type=COUNT, metavar="N", help="value: generations of a prompt with sample (6)")
        add(
            "--one_threshold",
            action="store_true",
            help="value: a score of exactly 0.5 is no clean one, as it is no good one either",
        )
        add("--no_repeat", action="store_true", help="value: with most, one row for a prompt with one generation")

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
        steps = [args.step] if args.step else list(SOURCES)
        # all sources first: nothing is written if one is missing
        found = {step: find_source(step, args) for step in steps}
        for step, (path, licence) in found.items():
            own = argparse.Namespace(**vars(args))
            own.drop_rate = getattr(args, f"{step}_drop_rate", None) if not args.step else args.drop_rate
            yield from (build_reward if step == "reward" else build_prompts)(path, own, licence)


def settle(args: argparse.Namespace) -> None:
    """Put in the defaults of the step, and refuse options that it does not have.

    Raises:
        UserError: an option without effect, or two for the same thing.
    """
    options = OPTIONS[args.step or ""]
    for name in ALL_OPTIONS:
        if name not in options:
            if getattr(args, name) not in (None, False):
                what = f"the step {args.step}" if args.step else "both steps together"
                way = "leave it out"
                if name == "drop_rate":
                    way = "use --reward_drop_rate and --prompts_drop_rate"
                elif name.endswith("_drop_rate"):
                    way = "use --drop_rate"
                elif not args.step:
                    way = f"add the STEP: {', '.join(step for step in STEPS if name in OPTIONS[step])}"
                raise UserError(f"--{name} has no effect for {what}; {way}")
            delattr(args, name)
        elif getattr(args, name) is None:
            setattr(args, name, options[name])
    if getattr(args, "file", None) and getattr(args, "raw_dir", None):
        raise UserError(f"-f {args.file} and --raw_dir {args.raw_dir} are both given; leave one out")
    save = args.__dict__.pop("save")
    if args.step in (None, "prompts"):
        args.prompts_file = "prompts.jsonl"
    if save:
        if args.out != Path("data") / Builder.name:
            raise UserError(f"-s {save} and --out {args.out} are both given; leave one out")
        if args.step == "prompts" and save.suffix in (".json", ".jsonl"):
            args.prompts_file, save = save.name, save.parent
        args.out = save


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
    sample = args.raw_dir == "sample"
    folder = SAMPLE if sample else Path(args.raw_dir)
    if not folder.is_dir():
        raise UserError(f"--raw_dir: {folder} is no folder; give one with Jigsaw's CSV files, or sample")
    if found := find_csv(folder, source.columns):
        return found, "Apache-2.0" if sample else "that of the source"
    for archive in sorted(folder.glob("*.zip")):
        if unpacked := unpack(archive, fetched, source.columns):
            return unpacked, "that of the source"
    raise UserError(
        f"{folder} has no CSV file with the columns {' and '.join(source.columns)}; add the train.csv of Kaggle's "
        f"{source.competition}"
    )


def rows_of(table: Table, counts: Counts) -> Iterator[list[str]]:
    """The rows of a CSV file, counted; those of another width than the header are dropped."""
    for row in table.rows():
        counts.read += 1
        if isinstance(row, BadLine):
            counts.drop(row.where, Reject(row.reason, bad=True))
        else:
            yield row


LABELS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1}


def read_label(fields: Sequence[str]) -> int | None:
    """The largest of a row's labels, or nothing if one is neither 0 nor 1."""
    labels = [LABELS.get(field) for field in fields]
    return None if None in labels else int(1 in labels)


def build_reward(path: Path, args: argparse.Namespace, licence: str) -> Iterator[Built]:
    """Write ``rm_train.json`` and ``rm_valid.json``.

    For each row in order a number is drawn if its label is 0, and the row is left out if that is at most
    ``--drop_rate``; for each row that is kept another one, which puts it in the validation file if it is at most 0.1.
    """
    counts = Counts(args.strict, args.max_count_of_reported)
    dropped = 0
    draw = random.Random(args.seed).random
    with open_table(path) as table, writers(args.out, ("rm_train.json", "rm_valid.json"), path) as (train, valid):
        place, *labels = table.places([TEXT, *args.label_columns])
        first, *more = labels
        quote = train.quote
        with contextlib.closing(progress(rows_of(table, counts), path.name)) as rows:
            for row in rows:
                label = read_label([row[column] for column in labels]) if more else LABELS.get(row[first])
                if label == 0 and draw() <= args.drop_rate:
                    dropped += 1
                    continue
                writer = valid if draw() <= VALID_SHARE else train
                text = row[place]
                fault = NO_LABEL if label is None else text_fault(text, args.keep_na)
                if fault:
                    counts.drop(table.where, fault)
                    continue
                writer.add(f'{{"text": {quote(text)}, "label": {label}}}\n')
                if train.count == args.limit:
                    break
        if dropped:
            counts.dropped[AT_RANDOM] = dropped
        hold_some(train, counts, path)
    kept = (train.count, valid.count)
    details = {"label_columns": args.label_columns, "drop_rate": args.drop_rate}
    yield from built_pair(train, valid, kept, counts, [path], licence=licence, details=details)


def build_prompts(path: Path, args: argparse.Namespace, licence: str) -> Iterator[Built]:
    """Write ``prompts.jsonl``.

    For each row in order a number is drawn if its target is below 0.5, and the row is left out if that is at most
    ``--drop_rate``. Only comments that are kept are cut to their first tokens.
    """
    sources, details = [path], {"max_len": args.max_len, "drop_rate": args.drop_rate}
    tokenizer = None
    if args.max_len > 0:
        tokenizer, file, said = load_tokenizer(args.tokenizer, args.out, args.strict)
        sources.append(file)
        details |= {"tokenizer": said, "clean_up_tokenization_spaces": args.clean_up_tokenization_spaces}
        if said != args.tokenizer:
            details["tokenizer_asked_for"] = args.tokenizer
            print(f"tokenizer: {said}")
    cut = Cutter(tokenizer, args.max_len, args.clean_up_tokenization_spaces)
    counts = Counts(args.strict, args.max_count_of_reported)
    dropped = 0
    draw = random.Random(args.seed).random
    drop_rate, keep_na = args.drop_rate, args.keep_na
    targets: dict[str, float | None] = {}
    held: list[str] = []
    with open_table(path) as table, writers(args.out, (args.prompts_file,), path) as (writer,):
        place, target_place = table.places(SOURCES["prompts"].columns)
        quote = writer.quote

        def flush() -> None:
            for text in cut(held):
                writer.add(f'{{"prompt": {{"text": {quote(text)}}}}}\n')
            held.clear()

        with contextlib.closing(progress(rows_of(table, counts), path.name)) as rows:
            for row in rows:
                field = row[target_place]
                try:
                    target = targets[field]
                except KeyError:
                    if len(targets) > BATCH:
                        targets.clear()
                    target = targets[field] = number_of(field, 0, 1)
                if target is not None and target < TOXIC and draw() <= drop_rate:
                    dropped += 1
                    continue
                text = row[place]
                fault = NO_TARGET if target is None else text_fault(text, keep_na)
                if fault:
                    counts.drop(table.where, fault)
                    continue
                held.append(text)
                if writer.count + len(held) == args.limit:
                    break
                if len(held) == BATCH:
                    flush()
        flush()
        if dropped:
            counts.dropped[AT_RANDOM] = dropped
        hold_some(writer, counts, path)
    counts.kept = writer.count
    yield Built(writer.path, counts, sources, licence, details)
