"""The notebook of the examples, cell by cell, with the tiny model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from helpers import ROOT

NOTEBOOK = ROOT / "examples/walkthrough.ipynb"


def test_is_a_notebook_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.outputs for cell in notebook.cells if cell.cell_type == "code")


@pytest.mark.launcher
def test_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODEL", "tiny")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    names: dict[str, Any] = {}
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        magic, _, rest = "".join(cell["source"]).partition("\n")
        if cell["cell_type"] != "code":
            continue
        if magic.startswith("%%writefile "):
            Path(magic.split()[1]).write_text(rest, encoding="utf-8")
        elif magic == "%%bash":
            shell = ["bash", "-euo", "pipefail", "-c", rest]
            done = subprocess.run(shell, capture_output=True, text=True, timeout=1800)
            assert done.returncode == 0, done.stdout + done.stderr
        else:
            exec("".join(cell["source"]), names)
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed if "mean reward" in line] == [
        "train-000001.jsonl",
        "train-000002.jsonl",
    ]
    before, after = (float(line.split()[1]) for line in printed[-2:])
    assert after > before
