"""The diffs for OpenRLHF apply to the installed one, still compile, and name a seam of the table."""

from __future__ import annotations

import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from orlhf_ext.extensions import seams

PATCHES = sorted((Path(__file__).resolve().parents[2] / "patches").glob("*.patch"))
assert PATCHES


@pytest.mark.parametrize("patch", PATCHES, ids=lambda path: path.name)
def test_applies(patch: Path, tmp_path: Path) -> None:
    spec = find_spec("openrlhf")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("OpenRLHF is not installed")
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    package = Path(spec.submodule_search_locations[0])
    touched = [
        line[6:] for line in patch.read_text().splitlines() if line.startswith("+++ b/") and line.endswith(".py")
    ]
    assert touched
    for name in touched:
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(package.parent / name, target)
    done = subprocess.run(["git", "apply", str(patch)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in touched:
        source = (tmp_path / name).read_text()
        assert source != (package.parent / name).read_text()
        compile(source, name, "exec")


@pytest.mark.parametrize("patch", PATCHES, ids=lambda path: path.name)
def test_names_the_seam_that_it_would_retire(patch: Path) -> None:
    said = re.search(r"^Retires the seam ([\w.]+:[\w.]*\w)", patch.read_text().partition("\n--- ")[0], re.MULTILINE)
    assert said and seams.find(said[1]), said
