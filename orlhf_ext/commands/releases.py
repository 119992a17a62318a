"""``orlhf-ext doctor --openrlhf``: whether a release of OpenRLHF fits, from its sources, without installing it."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..cli.errors import UserError
from ..extensions import EXTENSIONS, Extension, extension, names
from ..extensions.contracts import problems
from ..extensions.fit import left_out, used
from ..extensions.seams import SEAMS
from ..extensions.sources import Sources
from ..rewards.extension import Rewards

if TYPE_CHECKING:
    from rich.console import Console

#: OpenRLHF's wheels are pure Python, and named as if they were not
_WHEEL = ("--python-version", "3.11", "--implementation", "cp", "--abi", "cp311", "--platform", "manylinux1_x86_64")


@contextmanager
def sources_of(release: str) -> Iterator[Sources]:
    """The sources of a version, which is downloaded, a wheel, or a folder of packages.
    Raises UserError if there is no such thing, or no OpenRLHF in it."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(release).expanduser()
        if not place.exists():
            if not re.fullmatch(r"\d+(\.\d+)+\w*(\.\w+)*", release):
                raise UserError(f"--openrlhf {release} is no version, no wheel and no folder; give 0.11.1, say")
            place = download(release, Path(folder))
        sources = Sources(place)
        if not sources.has("openrlhf"):
            raise UserError(f"--openrlhf {release} has no package openrlhf; give the folder that it is in, or a wheel")
        yield sources


def download(version: str, folder: Path) -> Path:
    """A release's wheel, put into a folder. Raises UserError if pip cannot."""
    words = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-q", "--no-deps"]
    words += ["--only-binary=:all:", *_WHEEL, "-d", str(folder), f"openrlhf=={version}"]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        said = next((line for line in done.stderr.splitlines() if line.startswith("ERROR")), "pip says nothing")
        raise UserError(f"OpenRLHF {version} cannot be downloaded ({said}); give a wheel or a folder of it")
    return next(folder.glob("*.whl"))


def report(release: str, console: Console) -> bool:
    """Print every seam of a release, and whether each ready-made extension fits; False if one does not.
    Raises UserError as `sources_of` does."""
    from rich.table import Table

    with sources_of(release) as sources:
        table = Table()
        for title in ("seam", "launchers", "contract"):
            table.add_column(title, overflow="fold")
        there = [seam for seam in SEAMS if sources.has(seam.package)]
        for seam in there:
            told = "; ".join(problems(seam, sources)) or "holds"
            if seam.by == "fix" and (why := left_out(seam, sources)):
                told = f"its fix is left out: {why}"
            table.add_row(seam.target, " ".join(seam.launchers), told)
        console.print(table)
        fits = True
        for item in (*(extension(name) for name in sorted(names(EXTENSIONS))), Rewards()):
            wrong = _refusal(item, sources)
            fits = fits and not wrong
            console.print(f"{item.name} ({', '.join(item.launchers)}): {wrong or 'fits'}")
    return fits


def _refusal(item: Extension, sources: Sources) -> str:
    """Why a run with an extension would be refused, or ""."""
    for launcher in item.launchers:
        for seam, owner in used(launcher, [item]):
            if owner and sources.has(seam.package) and (wrong := problems(seam, sources)):
                return f"refused: {wrong[0]}"
    return ""
