"""What builders share: reading, counting, drawing and writing rows, and finding the files of a source."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from orlhf_ext.cli.errors import UserError
from orlhf_ext.cli.flags import COUNT
from orlhf_ext.files.built import Built, Counts, Reject  # noqa: F401 - builders take all three from here
from orlhf_ext.files.records import BadLine, Line, Record, read_lines, write_jsonl

T = TypeVar("T")

#: a chat as TRL and chat templates have it: ``{"role": ..., "content": ...}`` each
Messages = list[dict[str, str]]

#: the small data sets that were written for this project
SAMPLES = Path(__file__).parent / "samples"
SPLITS = ("train", "test")
SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".ndjson", ".parquet")
SEEN = Reject("prompt also in the training rows")


def write_bundled(folder: Path, files: Mapping[str, Iterable[Record]], what: str) -> None:
    """Write a bundled data set, ``NAME.jsonl`` for each name, and say how many of ``what`` are in it."""
    folder.mkdir(exist_ok=True)
    for name, rows in files.items():
        out = folder / f"{name}.jsonl"
        print(f"{out}: {write_jsonl(out, rows)} {what}")


def add_source(parser: argparse.ArgumentParser, what: str) -> None:
    """Add SOURCE and its other name."""
    parser.add_argument("positional_source", metavar="SOURCE", nargs="?", help=what)
    parser.add_argument("--source", help="the same as SOURCE")


def add_limits(group: argparse._ActionsContainer, *splits: str) -> None:
    """Add the limits on splits beside training, and how limited rows are drawn."""
    for split in splits:
        group.add_argument(f"--limit_{split}", type=COUNT, metavar="N", help=f"at most N rows in {split}")
    group.add_argument("--shuffle", action="store_true", help="draw the limited rows at random, not the first ones")


def check_options(args: argparse.Namespace, *limits: int | None) -> None:
    """Refuse options that exclude one another or would have no effect, and keep SOURCE under its other name alone.
    ``limits`` are those on rows.

    Raises:
        UserError: they do; one sentence that names them.
    """
    if args.positional_source and args.source:
        raise UserError(f"--source {args.source} and SOURCE {args.positional_source} are both given; leave one out")
    args.source = args.__dict__.pop("positional_source") or args.source  # one name in the sidecar
    if args.shuffle and not any(limits):
        raise UserError(
            "--shuffle draws the rows of a limit at random; add --limit N (launchers shuffle by themselves)"
        )
    if (args.max_prompt_tokens or args.max_tokens) and not args.tokenizer:
        raise UserError("--max_prompt_tokens and --max_tokens count tokens; add --tokenizer PATH_OR_NAME")


def merge_out(out: Path, other: Path | None, flag: str, name: str) -> Path:
    """The folder to write to: that of ``--out``, or of another flag.

    Raises:
        UserError: both are given.
    """
    if other and out != Path("data") / name:
        raise UserError(f"{flag} {other} and --out {out} are both given; leave one out")
    return other or out


def draw(rows: Iterable[T], limit: int | None, rng: random.Random | None, counts: Counts) -> Iterator[T]:
    """The first ``limit`` rows (all without a limit), or with ``rng`` a uniform random draw of ``limit`` rows.

    The draw is reservoir sampling (Vitter, 1985, algorithm R): no more than ``limit`` rows are in memory. Fills in
    ``counts.kept`` and ``counts.not_drawn``.
    """
    if rng is None:
        for row in rows:
            counts.kept += 1
            yield row
            if counts.kept == limit:  # before the next row is read: it would be counted
                return
        return
    if limit is None:
        raise ValueError("a random draw needs a limit")
    reservoir: list[T] = []
    for seen, row in enumerate(rows):
        if seen < limit:
            reservoir.append(row)
        elif (place := rng.randrange(seen + 1)) < limit:
            reservoir[place] = row
        counts.not_drawn += seen >= limit
    rng.shuffle(reservoir)
    counts.kept = len(reservoir)
    yield from reservoir


def write_draw(
    args: argparse.Namespace,
    split: str,
    rows: Iterable[T],
    records: Callable[[Iterable[T]], Iterable[Record]],
    counts: Counts,
    sources: Sequence[Path],
    **named: Any,
) -> Path:
    """Write ``OUT/SPLIT.jsonl`` from the first rows of a split, or a random draw of them; returns its path.

    Args:
        args: of the command, with ``shuffle``, and ``limit`` or ``limit_SPLIT``.
        split: its name.
        rows: all that can be kept.
        records: makes the records of those that are drawn.
        counts: of the split.
        sources: as in `write_some`, as ``named`` is.
    """
    limit = limit_of(args, split)
    rng = random.Random(f"{args.seed} {split}") if args.shuffle and limit else None
    target = args.out / f"{split}.jsonl"
    write_some(target, records(draw(rows, limit, rng, counts)), counts, sources, **named)
    return target


def limit_of(args: argparse.Namespace, split: str) -> int | None:
    """``--limit``, or that of a split."""
    return args.limit if split == "train" else getattr(args, f"limit_{split}")


def write_some(
    target: Path,
    rows: Iterable[Record],
    counts: Counts,
    sources: Sequence[Path],
    name: Path | None = None,
    remedy: str = "",
) -> None:
    """Write rows.

    Args:
        target: the file.
        rows: its records, counted while they are read.
        counts: of the rows.
        sources: what they are read from.
        name: of the sources in errors, unless they are one file or a folder.
        remedy: the way out that an error names beside "give a file with records".

    Raises:
        UserError: there is no row, or the target is a source; nothing is written.
    """
    check_not_source(target, sources)

    def at_least_one() -> Iterator[Record]:
        yield from rows
        if not counts.kept:
            raise none_kept(name or Path(os.path.commonpath(sources)), target.name, counts, remedy)

    write_jsonl(target, at_least_one())


def check_not_source(target: Path, sources: Sequence[Path]) -> None:
    """Refuse to overwrite a source.

    Raises:
        UserError: the target is one.
    """
    if target.exists() and any(map(target.samefile, sources)):
        raise UserError(f"--out: {target} is the source itself and would be overwritten; choose another folder")


def none_kept(source: str | Path, what: str, counts: Counts, remedy: str = "") -> UserError:
    """The error of a source that gives no row; the most frequent reason is named."""
    if not counts.read:
        return UserError(f"{source} has no row for {what}; give a file with records{remedy}")
    lost = ""
    if counts.dropped:
        reason, number = counts.dropped.most_common(1)[0]
        lost = f" ({number} of them: {reason})"
    return UserError(
        f"none of the {counts.read} rows of {source} can be kept for {what}{lost}; fix the data, or give other options"
    )


class Row(NamedTuple):
    """A row of a file: where it is, its number, and its record or why it has none."""

    where: str
    number: int
    record: Record | Reject


def read_rows(path: Path, what: str = "") -> Iterator[Row]:
    """The rows of a file of `read_lines`, with a progress bar on a terminal."""
    return as_rows(read_lines(path), what or path.name)


def as_rows(lines: Iterable[Line | BadLine], what: str) -> Iterator[Row]:
    """Lines as rows, with a progress bar on a terminal."""
    with contextlib.closing(progress(lines, what)) as found:
        for line in found:
            record = Reject(line.reason, bad=True) if isinstance(line, BadLine) else line.record
            yield Row(line.where, int(line.where.rsplit(" ", 1)[1]), record)


def keep(rows: Iterable[tuple[str, T | Reject]], counts: Counts) -> Iterator[T]:
    """The rows that are not rejected, out of places and rows; all are counted.

    Raises:
        UserError: a row is broken and ``counts.strict`` is set.
    """
    for where, row in rows:
        counts.read += 1
        if isinstance(row, Reject):
            counts.drop(where, row)
        else:
            yield row


def progress(rows: Iterable[Any], what: str) -> Any:
    """A progress bar on a terminal."""
    from tqdm import tqdm

    return tqdm(rows, desc=what, unit=" rows", disable=None, leave=False)


def digest(text: str, seed: int | str = "") -> int:
    """A 64-bit hash of a text that is the same on every machine."""
    return int.from_bytes(hashlib.blake2b(f"{seed}\n{text}".encode(), digest_size=8).digest())


def looks_like_hub_name(text: str) -> bool:
    """Whether ``text`` can be a hub's ``owner/name`` rather than a path on this machine."""
    owner, slash, name = text.partition("/")
    return bool(slash and re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", text)) and not (
        Path(owner).exists() or name.endswith(SUFFIXES)
    )


