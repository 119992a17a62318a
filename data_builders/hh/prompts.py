"""Pairs of ``build_data hh`` -> prompts for the stages of group preferences.

Written are ``OUT/rm.jsonl`` (prompts to sample responses for, from which reward models learn), ``OUT/rl.jsonl`` and
``OUT/test.jsonl``, each with its sidecar, with rows

    {"id": str, "prompt": str, "style": "hh" | "chat" | "legacy", "label": str}

``label`` is a JSON object as text, ``{"v": 1, "id": ..., "style": ...}``. No prompt is in two of the files (except
with ``--share_prompts``), nor does a test prompt in any training row.
"""

from __future__ import annotations

import argparse
import copy
import heapq
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path

from orlhf_ext.cli.errors import UserError
from orlhf_ext.cli.flags import COUNT
from orlhf_ext.files.built import Built, Counts, Reject
from orlhf_ext.files.records import Record, read_object
from orlhf_ext.files.sidecars import sidecar_path
from orlhf_ext.groups.label import Label, write_label
from orlhf_ext.models.chats import is_messages
from orlhf_ext.models.head_settings import STYLES

from ..common import SEEN, Row, digest, find_splits, keep, read_rows, write_some

#: the format of ``build_data hh`` -> how its prompts were rendered
FORMATS = {"hh": "hh", "legacy": "legacy", "template": "chat"}
PROMPT_SEEN = Reject("prompt of an earlier row")
SAME_ID = Reject("id of an earlier row", bad=True)
NO_PROMPT = Reject("no prompt that is text", bad=True)


class Builder:
    """``build_data hh-prompts``."""

    name = "hh-prompts"
    help = "pairs of build_data hh into prompts for reward models, RL and testing (group preferences)"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add this builder's own options."""
        parser.add_argument("source", metavar="SOURCE", help="a folder that build_data hh wrote: train and test.jsonl")
        parser.add_argument("--num_prompts", type=COUNT, default=10_000, metavar="N", help="in rm (%(default)s)")
        parser.add_argument("--num_rl", type=COUNT, metavar="N", help="in rl (as many as in rm)")
        parser.add_argument("--num_test", type=COUNT, default=2000, metavar="N", help="in test (%(default)s)")
        parser.add_argument("--share_prompts", action="store_true", help="rl has the prompts of rm, not others")
        parser.add_argument("--style", choices=STYLES, help="how prompts were rendered (as SOURCE's sidecar says)")

    def run(self, args: argparse.Namespace) -> Iterator[Built]:
        """Write the files.

        Raises:
            UserError: the source cannot be read, has no prompts that are text, or too few.
        """
        folder = Path(args.source)
        check(args, folder)
        paths = find_splits(folder)
        style = style_of(paths["train"], args.style)
        prompts = Prompts(style, args)
        training, test = args.num_prompts, args.num_test
        rl = training if args.num_rl is None else args.num_rl
        asked = f"--num_prompts {training}"
        if not args.share_prompts:
            training, asked = training + rl, f"{asked} and --num_rl {rl}"
        remedy = "lower it" if args.share_prompts else "lower them, or add --share_prompts"
        drawn, counts = prompts.draw("train", paths["train"], training, asked, remedy)
        tested, test_counts = prompts.draw("test", paths["test"], test, f"--num_test {test}", "lower it")
        first, rest = drawn[: args.num_prompts], drawn[args.num_prompts :]
        rl_counts = copy.deepcopy(counts)
        rl_counts.examples = []  # reported with the first file
        for stem, rows, own, split in (
            ("rm", first, counts, "train"),
            ("rl", rest or first, rl_counts, "train"),
            ("test", tested, test_counts, "test"),
        ):
            own.not_drawn += own.kept - len(rows)
            own.kept = len(rows)
            target = args.out / f"{stem}.jsonl"
            write_some(target, rows, own, [paths[split]])
            details = {"style": style, "source": args.source, "shared_prompts": args.share_prompts}
            yield Built(target, own, [paths[split]], licence_of(paths[split]), details)


