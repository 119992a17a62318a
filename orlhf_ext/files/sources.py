"""The records of a data file that a launcher is given."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..cli.errors import UserError
from . import columns
from .records import Line, read_records

_MAX_BYTES = 2**30  # of a file that is looked at


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
    Raises UserError if the file is missing or gzipped, or (while reading) broken; the file and line are named."""
    path = source.strip().partition("@")[0]
    if path.endswith(".gz"):
        raise UserError(
            f"{flag} {path} is packed, and OpenRLHF reads .jsonl, .json and .parquet; unpack it with gunzip"
        )
    if Path(path).suffix.lower() not in (".json", ".jsonl", ".parquet"):
        if looks_local(path) and not os.path.exists(path):
            raise UserError(f"{flag} {path} does not exist")
        if os.path.isdir(path) and not any(next(Path(path).glob(pattern), None) for pattern in _DATA):
            raise UserError(f"{flag} {path} is a folder without a data set; name a .jsonl, .json or .parquet file")
        return None
    if os.path.exists(path) and os.path.getsize(path) > _MAX_BYTES:
        return None
    return columns.read(path) if columns.is_json(path) else read_records(path)


def nested(args: SimpleNamespace, flag: str) -> Any:
    """The value of ``data.dataset`` and the like in a launcher's nested arguments; None where there is none."""
    value: Any = args
    for part in flag.split("."):
        value = getattr(value, part, None)
    return value


def sources_of(args: SimpleNamespace, flag: str) -> list[str]:
    """The files and hub names that a flag lists."""
    return str(value).split(",") if (value := nested(args, flag)) else []


def run_records(args: SimpleNamespace) -> Iterator[tuple[str, Line]]:
    """Every record of a run's local files, for training and evaluation, with the flag that names its file.
    Raises UserError as `read_source` does."""
    for flag in ("data.dataset", "data.prompt_dataset", "eval.dataset"):
        for source in sources_of(args, flag):
            for line in read_source(f"--{flag}", source) or ():
                yield f"--{flag}", line


def count_rows(flag: str, source: str, look: Callable[[Line], None] = lambda line: None) -> int | None:
    """How many records a local data file has, each of which ``look`` has seen; None as in `read_source`.

    Raises:
        UserError: as `read_source` and ``look``; there is no record.
    """
    records = read_source(flag, source)
    if records is None:
        return None
    count = 0
    for count, line in enumerate(records, 1):  # noqa: B007
        look(line)
    if not count:
        raise UserError(f"{flag} {source.strip()} has no record; build the data again")
    return count


def looks_local(path: str) -> bool:
    """Whether it is meant as a path, and not as a name of the hub."""
    return os.path.isabs(path) or path.startswith((".", "~")) or path.count("/") > 1 or os.path.exists(path)