def locate(spec: str, bundled: Mapping[str, Path], patterns: Sequence[str]) -> Path:
    """The path that a source names: a bundled one, a file or folder, or the files of a hub data set."""
    path = bundled.get(spec) or Path(spec)
    return path if path.exists() or not looks_like_hub_name(spec) else fetch(spec, patterns, "dataset")


def fetch(repo: str, patterns: Sequence[str], kind: str) -> Path:
    """Download the files of a hub repository that match, or find them in the hub's cache; returns their folder.

    Args:
        repo: ``owner/name``.
        patterns: shell patterns of paths inside it.
        kind: ``"dataset"`` or ``"model"``.

    Raises:
        UserError: no network, no such repository, or no permission.
    """
    import httpx
    from huggingface_hub import errors, snapshot_download

    what = "data set" if kind == "dataset" else kind
    try:
        return Path(snapshot_download(repo, repo_type=kind, allow_patterns=list(patterns)))
    except errors.GatedRepoError as error:
        raise UserError(
            f"{repo} is gated: accept its terms on its hub page and set HF_TOKEN, or give a local path"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"the hub has no {what} {repo} (or it is private: then set HF_TOKEN), and there is no such path here either"
        ) from error
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, httpx.HTTPError) as error:
        raise UserError(
            f"there is no path {repo} here, and the hub cannot be reached to fetch the {what} of that name; "
            "connect to the network, or give a local path"
        ) from error


