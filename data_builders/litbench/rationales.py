"""The step ``rationales``: LitBench-Rationales -> the data of a generative reward model.

- ``rationales_train.jsonl``, ``rationales_val.jsonl``: rows ``{"id", "prompt", "completion", "label": "A" | "B"}``,
  for `train_sft` with ``--data.input_key prompt --data.output_key completion`` and ``--data.input_template '{}'``
  (marker style) or ``--data.apply_chat_template`` (chat style). ``prompt`` is the whole judging input.
- ``rationales_test.jsonl``: each test pair in both orders, rows ``{"id", "pair", "prompt", "label", "primary",
  "words", "completions"}``: ``primary`` is the order that a hash of the seed and the pair's id chose, ``words`` counts
  those of story A and story B, ``completions`` are the two verdicts, without what ends a turn.

An id ends in /AB where the chosen story is A, and in /BA where it is B. The order of a training row is that of the
source or, where that has only a chosen and a rejected story, the same hash's. ``--swap_augment`` trains both orders:
with ``--use_cot`` a rationale's ``Story A`` and ``Story B`` are exchanged for that, and where this is not safe (a
letter stands alone, as in "A is bolder", and may or may not be a story) the other order is left out, and counted.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Iterator

from orlhf_ext.cli.errors import UserError
from orlhf_ext.cli.flags import COUNT, INNER
from orlhf_ext.files.built import Built, Counts, Reject
from orlhf_ext.files.records import Record
from orlhf_ext.litbench.prompts import LABELS, TEMPLATES, Label, answer, exchange, fill, names_stories, other

from ..common import digest
from .fit import Fitted, Fitter, Task
from .sources import Pair, add_shared
from .splits import Found, Splits

DEFAULT = "SAA-Lab/LitBench-Rationales"
VAL_SHARE = 0.05
NO_RATIONALE = Reject("no rationale")
NO_NAMES = Reject("rationale that speaks of A and B, which the row does not have", bad=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this step."""
    add_shared(parser)
    add = parser.add_argument_group("rationales").add_argument
    add("--use_cot", action="store_true", help="the answer has the rationale before the verdict")
    add(
        "--style",
        choices=("marker", "chat"),
        default="marker",
        help="the answer follows a marker line, as in the authors' code, or is a chat's turn (%(default)s)",
    )
    add("--template", choices=tuple(TEMPLATES), default="short", help="wording of the instruction (%(default)s)")
    add("--show_prompt", action="store_true", help="show the writing prompt, too; the authors do not")
    add("--swap_augment", action="store_true", help="train each pair in both orders")
    add("--val_share", type=INNER, default=VAL_SHARE, metavar="SHARE", help="validation rows (%(default)s, rounded up)")
    add(
        "--tokenizer",
        metavar="PATH_OR_NAME",
        help="the model's, a folder with a tokenizer.json or a hub name: check that input and answer do not share a "
        "token, and end the answer with the end token",
    )
    add(
        "--max_len",
        type=COUNT,
        metavar="N",
        help="cut the stories of longer rows so that input and answer have at most N tokens together",
    )
    add(
        "--answer_tokens",
        type=COUNT,
        metavar="N",
        help="tokens that --max_len leaves for an answer: the --max_new_tokens of generate (8; with --use_cot 1024, or "
        "a quarter of --max_len)",
    )


