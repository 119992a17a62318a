"""Jigsaw's CSV files as a stream: quotes over many lines, the right line numbers, memory that does not grow."""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

from orlhf_ext.errors import UserError

from ..common import Counts, Reject

#: what marks a missing value for pandas, with which the upstream project reads these files
MISSING = frozenset(
    {"", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA"}
    | {"NULL", "NaN", "None", "n/a", "nan", "null"}
)
LONGEST = max(map(len, MISSING))
NO_TEXT = Reject("no comment", bad=True)
NOT_UTF8 = Reject("comment that is not UTF-8 text", bad=True)
MORE_FIELDS = Reject("more fields than the header has columns", bad=True)

#: a line that is put after the last one: it is swallowed if a quote is still open there
_END = "\x04 end of the file"
_KINDS = {
    codecs.BOM_UTF16_LE: "UTF-16 text; re-encode it as UTF-8",
    codecs.BOM_UTF16_BE: "UTF-16 text; re-encode it as UTF-8",
    b"PK\x03\x04": "a zip, not a CSV file; unpack it, or give its folder as --raw_dir",
    b"\x1f\x8b": "a gzip file, not a CSV file; unpack it",
}


@contextlib.contextmanager
def open_table(path: Path) -> Iterator[Table]:
    """Open a CSV file; a byte order mark is skipped.

    Raises:
        UserError: no such file, an empty one, or no CSV at all.
    """
    with contextlib.ExitStack() as stack:
        try:
            raw = stack.enter_context(open(path, "rb"))
        except OSError as error:
            reason = "does not exist" if isinstance(error, FileNotFoundError) else f"is unreadable ({error.strerror})"
            raise UserError(f"{path} {reason}; give a CSV file of a Jigsaw competition") from error
        start = raw.peek(4)
        for magic, what in _KINDS.items():
            if start.startswith(magic):
                raise UserError(f"{path} is {what}")
        # only \n ends a line, as in editors and pandas
        yield Table(path, io.TextIOWrapper(raw, "utf-8-sig", errors="surrogateescape", newline="\n"))


class Table:
    """The rows of a CSV file, read with the rules of Python's ``csv`` (and pandas').

    Bytes that are not UTF-8 stay in the text as lone surrogates: see `text_fault`.
    """

    def __init__(self, path: Path, stream: Iterable[str]) -> None:
        self.path = path
        self._reader = csv.reader(chain(stream, [_END]))
        with self._named():
            self.header = next(self._reader, [])
        if self.header in ([], [_END]):
            raise UserError(f"{path} is empty; give a CSV file of a Jigsaw competition")

    def places(self, columns: Sequence[str]) -> list[int]:
        """Where the columns stand in a row.

        Raises:
            UserError: some are missing; they and those that are there are named.
        """
        missing = [name for name in columns if name not in self.header]
        if missing:
            there = ", ".join(self.header[:12]) + (", ..." if len(self.header) > 12 else "")
            raise UserError(
                f"{self.path} has no column {' and no column '.join(missing)} (it has {there}); give another file"
            )
        return [self.header.index(name) for name in columns]

    def rows(self, counts: Counts) -> Iterator[list[str]]:
        """The rows, as wide as the header; missing fields at the end are ``""``. Too wide ones are counted as dropped.

        Raises:
            UserError: a quote that is never closed, or a field that cannot be read.
        """
        width = len(self.header)
        with self._named():
            for row in self._reader:
                if len(row) == width:
                    counts.read += 1
                    yield row
                elif row == [_END]:
                    return
                elif 0 < len(row) < width:
                    counts.read += 1
                    yield row + [""] * (width - len(row))
                elif row:
                    counts.read += 1
                    counts.drop(self.where(row), MORE_FIELDS)
        raise UserError(f"{self.path} ends inside a quoted comment: it is cut off; fetch it again")

    def where(self, row: Sequence[str]) -> str:
        """``FILE line N`` of the row that was read last: the line that it begins in."""
        return f"{self.path} line {self._reader.line_num - sum(field.count(chr(10)) for field in row)}"

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Tell where the parser gave up."""
        try:
            yield
        except csv.Error as error:
            limit = csv.field_size_limit()
            reason = f"has a field of more than {limit} characters, so a quote is not closed"
            if "field limit" not in str(error):
                reason = f"cannot be read as CSV ({error})"
            raise UserError(f"{self.path} line {self._reader.line_num} {reason}; mend it or fetch it again") from error


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


def number_of(text: str) -> float | None:
    """The finite number that a field holds, if it does."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) != float("inf") and value == value else None


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
