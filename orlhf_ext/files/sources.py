"""The records of a data file that a launcher is given."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..cli.errors import UserError, suggest
from . import columns
from .records import Line, read_records

_LARGE = 2**30


#: files of a folder with a data set: those of `datasets`, and files of records
_DATA = (
    "state.json",
    "dataset_dict.json",
    *(
        f"{deep}*.{end}"
        for deep in ("", "*/", "*/*/", "*/*/*/")
        for end in ("arrow", "csv", "json", "jsonl", "parquet", "tsv", "txt", "jsonl.gz", "json.gz", "csv.gz")
    ),
)


def read_source(flag: str, source: str) -> Iterator[Line] | None:
    """The records of a local data file; None for hub names, folders and large files.

    Raises:
        UserError: the file is missing, or (while reading) broken; the file and line are named.
    """
    path = source.strip().partition("@")[0]
    if Path(path).suffix.lower() not in (".json", ".jsonl", ".parquet"):
        if looks_local(path) and not os.path.exists(path):
            raise UserError(f"{flag} {path} does not exist")
        if os.path.isdir(path) and not any(next(Path(path).glob(pattern), None) for pattern in _DATA):
            raise UserError(f"{flag} {path} is a folder without a data set; name a .jsonl, .json or .parquet file")
        return None
    if os.path.exists(path) and os.path.getsize(path) > _LARGE:
        return None
    return columns.read(path) if columns.is_json(path) else read_records(path)


def count_rows(flag: str, source: str, keys: Mapping[str, str] | None = None) -> int | None:
    """How many records a local data file has, after reading each one; None as in `read_source`.

    Args:
        flag: that names the file.
        source: the file.
        keys: columns that every record must have, as text or messages, with the flags that name them.

    Raises:
        UserError: as `read_source`; there is no record, or one without such a column.
    """
    records = read_source(flag, source)
    if records is None:
        return None
    count = 0
    for line in records:
        count += 1
        for key, named in (keys or {}).items():
            if not isinstance(value := line.record.get(key), str | list):
                what = f"no {key!r}" if value is None else f"a {key!r} that is neither text nor messages"
                known = suggest(key, list(line.record)) if value is None else ""
                raise UserError(f"{line.where} has {what}, which {named} names{known}")
    if not count:
        raise _no_record(flag, source)
    return count


def _no_record(flag: str, source: str) -> UserError:
    return UserError(f"{flag} {source.strip()} has no record; build the data again")


def looks_local(path: str) -> bool:
    """Whether it is meant as a path, and not as a name of the hub."""
    return os.path.isabs(path) or path.startswith((".", "~")) or path.count("/") > 1 or os.path.exists(path)
