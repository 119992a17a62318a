"""Reading and writing data files: streaming, with the place of every record, and never half-written."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from .errors import UserError

Record = dict[str, Any]


class Line(NamedTuple):
    """One record and where it stands: ``train.jsonl line 3`` or ``train.json record 3``."""

    where: str
    record: Record


class BadLine(NamedTuple):
    """A line that is no JSON object, and why."""

    where: str
    reason: str


def read_lines(path: str | os.PathLike) -> Iterator[Line | BadLine]:
    """Stream the records of a ``.jsonl``, ``.json`` (an array, or JSON Lines), ``.parquet`` file, gzipped or not.

    Broken lines come out as `BadLine`, so that a caller can count them.

    Raises:
        UserError: the file is missing, unreadable, truncated, not UTF-8, or of an unknown kind.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist; give a .jsonl, .jsonl.gz, .json or .parquet file")
    if path.suffix == ".parquet":
        yield from _read_parquet(path)
        return
    if not {".jsonl", ".json", ".ndjson"} & set(path.suffixes):
        raise UserError(f"{path} is not a .jsonl, .jsonl.gz, .json or .parquet file; rename or convert it")
    try:
        with _open_text(path) as stream:
            if _first_character(stream) == "[":
                yield from _read_array(path)
                return
        with _open_text(path) as stream:
            for number, text in enumerate(stream, 1):
                if not text.strip():
                    continue
                where = f"{path} line {number}"
                try:
                    record = json.loads(text)
                except json.JSONDecodeError as error:
                    yield BadLine(where, f"not JSON ({error.msg})")
                    continue
                yield Line(where, record) if isinstance(record, dict) else BadLine(where, "not a JSON object")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); re-encode it") from error
    except (EOFError, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is a truncated or broken gzip file; fetch it again") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from error


def read_records(path: str | os.PathLike) -> Iterator[Line]:
    """`read_lines`, with the first broken line as an error.

    Raises:
        UserError: as `read_lines`, or a line is not a JSON object; the line is named.
    """
    for line in read_lines(path):
        if isinstance(line, BadLine):
            raise UserError(f"{line.where} is {line.reason}; mend or remove that line")
        yield line


def _open_text(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return open(path, encoding="utf-8")


def _first_character(stream: IO[str]) -> str:
    while character := stream.read(1):
        if not character.isspace():
            return character
    return ""


def _read_array(path: Path) -> Iterator[Line | BadLine]:
    import ijson  # streams arrays larger than memory

    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as stream:
        try:
            for number, record in enumerate(ijson.items(stream, "item", use_float=True), 1):
                where = f"{path} record {number}"
                yield Line(where, record) if isinstance(record, dict) else BadLine(where, "not a JSON object")
        except ijson.JSONError as error:
            raise UserError(f"{path} is not a whole JSON array ({error}); mend it or write JSON Lines") from error


def _read_parquet(path: Path) -> Iterator[Line]:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        number = 0
        for batch in parquet.ParquetFile(path).iter_batches(1024):
            for record in batch.to_pylist():
                number += 1
                yield Line(f"{path} record {number}", record)
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{path} is not a readable Parquet file ({error})") from error


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike, mode: str = "w") -> Iterator[IO]:
    """Open a temporary file beside ``path`` that takes its name only when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, mode, encoding=None if "b" in mode else "utf-8") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def write_jsonl(path: str | os.PathLike, records: Iterable[Record]) -> int:
    """Write records as JSON Lines (under a temporary name, then renamed); returns how many."""
    count = 0
    with atomic_write(path) as stream:
        for record in records:
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")
            count += 1
    return count


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write one JSON value, indented (under a temporary name, then renamed)."""
    with atomic_write(path) as stream:
        json.dump(value, stream, ensure_ascii=False, indent=2)
        stream.write("\n")


def sha256_file(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes, as hexadecimal text."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
