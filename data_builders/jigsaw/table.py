"""The fields of Jigsaw's CSV files: comments, missing ones, numbers; and which file is which."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from pathlib import Path

from orlhf_ext.cli.errors import UserError
from orlhf_ext.files.built import Reject
from orlhf_ext.files.csv_files import open_table

#: what marks a missing value for pandas, with which the authors read these files
MISSING = frozenset(
    {"", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA"}
    | {"NULL", "NaN", "None", "n/a", "nan", "null"}
)
LONGEST = max(map(len, MISSING))
NO_TEXT = Reject("no comment", bad=True)
NOT_UTF8 = Reject("comment that is not UTF-8 text", bad=True)


def text_fault(text: str, keep_na: bool) -> Reject | None:
    """Why a comment cannot be used, if it cannot. ``keep_na``: texts such as ``NA`` and ``null`` are comments too."""
    if len(text) <= LONGEST and text in MISSING and not (keep_na and text):
        return NO_TEXT
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return NOT_UTF8
    return None


def number_of(text: str, least: float, most: float) -> float | None:
    """The number in a field, if there is one within these bounds."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if least <= value <= most else None


def find_csv(folder: Path, columns: Collection[str]) -> Path | None:
    """The one CSV file in a folder and the folders in it that has these columns, whatever its name.

    Raises:
        UserError: there are several.
    """
    found = []
    for path in sorted(folder.rglob("*.csv")):
        with contextlib.suppress(UserError), open_table(path) as table:
            if set(columns) <= set(table.header):
                found.append(path)
    if len(found) > 1:
        raise UserError(
            f"{folder} has several CSV files with {' and '.join(columns)} ({found[0].name}, {found[1].name}); "
            "name one with -f"
        )
    return found[0] if found else None
