"""CSV that reads back as it was written: the one writer and the one reader of the project.

Any text without a lone surrogate comes back equal, whatever quotes, line ends and control characters it has. A row
ends at a line feed outside of quotes, as in editors; a carriage return may come before it, and nowhere else outside
of quotes. So what was read never depends on where a program that did not quote one would have broken the line.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..cli.errors import UserError
from .records import BadLine

#: characters of a field that are read. No text that people write is as long (a novel has a tenth of it), and a quote
#: that is never closed does not take all of the memory.
LONGEST_FIELD = 1 << 24

#: a line that is put after the last one: it is swallowed if a quote is still open there. No file decodes to it.
_END = "\ud800"
_KINDS = {
    codecs.BOM_UTF16_LE: "UTF-16 text; re-encode it as UTF-8",
    codecs.BOM_UTF16_BE: "UTF-16 text; re-encode it as UTF-8",
    b"PK\x03\x04": "a zip, not a CSV file; unpack it, or give the folder that it is in",
    b"\x1f\x8b": "a gzip file, not a CSV file; unpack it",
}
_FAULTS = {
    "field larger than field limit": f"a field of more than {LONGEST_FIELD} characters, or a quote that is not closed",
    "new-line character seen": "a carriage return outside of quotes",
    "unexpected end of data": "the file ends inside quotes",
}


def format_csv(rows: Iterable[Sequence[Any]]) -> str:
    """Rows as CSV, the header among them; None is an empty field."""
    lines: list[str] = []
    # Python before 3.11.9 quotes a carriage return only where line ends have one
    csv.writer(SimpleNamespace(write=lines.append), lineterminator="\r\n").writerows(rows)
    return "".join(line.removesuffix("\r\n") + "\n" for line in lines)


@contextlib.contextmanager
def open_table(path: Path, strict: bool = False) -> Iterator[Table]:
    """Open a CSV file; a byte order mark is skipped.

    Args:
        path: of the file.
        strict: refuse quotes in places where CSV has none, instead of reading them as pandas does.

    Raises:
        UserError: no such file, an empty one, or not CSV at all.
    """
    with contextlib.ExitStack() as stack:
        try:
            raw = stack.enter_context(open(path, "rb"))
            start = raw.peek(4)
        except OSError as error:
            reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
            raise UserError(f"{path} {reason}; give a CSV file") from error
        for magic, what in _KINDS.items():
            if start.startswith(magic):
                raise UserError(f"{path} is {what}")
        yield Table(path, io.TextIOWrapper(raw, "utf-8-sig", errors="surrogateescape", newline="\n"), strict)


class Table:
    """The rows of a CSV file with a header.

    Bytes that are not UTF-8 stay in the text as lone surrogates.

    Args:
        path: to name in errors.
        stream: the lines.
        strict: as in `open_table`.

    Raises:
        UserError: there is no header, or it names a column twice.
    """

    def __init__(self, path: Path, stream: Iterable[str], strict: bool = False) -> None:
        self.path = path
        self._line, self._end = 1, 0  # of the row that was read last
        csv.field_size_limit(LONGEST_FIELD)
        self._reader = csv.reader(chain(stream, [_END]), strict=strict)
        self.header = next(self._read(), [])
        if not self.header:
            raise UserError(f"{path} is empty; give a CSV file with a header")
        if twice := next((name for name in self.header if name and self.header.count(name) > 1), ""):
            raise UserError(f"{path} names the column {twice} twice in its header; rename or remove one")

    @property
    def where(self) -> str:
        """``FILE line N`` of the row that was read last: the line that it begins in."""
        return f"{self.path} line {self._line}"

    def places(self, columns: Sequence[str]) -> list[int]:
        """The indices of columns in a row.
        Raises UserError if some are missing; they and those that are there are named."""
        missing = [name for name in columns if name not in self.header]
        if missing:
            there = ", ".join(self.header[:12]) + (", ..." if len(self.header) > 12 else "")
            raise UserError(
                f"{self.path} has no column {' and no column '.join(missing)} (it has {there}); give another file"
            )
        return [self.header.index(name) for name in columns]

    def rows(self) -> Iterator[list[str] | BadLine]:
        """The rows under the header; one of another width is a `BadLine`. Empty lines are passed over.
        Raises UserError if the file is not CSV from some line on."""
        width = len(self.header)
        for row in self._read():
            if len(row) == width:
                yield row
            elif row:
                how = "more" if len(row) > width else "fewer"
                yield BadLine(self.where, f"a row with {how} fields than the header has columns")

    def _read(self) -> Iterator[list[str]]:
        try:
            for row in self._reader:
                if row and row[-1].endswith(_END):
                    if row == [_END]:
                        return
                    raise csv.Error("unexpected end of data")
                self._line, self._end = self._end + 1, self._reader.line_num
                yield row
        except csv.Error as error:
            said = str(error)
            reason = next((what for start, what in _FAULTS.items() if said.startswith(start)), said)
            raise UserError(
                f"{self.path} cannot be read as CSV from line {self._end + 1} on ({reason}); correct it, or make it "
                "again (with --overwrite, if it is of build_data)"
            ) from error
