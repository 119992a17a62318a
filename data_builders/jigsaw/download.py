"""Kaggle's competition files: fetched with Kaggle's own client, and unpacked with nothing taken on trust.

Credentials are found and read by that client alone, in the environment or in its own files. Here it is only seen
whether there are some; whatever the client prints or raises is withheld, since it may quote them.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from orlhf_ext.cli.errors import UserError
from orlhf_ext.files.csv_files import Table
from orlhf_ext.files.records import atomic_write, load_json

SETTINGS = "https://www.kaggle.com/settings/api"
OR_FOLDER = "or give a folder with the unpacked CSV files as --raw_dir"
_REPLIES = {
    401: "Kaggle does not accept the credentials (401); make a new token at {settings}, {folder}",
    403: "Kaggle gives the files of {name} to those who have accepted its rules (403); accept them at "
    "https://www.kaggle.com/competitions/{name}/rules with the account of these credentials, {folder}",
    404: "Kaggle has no competition {name} (404); {folder}",
    429: "Kaggle takes no more requests for now (429); wait some minutes and run the same command again, {folder}",
}


# --- fetching --------------------------------------------------------------------------------------------------------


def has_credentials() -> bool:
    """Whether there is something to log in to Kaggle with, in one of the places where its client looks."""
    environment = os.environ
    if environment.get("KAGGLE_API_TOKEN"):
        return True
    home = Path("~/.kaggle").expanduser()
    files = [home / name for name in ("access_token", "access_token.txt", "credentials.json")]
    if environment.get("KAGGLE_KERNEL_RUN_TYPE") and environment.get("KAGGLE_API_V1_TOKEN"):
        files.append(Path(environment["KAGGLE_API_V1_TOKEN"]))
    if any(path.is_file() and path.stat().st_size for path in files):
        return True
    known = {name for name in ("username", "key") if environment.get(f"KAGGLE_{name.upper()}")}
    with contextlib.suppress(OSError, ValueError, AttributeError):
        known |= load_json((_config_folder() / "kaggle.json").read_text(encoding="utf-8")).keys()
    return {"username", "key"} <= known


def _config_folder() -> Path:
    home = Path("~/.kaggle").expanduser()
    if folder := os.environ.get("KAGGLE_CONFIG_DIR"):
        return Path(folder)
    if home.exists():
        return home
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path("~/.config").expanduser()) / "kaggle"


def fetch_competition(name: str, folder: Path, columns: Collection[str]) -> Path:
    """Download a competition's files and unpack the CSV with these columns into ``folder``; returns it.

    Raises:
        UserError: no credentials, no client, a refusal of Kaggle's, no network, or a broken archive.
    """
    if not has_credentials():
        raise UserError(
            f"there are no Kaggle credentials; set KAGGLE_API_TOKEN (from {SETTINGS}) or KAGGLE_USERNAME and "
            f"KAGGLE_KEY, or log in with `kaggle auth login`, {OR_FOLDER}"
        )
    partial = folder / ".download"  # kept when the download breaks off: the client goes on where it was
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
    except SystemExit:  # how the client says that nothing it found lets it in
        raise UserError(_REPLIES[401].format(settings=SETTINGS, folder=OR_FOLDER)) from None
    except ModuleNotFoundError as error:
        raise UserError(f"fetching from Kaggle needs its client; pip install kaggle six, {OR_FOLDER}") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _refusal(name, error) from None
    except Exception as error:  # of any kind, and its text may hold what the client sent
        raise _failure(name, error) from None
    files = [path for path in folder.iterdir() if path.is_file() and path.stem == name]
    if not files:
        raise UserError(f"Kaggle's client fetched no file of {name}; try again, {OR_FOLDER}")
    return files[0]


def _refusal(name: str, error: OSError) -> UserError:
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
    return _failure(name, error)


def _failure(name: str, error: Exception) -> UserError:
    return UserError(
        f"Kaggle's client failed to fetch {name} ({type(error).__name__}); check the credentials, {OR_FOLDER}"
    )


# --- unpacking -------------------------------------------------------------------------------------------------------


class Limits(NamedTuple):
    """What an archive may hold. The largest file of the two competitions has 0.8 GB, at a ratio of 3."""

    bytes: int = 8 << 30
    members: int = 1000
    ratio: int = 200
    ratio_from: int = 64 << 20


LIMITS = Limits()
_HEAD = 1 << 16


def unpack(archive: Path, folder: Path, columns: Collection[str], remedy: str = "fetch it again") -> Path | None:
    """Write the CSV file with these columns of a zip, or of a zip in it, to ``folder``; returns it if there is one.

    The file stands there whole or not at all. Nothing else is unpacked, and no path of the archive is used.

    Args:
        archive: the zip.
        folder: where to put the file.
        columns: what its header must have.
        remedy: the way out that an error names.

    Raises:
        UserError: a broken, encrypted or malicious archive, or one that is nested deeper.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with open(archive, "rb") as stream:
            return next(_unpack(stream, str(archive), folder, set(columns), 0), None)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, UnicodeDecodeError) as error:
        raise UserError(f"{archive} is truncated or no zip that can be read; {remedy}") from error


