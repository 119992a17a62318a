"""The documentation as a site: built strictly, without a network, and its list of flags is current."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT


def test_the_list_of_flags_is_current(tmp_path: Path) -> None:
    out = tmp_path / "flags.md"
    subprocess.run([sys.executable, "docs/flags.py", "--out", str(out)], cwd=ROOT, check=True)
    current = out.read_text() == (ROOT / "docs/flags.md").read_text()
    assert current, "docs/flags.md is of other parsers; run python docs/flags.py"


def test_the_site(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="mkdocs-material is not installed: pip install -e '.[docs]'")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for page in ("index.html", "methods/exo.html"):
        text = (tmp_path / "site" / page).read_text()
        loaded = re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="?([^" >]+)', text)
        assert len(loaded) > 5 and not [url for url in loaded if "//" in url]  # nothing from a network
        for url in loaded:
            assert (tmp_path / "site" / page).parent.joinpath(url).exists(), url
    assert (tmp_path / "site/search/search_index.json").is_file()