def find_splits(folder: Path, data_dir: str | None = None) -> dict[str, Path]:
    """The ``train`` and ``test`` files of a folder, or of the only folder in it that has some.

    Raises:
        UserError: the folder, or one of the two files, is missing, or several folders have some.
    """
    if data_dir:
        folder = folder / data_dir
        if not folder.is_dir():
            raise UserError(f"--data_dir: there is no folder {folder}")
    found = _splits_in(folder)
    if not found:
        inner = {child: files for child in sorted(folder.iterdir()) if child.is_dir() and (files := _splits_in(child))}
        if len(inner) > 1:
            names = ", ".join(child.name for child in inner)
            raise UserError(f"{folder} has several data sets ({names}); choose one with --data_dir")
        if inner:
            folder, found = inner.popitem()
    missing = [split for split in SPLITS if split not in found]
    if len(missing) == 2:
        raise UserError(
            f"{folder} has no train.jsonl and test.jsonl (or .jsonl.gz, .json, .parquet); name the folder that has them"
        )
    if missing:
        there = next(iter(found.values()))
        raise UserError(f"{folder} has {there.name} but no {missing[0]} file; add one, or give {there} alone")
    return found


def find_all_splits(folder: Path) -> dict[str, list[Path]]:
    """The ``train`` and ``test`` files of a folder and of all folders in it that have some, by name.

    Raises:
        UserError: there is none, or one of them has only one of the two.
    """
    inner = sorted(child for child in folder.iterdir() if child.is_dir() and _splits_in(child))
    if not inner or _splits_in(folder):
        inner.insert(0, folder)
    found = [find_splits(one) for one in inner]
    return {split: [files[split] for files in found] for split in SPLITS}


def _splits_in(folder: Path) -> dict[str, Path]:
    return {
        split: path
        for split in SPLITS
        for suffix in reversed(SUFFIXES)
        if (path := folder / f"{split}{suffix}").is_file()
    }
