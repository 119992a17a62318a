"""Reading and writing data files: streaming, with the place of every record, and never half-written."""

from __future__ import annotations

import base64
import codecs
import contextlib
import errno
import fcntl
import glob
import gzip
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from datetime import date, time, timedelta
from decimal import Decimal
from itertools import accumulate
from pathlib import Path
from typing import IO, Any, NamedTuple

from ..cli.errors import UserError, as_os_error

Record = dict[str, Any]


SUFFIXES = (".jsonl", ".json", ".ndjson")
_OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
#: brackets around a JSON value, at most: parsers of deeper ones take memory by the square, or the stack
MAX_DEPTH = 100
_TOO_DEEP = f"nested deeper than {MAX_DEPTH} levels"
#: a string, or one that lacks its end
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"|(?P<cut>"(?:[^"\\]|\\.)*+\\?\Z)', re.DOTALL)
#: an escape in a JSON string; ``half`` if it is half of a surrogate pair alone
_ESCAPE = re.compile(rb"\\(?:u[dD][89abAB]..\\u[dD][c-fC-F]..|(?P<half>u[dD][89a-fA-F])|.)", re.DOTALL)
_LONGEST_ESCAPE = 12  # bytes, of a pair
_NO_BRACKET = bytes(set(range(256)) - set(b"[]{}"))
_STEP = dict(zip(b"[{]}", (1, 1, -1, -1), strict=True))

#: called with every file before it is written, and (with True) before it gets its name; see `orlhf_ext.build_data`
before_writing: ContextVar[Callable[[Path, bool], None]] = ContextVar("before_writing", default=lambda *_: None)


class Line(NamedTuple):
    """One record and its place: ``train.jsonl line 3`` or ``train.json record 3``."""

    where: str
    record: Record

    @property
    def number(self) -> int:
        """The line's (or record's) number in its file, from 1."""
        return int(self.where.rsplit(" ", 1)[1])


class BadLine(NamedTuple):
    """A line that is not a JSON object, and why."""

    where: str
    reason: str


def read_lines(path: str | os.PathLike) -> Iterator[Line | BadLine]:
    """Stream the records of a ``.jsonl``, ``.json`` (an array, or JSON Lines), ``.parquet`` file, gzipped or not.

    Broken lines (not a JSON object, not UTF-8) come out as `BadLine`, so that a caller can count them.

    Raises:
        UserError: the file is missing, unreadable, truncated, UTF-16, or of an unknown kind.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder; give a .jsonl, .jsonl.gz, .json or .parquet file")
    if not path.is_file():
        raise UserError(f"{path} does not exist; give a .jsonl, .jsonl.gz, .json or .parquet file")
    if path.suffix == ".parquet":
        yield from _read_parquet(path)
        return
    if not path.name.removesuffix(".gz").endswith(SUFFIXES):
        raise UserError(f"{path} is not a .jsonl, .jsonl.gz, .json or .parquet file; rename or convert it")
    try:
        with _open_bytes(path) as stream:
            pieces = (piece.removeprefix(codecs.BOM_UTF8).lstrip() for piece in iter(lambda: stream.read(64), b""))
            start = next(filter(None, pieces), b"")
        if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise UserError(f"{path} is UTF-16 text; re-encode it as UTF-8")
        yield from _read_array(path) if start.startswith(b"[") else _read_json_lines(path)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path} is a truncated or broken gzip file; fetch it again") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from error


def read_records(path: str | os.PathLike) -> Iterator[Line]:
    """`read_lines`, with the first broken line as an error.
    Raises UserError as `read_lines` does, or if a line is not a JSON object; the line is named."""
    for line in read_lines(path):
        if isinstance(line, BadLine):
            raise UserError(f"{line.where} is {line.reason}; fix or remove that line")
        yield line


def load_json(text: str | bytes) -> Any:
    """`json.loads` for a text that may be hostile: its depth is looked at before it is parsed.
    Raises ValueError if it is not JSON, not UTF-8, nested deeper than `MAX_DEPTH`, or has a number that is too long."""
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH and _Depth().passes_bound(data):
        raise ValueError(_TOO_DEEP)
    return json.loads(text if isinstance(text, str) else text.decode())


class _Depth:
    """The brackets that are open in a JSON text, which comes in pieces."""

    def __init__(self) -> None:
        self.open = 0
        self._carry = b""  # what was cut in a string, in short: its beginning, and maybe an escape's

    def passes_bound(self, piece: bytes) -> bool:
        """Whether the next piece of the text opens more than `MAX_DEPTH` brackets."""
        rest, quote, cut = _STRING.sub(rb"\g<cut>", self._carry + piece).partition(b'"')
        self._carry = quote + b"\\" * ((len(cut) - len(cut.rstrip(b"\\"))) % 2)
        steps = map(_STEP.__getitem__, rest.translate(None, _NO_BRACKET))
        depths = list(accumulate(steps, initial=self.open))
        self.open = depths[-1]
        return max(depths) > MAX_DEPTH


class _Bounded:
    """A stream of JSON, as `ijson` reads it, that ends with an error where it is nested too deep.

    Or where it has half of a surrogate pair, for which `ijson` puts a question mark.
    """

    def __init__(self, stream: IO[bytes], path: Path) -> None:
        self._stream, self._path, self._depth = stream, path, _Depth()

    def read(self, size: int = -1) -> bytes:
        """The next bytes. Raises UserError if they open too many brackets, or have half of a surrogate pair."""
        piece = self._stream.read(size)
        while b"\\" in piece[-_LONGEST_ESCAPE:] and (more := self._stream.read(_LONGEST_ESCAPE)):
            piece += more  # no escape is cut
        if b"\\ud" in piece.lower() and any(found["half"] for found in _ESCAPE.finditer(piece)):
            raise UserError(
                f"{self._path} has half of a surrogate pair before byte {self._stream.tell()}, so it is not UTF-8; "
                "fix or remove that record"
            )
        if self._depth.passes_bound(piece):
            raise UserError(f"{self._path} is {_TOO_DEEP}, before byte {self._stream.tell()}; flatten or remove that")
        return piece


def _open_bytes(path: Path) -> IO[bytes]:
    """The file's bytes, unpacked. A byte order mark is still there."""
    return gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")  # type: ignore[return-value]


def _read_json_lines(path: Path) -> Iterator[Line | BadLine]:
    with _open_bytes(path) as stream:
        for number, line in enumerate(stream, 1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if not line.strip():
                continue
            where = f"{path} line {number}"
            try:
                text = line.decode()
                record = load_json(text)
                if "\\ud" in text.lower():  # an escaped half of a surrogate pair could not be written again
                    json.dumps(record, ensure_ascii=False).encode()
            except UnicodeError:
                yield BadLine(where, "not UTF-8 text")
            except json.JSONDecodeError as error:
                yield BadLine(where, f"not JSON ({error.msg})")
            except ValueError:
                yield BadLine(where, "not JSON that can be read (nested too deep, or a number too long)")
            else:
                yield Line(where, record) if isinstance(record, dict) else BadLine(where, "not a JSON object")


def _read_array(path: Path) -> Iterator[Line | BadLine]:
    import ijson  # streams arrays larger than memory

    with _open_bytes(path) as stream:
        if stream.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
            stream.seek(0)
        try:
            for number, record in enumerate(ijson.items(_Bounded(stream, path), "item", use_float=True), 1):
                where = f"{path} record {number}"
                yield Line(where, record) if isinstance(record, dict) else BadLine(where, "not a JSON object")
        except (ijson.JSONError, UnicodeDecodeError) as error:
            # only the message's first line: the next ones quote the data (and it may be the repr of bytes)
            reason = str(error).removeprefix("b'").replace("\\n", "\n").partition("\n")[0]
            raise UserError(f"{path} is not a whole JSON array ({reason}); fix it or write JSON Lines") from error


def _read_parquet(path: Path) -> Iterator[Line | BadLine]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise UserError(f"reading {path} needs pyarrow; pip install pyarrow, or give JSON Lines") from error

    try:
        number = 0
        for batch in parquet.ParquetFile(path).iter_batches(1024):
            for record in _rows_of(batch):
                number += 1
                where = f"{path} record {number}"
                yield BadLine(where, "not UTF-8 text") if record is None else Line(where, record)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a readable Parquet file ({error})") from error


def _rows_of(batch: Any) -> list[Record | None]:
    """The rows of a Parquet batch; None for one whose text cannot be decoded (the format does not check it)."""
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        return [None] if len(batch) == 1 else [row for at in range(len(batch)) for row in _rows_of(batch.slice(at, 1))]


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike, mode: str = "w") -> Iterator[IO]:
    """Open a temporary file beside ``path`` that takes its name only when the block ends without an error."""
    path = Path(path)
    if path.is_dir():  # which would be known only when all is written
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    before_writing.get()(path, False)
    with _temporary(path, tempfile.mkstemp) as (temporary, descriptor):
        with open(descriptor, mode, encoding=None if "b" in mode else "utf-8", closefd=False) as stream:
            yield stream
            stream.flush()
            os.fsync(descriptor)
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        before_writing.get()(path, True)
        temporary.replace(path)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors of the disk name the file or folder that was to be, not the temporary one or none; safetensors' too."""
    try:
        yield
    except Exception as error:
        system = as_os_error(error)
        if system is None:
            raise
        mark = os.path.join(path.parent, f".{path.name}.")
        if mark in str(system.filename) or (system.filename is None and system.errno in _OF_DISKS):
            system.filename = str(path)
        if system is error:
            raise
        raise system from error


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary folder beside ``path`` that takes its name only when the block ends without an error.

    An empty folder of that name is replaced.
    """
    path = Path(path)

    def make(**names: Any) -> tuple[int, str]:
        folder = tempfile.mkdtemp(**names)
        return os.open(folder, os.O_RDONLY), folder

    with _temporary(path, make) as (temporary, _):
        yield temporary
        _open_permissions(temporary)
        temporary.replace(path)


@contextlib.contextmanager
def _temporary(path: Path, make: Callable[..., tuple[int, str]]) -> Iterator[tuple[Path, int]]:
    """A file or folder ``.NAME.XXXXXXXX.tmp`` with its descriptor, removed unless the block renames it.

    It is locked while its process lives, so that the next one to write the same path knows what killed ones left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.name)}.????????.tmp"):
        with contextlib.suppress(OSError):
            descriptor = os.open(left, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(left)
            finally:
                os.close(descriptor)
    while True:
        with _naming(path):
            descriptor, name = make(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with contextlib.suppress(OSError):  # a file system without locks: nothing there counts as left behind
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.exists(name):
            break
        os.close(descriptor)  # another process took it for left behind before it was locked
    try:
        with _naming(path):
            yield Path(name), descriptor
    except BaseException:
        _remove(Path(name))
        raise
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    """Remove a file or a folder."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _open_permissions(folder: Path) -> None:
    """Undo the private modes of temporary folders and of safetensors' files, as far as the user's umask allows."""
    umask = os.umask(0)
    os.umask(umask)
    folder.chmod(0o777 & ~umask)
    for path in folder.iterdir():
        path.chmod(0o666 & ~umask)


def write_jsonl(path: str | os.PathLike, records: Iterable[Record]) -> int:
    """Write records as JSON Lines (under a temporary name, then renamed); returns how many."""
    count = 0
    with atomic_write(path) as stream:
        for record in records:
            stream.write(json.dumps(record, ensure_ascii=False, default=_as_text) + "\n")
            count += 1
    return count


def _as_text(value: Any) -> str:
    """A value of a Parquet file that JSON has no type for: bytes as base64, dates and decimals as they are written."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, date | time | timedelta | Decimal):
        return str(value)
    raise TypeError(f"a {type(value).__name__} is not written as JSON")


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write one JSON value, indented (under a temporary name, then renamed)."""
    with atomic_write(path) as stream:
        json.dump(value, stream, ensure_ascii=False, indent=2)
        stream.write("\n")


def read_object(path: str | os.PathLike, way_out: str) -> Record:
    """The JSON object that a file contains.
    Raises UserError, which ends with the way out, if the file cannot be read or contains something else."""
    try:
        found = load_json(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read as JSON ({reason}); {way_out}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is not a JSON object; {way_out}")
    return found


def object_or_empty(path: str | os.PathLike) -> Record:
    """The JSON object that a file contains; an empty one where there is none that can be read."""
    with contextlib.suppress(UserError):
        return read_object(path, "")
    return {}


def parse_object(value: Any) -> Record | str:
    """The JSON object that is text in a column, or, in a few words, what is wrong with it."""
    if not isinstance(value, str):
        return f"it is {'missing' if value is None else type(value).__name__}, not JSON text"
    try:
        fields = load_json(value)
    except ValueError:
        return "it is not JSON"
    return fields if isinstance(fields, dict) else "it is not a JSON object"


def is_number(value: Any) -> bool:
    """Whether a value of a record is a finite number, which true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def is_share(value: Any) -> bool:
    """Whether a value of a record is a number from 0 to 1."""
    return is_number(value) and 0 <= value <= 1


def source_entry(path: str | os.PathLike) -> dict[str, str]:
    """A file as the sidecars of what follows from it name it."""
    return {"path": str(path), "sha256": sha256_file(path)}


def sha256_file(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes, as hexadecimal text."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
