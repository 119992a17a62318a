"""One rule for the names of sidecars, whoever writes or reads them."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import ROOT

from data_builders.hh.prompts import licence_of
from orlhf_ext import build_data
from orlhf_ext.cli.errors import UserError
from orlhf_ext.files.built import Built, Counts
from orlhf_ext.files.journal import Journal
from orlhf_ext.files.outputs import builder_guard, check_file
from orlhf_ext.files.sidecars import sidecar_path
from orlhf_ext.litbench.evaluate import origin
from orlhf_ext.vrcli.fingerprint import read_fingerprint

#: data file -> sidecar
NAMES = {
    "eps0.3.jsonl": "eps0.3.meta.json",
    "a.b.jsonl.gz": "a.b.meta.json",
    "x.json": "x.meta.json",
    "x.1.parquet": "x.1.meta.json",
    "t.csv.gz": "t.meta.json",
    "v1.2": "v1.2.meta.json",
    "notes.txt": "notes.txt.meta.json",
    "x.jsonl.part": "x.jsonl.part.meta.json",
}
WRITTEN = ("eps0.3.jsonl", "a.b.jsonl.gz", "x.json")


@pytest.mark.parametrize("name", NAMES)
def test_the_rule(name: str) -> None:
    assert sidecar_path(f"some.folder/{name}") == Path("some.folder", NAMES[name])


def built(path: Path) -> None:
    """Write a data file and its sidecar as `build_data` does."""
    path.write_text("{}\n")
    details = {"test_source": "held out", "format": "hh"}
    builder = SimpleNamespace(name="litbench")
    build_data.write_sidecar(
        builder, argparse.Namespace(seed=0), Built(path, Counts(), [], licence="MIT", details=details)
    )


@pytest.mark.parametrize("name", WRITTEN)
def test_readers_find_the_sidecar_of_a_builder(tmp_path: Path, name: str) -> None:
    data = tmp_path / name
    built(data)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, NAMES[name]])
    assert origin(str(data)) == "held out" and licence_of(data) == "MIT"
    builder_guard("litbench", overwrite=False)(data, False)
    with pytest.raises(UserError, match="the builder hh did not make it"):
        builder_guard("hh", overwrite=False)(data, False)


@pytest.mark.parametrize("name", WRITTEN)
def test_readers_find_the_sidecar_of_a_command(tmp_path: Path, name: str) -> None:
    built(tmp_path / "data.jsonl")
    out = tmp_path / name
    meta = {"command": "score", "fingerprint": {"model": "m"}, "data": {"path": str(tmp_path / "data.jsonl")}}
    with Journal(out, {}) as journal:
        journal.finish(out, [], meta)
    assert json.loads((tmp_path / NAMES[name]).read_text()) == meta
    assert origin(str(out)) == "held out" and read_fingerprint(out) == {"model": "m"}
    check_file(out, command="score")
    with pytest.raises(UserError, match="generate did not make it"):
        check_file(out, command="generate")


@pytest.mark.launcher
@pytest.mark.parametrize("name", WRITTEN)
def test_stages_depend_on_the_sidecar(tmp_path: Path, name: str) -> None:
    built(tmp_path / name)
    line = [sys.executable, str(ROOT / "recipes/stage.py"), "run", "x", "--base", "b", "--out", "o"]
    line += ["--", "touch", "o", name]

    def run() -> str:
        return subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    assert "done in" in run() and "already done" in run()
    (tmp_path / NAMES[name]).write_text("{}")
    assert "done in" in run()
