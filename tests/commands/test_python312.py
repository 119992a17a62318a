"""On Python 3.12: imports, builders and what is pure Python. The frameworks have locked wheels for 3.11 only."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from helpers import ROOT

PLACES = ("/usr/bin", "/usr/local/bin", *sorted(map(str, Path.home().glob(".pyenv/versions/3.12*/bin"))))
#: the tests of what is pure Python
TESTS = ("files", "extensions", "data_builders", "litbench/test_verdict.py", "commands/test_evaluate.py")
#: imports every module; those that need a framework, which is not installed, may not be commands
CODE = """
import importlib, pathlib, pkgutil, orlhf_ext, data_builders
frameworks = {"datasets", "deepspeed", "openrlhf", "pyarrow", "ray", "torch", "transformers", "vllm"}
for package in (orlhf_ext, data_builders):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if module.name.endswith("__main__"):
            continue
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            source = pathlib.Path(module.module_finder.find_spec(module.name).origin).read_text()
            if error.name.partition(".")[0] not in frameworks or "\\ndef main(" in source:
                raise
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

    bare = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    run(str(python), "-m", "venv", str(tmp_path / "env"))
    new = str(tmp_path / "env" / "bin" / "python")
    run(new, "-m", "pip", "install", "-q", "-q", "-c", "requirements-cpu.txt", *bare, "setuptools>=77")
    run(new, "-m", "pip", "install", "-q", "-q", "--no-deps", "--no-build-isolation", str(ROOT))
    run(new, "-c", CODE)
    run(new, "-m", "orlhf_ext", "--help")
    run(new, "-m", "orlhf_ext.build_data", "hh", "--out", str(tmp_path / "hh"), "--kwise")
    run(new, "-m", "orlhf_ext.build_data", "story", "--out", str(tmp_path / "story"))
    ours = sys.executable
    run(ours, "-m", "orlhf_ext.build_data", "hh", "--out", str(tmp_path / "ours"), "--kwise")
    for name in ("train.jsonl", "test.jsonl", "train_kwise.jsonl"):
        assert (tmp_path / "hh" / name).read_bytes() == (tmp_path / "ours" / name).read_bytes()
    more = ["pytest", "hypothesis", "psutil", "pyarrow", "tokenizers", "jinja2", "huggingface_hub"]
    more += ["praw", "zstandard", "pandas"]
    run(new, "-m", "pip", "install", "-q", "-q", "-c", "requirements-cpu.txt", *more)
    files = [f"tests/{name}" for name in TESTS]
    run(new, "-m", "pytest", "-q", "-x", "-m", "not slow", "-k", "not torch and not bf16 and not cpu_device", *files)
