"""`train_ppo_ray` on a Ray that runs already: as a submitted job, and with RAY_ADDRESS."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from ray_runs import ROOT, flags, launch, rollouts, run, write_inputs

pytest.importorskip("openrlhf")
pytest.importorskip("vllm")
pytest.importorskip("ray.dashboard.modules.job.job_head", reason="ray[default] is not installed")
pytestmark = [pytest.mark.launcher, pytest.mark.slow]

RAY = str(Path(sys.executable).with_name("ray"))

HOOK = """
import json, os

def mark():
    with open(os.environ["MARKS"], "a") as stream:
        words = {name: os.environ.get(name) for name in ("MINE", "NCCL_DEBUG", "OMP_NUM_THREADS")}
        stream.write(json.dumps({"pid": os.getpid(), **words}) + "\\n")
"""


class Head(NamedTuple):
    """A Ray that was started for the tests."""

    address: str
    dashboard: str


def free_ports(count: int) -> list[str]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [str(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """``ray start --head`` with GPUs that are only numbers; in a folder of its own, so that no other run joins it."""
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # short, because sockets lie under it
    port, dashboard, client, agent = free_ports(4)
    words = ["start", "--head", "--block", "--num-gpus", "6", "--num-cpus", "12", "--disable-usage-stats"]
    words += ["--node-ip-address", "127.0.0.1", "--port", port, "--dashboard-port", dashboard, "--temp-dir", folder]
    words += ["--ray-client-server-port", client, "--dashboard-agent-listen-port", agent]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    log = Path(folder) / "start.log"
    with log.open("w") as stream:
        process = subprocess.Popen([RAY, *words], env=environment, stdout=stream, stderr=stream)
    found = Head(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}")
    try:
        end = time.monotonic() + 120
        while subprocess.run([RAY, "job", "list", "--address", found.dashboard], capture_output=True).returncode:
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(1)
        yield found
    finally:
        process.terminate()  # and it stops what it started
        process.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_inputs(tmp_path, prompts=16)
    (tmp_path / "my_hook.py").write_text(HOOK)
    return tmp_path


def check_rewards(folder: Path) -> None:
    batches = rollouts(folder)
    assert len(batches) == 2
    for row in (row for batch in batches for row in batch):
        text = row["response"]
        assert row["reward"] == pytest.approx(sum("a" <= c <= "z" for c in text) / max(1, len(text)))


def test_a_submitted_job(tiny_model: Path, folder: Path, head: Head) -> None:
    """Its own variables, one of which OpenRLHF sets too, and its own hook are kept."""
    marks = folder / "marks.jsonl"
    variables = {"PYTHONPATH": str(ROOT), "MINE": "kept", "NCCL_DEBUG": "INFO", "MARKS": str(marks)}
    environment = {"env_vars": variables, "worker_process_setup_hook": "my_hook.mark"}
    where = {name: str(folder / "out" / name) for name in ("model", "checkpoints", "rollouts", "tb")}
    words = flags(
        tiny_model,
        ckpt__output_dir=where["model"],
        ckpt__path=where["checkpoints"],
        ext__rollouts_dir=where["rollouts"],
        logger__tensorboard_dir=where["tb"],
    )
    submit = [RAY, "job", "submit", "--address", head.dashboard, "--working-dir", str(folder)]
    submit += ["--runtime-env-json", json.dumps(environment), "--", sys.executable, "-m", "orlhf_ext.launch"]
    done = subprocess.run(
        [*submit, "train_ppo_ray", "--ext.reward", "my_rewards:Letters", *words],
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=540,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    assert "is now orlhf_ext.rewards.generator:RewardedSamples" in done.stdout
    check_rewards(folder)
    assert (folder / "out/model/config.json").is_file()
    marked = [json.loads(line) for line in marks.read_bytes().splitlines()]
    assert len({row["pid"] for row in marked}) >= 4  # trainer, policy, reference model, engine
    assert {(row["MINE"], row["NCCL_DEBUG"]) for row in marked} == {("kept", "INFO")}


def test_an_address(tiny_model: Path, folder: Path, head: Head) -> None:
    output = launch(folder, "--ext.reward", "my_rewards:Letters", *flags(tiny_model), RAY_ADDRESS=head.address)
    assert "is now orlhf_ext.rewards.generator:RewardedSamples" in output
    assert "Ray counts" not in output  # this Ray was told by its user
    check_rewards(folder)


def test_nobody_at_the_address(tiny_model: Path, folder: Path) -> None:
    words = flags(tiny_model, ext__rollouts_dir=None)
    done = run(folder, "-m", "orlhf_ext.launch", "train_ppo_ray", *words, RAY_ADDRESS=f"127.0.0.1:{free_ports(1)[0]}")
    assert done.returncode == 2
    told = [line for line in done.stdout.splitlines() if line.startswith("orlhf-ext: error:")]
    assert len(told) == 1 and "no Ray listens at " in told[0] and "(Connection refused)" in told[0]
