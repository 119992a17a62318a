"""On Python 3.12: imports, builders and what is pure Python. The frameworks have locked wheels for 3.11 only."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

PLACES = ("/usr/bin", "/usr/local/bin", *sorted(map(str, Path.home().glob(".pyenv/versions/3.12*/bin"))))
BARE = (
    "filelock",
    "ijson",
    "numpy",
    "pydantic",
    "pyyaml",
    "requests",
    "rich",
    "scipy",
    "tenacity",
    "tqdm",
)  # what pyproject.toml asks for
TESTS = (
    "files/test_records",
    "data_builders/test_dialogues",
    "data_builders/test_hh",
    "data_builders/test_story",
    "data_builders/test_hh_groups",
    "data_builders/test_jigsaw",
    "data_builders/test_jigsaw_download",
    "data_builders/test_litbench",
    "data_builders/test_litbench_rehydrate",
    "litbench/test_verdict",
    "commands/test_evaluate",
    "extensions/test_inject",
)
CODE = """
import importlib, pkgutil, orlhf_ext, data_builders
names = [m.name for p in (orlhf_ext, data_builders) for m in pkgutil.walk_packages(p.__path__, p.__name__ + ".")]
heavy = [f"orlhf_ext.exo.{name}" for name in ("losses", "dataset", "trainer", "reference_cache")]
heavy += [f"orlhf_ext.rewards.{name}" for name in ("agent", "evaluation", "reference", "generator", "trainer")]
heavy += [
    f"orlhf_ext.groups.{name}"
    for name in ("dataset", "experience", "features", "heads", "losses", "model", "trainer")
]
heavy += [
    f"orlhf_ext.deadend.{name}"
    for name in ("actor", "dataset", "decoding", "hf", "loss", "model", "stepper", "trainer", "vllm")
]
heavy += ["orlhf_ext.reports.tally", "orlhf_ext.models.likelihood", "orlhf_ext.launch.cpu_engine"]
for name in names:
    if name not in heavy and not name.endswith("__main__"):
        importlib.import_module(name)
print(len(names))
"""


@pytest.mark.slow
def test_imports_builders_and_pure_functions(tmp_path: Path) -> None:
    python = next((Path(place) / "python3.12" for place in PLACES if (Path(place) / "python3.12").exists()), None)
    if python is None:
        pytest.skip("there is no Python 3.12 on this machine")

    def run(*words: str) -> str:
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        return done.stdout

    run(str(python), "-m", "venv", str(tmp_path / "env"))
    new = str(tmp_path / "env" / "bin" / "python")
    run(new, "-m", "pip", "install", "-q", "-q", "-c", "requirements-cpu.txt", *BARE, "setuptools>=77")
    run(new, "-m", "pip", "install", "-q", "-q", "--no-deps", "--no-build-isolation", str(ROOT))
    assert int(run(new, "-c", CODE)) > 20
    run(new, "-m", "orlhf_ext", "--help")
    run(new, "-m", "orlhf_ext.build_data", "hh", "--out", str(tmp_path / "hh"), "--kwise")
    run(new, "-m", "orlhf_ext.build_data", "story", "--out", str(tmp_path / "story"))
    ours = sys.executable
    run(ours, "-m", "orlhf_ext.build_data", "hh", "--out", str(tmp_path / "ours"), "--kwise")
    for name in ("train.jsonl", "test.jsonl", "train_kwise.jsonl"):
        assert (tmp_path / "hh" / name).read_bytes() == (tmp_path / "ours" / name).read_bytes()
    more = ("pytest", "hypothesis", "pyarrow", "tokenizers", "jinja2", "huggingface_hub", "praw", "zstandard", "pandas")
    run(new, "-m", "pip", "install", "-q", "-q", "-c", "requirements-cpu.txt", *more)
    files = [f"tests/{name}.py" for name in TESTS]
    run(new, "-m", "pytest", "-q", "-x", "-m", "not slow", "-k", "not torch and not bf16 and not cpu_device", *files)
