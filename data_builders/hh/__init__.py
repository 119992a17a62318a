"""Anthropic HH dialogues -> preference pairs, and K-wise records from pairs."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from orlhf_ext.cli.errors import UserError
from orlhf_ext.cli.flags import COUNT, INNER
from orlhf_ext.files.built import Built, Counts, Reject
from orlhf_ext.files.records import Record
from orlhf_ext.groups.render import answer_text, prompt_text
from orlhf_ext.models.chats import ChatError, is_messages, split_chat
from orlhf_ext.models.head_settings import Style
from orlhf_ext.models.texts import reply_text

from ..common import (
    SAMPLES,
    SEEN,
    SPLITS,
    Messages,
    Row,
    add_limits,
    add_source,
    check_options,
    digest,
    draw,
    find_all_splits,
    find_splits,
    keep,
    limit_of,
    locate,
    read_rows,
    write_draw,
    write_some,
)
from ..lengths import END_TOKENS, PROMPT_CUT, RESPONSES_CUT, TEMPLATE, LengthFilter
from .dialogues import EMPTY, Pair, as_chat, make_compat_pair, make_pair

BUNDLED = {"sample": SAMPLES / "hh", "generated": SAMPLES / "hh_generated"}
#: where a hub data set keeps the files that the paper uses
HUB_FOLDERS = {"Anthropic/hh-rlhf": "helpful-base"}
#: ``--data_dir``: every folder that has a training and a test file
ALL = "all"
LICENCES = {**dict.fromkeys(BUNDLED, "Apache-2.0"), "Anthropic/hh-rlhf": "MIT"}

#: formats whose prompts are text that `orlhf_ext.groups.render` makes of message lists
STYLES: dict[str, Style] = {"legacy": "legacy", "template": "chat"}

NO_TEXT = Reject("no chosen or rejected text", bad=True)
SAME_CUT = Reject("chosen and rejected do not differ when they are cut")
NO_PAIR = Reject("no prompt, chosen and rejected that are all text or all message lists", bad=True)


def parse(record: Record, compat: bool) -> Pair | Reject:
    """The pair of one HH record; a record that is a pair already (it has a ``prompt``) is read as one."""
    chosen, rejected, prompt = record.get("chosen"), record.get("rejected"), record.get("prompt")
    if not (isinstance(chosen, str) and isinstance(rejected, str)):
        return NO_TEXT
    if isinstance(prompt, str) and not (chosen.startswith(prompt) and rejected.startswith(prompt)):
        chosen, rejected = prompt + chosen, prompt + rejected
    return make_compat_pair(chosen, rejected) if compat else make_pair(chosen, rejected)


def as_kwise(row: Row, stem: str) -> Record | Reject:
    """A pair as a K-wise record with K = 2: completions ``[chosen, rejected]``, rewards ``[1, 0]``."""
    if isinstance(row.record, Reject):
        return row.record
    parts = [row.record.get(key) for key in ("prompt", "chosen", "rejected")]
    if not (all(isinstance(part, str) for part in parts) or all(map(is_messages, parts))):
        return NO_PAIR
    prompt, *completions = parts
    texts = [reply_text(part) for part in completions if part]
    if len(texts) < 2 or not all(text.strip() for text in texts):
        return EMPTY
    name = str(row.record.get("id") or f"{stem}-{row.number:06d}")
    return {"id": name, "prompt": prompt, "completions": completions, "rewards": [1, 0]}


class Source(NamedTuple):
    """The files of a raw data set, by split. ``whole``: one file is both splits."""

    label: str
    files: dict[str, list[Path]]
    whole: bool
    licence: str


def find_source(spec: str, data_dir: str | None) -> Source:
    """The files that SOURCE names: bundled ones, a file, a folder or a hub name.

    Raises:
        UserError: nothing there, or not both splits.
    """
    licence = LICENCES.get(spec, "that of the source")
    if not Path(spec).exists():
        data_dir = data_dir or HUB_FOLDERS.get(spec)
    folder = f"{'*' if data_dir == ALL else data_dir.strip('/')}/" if data_dir else ""
    path = locate(spec, BUNDLED, [f"{folder}{split}.*" for split in SPLITS])
    if path.is_dir() and data_dir == ALL and not (path / ALL).exists():
        return Source(spec, find_all_splits(path), False, licence)
    if path.is_dir():
        return Source(spec, {split: [file] for split, file in find_splits(path, data_dir).items()}, False, licence)
    if not path.is_file():
        raise UserError(
            f"SOURCE: {spec} does not exist; give a folder or file in HH's format, a hub name, sample or generated"
        )
    if data_dir:
        raise UserError(f"--data_dir chooses a folder inside SOURCE, but {spec} is a file; leave it out")
    return Source(spec, {split: [path] for split in SPLITS}, True, licence)


class Kept(NamedTuple):
    """A row, the hash of its prompt, and which of its parts were cut."""

    prompt: int
    record: Record
    cut: Sequence[str]


class Builder:
    """``build_data hh``."""

    name = "hh"
    help = "Anthropic HH dialogues (or your own in that format) into preference pairs and K-wise records"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add this builder's own options."""
        add_source(
            parser,
            "a folder with {train,test}.jsonl (.jsonl.gz, .json, .parquet), one such file, a hub name such as "
            "Anthropic/hh-rlhf, or a bundled one: sample (the default) or generated",
        )
        add = parser.add_argument
        add(
            "--data_dir",
            help="the folder inside SOURCE (Anthropic/hh-rlhf: helpful-base by default), or all: every one that has "
            "train and test files",
        )
        add("--test_size", type=INNER, help="share of prompts for the test file when SOURCE is one file (0.1)")
        add(
            "--format",
            choices=("hh", "chat", *STYLES),
            help="HH text (the default), message lists, SharedRep's tagged text, or text by the tokenizer's template",
        )
        add("--compat", action="store_true", help="the authors' exact rules, defects included")
        add("--kwise", action="store_true", help="also write K-wise records made from the pairs")
        add("--from_pairs", metavar="PATH", help="only turn a pairs file, or a folder of them, into K-wise records")
        add_limits(parser, "test")
        add("--tokenizer", help="a folder with a tokenizer.json, that file, or a hub name")
        add("--max_prompt_tokens", type=COUNT, metavar="N", help="drop longer prompts")
        add("--max_tokens", type=COUNT, metavar="N", help="drop rows whose prompt and longer response are longer")
        add(
            "--cut",
            action="store_true",
            help="drop none for its length: cut prompts on the left, and responses on the right to what "
            "--max_prompt_tokens leaves of --max_tokens; of a chat, the first turns go",
        )

    def run(self, args: argparse.Namespace) -> Iterator[Built]:
        """Write the files.

        Raises:
            UserError: options that exclude one another, a source that cannot be read, or no row left.
        """
        check(args)
        args.source = args.source or "sample"
        if args.from_pairs:
            yield from self._kwise(pairs_files(Path(args.from_pairs)), args)
            return
        source = find_source(args.source, args.data_dir)
        if args.test_size and not source.whole:
            raise UserError(
                f"--test_size splits a single file, but {source.label} has a test file of its own; leave it out"
            )
        pipeline = Pipeline(source, args)
        written = {}
        for split in SPLITS:
            built = pipeline.build(split)
            written[split] = built.path
            yield built
        if args.kwise:
            yield from self._kwise(written, args, source.licence)

    def _kwise(
        self, files: dict[str, Path], args: argparse.Namespace, licence: str = "that of the source"
    ) -> Iterator[Built]:
        for stem, path in files.items():
            counts = Counts(args.strict, args.max_count_of_reported)
            rows = keep(((row.where, as_kwise(row, stem)) for row in read_rows(path)), counts)
            # --limit and --limit_test have been applied to pairs that were built by this same command
            limit = limit_of(args, stem if stem == "test" else "train") if args.from_pairs else None
            target = args.out / f"{stem}_kwise.jsonl"
            write_some(target, draw(rows, limit, None, counts), counts, [path])
            yield Built(target, counts, [path], licence, {"rewards": "1 for chosen, 0 for rejected"})


