"""A command's summary: a JSON file, with its table in Markdown and as CSV beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..cli.errors import UserError
from ..files.records import atomic_write, load_json, write_json


def write_summary(path: str | Path, summary: Mapping[str, Any], markdown: str, csv: str) -> None:
    """Write ``O.json``, and its table as ``O.md`` and ``O.csv``."""
    write_json(path, summary)
    for suffix, text in ((".md", markdown), (".csv", csv)):
        with atomic_write(Path(path).with_suffix(suffix)) as stream:
            stream.write(text)


def read_run(path: str | None) -> dict[str, Any]:
    """The keys of a JSON object in a file; none without a file.
    Raises UserError if it cannot be read, or is not a JSON object."""
    if path is None:
        return {}
    try:
        value = load_json(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--run {path} cannot be read as JSON ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"--run {path} is not a JSON object")
    return value
