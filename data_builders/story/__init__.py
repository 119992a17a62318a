"""Stories -> prompts whose reward is the likelihood of a gold text: next chapters, or any conversation's last message.

Written are ``OUT/{train,val,test}.jsonl``, each with its sidecar, with rows

    {"id": str, "datasource": "messages" | "chapters" | "books", "prompt": [message, ...], "label": str}

where a message is ``{"role": "system" | "user" | "assistant", "content": str}``. ``prompt`` is what the policy reads:
it ends in a user message that asks for a plan, its last paragraph starting with ``In summary:``; it never has the gold
text in it. ``datasource`` names the kind of source. ``label`` is the JSON text that `orlhf_ext.vrcli.labels` describes.

In conversations, in books, and with ``--same_instruction``, an empty plan gives the baseline itself. In other
next-chapter rows the plan also replaces the instruction with one that speaks of it, as the authors' code does: then an
empty plan changes the prompt too.

A source's row may bring a plan along, the text ``plan``. It is written as ``"plan": [message]``, so that a policy can
first be tuned on such plans: ``train_sft --data.input_key prompt --data.output_key plan --data.apply_chat_template``.

The gold text of a book is the beginning of a chapter, without its heading; that of a next-chapter row is the whole
chapter with its header, as in the authors' data; that of a conversation is its last message.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from orlhf_ext.cli.errors import UserError
from orlhf_ext.cli.flags import COUNT, INNER
from orlhf_ext.files.built import Built, Counts, Reject
from orlhf_ext.files.records import Record
from orlhf_ext.models.chats import ChatError
from orlhf_ext.vrcli.labels import as_text, scoring_messages

from ..common import SEEN, Messages, add_limits, add_source, check_options, digest, keep, write_draw
from ..lengths import TEMPLATE, LengthFilter
from .prompts import Task
from .sources import BUNDLED, CONTEXT_WORDS, GOLD_WORDS, SPLITS, Candidate, Source, find_source

SAME_ID = Reject("id of an earlier row", bad=True)


class Row(NamedTuple):
    """What is kept. ``size``: tokens of the prompt and of the scored text, if they are counted."""

    candidate: Candidate
    task: Task
    size: tuple[int, int] | None


class Sizes:
    """Mean and maximum of the lengths of the rows that are written."""

    def __init__(self) -> None:
        self.rows = 0
        self.totals, self.most = [0, 0], [0, 0]

    def add(self, *size: int) -> None:
        """Note one row."""
        self.rows += 1
        self.totals = [total + one for total, one in zip(self.totals, size, strict=True)]
        self.most = [max(pair) for pair in zip(self.most, size, strict=True)]

    def as_dict(self) -> dict[str, dict[str, float]]:
        """For a sidecar, in tokens."""
        return {
            name: {"mean": round(total / self.rows, 1), "max": most}
            for name, total, most in zip(("prompt", "scored"), self.totals, self.most, strict=True)
        }


class Builder:
    """``build_data story``."""

    name = "story"
    help = "stories (books, next-chapter rows, or conversations) into prompts with a gold text to make likely"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add this builder's own options."""
        add_source(
            parser,
            "a folder of three or more books (.txt) with chapter headings; a folder with {train,val,test}.jsonl "
            "or NAME_{train,val,test}.jsonl (.jsonl.gz, .json, .parquet) whose rows have messages or next_chapter; one "
            "such file; a hub name; or one of the bundled ones: sample (the default) or generated",
        )
        add = parser.add_argument
        add("--data_dir", help="a folder inside SOURCE, or alone: the folder of the three files")
        add("--dataset_name", metavar="NAME", help="read NAME_{train,val,test}.jsonl")
        add(
            "--system",
            "--vrcli.system",
            dest="system",
            choices=("keep", "drop", "merge"),
            default="keep",
            help="system messages: kept (the default), left out, or put before the user's first text",
        )
        add("--instruction", metavar="TEXT", help="the words that ask the policy for a plan")
        add = parser.add_argument_group("books").add_argument
        add("--context_words", type=COUNT, metavar="N", help=f"at most N words before the chapter ({CONTEXT_WORDS})")
        add("--gold_words", type=COUNT, metavar="N", help=f"at most N words of the chapter's beginning ({GOLD_WORDS})")
        add("--heading", metavar="REGEX", help="what a heading line matches, instead of CHAPTER I and its like")
        add = parser.add_argument_group("next-chapter rows").add_argument
        add(
            "--same_instruction",
            action="store_true",
            help="ask for the chapter in the same words with and without a plan (the authors' words differ)",
        )
        add(
            "--unfiltered",
            action="store_true",
            help="keep what the authors leave out: very short and very long chapters, the first two of a story",
        )
        splits = parser.add_argument_group("splits")
        splits.add_argument("--val_size", type=INNER, help="share of books, or of one file's stories, for val (0.1)")
        splits.add_argument("--test_size", type=INNER, help="the same for test (0.1); each split has at least one")
        add_limits(splits, "val", "test")
        add = parser.add_argument_group("lengths in tokens").add_argument
        add(
            "--tokenizer",
            "--tokenizer_name",
            metavar="PATH_OR_NAME",
            help="a folder with a tokenizer.json and a chat template, or a hub name: note lengths in the sidecar",
        )
        add("--max_prompt_tokens", type=COUNT, metavar="N", help="drop longer prompts")
        text = "drop rows whose scored text (prompt and gold text; the plan comes on top) is longer"
        add("--max_tokens", type=COUNT, metavar="N", help=text)

    def run(self, args: argparse.Namespace) -> Iterator[Built]:
        """Write the files.

        Raises:
            UserError: options that exclude one another, a source that cannot be used, or no row left in a split.
        """
        check(args)
        if not (args.source or args.data_dir or args.dataset_name):
            args.source = "sample"
        lengths = Lengths(args) if args.tokenizer else None
        source, place = find_source(args)
        pipeline = Pipeline(source, place, lengths, args)
        for split in SPLITS:
            yield pipeline.build(split)


