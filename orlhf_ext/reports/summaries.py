"""A command's summary: a JSON file, and its table beside it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..cli.errors import UserError
from ..files.records import load_json, write_json
from .tables import write_tables


def write_summary(args: argparse.Namespace, command: str, metrics: Mapping[str, Any], table: str, numbers: str) -> None:
    """Write ``--out`` with the keys of ``--run``, and the table beside it, in Markdown and as CSV."""
    write_json(args.out, {**read_run(args.run), "command": command, "metrics": metrics})
    write_tables(args.out, table, numbers)


def read_run(path: str | None) -> dict[str, Any]:
    """The keys of a JSON object in a file; none without a file.

    Raises:
        UserError: it is no JSON object.
    """
    if path is None:
        return {}
    try:
        value = load_json(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--run {path} cannot be read as JSON ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"--run {path} is not a JSON object")
    return value