def check(args: argparse.Namespace) -> None:
    """Refuse options that exclude one another or would have no effect."""
    if args.from_pairs:
        others = "positional_source source data_dir test_size format compat kwise shuffle tokenizer cut"
        for name in others.split():
            if getattr(args, name):
                flag = "SOURCE" if name == "positional_source" else f"--{name}"
                raise UserError(f"{flag} has no effect with --from_pairs, which only converts; leave it out")
    if args.compat and args.format not in (None, "hh"):
        raise UserError(
            f"--compat follows the authors' rules, which have no chat format; leave it out, or --format {args.format}"
        )
    check_options(args, args.limit, args.limit_test)
    if args.cut and not args.max_prompt_tokens:
        raise UserError("--cut cuts prompts to --max_prompt_tokens N tokens; add it, with --tokenizer PATH_OR_NAME")
    if args.cut and args.max_tokens and args.max_tokens - args.max_prompt_tokens <= END_TOKENS:
        raise UserError(
            f"--max_prompt_tokens {args.max_prompt_tokens} leaves no room for a response in --max_tokens "
            f"{args.max_tokens}; change one"
        )
    if args.format == "template":
        if not args.tokenizer:
            raise UserError("--format template renders a tokenizer's own chat template; add --tokenizer PATH_OR_NAME")
    elif args.tokenizer and not (args.max_prompt_tokens or args.max_tokens):
        raise UserError("--tokenizer has no effect alone; add --max_prompt_tokens N or --max_tokens N")


def pairs_files(path: Path) -> dict[str, Path]:
    """Stem -> file of the pairs at ``path``: one file, or a folder's train and test files."""
    if path.is_dir():
        return find_splits(path)
    return {path.name.partition(".")[0]: path}


