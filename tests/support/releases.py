"""Releases of OpenRLHF beside the one that is installed: their wheels, and environments that have them."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
import zipfile
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


def overlay(wheel: Path, folder: Path) -> Path:
    """The Python of an environment that has this OpenRLHF and, below it, all that is installed here: in a second."""
    venv.create(folder, symlinks=True, with_pip=False)
    site = Path(sysconfig.get_path("purelib", "venv", vars={"base": str(folder), "platbase": str(folder)}))
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            inner = name.partition(".data/purelib/")[2] or name
            if inner.startswith("openrlhf") and ".data/" not in inner and not inner.endswith("/"):
                (site / inner).parent.mkdir(parents=True, exist_ok=True)
                (site / inner).write_bytes(archive.read(name))
    (site / "zz.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = folder / "bin" / "python"
    said = subprocess.run(
        [python, "-c", "import importlib.metadata as m, openrlhf; print(m.version('openrlhf'), openrlhf.__file__)"],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert said[1].startswith(str(folder)) and said[0] in wheel.name and sys.prefix not in said[1], said
    return python
