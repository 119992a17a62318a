"""LitBench's test set, which is published as ids of comments -> ``rehydrated_test_data.csv``, with their texts.

The texts come from Reddit (`data_builders.litbench.reddit`) or from local dumps (`data_builders.litbench.dump`): first
the comments, then the titles of the posts that they answer. What is known of each id is kept at once
(`data_builders.litbench.progress`), so that a run resumes where one before it was stopped. The CSV has the authors'
columns in their order, its rows are in the order of the id list, and its bytes are those that pandas writes on
Python 3.11.9 or newer.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import html
import json
import re
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from orlhf_ext import __version__
from orlhf_ext.cli.errors import UserError
from orlhf_ext.cli.flags import COUNT
from orlhf_ext.files.built import Built, Counts, Reject
from orlhf_ext.files.csv_files import format_csv
from orlhf_ext.files.records import atomic_write, object_or_empty, sha256_file, write_json

from ..common import as_rows
from .dump import Dump
from .progress import COMMENT, NAME, POST, Failure, Progress, judge
from .reddit import Reddit, credentials
from .sources import HUB_TEST, REHYDRATED, find_source, read_table

REPORT = "rehydrate_report.json"
SIDES = ("chosen", "rejected")
#: the authors' columns: what they are called, after ``prompt``, and the field of the comment in them
COLUMNS = {"story": "story", "comment_id": "", "comment_score": "score", "username": "author", "timestamp": "timestamp"}
HEADER = ["prompt", *(f"{side}_{column}" for column in COLUMNS for side in SIDES)]
NO_IDS = Reject("no two base-36 ids of comments", bad=True)
#: pairs of the published list
PUBLISHED = 2381
LICENCE = "the stories are their authors', under Reddit's user agreement"
#: wholly failed batches in a row after which a run stops
MAX_FAILED_BATCHES = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``rehydrate``."""
    add = parser.add_argument_group("rehydrate").add_argument
    add("--source", dest="id_list", metavar="SOURCE", help="the list of comment ids, as SOURCE")
    add(
        "--dump",
        nargs="+",
        metavar="FILE",
        help="read comments and posts from these files (JSON Lines as of Pushshift or Arctic Shift, also .gz and .zst) "
        "instead of asking Reddit with REDDIT_CLIENT_ID and REDDIT_CLIENT_SECRET",
    )
    add("--user_agent", metavar="TEXT", help="how to name oneself to Reddit (REDDIT_USER_AGENT, or this program)")
    add(
        "--max_workers",
        type=COUNT,
        default=3,
        metavar="N",
        help="one request is made at a time, whatever N is; a batch of ids that keeps failing is asked for in halves, "
        "which are halved at most N times while nothing comes back, and else down to single ids (%(default)s)",
    )
    text = f"go on with what {NAME} has (--no-resume discards it)"
    add("--resume", action=argparse.BooleanOptionalAction, default=True, help=text)
    add("--keep_incomplete", action="store_true", help="write rows that lack a story too, with empty cells")
    add(
        "--clean",
        choices=("none", "basic"),
        default="none",
        help="basic: plain line ends, HTML entities as characters, no white space around texts (%(default)s)",
    )


class Pair(NamedTuple):
    """A row of the id list."""

    where: str
    chosen: str
    rejected: str


class IdList(NamedTuple):
    """The pairs, where they come from (for the report), and their files."""

    pairs: list[Pair]
    origin: dict[str, Any]
    files: list[Path]


