"""Kaggle's competition files, fetched with Kaggle's own client; only the CSV file that is needed is unpacked.

Credentials are found and read by that client alone, in the environment or in its own files; whatever it prints or
raises is withheld, since it may quote them.
"""

from __future__ import annotations

import contextlib
import errno
import io
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path, PureWindowsPath
from typing import IO, Any

from orlhf_ext.cli.errors import UserError
from orlhf_ext.files.csv_files import Table
from orlhf_ext.files.records import atomic_write

SETTINGS = "https://www.kaggle.com/settings/api"
#: of an archive, unpacked: the largest file of the two competitions has 0.8 GB, at a ratio of 3
MAX_BYTES = 8 << 30
MAX_RATIO, MIN_SUSPICIOUS = 200, 64 << 20
MAX_HEADER = 1 << 16
OR_FOLDER = "or give a folder with the unpacked CSV files as --raw_dir"
_REPLIES = {
    401: "Kaggle does not accept the credentials (401); make a new token at {settings}, {folder}",
    403: "Kaggle gives the files of {name} to those who have accepted its rules (403); accept them at "
    "https://www.kaggle.com/competitions/{name}/rules with the account of these credentials, {folder}",
    404: "Kaggle has no competition {name} (404); {folder}",
    429: "Kaggle accepts no more requests at the moment (429); wait some minutes and run the command again, {folder}",
}


def fetch_competition(name: str, folder: Path, columns: Collection[str]) -> Path:
    """Download a competition's files and unpack the CSV with these columns into ``folder``; returns it.

    Raises:
        UserError: no client or credentials, Kaggle refuses the request, no network, or a broken archive.
    """
    partial = folder / ".download"  # kept when the download breaks off: the client resumes it
    partial.mkdir(parents=True, exist_ok=True)
    print(f"fetching {name} from Kaggle into {folder}", flush=True)
    archive = _download(name, partial)
    try:
        found = unpack(archive, folder, columns, remedy="run the same command again to fetch it anew")
    except UserError:  # or it would be taken for a finished download
        archive.unlink()
        raise
    if found is None:
        raise UserError(f"{archive} has no CSV file with the columns {' and '.join(columns)}; {OR_FOLDER}")
    shutil.rmtree(partial)
    return found


def _download(name: str, folder: Path) -> Path:
    withheld = io.StringIO()
    try:
        with contextlib.redirect_stdout(withheld), contextlib.redirect_stderr(withheld):
            from kaggle.api.kaggle_api_extended import KaggleApi

            api: Any = KaggleApi()
            api.authenticate()
            api.competition_download_files(name, path=str(folder), force=False, quiet=True)
    except SystemExit:  # how the client says that it has no credentials, or that they are not valid
        raise UserError(
            f"Kaggle's client finds no credentials that Kaggle accepts; set KAGGLE_API_TOKEN (from {SETTINGS}) or "
            f"KAGGLE_USERNAME and KAGGLE_KEY, or log in with `kaggle auth login`, {OR_FOLDER}"
        ) from None
    except ModuleNotFoundError as error:
        raise UserError(f"fetching from Kaggle needs its client; pip install kaggle six, {OR_FOLDER}") from error
    except Exception as error:  # of any kind, and its text may quote what the client sent
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _refusal(name, error) from None
    files = [path for path in folder.iterdir() if path.is_file() and path.stem == name]
    if not files:
        raise UserError(f"Kaggle's client fetched no file of {name}; try again, {OR_FOLDER}")
    return files[0]


def _refusal(name: str, error: Exception) -> UserError:
    """What a failed request means; the error's own text is not used."""
    import requests

    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in _REPLIES:
        return UserError(_REPLIES[status].format(name=name, settings=SETTINGS, folder=OR_FOLDER))
    if status:
        return UserError(f"Kaggle answers with status {status}; try again later, {OR_FOLDER}")
    gone = requests.exceptions
    if isinstance(error, (gone.ConnectionError, gone.Timeout, gone.ChunkedEncodingError)):
        return UserError(f"Kaggle cannot be reached; check the network and run the same command again, {OR_FOLDER}")
    return UserError(
        f"Kaggle's client failed to fetch {name} ({type(error).__name__}); check the credentials, {OR_FOLDER}"
    )


def unpack(archive: Path, folder: Path, columns: Collection[str], remedy: str = "fetch it again") -> Path | None:
    """Write the CSV file with these columns of a zip, or of a zip in it, to ``folder``; returns it if there is one.

    The file is written whole or not at all. Nothing else is unpacked, and no folder of the archive is used.

    Args:
        archive: the zip.
        folder: where to put the file.
        columns: what its header must have.
        remedy: the way out that an error names.

    Raises:
        UserError: a broken or encrypted archive, one that unpacks to far too much, or zips nested deeper.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return _unpack(archive, str(archive), folder, set(columns))
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, UnicodeDecodeError) as error:
        raise UserError(f"{archive} is truncated or not a readable zip; {remedy}") from error


def _unpack(file: Path | IO[bytes], name: str, folder: Path, columns: set[str], nested: bool = False) -> Path | None:
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        for member in members:
            if member.file_size > MIN_SUSPICIOUS and member.file_size > MAX_RATIO * member.compress_size:
                raise UserError(f"{name}: {member.filename!r} unpacks to {member.file_size} bytes; do not use it")
        if (total := sum(member.file_size for member in members)) > MAX_BYTES:
            raise UserError(f"{name} unpacks to {total} bytes; do not use it")
        for member in members:
            target = folder / PureWindowsPath(member.filename).name  # of any path the last part alone
            if target.suffix.lower() not in (".csv", ".zip"):
                continue
            way = "unpack it and give its folder as --raw_dir"
            if member.flag_bits & 1:
                raise UserError(f"{name}: {member.filename!r} is encrypted; {way}")
            if target.suffix.lower() == ".zip" and nested:
                raise UserError(f"{name}: {member.filename!r} is nested too deep; {way}")
            # zipfile reads no more bytes than a member declares, and raises BadZipFile where they do not match
            with archive.open(member) as source:
                if target.suffix.lower() == ".csv":
                    found = _write_csv(source, target, columns)
                else:
                    with tempfile.TemporaryFile(dir=folder) as inner:
                        shutil.copyfileobj(source, inner)
                        found = _unpack(inner, f"{name} ({member.filename})", folder, columns, nested=True)
            if found:
                return found
    return None


def _write_csv(source: IO[bytes], target: Path, columns: set[str]) -> Path | None:
    """Write a CSV file, if it has these columns."""
    header = source.readline(MAX_HEADER)
    try:
        found = set(Table(target, [header.decode("utf-8-sig", "replace")]).header)
    except UserError:  # another kind of file, whatever its name
        return None
    if not columns <= found:
        return None
    with atomic_write(target, "wb") as out:
        out.write(header)
        shutil.copyfileobj(source, out)
    return target
