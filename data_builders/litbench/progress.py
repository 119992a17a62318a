"""What is known of each comment and post so far, in a file with which a killed run resumes."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, NamedTuple

from orlhf_ext.cli.errors import UserError
from orlhf_ext.files.journal import append, lock, scan
from orlhf_ext.files.records import object_or_empty, write_json
from orlhf_ext.files.sidecars import sidecar_path

from .tombstones import status_of

NAME = "rehydrate_progress.jsonl"
#: Reddit's prefixes of the names of comments and of posts
COMMENT, POST = "t1", "t3"
STATUSES = ("ok", "missing", "deleted", "removed", "error")
#: the field that each of them is looked up for
TEXT = {COMMENT: "body", POST: "title"}


class Failure(NamedTuple):
    """Why there is no answer for an id, in a few words."""

    reason: str


#: a fetcher's answer for an id: the fields of the comment or post, nothing if there is none, or why it is unknown
Answer = dict[str, Any] | Failure | None


class Entry(NamedTuple):
    """What is known of an id; ``status`` is one of `STATUSES`."""

    status: str
    data: dict[str, Any] | None


def judge(kind: str, answer: Answer) -> Entry:
    """What an answer for a comment or post means. The text of a deleted or removed one is not kept."""
    if answer is None:
        return Entry("missing", None)
    if isinstance(answer, Failure):
        return Entry("error", {"reason": answer.reason})
    text = answer.get(TEXT[kind])
    if not isinstance(text, str):
        return Entry("error", {"reason": f"no {TEXT[kind]}"})
    status = status_of(text)
    kept = _writable(text) if status == "ok" else None
    if kind == POST:
        return Entry(status, {"title": kept})
    author, post = answer.get("author"), answer.get("link_id")
    score = _number(answer.get("score"))
    return Entry(
        status,
        {
            "story": kept,
            "score": None if score is None else int(score),
            "author": _writable(author) if isinstance(author, str) and status_of(author) == "ok" else None,
            "timestamp": _number(answer.get("created_utc")),
            "post": _writable(post.removeprefix("t3_")) if isinstance(post, str) and post else None,
        },
    )


def _writable(text: str) -> str:
    """The text with halves of surrogate pairs joined, or replaced if there is but one."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _number(value: Any) -> float | None:
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        number = float(value)
        return number if abs(number) < 1e15 else None
    return None


class Progress:
    """The journal of one folder: a line ``{"id", "status", "data", "fetched_at"}`` for each id; its last line counts.

    Comments have their own ids, posts ``t3_`` and theirs. A sidecar says where the answers come from,
    so that answers of two sources are never mixed. The file is locked while it is open.

    Args:
        folder: of the file.
        origin: what the answers come from, as a JSON value.
        resume: go on with what is there, rather than start anew.

    Raises:
        UserError: another process has it open, it has answers from somewhere else, or a line is damaged.
    """

    def __init__(self, folder: Path, origin: Any, resume: bool = True) -> None:
        self.path = folder / NAME
        self.known: dict[str, Entry] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self._stream: IO[bytes] = open(self.path, "a+b")  # noqa: SIM115 (closed by close)
        try:
            lock(self._stream, self.path)
            if not resume:
                self._stream.truncate(0)
            self._stream.seek(0)
            end = scan(self._stream, self.path, self._take)
            if self.known and object_or_empty(sidecar_path(self.path)).get("origin") != origin:
                raise UserError(
                    f"{self.path} has answers from another source; choose another --out, or add --no-resume to "
                    "discard them"
                )
            self._stream.truncate(end)  # a torn last line goes
            for path in folder.glob(".rehydrate*.tmp"):  # what a killed run was writing
                path.unlink()
            if not end:
                write_json(sidecar_path(self.path), {"origin": origin})
        except BaseException:
            self.close()
            raise

    def _take(self, row: Any) -> None:
        """One line of the file; raises as `scan` asks for."""
        entry = Entry(row["status"], row["data"])
        if not isinstance(row["id"], str) or entry.status not in STATUSES or not isinstance(entry.data, dict | None):
            raise TypeError
        for field in ("story", "title"):  # a line may be older than a wording that is known of removed ones
            text = (entry.data or {}).get(field)
            if isinstance(text, str) and (status := status_of(text)) != "ok":
                entry = Entry(status, {**(entry.data or {}), field: None})
        self.known[row["id"]] = entry

    def add(self, entries: Mapping[str, Entry]) -> None:
        """Keep some entries; when this returns, a killed process does not lose them."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        append(
            self._stream,
            [
                {"id": name, "status": entry.status, "data": entry.data, "fetched_at": now}
                for name, entry in entries.items()
            ],
        )
        self.known.update(entries)

    def pending(self, names: Iterable[str]) -> list[str]:
        """Those of some names of which nothing is known, or only an error."""
        return [name for name in names if name not in self.known or self.known[name].status == "error"]

    def statuses(self, names: Iterable[str]) -> dict[str, int]:
        """How many of some names have each status, the most frequent first."""
        return dict(Counter(self.known[name].status for name in names).most_common())

    def close(self) -> None:
        """Unlock the file, and leave it."""
        with contextlib.suppress(OSError):  # as in `Journal.close`
            self._stream.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        self.close()
        if isinstance(error, KeyboardInterrupt) and self.known:
            error.add_note(f"{len(self.known)} answers are kept in {self.path}: run the same command again to go on")
