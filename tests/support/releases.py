"""Releases of OpenRLHF beside the one that is installed: their wheels, and environments that have them."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from orlhf_ext.cli.errors import UserError
from orlhf_ext.commands.releases import download


def wheel(version: str, folder: Path) -> Path:
    """The wheel of a version; where there is no package index the test is skipped."""
    try:
        return download(version, folder)
    except UserError as error:
        pytest.skip(str(error))


def overlay(wheels: Sequence[Path], folder: Path) -> Path:
    """The Python of an environment that has these wheels and, below them, all that is installed here: in a second."""
    venv.create(folder, symlinks=True, with_pip=False)
    site = Path(sysconfig.get_path("purelib", "venv", vars={"base": str(folder), "platbase": str(folder)}))
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                inner = re.sub(r"^[^/]+\.data/(purelib|platlib)/", "", name)
                if ".data/" not in inner and not inner.endswith("/"):
                    (site / inner).parent.mkdir(parents=True, exist_ok=True)
                    (site / inner).write_bytes(archive.read(name))
    (site / "zz.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = folder / "bin" / "python"
    for wheel in wheels:
        name, version = wheel.name.split("-")[:2]
        code = (
            "import importlib.metadata as m, sys; d = m.distribution(sys.argv[1]); print(d.version, d.locate_file(''))"
        )
        said = subprocess.run([python, "-c", code, name], capture_output=True, text=True, check=True).stdout.split()
        assert said[0] == version and said[1].startswith(str(folder)) and sys.prefix not in said[1], said
    return python


def wheels_of(folder: Path, *requirements: str) -> list[Path]:
    """The wheels of these and no others; where there is no package index, or it lacks one, the test is skipped."""
    words = ["-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet", "--dest", str(folder)]
    done = subprocess.run([sys.executable, *words, *requirements], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot be downloaded: {(done.stderr.strip().splitlines() or [''])[-1]}")
    return sorted(folder.glob("*.whl"))
