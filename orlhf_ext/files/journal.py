"""Progress that outlives a kill: an append-only file of finished pieces beside the output that they will make.

``.NAME.part`` has one JSON line for the run's fingerprint and one for each finished piece. The same run, started
again, finds its pieces; another run (another model, other data, other arguments) discards them and says so.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from ..cli.errors import UserError
from .records import Record, load_json, write_json, write_jsonl
from .sidecars import sidecar_path


class Journal:
    """The finished pieces of one output file, under keys; the file is locked while it is open.

    Args:
        out: the output file.
        fingerprint: everything that the pieces depend on, as JSON values.

    Raises:
        UserError: another process is writing the same output, or the file is damaged (see `scan`).
    """

    def __init__(self, out: str | os.PathLike, fingerprint: Mapping[str, Any]) -> None:
        self.path = journal_path(out)
        self.fingerprint = dict(fingerprint)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._stream: IO[bytes] = open(self.path, "a+b")  # noqa: SIM115 (closed by close)
        try:
            lock(self._stream, out)
            found, self.done, end = _read(self.path)
        except UserError:
            self._stream.close()
            raise
        if found != self.fingerprint:
            if self.done:
                other = [key for key in fingerprint if (found or {}).get(key) != fingerprint[key]]
                print(f"{out}: unfinished work with another {', '.join(other)} is discarded", flush=True)
            self.done, end = {}, 0
        self._stream.truncate(end)  # a torn last line goes
        if not end:
            append(self._stream, [{"fingerprint": self.fingerprint}])

    def add(self, key: str, value: Any) -> None:
        """Keep one finished piece; when this returns, a killed process does not lose it."""
        append(self._stream, [{"key": key, "value": value}])
        self.done[key] = value

    def finish(self, out: str | os.PathLike, records: Iterable[Record], meta: Mapping[str, Any]) -> None:
        """Write the output and its sidecar, each under a temporary name first, and remove the journal."""
        write_jsonl(out, records)
        write_json(sidecar_path(out), dict(meta))
        self.remove()

    def remove(self) -> None:
        """Remove the file: its pieces are elsewhere."""
        self.close()
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Unlock the file, and leave it."""
        with contextlib.suppress(OSError):  # on a full disk, closing tries once more to write what is left
            self._stream.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        self.close()
        if isinstance(error, KeyboardInterrupt) and self.done:
            error.add_note(
                f"{len(self.done)} finished pieces are kept in {self.path}: run the same command again to go on"
            )


def lock(stream: IO[bytes], out: str | os.PathLike) -> None:
    """Lock a file for as long as it is open.

    Args:
        stream: the file.
        out: the output that it belongs to, to name in the error.

    Raises:
        UserError: another process has it.
    """
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(f"{out} is being written by another process; wait for it, or end it") from error


def append(stream: IO[bytes], lines: Iterable[Record]) -> None:
    """Append JSON lines; when this returns, a killed process does not lose them. Errors of the disk name the file."""
    try:
        stream.write(b"".join(json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in lines))
        stream.flush()
    except OSError as error:
        error.filename = str(stream.name)
        raise


def journal_path(out: str | os.PathLike) -> Path:
    """``.x.jsonl.part`` for ``x.jsonl``."""
    out = Path(out)
    return out.with_name(f".{out.name}.part")


def scan(stream: IO[bytes], path: Path, take: Callable[[Any], None], head: bool = False) -> int:
    """Hand each entry of an append-only file of JSON lines to ``take``.

    A last line that is torn is what a killed process leaves, and is passed over; any other line must be whole.

    Args:
        stream: the file, at its start.
        path: its name, for the message.
        take: raises KeyError, TypeError or ValueError for an entry that is not one.
        head: the first line says whose the file is, so that the others are worth nothing without it.

    Returns:
        The length in bytes of what is whole.

    Raises:
        UserError: a line is damaged; it is named.
    """
    end = torn = 0
    for number, line in enumerate(stream, 1):
        if torn:
            break
        try:
            if not line.endswith(b"\n"):
                raise ValueError
            entry = load_json(line)
        except ValueError:
            torn = number
            continue
        try:
            take(entry)
        except (KeyError, TypeError, ValueError):
            torn = number
            break
        end += len(line)
    else:
        return end
    one = "" if head and torn == 1 else "remove that line to have its work done again, or "
    raise UserError(f"{path} line {torn} is damaged, which no killed run does: {one}remove the file to begin anew")


def _read(path: Path) -> tuple[dict[str, Any] | None, dict[str, Any], int]:
    """Fingerprint, pieces, and the length in bytes of what is whole."""
    heads: list[dict[str, Any]] = []
    done: dict[str, Any] = {}

    def take(entry: Any) -> None:
        if not heads:
            heads.append(dict(entry["fingerprint"]))
        elif isinstance(entry["key"], str):
            done[entry["key"]] = entry["value"]
        else:
            raise TypeError

    if not path.exists():
        return None, done, 0
    with open(path, "rb") as stream:
        end = scan(stream, path, take, head=True)
    return (heads or [None])[0], done, end  # type: ignore[list-item]