class Pipeline:
    """From the source's records to the rows of one split, one at a time."""

    def __init__(self, source: Source, args: argparse.Namespace) -> None:
        self.source = source
        self.args = args
        self.test_size: float = (args.test_size or 0.1) if source.whole else 0
        self.prompts: set[int] = set()  # hashes of the prompts of the training rows that were kept
        self.too_long = (
            LengthFilter(args.tokenizer, args.max_prompt_tokens, args.max_tokens) if args.tokenizer else None
        )
        self.render: Callable[[Messages, bool], str] | None = None
        if self.too_long and args.format in ("chat", "template"):
            self.render = self.too_long.chat_template()

    def build(self, split: str) -> Built:
        """Write one split's pairs."""
        args, paths = self.args, self.source.files[split]
        counts = Counts(args.strict, args.max_count_of_reported)
        rows = keep(self.rows(split), counts)
        remedy = ", or a larger --test_size" if self.test_size else ""
        target = write_draw(
            args, split, rows, lambda drawn: self.remember(split, drawn, counts), counts, paths, remedy=remedy
        )
        details: dict[str, Any] = {"format": args.format or "hh", "source": self.source.label}
        if self.test_size:
            share = f"{self.test_size:g} of the prompts are test prompts"
            details["split"] = f"by a hash of the prompt and the seed; {share}"
        tokenizer = self.too_long.files if self.too_long else []
        return Built(target, counts, [*paths, *tokenizer], self.source.licence, details)

    def remember(self, split: str, rows: Iterable[Kept], counts: Counts) -> Iterator[Record]:
        """Note the prompts of the training rows that are written, and count what was cut."""
        for row in rows:
            if split == "train" and not self.args.compat:
                self.prompts.add(row.prompt)
            counts.cut.update(row.cut)
            yield row.record

    def rows(self, split: str) -> Iterator[tuple[str, Kept | Reject]]:
        """Where each row of a split is, and what is kept of it or why it is left out."""
        paths = self.source.files[split]
        for path in paths:
            prefix = f"{path.parent.name}-{split}" if len(paths) > 1 else split
            for row in read_rows(path, split):
                pair = row.record if isinstance(row.record, Reject) else parse(row.record, self.args.compat)
                if not self.test_size or self.split_of(pair) == split:
                    yield row.where, self.row(split, f"{prefix}-{row.number:06d}", pair)

    def row(self, split: str, name: str, pair: Pair | Reject) -> Kept | Reject:
        """What is kept of a pair, or why it is left out."""
        if isinstance(pair, Reject):
            return pair
        prompt = digest(pair.prompt)
        if split != "train" and prompt in self.prompts:
            return SEEN
        columns, cut = self.fitted(pair)
        return columns if isinstance(columns, Reject) else Kept(prompt, {"id": name, **columns}, cut)

    def split_of(self, outcome: Pair | Reject) -> str:
        """The split of a row of a single file. Rows that give no pair are counted with the training rows."""
        if isinstance(outcome, Reject):
            return "train"
        return "test" if digest(outcome.prompt, self.args.seed) < self.test_size * 2**64 else "train"

    def fitted(self, pair: Pair) -> tuple[Record | Reject, Sequence[str]]:
        """The columns of a pair, or why it is left out, and which parts were cut."""
        if not (self.args.cut and self.too_long):
            return self.columns(pair), ()
        if self.args.format not in (None, "hh"):
            return self.fewer_turns(pair)
        responses = [pair.chosen, pair.rejected]
        prompt, kept = self.too_long.cut(pair.prompt, responses)
        if not prompt:
            return self.too_long(pair.prompt, [pair.prompt + text for text in kept]) or EMPTY, ()
        if kept[0] == kept[1]:
            return SAME_CUT, ()
        cut = [PROMPT_CUT] * (prompt != pair.prompt) + [RESPONSES_CUT] * (kept != responses)
        return {"prompt": prompt, "chosen": kept[0], "rejected": kept[1]}, cut

    def fewer_turns(self, pair: Pair) -> tuple[Record | Reject, Sequence[str]]:
        """As `fitted`, for formats that are made of whole turns: the first ones go."""
        outcome: Record | Reject = EMPTY
        for start, turn in enumerate(pair.turns):
            if turn.speaker == "Human":
                outcome = self.columns(pair._replace(turns=pair.turns[start:]))
                if not isinstance(outcome, Reject):
                    return outcome, (PROMPT_CUT,) if start else ()
        return outcome, ()

    def columns(self, pair: Pair) -> Record | Reject:
        """A pair in the wanted format, or why it is left out."""
        columns: Record = {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}
        sides = [(pair.prompt, pair.chosen), (pair.prompt, pair.rejected)]
        if self.args.format not in (None, "hh"):
            chat = as_chat(pair)
            if isinstance(chat, Reject):
                return chat
            columns = dict(chat)
            try:
                if style := STYLES.get(self.args.format):
                    prompt = prompt_text(chat["prompt"], style, self.render)
                    sides = [(prompt, answer_text(text, style)) for _, text in sides]
                    columns = {"prompt": prompt, "chosen": sides[0][1], "rejected": sides[1][1]}
                elif self.render:
                    sides = [split_chat(self.render, chat["prompt"], chat[key], True) for key in ("chosen", "rejected")]
            except ChatError:
                return TEMPLATE
        reject = self.too_long and self.too_long(sides[0][0], [prompt + text for prompt, text in sides])
        return reject or columns
