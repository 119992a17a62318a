"""Where stories come from: files of rows, or a folder of books. Each gives candidates for the rows of a split."""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from orlhf_ext.cli.errors import UserError
from orlhf_ext.cli.patterns import Pattern
from orlhf_ext.files.built import Reject
from orlhf_ext.files.records import Record, sha256_file

from ..common import SAMPLES, SUFFIXES, digest, locate, progress, read_rows
from .books import Chapter, find_chapters, first_words, read_book, text_before
from .prompts import Task, from_chapter, from_messages

SPLITS = ("train", "val", "test")
BUNDLED = {"sample": SAMPLES / "stories", "generated": SAMPLES / "stories_generated"}
CONTEXT_WORDS, GOLD_WORDS, SHARE = 700, 200, 0.1
SPLIT_FILE = re.compile(
    rf"(?:(?P<name>.+)_)?(?P<split>train|val|validation|test)(?P<suffix>{'|'.join(map(re.escape, SUFFIXES))})"
)

NEITHER = Reject("neither messages nor next_chapter", bad=True)
NO_TEXT = Reject("a chapter without text")
NO_PLAN = Reject("a plan that is not text", bad=True)


class Candidate(NamedTuple):
    """What may become a row: where it is, its id, its task or why it has none, its kind, and a plan that came along."""

    where: str
    name: str
    task: Task | Reject
    kind: str
    plan: str | None = None


class Division:
    """Whole groups (books, stories, prompts) to train, val and test by a hash of their names; no split is empty.

    Args:
        names: hashes of the groups.
        val_size: share of the groups for val; at least one group is.
        test_size: the same for test.
        where: what has these groups, for the error.
        what: what one group is called, in the plural.

    Raises:
        UserError: fewer than three groups, or none left for train.
    """

    def __init__(self, names: Iterable[int], val_size: float, test_size: float, where: object, what: str) -> None:
        order = sorted(set(names))
        if len(order) < len(SPLITS):
            raise UserError(
                f"{where} has {len(order)} {what}, and train, val and test need one each; add some, or give each split "
                "a file of its own (train.jsonl, val.jsonl and test.jsonl)"
            )
        test, val = (max(1, round(size * len(order))) for size in (test_size, val_size))
        if test + val >= len(order):
            raise UserError(
                f"--val_size and --test_size take {val} and {test} of the {len(order)} {what} of {where}, and leave "
                "none for train; make them smaller"
            )
        self._test_below, self._val_below = order[test], order[test + val]
        self.sizes = {"train": len(order) - val - test, "val": val, "test": test}

    def __call__(self, name: int) -> str:
        """The split of a group."""
        return "test" if name < self._test_below else "val" if name < self._val_below else "train"


class Rows:
    """Rows with ``messages``, and the authors' next-chapter rows, in three files or in one that is divided."""

    def __init__(self, files: Mapping[str, Path], args: argparse.Namespace) -> None:
        self.files = files
        self.args = args
        self.division: Division | None = None
        if len(set(files.values())) == 1:
            path = files["train"]
            groups = (
                self._group(row.record, task)
                for row in read_rows(path, "groups")
                if not isinstance(row.record, Reject) and isinstance(task := self._task(row.record), Task)
            )
            self.division = Division(
                groups, args.val_size or SHARE, args.test_size or SHARE, path, "stories or prompts"
            )

    def paths(self, split: str) -> list[Path]:
        """The files that a split is read from."""
        return [self.files[split]]

    def details(self, split: str) -> dict[str, Any]:
        """What the sidecar says about the division."""
        if not self.division:
            return {}
        how = "by a hash of story_id, or else of the prompt, and the seed"
        return {"split": f"{how}; {self.division.sizes[split]} of {sum(self.division.sizes.values())} groups"}

    def candidates(self, split: str) -> Generator[Candidate, None, None]:
        """The candidates of a split, in the file's order. Of a single file, broken rows are train's."""
        for where, number, found in read_rows(self.files[split], split):
            record: Record = {} if isinstance(found, Reject) else found
            task = found if isinstance(found, Reject) else self._task(found)
            if self.division:
                there = self.division(self._group(record, task)) if isinstance(task, Task) else "train"
                if there != split:
                    continue
            kind = "messages" if "messages" in record else "chapters"
            plan = record.get("plan")
            if not isinstance(plan, str | None) or plan == "":
                plan, task = None, NO_PLAN
            yield Candidate(where, str(record.get("id") or f"{split}-{number:06d}"), task, kind, plan)

    def _task(self, record: Record) -> Task | Reject:
        args = self.args
        if record.get("messages") is not None:
            return from_messages(record, args.system, args.instruction)
        if record.get("next_chapter") is None:
            return NEITHER
        task = from_chapter(record, args.system, args.instruction, args.same_instruction)
        if isinstance(task, Task) and not args.unfiltered:
            return unusual(record, task) or task
        return task

    def _group(self, record: Record, task: Task) -> int:
        story = record.get("story_id")
        return digest(f"story {story}" if story not in (None, "") else repr(task.messages), self.args.seed)


