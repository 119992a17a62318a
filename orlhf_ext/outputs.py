"""Whether what a command will write can be written, known before hours of computing."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from .errors import UserError


def check_file(path: str | os.PathLike, flag: str = "--out") -> None:
    """A file can be written at ``path``, whose folders need not exist yet.

    Raises:
        UserError: it is a folder; or its folder cannot be made or written to, or its name is too long.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise UserError(f"{flag} {path} is a folder; name a file")
        _probe(path)
    except OSError as error:
        raise _refused(path, flag, error) from error


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


def _probe(path: Path) -> None:
    """Make a file like the temporary one of `records.atomic_write`, in the nearest folder that exists; remove it."""
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{path.name}.", suffix=".tmp"):
        pass


def _refused(path: Path, flag: str, error: OSError) -> UserError:
    return UserError(f"{flag} {path} cannot be written ({error.strerror or error}); give another one")
