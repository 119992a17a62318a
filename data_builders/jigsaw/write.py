"""Writing the rows of one pass over a source to one or two files, which get their names together at the end."""

from __future__ import annotations

import contextlib
import copy
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from orlhf_ext.files.built import Built, Counts
from orlhf_ext.files.records import Record, atomic_write

from ..common import check_not_source


class RowWriter:
    """Appends rows to a file of JSON Lines and counts them."""

    def __init__(self, path: Path, stream: IO[str]) -> None:
        self.path = path
        self.count = 0
        self._stream = stream

    def add(self, row: Record) -> None:
        """Append one row."""
        self._stream.write(json.dumps(row, ensure_ascii=False) + "\n")
        self.count += 1


@contextlib.contextmanager
def writers(folder: Path, names: Sequence[str], source: Path) -> Iterator[list[RowWriter]]:
    """A writer for each file; all get their names when the block ends without an error, and else none.

    Raises:
        UserError: one of them is the source.
    """
    with contextlib.ExitStack() as stack:
        made = []
        for name in names:
            path = folder / name
            check_not_source(path, [source])
            made.append(RowWriter(path, stack.enter_context(atomic_write(path))))
        yield made


def built_pair(
    first: RowWriter, second: RowWriter, kept: tuple[int, int], counts: Counts, sources: Sequence[Path], **more: Any
) -> Iterator[Built]:
    """The two files of one pass; what was dropped is counted with the first.

    Args:
        first: the training rows.
        second: the rows held out.
        kept: how many of the source's rows went to each.
        counts: of the whole pass.
        sources: the files that were read.
        more: the other fields of `Built`.
    """
    held_out = Counts(counts.strict, 0)
    held_out.read = held_out.kept = kept[1]
    mine = copy.copy(counts)
    mine.read, mine.kept = counts.read - kept[1], kept[0]
    details = more.pop("details", {})
    for writer, own in ((first, mine), (second, held_out)):
        if not writer.count:
            print(f"warning: {writer.path} has no row", file=sys.stderr)
        yield Built(writer.path, own, sources, details={**details, "rows": writer.count}, **more)
