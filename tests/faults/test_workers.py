"""Workers on a Ray of two nodes: one that cannot do the work is refused in one sentence."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import free_port, write

pytest.importorskip("ray")
from two_nodes import two_nodes

pytestmark = pytest.mark.launcher

WORDS = ("hello", "how", "are", "you", "fine")


def samples(path: Path, count: int) -> Path:
    """Prompts of many lengths, with two completions each."""
    rng = random.Random(0)
    texts = [[" ".join(rng.choices(WORDS, k=rng.randint(2, 40))) for _ in range(3)] for _ in range(count)]
    return write(path, [{"id": f"q{i}", "prompt": one, "completions": rest} for i, (one, *rest) in enumerate(texts)])


def scoring(model: Path, data: Path, folder: Path, workers: int) -> list[str]:
    words = f"score --model {model} --data {data} --out {folder}/out.jsonl --max_len 64 --workers {workers}"
    return [sys.executable, "-m", "orlhf_ext", *words.split()]


def test_too_few_gpus(fault: Any, reward_model: Path, tmp_path: Path) -> None:
    line = scoring(reward_model, samples(tmp_path / "samples.jsonl", 4), tmp_path, workers=3)
    with two_nodes(gpus=1) as cluster:
        says = r"--workers 3 with 1 GPUs each find too few: Ray has 1 \+ 1; lower --workers, or give more GPUs"
        fault.run(line, says=says, RAY_ADDRESS=cluster.address)


OTHER = """
import sys
import ray, ray._version
ray.__version__ = ray._version.version = "2.1.0"
from ray.scripts.scripts import main
sys.argv = ["ray", "start", "--head", "--block", "--num-cpus", "1", "--include-dashboard", "false",
            "--port", sys.argv[1], "--temp-dir", sys.argv[2], "--disable-usage-stats", "--node-ip-address", "127.0.0.1"]
main()
"""


@pytest.fixture
def other_ray() -> Iterator[str]:
    """The address of a Ray that says that it is of another version."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        words = [sys.executable, "-c", OTHER, port, folder]
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        process = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert process.stdout is not None
        end = time.monotonic() + 120
        try:
            while "Ray runtime started" not in process.stdout.readline():
                assert process.poll() is None and time.monotonic() < end
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(60)


def test_another_version(fault: Any, other_ray: str, reward_model: Path, tmp_path: Path) -> None:
    line = scoring(reward_model, samples(tmp_path / "samples.jsonl", 4), tmp_path, workers=2)
    says = r"another version of Ray or Python than this command \(Ray 2\.1\.0 and Python [\d.]+ there, .* here\); use"
    fault.run(line, says=says, RAY_ADDRESS=other_ray)
