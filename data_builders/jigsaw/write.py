"""Writing the rows of one pass over a source to one or two files, which get their names together at the end."""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Iterator, Sequence
from json import encoder
from pathlib import Path
from typing import IO, Any

from orlhf_ext.cli.errors import UserError
from orlhf_ext.files.built import Built, Counts
from orlhf_ext.files.records import atomic_write


class RowWriter:
    """Appends lines to a file and counts them."""

    #: a text as JSON has it, in quotes
    quote = staticmethod(encoder.encode_basestring)

    def __init__(self, path: Path, stream: IO[str]) -> None:
        self.path = path
        self.count = 0
        self._write = stream.write

    def add(self, line: str) -> None:
        """Append one line; it ends with a line break."""
        self._write(line)
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
            if path.exists() and path.samefile(source):
                raise UserError(f"{path} is the source itself and would be overwritten; choose another folder")
            made.append(RowWriter(path, stack.enter_context(atomic_write(path))))
        yield made


def hold_some(writer: RowWriter, counts: Counts, source: Path) -> None:
    """Hold that a file has a row; call it before the files get their names.

    Raises:
        UserError: it has none; the most frequent reason is named.
    """
    if writer.count:
        return
    if not counts.read:
        raise UserError(f"{source} has no row; give a file with records")
    lost = ""
    if counts.dropped:
        reason, number = counts.dropped.most_common(1)[0]
        lost = f" ({number} of them: {reason})"
    raise UserError(
        f"none of the {counts.read} rows of {source} can be kept for {writer.path.name}{lost}; mend the data, or give "
        "other options"
    )


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
