"""Two nodes of a Ray on this machine."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from typing import Any

import psutil
from helpers import ROOT


class TwoNodes:
    """A head without cores, and two nodes with one each; ``gpus`` of each node are only numbers."""

    def __init__(self, cpus: int = 1, gpus: int = 0) -> None:
        from ray.cluster_utils import Cluster

        self._own = {"num_cpus": cpus, "num_gpus": gpus}
        self._cluster: Any = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "num_gpus": 0, "include_dashboard": False}
        )
        self.nodes = [self._cluster.add_node(**self._own) for _ in range(2)]
        self.address = str(self._cluster.address)

    def replace(self, number: int) -> None:
        """Kill a node with all its processes, and add another."""
        self._cluster.remove_node(self.nodes.pop(number), allow_graceful=False)
        self.nodes.append(self._cluster.add_node(**self._own))

    def workers(self) -> list[psutil.Process]:
        """The actors of our pools on all nodes."""
        return [one for node in self.nodes for one in _below(self._raylet(node)) if "ray::_Worker" in _name(one)]

    @staticmethod
    def _raylet(node: Any) -> int:
        return int(node.all_processes["raylet"][0].process.pid)

    def close(self) -> None:
        """End it."""
        self._cluster.shutdown()


@contextlib.contextmanager
def two_nodes(**words: int) -> Iterator[TwoNodes]:
    """`TwoNodes` in a folder of its own, and gone at the end."""
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        before = dict(os.environ)
        os.environ.update(RAY_TMPDIR=folder, RAY_memory_monitor_refresh_ms="0", RAY_worker_niceness="0")
        os.environ["PYTHONPATH"] = f"{ROOT}:{ROOT / 'tests/support'}"
        os.environ.pop("RAY_ADDRESS", None)
        try:
            cluster = TwoNodes(**words)
            try:
                yield cluster
            finally:
                cluster.close()
        finally:
            os.environ.clear()
            os.environ.update(before)


def _below(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _name(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