def run(args: argparse.Namespace) -> Iterator[Built]:
    """Write the three files.

    Raises:
        UserError: as `Splits` and `Fitter`, or an option without effect.
    """
    for name, needs in (("max_len", "tokenizer"), ("answer_tokens", "max_len")):
        if getattr(args, name) and not getattr(args, needs):
            raise UserError(f"--{name} has no effect without --{needs}; add it")
    if args.max_len and not args.answer_tokens:
        args.answer_tokens = min(1024, args.max_len // 4) if args.use_cot else 8
    rows = Rows(args)
    splits = Splits(args, DEFAULT, lambda count: math.ceil(args.val_share * count), rows.fault)
    fitter = rows.fitter
    for split, convert in (("train", rows.train), ("val", rows.val), ("test", rows.test)):
        rows.notes = {"rows_with_cut_stories": 0}
        built = splits.build(split, args.out / f"rationales_{split}.jsonl", convert)
        built.details |= {**fitter.details(), **rows.notes}
        built.sources = [*built.sources, *(fitter.lengths.files if fitter.lengths else [])]
        yield built


class Rows:
    """Makes rows of pairs; ``notes`` is what the sidecar of the file that is being made says about them."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.fitter = Fitter(args)
        self.notes: Record = {}

    def fault(self, pair: Pair) -> Reject | None:
        """Why a pair cannot be trained on, if it cannot."""
        if not self.args.use_cot:
            return None
        if not pair.rationale:
            return NO_RATIONALE
        return NO_NAMES if not pair.label and names_stories(pair.rationale) else None

    def train(self, pairs: Iterator[Found], counts: Counts) -> Iterator[list[Record]]:
        """The rows of training pairs: one each, or with ``--swap_augment`` two."""
        return self._answered(pairs, counts, self.args.swap_augment)

    def val(self, pairs: Iterator[Found], counts: Counts) -> Iterator[list[Record]]:
        """The rows of validation pairs: one each."""
        return self._answered(pairs, counts, False)

    def test(self, pairs: Iterator[Found], counts: Counts) -> Iterator[list[Record]]:
        """The rows of test pairs: both orders of each."""
        verdicts = [self.fitter.gap[1] + answer(label) for label in LABELS]  # without the end token
        groups = ((found, [task(found.pair, label) for label in LABELS]) for found in pairs)
        for (_, pair), tasks, texts in self._fitted(groups, counts):
            first = primary(self.args.seed, pair.id)
            yield [
                {
                    "id": name(pair, label),
                    "pair": pair.id,
                    "prompt": text.input,
                    "label": label,
                    "primary": label == first,
                    "words": [len(story.split()) for story in stories],
                    "completions": verdicts,
                }
                for (_, stories, label, _), text in zip(tasks, texts, strict=True)
            ]

    def _answered(self, pairs: Iterator[Found], counts: Counts, both: bool) -> Iterator[list[Record]]:
        for (_, pair), tasks, texts in self._fitted(
            ((found, self._tasks(found.pair, both)) for found in pairs), counts
        ):
            yield [
                {"id": name(pair, one.label), "prompt": text.input, "completion": text.completion, "label": one.label}
                for one, text in zip(tasks, texts, strict=True)
            ]

    def _tasks(self, pair: Pair, both: bool) -> list[Task]:
        """A pair in its own order and, if that is wanted and safe, in the other one."""
        own = pair.label or primary(self.args.seed, pair.id)
        if not self.args.use_cot:
            return [task(pair, label) for label in ((own, other(own)) if both else (own,))]
        tasks = [task(pair, own, rationale(pair, own))]
        if both:
            if swapped := rationale(pair, other(own)):
                tasks.append(task(pair, other(own), swapped))
            else:
                self.notes["swapped_rows_left_out"] = self.notes.get("swapped_rows_left_out", 0) + 1
        return tasks

    def _fitted(
        self, groups: Iterable[tuple[Found, list[Task]]], counts: Counts
    ) -> Iterator[tuple[Found, list[Task], list[Fitted]]]:
        """Groups with their texts; those that do not fit are counted."""
        for found, tasks, texts in self.fitter(groups):
            if isinstance(texts, Reject):
                counts.drop(found.where, texts)
                continue
            self.notes["rows_with_cut_stories"] += sum(text.cut for text in texts)
            yield found, tasks, texts


def primary(seed: int, pair: str) -> Label:
    """Which place the chosen story of a pair has first: by a hash of the seed and the pair's id alone."""
    return LABELS[digest(pair, f"{seed} order") & 1]


def name(pair: Pair, label: Label) -> str:
    """The id of a pair in one order."""
    return f"{pair.id}/{label}{other(label)}"


def task(pair: Pair, label: Label, reasons: str | None = None) -> Task:
    """A pair with its chosen story at ``label``."""
    stories = (pair.chosen, pair.rejected) if label == "A" else (pair.rejected, pair.chosen)
    return Task(pair.prompt, stories, label, reasons)


def rationale(pair: Pair, label: Label) -> str | None:
    """A pair's rationale as it reads with the chosen story at ``label``; None if there is none that is safe."""
    if not pair.rationale or pair.label == label:
        return pair.rationale
    return exchange(pair.rationale) if pair.label else fill(pair.rationale, label)
