"""A command on two nodes, and kills of whoever works for it.

A `Chaos` runs a command again and again on the same data. At random moments it kills (SIGKILL) one of its workers, a
node with all that runs there (another takes its place), or the command itself, which is then started again; and it
looks at what is left, and at what comes out.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
from two_nodes import TwoNodes

VICTIMS = ("worker", "node", "command")
_END = 300.0  # seconds that a run may take


class Chaos:
    """One command, whose output is known.

    Args:
        cluster: where its workers are.
        words: of the command, without ``--out`` and ``--workers``.
        folder: for outputs.
    """

    def __init__(self, cluster: TwoNodes, words: Sequence[str], folder: Path) -> None:
        self._cluster, self._words, self._folder = cluster, list(words), folder
        self._runs = 0
        folder.mkdir(parents=True, exist_ok=True)
        whole = folder / "whole.jsonl"
        process = self._start(whole, workers=1)
        self._most = 0
        while process.poll() is None:
            self._most = max(self._most, len(journal_keys(whole)))
            time.sleep(0.005)
        assert process.returncode == 0, whole.with_suffix(".log").read_text()[-3000:]
        self._wanted = (whole.read_bytes(), whole.with_suffix(".meta.json").read_bytes())

    def run(self, rng: random.Random, victims: Sequence[str]) -> list[str]:
        """One run with a kill of each victim, one after the other; what happened.

        Raises:
            AssertionError: a record is lost or doubled, something else is written, or a process lives on.
        """
        self._runs += 1
        out = self._folder / f"run{self._runs}.jsonl"
        places = sorted(rng.uniform(0.0, 0.9) for _ in victims)
        process, told, end = self._start(out), [], time.monotonic() + _END
        for place, victim in zip(places, victims, strict=True):
            while len(journal_keys(out)) < max(1, place * self._most):
                assert process.poll() in (None, 0) and time.monotonic() < end, self._log(out)
                if process.poll() == 0:
                    break
                time.sleep(0.01)
            if process.poll() is not None:
                break  # it was faster
            told.append(f"{victim} at {len(journal_keys(out))} of {self._most}")
            if victim == "command":
                process = self._kill_command(process, out)
            elif victim == "node":
                self._cluster.replace(rng.randrange(2))
            elif there := self._cluster.workers():
                with contextlib.suppress(psutil.NoSuchProcess):
                    rng.choice(there).kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(1.0, end - time.monotonic()))
        assert process.poll() == 0, self._log(out)
        assert (out.read_bytes(), out.with_suffix(".meta.json").read_bytes()) == self._wanted, "another output"
        assert not gone_in(self._cluster.workers(), 20), "a worker is left"
        return told

    def _kill_command(self, process: subprocess.Popen, out: Path) -> subprocess.Popen:
        workers = self._cluster.workers()
        process.kill()
        process.wait()
        assert not gone_in(workers, 20), "a worker outlives its command"
        keys = journal_keys(out)
        assert len(keys) == len(set(keys)), "a piece is kept twice"
        return self._start(out)

    def _start(self, out: Path, workers: int = 2) -> subprocess.Popen:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_ADDRESS": self._cluster.address}
        line = [sys.executable, "-m", "orlhf_ext", *self._words, "--out", str(out), "--workers", str(workers)]
        with out.with_suffix(".log").open("ab") as log:
            return subprocess.Popen(line, env=environment, stdout=log, stderr=log)

    @staticmethod
    def _log(out: Path) -> str:
        return out.with_suffix(".log").read_text(errors="replace")[-3000:]


def journal_keys(out: Path) -> list[str]:
    """The keys of the whole lines of an output's journal."""
    try:
        lines = out.with_name(f".{out.name}.part").read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    return [json.loads(line)["key"] for line in lines[1:-1]]


def gone_in(processes: Sequence[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Those of the processes that are alive after so long."""
    end = time.monotonic() + seconds
    alive = list(processes)
    while alive and time.monotonic() < end:
        alive = [one for one in alive if one.is_running() and _status(one) != psutil.STATUS_ZOMBIE]
        time.sleep(0.02)
    return alive


def _status(process: psutil.Process) -> str:
    try:
        return process.status()
    except psutil.NoSuchProcess:
        return psutil.STATUS_ZOMBIE