def check(args: argparse.Namespace) -> None:
    """Refuse options that exclude one another or would have no effect."""
    check_options(args, args.limit, args.limit_val, args.limit_test)
    if args.source in BUNDLED and (args.data_dir or args.dataset_name):
        raise UserError(
            f"--data_dir and --dataset_name choose files of your own, but SOURCE is {args.source}; leave one out"
        )


class Lengths:
    """Counts tokens of prompts and scored texts as a model's chat template renders them."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.tokenizer = LengthFilter(args.tokenizer, args.max_prompt_tokens, args.max_tokens)
        self.render: Callable[[Messages, bool], str] = self.tokenizer.chat_template(
            "choose a chat model's, or leave out --tokenizer"
        )

    def __call__(self, task: Task) -> tuple[int, int] | Reject:
        """Tokens of the prompt, and of the scored text with an empty place for the plan; or why it cannot be used."""
        # a plan of one token: the words around it count, those of its own do not
        gold = {"role": "assistant", "content": task.gold}
        scored = [*scoring_messages(task.label(""), "-"), gold]
        try:
            counts = [
                self.tokenizer.count(self.render(messages, prompt))
                for messages, prompt in ((task.prompt, True), (scored, False))
            ]
        except ChatError:
            return TEMPLATE
        prompt_tokens, tokens = counts
        return self.tokenizer.fault(prompt_tokens, tokens) or (prompt_tokens, tokens)


class Pipeline:
    """From the source's candidates to the rows of one split, one at a time."""

    def __init__(self, source: Source, place: Path, lengths: Lengths | None, args: argparse.Namespace) -> None:
        self.source = source
        self.place = place
        self.lengths = lengths
        self.args = args
        self.prompts: set[int] = set()  # hashes of the prompts of the training rows that were kept
        self.ids: set[int] = set()

    def build(self, split: str) -> Built:
        """Write one split's rows."""
        args = self.args
        counts = Counts(args.strict, args.max_count_of_reported)
        paths = self.source.paths(split)
        sizes = Sizes()
        rows = keep(((found.where, self.row(split, found)) for found in self.source.candidates(split)), counts)
        name = paths[0] if len(paths) == 1 else self.place
        target = write_draw(args, split, rows, lambda drawn: self.noted(split, drawn, sizes), counts, paths, name=name)
        details: dict[str, Any] = {"source": args.source or str(self.place), **self.source.details(split)}
        if self.lengths:
            details["tokens"] = sizes.as_dict()
        licence = "Apache-2.0" if args.source in BUNDLED else "that of the source"
        files = self.lengths.tokenizer.files if self.lengths else []
        return Built(target, counts, [*paths, *files], licence, details)

    def noted(self, split: str, rows: Iterable[Row], sizes: Sizes) -> Iterator[Record]:
        """The records of rows that are written; their lengths and, of training rows, their prompts are noted."""
        for candidate, task, size in rows:
            if split == "train":
                self.prompts.add(digest(repr(task.messages)))
            if size:
                sizes.add(*size)
            label = as_text(task.label(candidate.name))
            record = {"id": candidate.name, "datasource": candidate.kind, "prompt": task.prompt, "label": label}
            if candidate.plan is not None:
                record["plan"] = [{"role": "assistant", "content": candidate.plan}]
            yield record

    def row(self, split: str, candidate: Candidate) -> Row | Reject:
        """A candidate with its lengths, or why it is left out."""
        task, name = candidate.task, digest(candidate.name)
        if isinstance(task, Reject):
            return task
        if split != "train" and digest(repr(task.messages)) in self.prompts:
            return SEEN
        if name in self.ids:
            return SAME_ID
        size = self.lengths(task) if self.lengths else None
        if isinstance(size, Reject):
            return size
        self.ids.add(name)
        return Row(candidate, task, size)