def check(args: argparse.Namespace, folder: Path) -> None:
    """Refuse options that exclude one another or would have no effect."""
    if not folder.is_dir():
        raise UserError(f"SOURCE: {folder} is not a folder; give the one that build_data hh wrote")
    if args.limit:
        raise UserError("--limit has no effect here; use --num_prompts, --num_rl and --num_test")
    if args.share_prompts and args.num_rl not in (None, args.num_prompts):
        raise UserError(
            f"--num_rl {args.num_rl} has no effect with --share_prompts, which takes the {args.num_prompts} prompts of "
            "--num_prompts; leave one out"
        )
    if args.out.resolve() == folder.resolve():
        raise UserError(f"--out: {args.out} is SOURCE itself, whose test.jsonl would be overwritten; choose another")


def sidecar(path: Path) -> Record:
    """The sidecar of a data file; empty if there is none."""
    meta = sidecar_path(path)
    return read_object(meta, "build the data again") if meta.exists() else {}


def licence_of(path: Path) -> str:
    """The licence in a file's sidecar."""
    return str(sidecar(path).get("licence") or "that of the source")


def style_of(path: Path, style: str | None) -> str:
    """How the prompts of a file were rendered: its sidecar says it, or the user.

    Raises:
        UserError: neither does, or they disagree; or the prompts are message lists.
    """
    form = sidecar(path).get("format")
    if form == "chat":
        raise _messages(str(path))
    known = FORMATS.get(str(form))
    if known is None and style is None:
        raise UserError(
            f"{path} has no sidecar that says how its prompts were rendered; add --style {', '.join(STYLES)}"
        )
    if known and style and known != style:
        raise UserError(f"--style {style}, but {path} was built with --format {form}; leave --style out")
    return str(style or known)


def id_of(record: Record, number: int, stem: str) -> str:
    """A record's id, or one from the number of its line."""
    name = record.get("id")
    return f"{stem}-{number:06d}" if name is None else str(name)


def _messages(where: str) -> UserError:
    return UserError(
        f"{where} has prompts that are message lists, not text; build it again with build_data hh --format template "
        "--tokenizer MODEL (or --format hh, or legacy)"
    )


class Prompts:
    """Draws different prompts."""

    def __init__(self, style: str, args: argparse.Namespace) -> None:
        self.style = style
        self.args = args
        self.trained: set[int] = set()  # hashes of the prompts of all training rows

    def draw(self, split: str, path: Path, number: int, asked: str, remedy: str) -> tuple[list[Record], Counts]:
        """``number`` different prompts at random, in random order; ``counts.kept`` is how many could be drawn.

        A prompt's place is that of a hash of seed and prompt: no more rows are in memory than are drawn, and the first
        ones stay the same when more are asked for.

        Raises:
            UserError: there are fewer.
        """
        counts = Counts(self.args.strict, self.args.max_count_of_reported)
        drawn = heapq.nsmallest(number, self.rows(split, path, counts), key=itemgetter(0))
        if len(drawn) < number:
            lost = f" ({counts.examples[0]})" if counts.examples and not counts.kept else ""
            raise UserError(f"{path} has {counts.kept} different prompts{lost}, too few for {asked}; {remedy}")
        return [row for _, row in drawn], counts

    def rows(self, split: str, path: Path, counts: Counts) -> Iterator[tuple[int, Record]]:
        """Each different prompt's row, with the hash by which it is drawn."""
        seen: set[int] = set()
        ids: set[int] = set()
        found = ((row.where, self.row(split, row, seen, ids)) for row in read_rows(path, split))
        for record in keep(found, counts):
            counts.kept += 1
            yield digest(record["prompt"], f"{self.args.seed} {split}"), record
        if split == "train":
            self.trained = seen

    def row(self, split: str, row: Row, seen: set[int], ids: set[int]) -> Record | Reject:
        """What a row says that those before it, whose hashes are noted, do not."""
        if isinstance(row.record, Reject):
            return row.record
        prompt = row.record.get("prompt")
        if is_messages(prompt):
            raise _messages(row.where)
        if not isinstance(prompt, str) or not prompt.strip():
            return NO_PROMPT
        name = id_of(row.record, row.number, split)
        prompt_hash, id_hash = digest(prompt), digest(name)
        if split == "test" and prompt_hash in self.trained:
            return SEEN
        if prompt_hash in seen:
            return PROMPT_SEEN
        if id_hash in ids:
            return SAME_ID
        seen.add(prompt_hash)
        ids.add(id_hash)
        label = write_label(Label(name, self.style))
        return {"id": name, "prompt": prompt, "style": self.style, "label": label}