def unusual(record: Mapping[str, Any], task: Task) -> Reject | None:
    """Why the authors leave a next-chapter row out, if they do. Words are separated by single spaces."""

    def words(text: str) -> int:
        return len(text.split(" "))

    if words(task.gold) <= 200:
        return Reject("chapter of 200 words or fewer")
    if words(task.gold) >= 5000:
        return Reject("chapter of 5000 words or more")
    if words(str(record.get("story_text") or "")) >= 5000:
        return Reject("story text of 5000 words or more")
    if sum(words(message["content"]) for message in task.prompt) >= 10_000:
        return Reject("prompt of 10000 words or more")
    index = record.get("chapter_index")
    if isinstance(index, int | float) and index < 2:
        return Reject("one of the first two chapters")
    return None


class Books:
    """A folder of plain-text books, divided book by book.

    Raises:
        UserError: fewer than three books, two with the same text, or one without two chapters.
    """

    def __init__(self, folder: Path, args: argparse.Namespace) -> None:
        self.args = args
        self.heading = _compiled(args.heading)
        books = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".txt" and path.is_file())
        if not books:
            raise UserError(
                f"{folder} has no books (.txt) and no train.jsonl, val.jsonl and test.jsonl (or NAME_train.jsonl ...); "
                "name the folder that has them"
            )
        names = {path: digest(path.stem, args.seed) for path in books}
        sizes = (args.val_size or SHARE, args.test_size or SHARE)
        self.division = Division(names.values(), *sizes, folder, "books (.txt)")
        seen: dict[str, Path] = {}
        for path in books:
            if (first := seen.setdefault(sha256_file(path), path)) is not path:
                raise UserError(f"{first} and {path} are the same book, which could be in two splits; remove one")
            self._chapters(path)  # a book that cannot be used is an error before anything is written
        self.books = {split: [path for path in books if self.division(names[path]) == split] for split in SPLITS}
        self.rows: Counter[Path] = Counter()

    def paths(self, split: str) -> list[Path]:
        """The books of a split."""
        return self.books[split]

    def details(self, split: str) -> dict[str, Any]:
        """What the sidecar says about the books."""
        return {
            "split": "by a hash of the book's file name and the seed; no book is in two splits",
            "next_chapters": {path.stem: self.rows[path] for path in self.books[split]},
        }

    def candidates(self, split: str) -> Generator[Candidate, None, None]:
        """One candidate for every chapter of every book of a split but the book's first."""
        args = self.args
        for path in progress(self.books[split], split):
            chapters = self._chapters(path)
            for place in range(1, len(chapters)):
                record = {
                    "text_before": text_before(chapters, place, args.context_words or CONTEXT_WORDS),
                    "next_chapter_header": chapters[place].heading,
                    "next_chapter": first_words(chapters[place].text, args.gold_words or GOLD_WORDS),
                }
                task = (
                    from_chapter(record, args.system, args.instruction, book=True) if chapters[place].text else NO_TEXT
                )
                self.rows[path] += 1
                yield Candidate(f"{path} chapter {place + 1}", f"{path.stem}-{place + 1:03d}", task, "books")

    def _chapters(self, path: Path) -> list[Chapter]:
        chapters = find_chapters(read_book(path), self.heading)
        if len(chapters) > 1:
            return chapters
        if chapters:
            raise UserError(
                f"{path} has one chapter ({chapters[0].heading!r}), and a next chapter takes two; remove the book, or "
                "give the form of its headings with --heading REGEX"
            )
        looked = (
            f"that match --heading {self.heading.pattern}" if self.heading else "such as CHAPTER I or Chapter 1: Title"
        )
        raise UserError(
            f"{path} has no chapter headings {looked}; add them, remove the book, or give their form with "
            "--heading REGEX"
        )


