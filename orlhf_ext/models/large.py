"""Inputs of any size: a file's records are worked on in parts, each of which becomes a finished file of its own.

What is in memory is one part. A file that is not larger than a part is worked on as a whole. The parts of ``x.jsonl``
lie in ``.x.jsonl.parts`` until all of them are done and become ``x.jsonl``; a run that was cut short goes on with the
first part that is not done.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from ..cli.errors import UserError
from ..cli.flags import COUNT
from ..files.journal import Journal
from ..files.records import Line, Record, atomic_write, object_or_empty, read_records, write_json
from ..files.sidecars import sidecar_path
from .texts import Sample

PART = 50_000  # records


class Part(NamedTuple):
    """Some records of a file that follow one another."""

    #: the file, or which of its records, for messages
    name: str
    samples: list[Sample]


Tally = Mapping[str, float]
"""What was counted of a part; parts are added."""


def add_part_records(parser: argparse.ArgumentParser) -> None:
    """Add the flag that says how large a part is."""
    parser.add_argument(
        "--part_records",
        type=COUNT,
        default=PART,
        metavar="N",
        help="records in memory; a longer file is worked on in parts of so many (%(default)s)",
    )


class Source:
    """A file of records, which is looked at from beginning to end, once.

    Args:
        path: the file.
        make: makes a sample of a record, or raises UserError.
        size: records of a part.
        limit: only the first so many.

    Raises:
        UserError: as `read_records` and ``make``; there is no record; an id is there twice.
    """

    def __init__(self, path: Path, make: Callable[[Line], Sample], size: int, limit: int | None = None) -> None:
        self.path, self.size, self._make, self._limit = path, size, make, limit
        self._whole: list[Sample] = []
        marks = array("Q")
        for sample in self._samples():
            marks.append(_mark(sample.id))
            if len(marks) <= size:
                self._whole.append(sample)
            elif self._whole:
                self._whole = []
        self.count = len(marks)
        if not marks:
            raise UserError(f"{path} has no record; build the data again")
        self._check_ids(marks)

    def _samples(self) -> Iterator[Sample]:
        return islice(map(self._make, read_records(self.path)), self._limit)

    def _check_ids(self, marks: array[int]) -> None:
        import numpy as np

        found, counts = np.unique(np.frombuffer(marks, dtype=np.uint64), return_counts=True)
        twice = set(found[counts > 1].tolist())
        seen: dict[str, str] = {}
        for sample in self._samples() if twice else ():
            if _mark(sample.id) in twice:
                if sample.id in seen:
                    raise UserError(f"{sample.where} has the id {sample.id!r} of {seen[sample.id]}; give each its own")
                seen[sample.id] = sample.where

    @property
    def parts(self) -> int:
        """How many there are."""
        return -(-self.count // self.size)

    def __iter__(self) -> Iterator[Part]:
        """The parts, in the file's order."""
        if self.parts == 1:
            yield Part(str(self.path), self._whole)
            return
        samples, first = self._samples(), 1
        while some := list(islice(samples, self.size)):
            yield Part(f"{self.path} (records {first} to {first + len(some) - 1})", some)
            first += len(some)


def _mark(identifier: str) -> int:
    return int.from_bytes(hashlib.blake2b(identifier.encode(), digest_size=8).digest())


def run_parts(
    source: Source,
    out: Path,
    journal: Journal,
    meta: Record,
    work: Callable[[Part, Journal], tuple[Iterable[Record], Tally]],
    summary: Callable[[Tally], Record],
) -> Tally:
    """Work on every part, and write the output and its sidecar.

    Args:
        source: of the records.
        out: the output.
        journal: of the output.
        meta: what its sidecar says, beside the summary.
        work: makes of a part its output's records, and keeps what is finished in a journal.
        summary: what else it says, from the sum over all parts.

    Returns:
        the sum.
    """
    if source.parts == 1:
        (part,) = source
        records, tally = work(part, journal)
        journal.finish(out, records, {**meta, **summary(tally)})
        return tally
    folder = out.with_name(f".{out.name}.parts")
    total, paths, done, start = Counter[str](), list[Path](), 0, time.monotonic()
    before = 0  # records that another run has done
    for number, part in enumerate(source, 1):
        paths.append(folder / f"{number:06d}.jsonl")
        mark = {**journal.fingerprint, "part": number, "size": source.size}
        note = object_or_empty(sidecar_path(paths[-1]))
        done += len(part.samples)
        if note.get("mark") == mark and paths[-1].is_file():
            before += len(part.samples)
        else:
            with Journal(paths[-1], mark) as own:
                records, tally = work(part, own)
                note = {"mark": mark, "tally": dict(tally)}
                own.finish(paths[-1], records, note)
            speed = (done - before) / (time.monotonic() - start)
            left = timedelta(seconds=round((source.count - done) / speed))
            told = f"part {number} of {source.parts}, {done} of {source.count} records, {speed:.1f} records/s"
            print(f"{out}: {told}, {left} left", flush=True)
        total.update(note["tally"])
    with atomic_write(out, "wb") as stream:
        for path in paths:
            with path.open("rb") as piece:
                shutil.copyfileobj(piece, stream)
    write_json(sidecar_path(out), {**meta, **summary(total)})
    journal.remove()
    shutil.rmtree(folder)
    return total
