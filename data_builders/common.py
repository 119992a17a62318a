"""What builders share: counting rows, finding the files of a source, drawing rows."""

from __future__ import annotations

import argparse
import hashlib
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from orlhf_ext.cli.errors import UserError
from orlhf_ext.files.built import Built, Counts, Reject  # noqa: F401 - builders take all three from here
from orlhf_ext.files.records import Record, write_jsonl

T = TypeVar("T")

#: a chat as TRL and chat templates have it: ``{"role": ..., "content": ...}`` each
Messages = list[dict[str, str]]

#: the small data sets that were written for this project
SAMPLES = Path(__file__).parent / "samples"
SPLITS = ("train", "test")
SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".ndjson", ".parquet")


SEEN = Reject("prompt also in the training rows")


def check_options(args: argparse.Namespace, *limits: int | None) -> None:
    """Refuse common options that exclude one another or would have no effect; ``limits`` are those on rows.

    Raises:
        UserError: they do; one sentence that names them.
    """
    if args.positional_source and args.source:
        raise UserError(f"--source {args.source} and SOURCE {args.positional_source} are both given; leave one out")
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

    The draw is reservoir sampling (Vitter, 1985, algorithm R): no more than ``limit`` rows are held. Fills in
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
    held: list[T] = []
    for seen, row in enumerate(rows):
        if seen < limit:
            held.append(row)
        elif (place := rng.randrange(seen + 1)) < limit:
            held[place] = row
        counts.not_drawn += seen >= limit
    rng.shuffle(held)
    counts.kept = len(held)
    yield from held


def write_some(target: Path, rows: Iterable[Record], counts: Counts, source: Path, remedy: str = "") -> None:
    """Write rows; raises `UserError`, and writes nothing, if there is none or the target is the source.

    ``remedy`` is the way out that the error names beside "give a file with records".
    """
    if target.exists() and target.samefile(source):
        raise UserError(f"--out: {target} is the source itself and would be overwritten; choose another folder")

    def at_least_one() -> Iterator[Record]:
        yield from rows
        if counts.kept:
            return
        if not counts.read:
            raise UserError(f"{source} has no row for {target.name}; give a file with records{remedy}")
        reason, number = counts.dropped.most_common(1)[0]
        raise UserError(
            f"none of the {counts.read} rows of {source} can be kept for {target.name} ({number} of them: {reason}); "
            "mend the data, or give other options"
        )

    write_jsonl(target, at_least_one())


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
            raise UserError(f"{folder} holds several data sets ({names}); choose one with --data_dir")
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