def run(args: argparse.Namespace) -> Iterator[Built]:
    """Write the CSV and its report.

    Raises:
        UserError: no credentials, no list of ids, a CSV that is not to be replaced, a dump that cannot be read, or
            Reddit lets nobody in or cannot be reached; what is known by then is kept.
    """
    target, report_path = args.out / REHYDRATED, args.out / REPORT
    dump = Dump(args.dump) if args.dump else None
    answers = dump.origin() if dump else "reddit"
    if not dump and not target.exists() and not (args.out / NAME).exists():
        credentials()
    counts = Counts(args.strict, args.max_count_of_reported)
    ids = read_ids(args, counts)
    if target.exists() and any(target.samefile(file) for file in ids.files):
        raise UserError(f"{target} is the list of ids itself and would be replaced; choose another --out")
    inputs = {
        "ids": hashlib.sha256(json.dumps([pair[1:] for pair in ids.pairs]).encode()).hexdigest(),
        "answers": answers,
        "clean": args.clean,
        "keep_incomplete": args.keep_incomplete,
    }
    report = object_or_empty(report_path)
    ours = target.exists() and report.get("sha256") == sha256_file(target)
    same = ours and report.get("inputs") == inputs
    replaceable = args.overwrite or not target.exists() or same
    if same and not report["errors"] and not args.overwrite:
        print(f"{target} is finished, and left as it is (--overwrite makes it anew)")
        counts.read, counts.kept = report["counts"]["read"], report["counts"]["kept"]
        counts.dropped = Counter(report["counts"]["dropped"])
        yield _built(target, counts, ids, report)
        return
    if ours and not replaceable:
        raise _occupied(target)
    with Progress(args.out, answers, args.resume) as progress:
        if not replaceable and progress.pending(names_of(ids, progress)["comments"]):
            raise _occupied(target)
        fetch(ids, progress, dump, args)
        rows, complete = _rows(ids, progress, args, counts)
        if not rows:
            reason, number = counts.dropped.most_common(1)[0]
            raise UserError(
                f"none of the {len(ids.pairs)} pairs is complete ({number} of them: {reason}), so that no {target} is "
                "written; give other dumps or ids, or run the same command again if there were errors"
            )
        content = format_csv([HEADER, *rows]).encode()
        if replaceable:
            with atomic_write(target, "wb") as stream:
                stream.write(content)
        elif target.read_bytes() != content:  # or a run was killed just after it had written this
            raise _occupied(target)
        statuses = {kind: progress.statuses(names) for kind, names in names_of(ids, progress).items()}
    report = {
        "rows": len(ids.pairs),
        "complete": complete,
        "rate": round(complete / len(ids.pairs), 6),
        "written": len(rows),
        **statuses,
        "errors": sum(found.get("error", 0) for found in statuses.values()),
        "source": ids.origin,
        "answers": answers,
        "broken_dump_lines": dump.broken if dump else 0,
        "libraries": _versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "inputs": inputs,
        "counts": counts.as_dict(),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    write_json(report_path, report)
    _print_report(report, target)
    yield _built(target, counts, ids, report)


# --- the list of ids -------------------------------------------------------------------------------------------------


def read_ids(args: argparse.Namespace, counts: Counts) -> IdList:
    """The pairs of the id list, at most ``--limit``; rows without two ids are counted as dropped.

    Raises:
        UserError: no such file, columns or rows, or the hub cannot be reached.
    """
    spec = args.id_list or args.source or HUB_TEST
    if args.id_list and args.source:
        raise UserError(f"--source {args.id_list} and SOURCE {args.source} are both given; leave one out")
    try:
        files = find_source(spec).files
    except UserError as error:
        if Path(spec).exists() or spec != HUB_TEST:
            raise
        raise UserError(
            f"the list of ids {HUB_TEST} cannot be fetched from the hub; connect to the network, or give a file with "
            "the columns chosen_comment_id and rejected_comment_id as --source FILE"
        ) from error
    columns = [f"{side}_comment_id" for side in SIDES]
    pairs: list[Pair] = []
    for where, _, record in as_rows(read_table(files), "ids"):
        if not isinstance(record, Reject) and not counts.read and not all(column in record for column in columns):
            raise UserError(
                f"{where} has no columns {' and '.join(columns)} (it has {', '.join(map(str, record))}); "
                "give a list of ids as --source FILE"
            )
        counts.read += 1
        found = None if isinstance(record, Reject) else [_as_id(record.get(column)) for column in columns]
        if found is None or None in found:
            counts.drop(where, record if isinstance(record, Reject) else NO_IDS)
            continue
        pairs.append(Pair(where, *map(str, found)))
        if len(pairs) == args.limit:
            break
    if not pairs:
        raise UserError(f"{spec} has no row with two ids of comments; give another list as --source FILE")
    if spec == HUB_TEST and not args.limit and len(pairs) != PUBLISHED:
        print(f"{HUB_TEST} has {len(pairs)} pairs; {PUBLISHED} were published")
    origin: dict[str, Any] = {"source": spec, "sha256": [sha256_file(file) for file in files]}
    parts = files[0].parts
    if "snapshots" in parts[:-1]:  # a folder of the hub's cache, named after the revision
        origin["revision"] = parts[parts.index("snapshots") + 1]
    return IdList(pairs, origin, files)


def _as_id(value: Any) -> str | None:
    """A comment's id without its prefix, or nothing if the value is none."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        return None
    name = value.strip().removeprefix("t1_").lower()
    return name if re.fullmatch(r"[0-9a-z]{1,13}", name) else None


# --- the texts -------------------------------------------------------------------------------------------------------


def names_of(ids: IdList, progress: Progress) -> dict[str, list[str]]:
    """The names in the progress of all comments, and of the posts that the known ones answer, each once, in order."""
    comments = dict.fromkeys(name for pair in ids.pairs for name in (pair.chosen, pair.rejected))
    known = (progress.known[name].data for name in comments if name in progress.known)
    posts = dict.fromkeys(f"{POST}_{data['post']}" for data in known if data and data.get("post"))
    return {"comments": list(comments), "posts": list(posts)}


def fetch(ids: IdList, progress: Progress, dump: Dump | None, args: argparse.Namespace) -> None:
    """Look up the comments that are not known yet, then the posts.

    Raises:
        UserError: as `run`.
    """
    from tqdm import tqdm

    others = sum(
        not name.startswith(f"{POST}_") for name in progress.known.keys() - names_of(ids, progress)["comments"]
    )
    if others:
        print(f"{progress.path} has {others} comments of another list too; they are kept, and not used")
    fetcher: Dump | Reddit | None = dump
    failed = 0
    for kind, what, prefix in ((COMMENT, "comments", ""), (POST, "posts", f"{POST}_")):
        names = names_of(ids, progress)[what]
        if not (pending := [name.removeprefix(prefix) for name in progress.pending(names)]):
            continue
        fetcher = fetcher or Reddit(args.user_agent, args.max_workers)
        with tqdm(total=len(names), initial=len(names) - len(pending), desc=what, unit=" ids", disable=None) as bar:
            for answers in fetcher.look_up(kind, pending):
                progress.add({prefix + name: judge(kind, answer) for name, answer in answers.items()})
                bar.update(len(answers))
                failures = [answer for answer in answers.values() if isinstance(answer, Failure)]
                failed = failed + 1 if failures and len(failures) == len(answers) else 0
                if failed == MAX_FAILED_BATCHES:
                    left = len(progress.pending(names))
                    raise UserError(
                        f"Reddit keeps failing ({failures[0].reason}); {len(names) - left} of {len(names)} {what} are "
                        "known and kept: run the same command again later"
                    )


# --- the table -------------------------------------------------------------------------------------------------------


def _rows(ids: IdList, progress: Progress, args: argparse.Namespace, counts: Counts) -> tuple[list[list[Any]], int]:
    """The cells of the rows to write, and how many pairs are complete."""
    clean = clean_text if args.clean == "basic" else str
    rows: list[list[Any]] = []
    complete = 0
    for pair in ids.pairs:
        entries = [progress.known[name] for name in pair[1:]]
        comments: list[dict[str, Any]] = [entry.data or {} for entry in entries]
        lost = [
            f"{side} story {entry.status}" for side, entry in zip(SIDES, entries, strict=True) if entry.status != "ok"
        ]
        complete += not lost
        if lost and not args.keep_incomplete:
            counts.drop(pair.where, Reject(lost[0]))
            continue
        counts.kept += 1
        posts = (progress.known.get(f"{POST}_{comment.get('post')}") for comment in comments)
        title = next((post.data["title"] for post in posts if post and post.status == "ok" and post.data), None)
        cells = [title and clean(title)]
        for column, field in COLUMNS.items():
            for name, comment in zip(pair[1:], comments, strict=True):
                value = comment.get(field) if field else name
                cells.append(clean(value) if column == "story" and value is not None else value)
        rows.append(cells)
    for place, column in enumerate(HEADER):  # pandas has no integers in a column with a missing one
        if column.endswith("_score") and any(cells[place] is None for cells in rows):
            for cells in rows:
                cells[place] = None if cells[place] is None else float(cells[place])
    return rows, complete


def clean_text(text: str) -> str:
    """``--clean basic``: plain line ends, HTML entities as characters, nothing invisible around the text."""
    text = html.unescape(text.replace("\r\n", "\n").replace("\r", "\n"))
    return re.sub(r"\A[\s\u200b]+|[\s\u200b]+\Z", "", text)


# --- the report ----------------------------------------------------------------------------------------------------


def _occupied(target: Path) -> UserError:
    return UserError(
        f"{target} is there already, and was not made from these ids with these options; add --overwrite to replace "
        "it, or choose another --out"
    )


def _versions() -> dict[str, str]:
    found = {"orlhf-ext": __version__}
    for name in ("praw", "prawcore", "zstandard", "huggingface_hub"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _print_report(report: dict[str, Any], target: Path) -> None:
    for what in ("comments", "posts"):
        print(f"{what}: " + (", ".join(f"{number} {status}" for status, number in report[what].items()) or "none"))
    print(f"{report['complete']} of {report['rows']} pairs are complete ({report['rate']:.1%})")
    if report["errors"]:
        print(f"{report['errors']} ids ended with an error; run the same command again to look them up once more")
    if report["broken_dump_lines"]:
        print(f"{report['broken_dump_lines']} lines of the dump name an id of the list and are not JSON")
    print(f"report: {target.with_name(REPORT)}", flush=True)


def _built(target: Path, counts: Counts, ids: IdList, report: dict[str, Any]) -> Built:
    details = {name: report[name] for name in ("rows", "complete", "rate", "comments", "posts", "source", "answers")}
    return Built(target, counts, ids.files, LICENCE, details)
