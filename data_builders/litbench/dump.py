"""Comments and posts from local dumps, such as those of Pushshift and Arctic Shift: JSON Lines, plain, .gz or .zst.

A dump may have hundreds of gigabytes: it is streamed, and only lines with an id that is looked for are parsed.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from orlhf_ext.cli.errors import UserError
from orlhf_ext.files.records import load_json

from .progress import TEXT, Answer
from .tombstones import status_of

_ID = re.compile(rb'"id"\s*:\s*"(?:t[13]_)?([0-9a-z]+)"')
#: bytes that are read at once, and of zstd files, where one byte can become thousands
_PIECE, _PACKED = 1 << 18, 1 << 9
#: no comment is longer; a file of one long line is not JSON Lines
_LONGEST = 64 << 20
#: answers that are handed over at once
_BATCH = 100
#: large dumps are packed with a window of up to 2 GiB
_WINDOW = 1 << 31


class Dump:
    """Looks up comments and posts by id in files, each of which may have both.

    Args:
        files: their paths.

    Raises:
        UserError: one of them does not exist.
    """

    def __init__(self, files: Sequence[str]) -> None:
        self.paths = [Path(file) for file in files]
        for path in self.paths:
            if not path.is_file():
                what = "is a folder" if path.is_dir() else "does not exist"
                raise UserError(f"--dump: {path} {what}; give files of comments and posts (.jsonl, .gz, .zst)")
        #: lines that name an id that is looked for, and are not JSON
        self.broken = 0

    def origin(self) -> list[dict[str, Any]]:
        """What distinguishes these files from others, without reading them."""
        return [{"file": path.name, "bytes": path.stat().st_size} for path in self.paths]

    def look_up(self, kind: str, ids: Sequence[str]) -> Iterator[dict[str, Answer]]:
        """The answers for comments or posts, by id, some at a time; what is in no file comes last.

        Of several records for an id the first one counts whose text is not deleted.

        Raises:
            UserError: a file is broken or truncated, or zstandard is missing.
        """
        wanted = {name.encode() for name in ids}
        lost: dict[str, Answer] = {}
        batch: dict[str, Answer] = {}
        for path in self.paths:
            for line in _lines(path):
                if not wanted:
                    break
                if wanted.isdisjoint(_ID.findall(line)):
                    continue
                record = self._parse(line)
                if TEXT[kind] not in record or ("body" in record) != (TEXT[kind] == "body"):
                    continue
                name = str(record.get("id")).removeprefix(f"{kind}_")
                text = record[TEXT[kind]]
                if name.encode() not in wanted or not isinstance(text, str):
                    continue
                if status_of(text) != "ok":
                    lost.setdefault(name, record)
                    continue
                wanted.discard(name.encode())
                batch[name] = record
                if len(batch) == _BATCH:
                    yield batch
                    batch = {}
        yield batch | {name: lost.get(name) for name in ids if name.encode() in wanted}

    def _parse(self, line: bytes) -> dict[str, Any]:
        try:
            record = load_json(line)
        except ValueError:
            self.broken += 1
            return {}
        return record if isinstance(record, dict) else {}


def _lines(path: Path) -> Iterator[bytes]:
    from tqdm import tqdm

    start, size = [b""], 0  # the beginning of the next line
    with (
        open(path, "rb") as stream,
        tqdm(total=path.stat().st_size, desc=path.name, unit="B", unit_scale=True, disable=None, leave=False) as bar,
    ):
        for piece in _pieces(path, stream):
            bar.update(stream.tell() - bar.n)
            first, *more = piece.split(b"\n")
            start.append(first)
            size += len(first)
            if more:
                yield b"".join(start)
                *whole, last = more
                yield from whole
                start, size = [last], len(last)
            if size > _LONGEST:
                raise UserError(f"--dump: {path} has a line of more than {_LONGEST >> 20} MiB; give JSON Lines")
    yield b"".join(start)


def _pieces(path: Path, stream: IO[bytes]) -> Iterator[bytes]:
    """The unpacked bytes of a file."""
    if path.suffix == ".zst":
        yield from _unpack_zst(path, stream)
        return
    try:
        unpacked: Any = gzip.GzipFile(fileobj=stream) if path.suffix == ".gz" else stream
        while piece := unpacked.read(_PIECE):
            yield piece
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"--dump: {path} is a truncated or broken gzip file; fetch it again") from error


def _unpack_zst(path: Path, stream: IO[bytes]) -> Iterator[bytes]:
    try:
        import zstandard
    except ModuleNotFoundError as error:
        raise UserError(f"reading {path} needs zstandard; pip install zstandard, or unpack the file") from error

    packed = b""
    frame: Any = None  # the frames of a file follow one another
    try:
        while packed := packed or stream.read(_PACKED):
            frame = frame or zstandard.ZstdDecompressor(max_window_size=_WINDOW).decompressobj()
            yield frame.decompress(packed)
            packed = frame.unused_data
            if frame.eof:
                frame = None
    except zstandard.ZstdError as error:
        raise UserError(f"--dump: {path} is not a readable zstd file; fetch it again") from error
    if frame:
        raise UserError(f"--dump: {path} is a truncated zstd file; fetch it again")
