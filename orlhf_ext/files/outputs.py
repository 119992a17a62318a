"""Whether what a command will write can be written, and is not somebody else's, known before hours of computing."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ..cli.errors import UserError
from .journal import journal_path
from .records import object_or_empty, write_json
from .sidecars import sidecar_path

_BUILT = ".built.json"
"""In a folder of data: which builder wrote each file, also those that a killed one has left without a sidecar."""


def add_overwrite(parser: argparse._ActionsContainer) -> None:
    """Add ``--overwrite``."""
    parser.add_argument(
        "--overwrite", action="store_true", help="replace files at --out that this command did not make"
    )


def check_file(
    path: str | os.PathLike,
    command: str | None = None,
    overwrite: bool = False,
    beside: Sequence[str] = (),
    ends: tuple[str, ...] = (),
    inputs: Iterable[str | os.PathLike] = (),
) -> None:
    """A file can be written at ``--out``, whose folders need not exist yet.

    Args:
        path: the file.
        command: as sidecars and summaries name it. A file that it did not make is refused.
        overwrite: whoever made it.
        beside: suffixes of further files that are written with it.
        ends: suffixes of which its name must have one; none: any name will do.
        inputs: files that the command reads.

    Raises:
        UserError: it has another suffix; it is one of the inputs, a folder, or a file that ``command`` did not make; or
            its folder cannot be made or written to, or its name is too long.
    """
    path = Path(path)
    if ends and not path.name.endswith(ends):
        raise UserError(f"--out {path} must end in {' or '.join(ends)}")
    if path.resolve() in {Path(one).resolve() for one in inputs}:
        raise UserError(f"--out {path} is also an input; give the output a name of its own")
    if command and not overwrite and not _made_by(path, command):
        for one in (path, *(path.with_suffix(suffix) for suffix in beside)):
            if one.is_file():
                raise UserError(
                    f"--out {path}: {one} exists, and {command} did not make it; give another --out, or add "
                    "--overwrite to replace it"
                )
    try:
        if path.is_dir():
            raise UserError(f"--out {path} is a folder; name a file")
        _probe(path)
    except OSError as error:
        raise _refused(path, "--out", error) from error


def check_folder(path: str | os.PathLike, flag: str = "--out", new: bool = False) -> None:
    """Files can be written to the folder ``path``, which need not exist yet.

    Args:
        path: the folder.
        flag: that names it.
        new: the folder is written as a whole, by `records.atomic_folder`.

    Raises:
        UserError: it is a file; or it cannot be made or written to, or its name is too long.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_dir():
            raise UserError(f"{flag} {path} is a file, where a folder is expected; give another one")
        _probe(path if new else path / "x")
    except OSError as error:
        raise _refused(path, flag, error) from error


def _made_by(path: Path, command: str) -> bool:
    """Whether a file's sidecar, or a summary or a page itself, names the command, or a journal of it is left."""
    if journal_path(path).exists():
        return True
    if path.suffix == ".html" and path.is_file():
        with open(path, "rb") as stream:
            return f'<meta name="generator" content="orlhf-ext {command}">'.encode() in stream.read(1024)
    places = (sidecar_path(path), *([path] if path.suffix == ".json" else ()))
    return any(object_or_empty(place).get("command") == command for place in places)


def _built_by(path: Path, builder: str) -> bool:
    """Whether a file's sidecar, or a sidecar itself, names the builder."""
    return any(object_or_empty(place).get("builder") == builder for place in (sidecar_path(path), path))


def builder_guard(builder: str, overwrite: bool) -> Callable[[Path, bool], None]:
    """What `records.before_writing` is to call while a builder runs.

    It refuses to replace files that the builder did not make, which its sidecars or `_BUILT` say, and notes those that
    are about to get their names.
    """

    def guard(path: Path, whole: bool) -> None:
        if path.name == _BUILT:
            return
        ledger = path.with_name(_BUILT)
        known = object_or_empty(ledger)
        ours = known.get(path.name) == builder
        if not (ours or overwrite or not path.exists() or _built_by(path, builder)):
            raise UserError(
                f"{path} exists, and the builder {builder} did not make it; give another --out, or add --overwrite "
                "to replace it"
            )
        if whole and not ours:
            write_json(ledger, {**known, path.name: builder})

    return guard


def _probe(path: Path) -> None:
    """Make a file like the temporary one of `records.atomic_write`, in the nearest folder that exists; remove it."""
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{path.name}.", suffix=".tmp"):
        pass


def _refused(path: Path, flag: str, error: OSError) -> UserError:
    return UserError(f"{flag} {path} cannot be written ({error.strerror or error}); give another one")