def _unpack(stream: IO[bytes], name: str, folder: Path, columns: set[str], depth: int) -> Iterator[Path]:
    with zipfile.ZipFile(stream) as archive:
        members = archive.infolist()
        _check(members, name)
        for member in members:
            suffix = PurePosixPath(member.filename).suffix.lower()
            if member.is_dir() or suffix not in (".csv", ".zip"):
                continue
            if member.flag_bits & 1:
                raise UserError(f"{name}: {member.filename!r} is encrypted; unpack it and give its folder as --raw_dir")
            with archive.open(member) as source:
                if suffix == ".csv":
                    yield from _write_csv(source, member, name, folder, columns)
                    continue
                if depth:
                    raise UserError(
                        f"{name}: {member.filename!r} is nested too deep; unpack it and give its folder as --raw_dir"
                    )
                with tempfile.TemporaryFile(dir=folder) as inner:
                    _copy(source, inner, member, name)
                    yield from _unpack(inner, f"{name} ({member.filename})", folder, columns, depth + 1)


def _check(members: list[zipfile.ZipInfo], name: str) -> None:
    """Refuse an archive before anything of it is read."""
    limits = LIMITS
    if len(members) > limits.members:
        raise UserError(f"{name} has {len(members)} members, more than {limits.members}: no archive of Jigsaw's")
    total = 0
    for member in members:
        path = PurePosixPath(member.orig_filename.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in path.parts[0] or "\0" in member.orig_filename:
            raise UserError(
                f"{name}: the member {member.filename!r} points outside the folder; do not use this archive"
            )
        if stat.S_ISLNK(member.external_attr >> 16):
            raise UserError(f"{name}: the member {member.filename!r} is a link; do not use this archive")
        total += member.file_size
        packed = max(member.compress_size, 1)
        if total > limits.bytes or (member.file_size > limits.ratio_from and member.file_size > limits.ratio * packed):
            raise UserError(
                f"{name}: unpacked, {member.filename!r} has {member.file_size} bytes, from {member.compress_size}: "
                "no archive of Jigsaw's; do not use it"
            )


def _write_csv(
    source: IO[bytes], member: zipfile.ZipInfo, name: str, folder: Path, columns: set[str]
) -> Iterator[Path]:
    head = source.read(_HEAD)
    first = head.partition(b"\n")[0].decode("utf-8-sig", "replace")
    found: set[str] = set()
    with contextlib.suppress(UserError):  # another kind of file, whatever its name
        found = set(Table(Path(name), [first]).header)
    if not columns <= found:
        return
    target = folder / PurePosixPath(member.filename).name
    with atomic_write(target, "wb") as out:
        out.write(head)
        _copy(source, out, member, name, len(head))
    yield target


def _copy(source: IO[bytes], out: IO[bytes], member: zipfile.ZipInfo, name: str, written: int = 0) -> None:
    while piece := source.read(1 << 20):
        written += len(piece)
        if written > min(member.file_size, LIMITS.bytes):
            raise UserError(f"{name}: {member.filename!r} is larger than the archive says; do not use it")
        out.write(piece)