def _compiled(pattern: str | None) -> Pattern | None:
    try:
        return Pattern("--heading", pattern) if pattern else None
    except ValueError as error:
        raise UserError(f"--heading: {error}") from error


Source = Rows | Books


def find_source(args: argparse.Namespace) -> tuple[Source, Path]:
    """What SOURCE, ``--data_dir`` and ``--dataset_name`` name, and its file or folder.

    Raises:
        UserError: nothing there, not all three splits, or options that have no effect on it.
    """
    spec, name = args.source, args.dataset_name
    if spec is None:  # --data_dir or --dataset_name alone: the authors' way
        path, spec = Path(args.data_dir or "."), f"--data_dir {args.data_dir}" if args.data_dir else "--dataset_name"
    else:
        inner = f"{args.data_dir.strip('/')}/" if args.data_dir else ""
        path = locate(spec, BUNDLED, [f"{inner}*{suffix}" for suffix in (*SUFFIXES, ".txt")])
        if path.is_file() and (args.data_dir or name):
            raise UserError(
                f"--data_dir and --dataset_name choose files of a folder, but {spec} is a file; leave them out"
            )
        path = path / (args.data_dir or "")
    if path.is_file() and path.suffix.lower() == ".txt":
        raise UserError(f"{path} is one book, and train, val and test need one each; give a folder of three or more")
    if path.is_file():
        _no_effect(args, ("context_words", "gold_words", "heading"), "cuts books, but SOURCE is a file of rows")
        return Rows(dict.fromkeys(SPLITS, path), args), path
    if not path.is_dir():
        raise UserError(
            f"{spec}: {path} does not exist; give a folder of books (.txt), a folder with train.jsonl, val.jsonl and "
            "test.jsonl, one file of rows, a hub name, sample or generated"
        )
    files = _split_files(path, name)
    if files:
        _no_effect(args, ("context_words", "gold_words", "heading"), f"cuts books, but {path} has files of rows")
        _no_effect(args, ("val_size", "test_size"), f"divides books or one file, but {path} has its own splits")
        return Rows(files, args), path
    _no_effect(args, ("same_instruction", "unfiltered"), "is for next-chapter rows, but SOURCE has books")
    return Books(path, args), path


def _no_effect(args: argparse.Namespace, names: Iterable[str], why: str) -> None:
    for name in names:
        if getattr(args, name):
            raise UserError(f"--{name} {why}; leave it out")


def _split_files(folder: Path, name: str | None) -> dict[str, Path]:
    """The train, val and test files of a folder; empty if it has none and none are asked for.

    Raises:
        UserError: some are there and others not, or several data sets are.
    """
    found: dict[str, dict[str, Path]] = {}
    order = {suffix: place for place, suffix in enumerate(SUFFIXES)}
    matches = [(match, path) for path in folder.iterdir() if (match := SPLIT_FILE.fullmatch(path.name))]
    for match, path in sorted(matches, key=lambda pair: (order[pair[0]["suffix"]], pair[1].name)):
        split = "val" if match["split"] == "validation" else match["split"]
        found.setdefault(match["name"] or "", {}).setdefault(split, path)
    if name is None and len(found) > 1:
        names = ", ".join(sorted(one or "(none)" for one in found))
        raise UserError(f"{folder} has several data sets ({names}); choose one with --dataset_name")
    if name is None and not found:
        return {}
    chosen, files = (name, found.get(name, {})) if name is not None else next(iter(found.items()))
    missing = [split for split in SPLITS if split not in files]
    if missing:
        lacking = " and ".join(f"{chosen}_{split}.jsonl" if chosen else f"{split}.jsonl" for split in missing)
        here = folder != Path(".") and len(missing) == 3 and Path(f"{chosen}_train.jsonl").is_file()
        way_out = (
            "they are in the working folder: leave out --data_dir (what is written goes to --out)"
            if here
            else "add what is missing, or give one file of rows, which is then divided by story"
        )
        raise UserError(f"{folder} has no {lacking}; {way_out}")
    return files
