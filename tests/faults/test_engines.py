"""Engines that die, and processes that die before their engines: with vLLM's real engine process, on the CPU."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.launcher

SAMPLES = """
import os, sys
import psutil
from orlhf_ext.models.engines import load_vllm
from orlhf_ext.models.pool import Pool
from orlhf_ext.models.samplers import Prompt, Sampling, VllmSampler
from orlhf_ext.cli.errors import command
from pathlib import Path

@command
def main():
    sampling = Sampling(1, 1.0, 1.0, 0, 400, 440, 0)
    llm = load_vllm(Path(sys.argv[1]), sampling, 4)
    engines = [one for one in psutil.Process().children() if "EngineCore" in one.name() + " ".join(one.cmdline())]
    print("ENGINE", engines[0].pid, flush=True)
    units = [(str(i), [Prompt(str(i), [5, 6, 7])]) for i in range(4)]
    stream = Pool().run(lambda: VllmSampler(llm, sampling, 4), units)
    if sys.argv[2] == "engine":
        engines[0].kill()
    else:
        os.kill(os.getpid(), 9)
    print(list(stream))

if __name__ == "__main__":
    main()
"""
#: vLLM's engine in a process of its own, as on a GPU
OWN = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "OMP_NUM_THREADS": "1"}


@pytest.fixture
def script(tmp_path: Path) -> list[str]:
    (tmp_path / "samples.py").write_text(SAMPLES)
    return [sys.executable, str(tmp_path / "samples.py")]


def test_a_killed_engine_ends_the_sampling(fault: Any, script: list[str], tiny_model: Path) -> None:
    """vLLM's client would wait for it for ever."""
    says = "engine process died .*; finished records are kept"
    fault.run([*script, tiny_model, "engine"], says=says, timeout=600, **OWN)


@pytest.mark.slow
def test_a_killed_process_leaves_no_engine(script: list[str], tiny_model: Path, monkeypatch: Any) -> None:
    for name, value in OWN.items():
        monkeypatch.setenv(name, value)
    done = subprocess.run([*script, str(tiny_model), "parent"], capture_output=True, text=True, timeout=600)
    assert done.returncode == -9, done.stderr[-2000:]
    (pid,) = (int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("ENGINE"))
    end = time.monotonic() + 30
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end, "the engine lives on"
        time.sleep(0.2)
