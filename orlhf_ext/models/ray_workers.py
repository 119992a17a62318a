"""Ray actors that work on records: where Ray is, whether it has room for them, and what they find there."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

from ..backends import machine
from ..backends.resources import cluster_address, knock
from ..cli.errors import UserError, brief

#: settings of a Ray of our own
_LOCAL = {
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",  # some of its processes would outlive a killed command by 60 s
    "RAY_worker_niceness": "0",  # not 15: on a busy machine, workers would starve
    "RAY_memory_monitor_refresh_ms": "0",  # it would end our workers because of what others take on this machine
}
#: variables that workers get, by their beginnings, but for secrets
_CARRIED = ("VLLM_", "NCCL_", "OMP_", "MKL_", "TORCH_", "HF_HUB_", "HF_HOME", "TRANSFORMERS_", "TOKENIZERS_")
_STARTS = 3  # of a Ray of our own, at most
_SECRET = ("TOKEN", "KEY", "SECRET", "PASSWORD")


def connect(workers: int, gpus: int, worker: type) -> Callable[[], Any]:
    """Connect to the Ray of RAY_ADDRESS, or start one on this machine.

    Args:
        workers: how many there will be.
        gpus: of each, where Ray has GPUs.
        worker: class of the actors, made of a folder and variables.

    Returns:
        what makes an actor.

    Raises:
        UserError: Ray is not installed, cannot be started or reached, is of another version, or has too few GPUs.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError(f"--workers {workers} needs Ray ({error}); install it, or leave --workers out") from error
    hidden = machine.gpus_hidden()
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray warns of what it will change
    # Only the Ray that the user names: whatever else runs on this machine may have no room.
    if address := _address():
        knock(address)
        path = [os.getcwd(), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        variables = {"PYTHONPATH": os.pathsep.join(dict.fromkeys(path))}
        settings |= {"address": address, "runtime_env": {"env_vars": variables}}
    else:
        settings |= {"address": "local", "include_dashboard": False, "object_store_memory": 1 << 28}
        for name, value in _LOCAL.items():
            os.environ.setdefault(name, value)
    try:
        _init(ray, settings)
    except Exception as error:  # of many kinds, from Ray's own to those of the system
        if "Version mismatch" in str(error):
            raise UserError(
                f"the Ray at {address} has another version of Ray or Python than this command ({_versions(error)}); "
                "use the environment that it was started in"
            ) from error
        raise UserError(
            f"Ray cannot be {'reached' if address else 'started'} ({_line(error)}); mend that, or leave --workers out"
        ) from error
    try:
        options = _options([node["Resources"] for node in ray.nodes() if node["Alive"]], workers, gpus, hidden)
    except UserError:
        ray.shutdown()
        raise
    carried = {machine.GPUS_HIDDEN: str(int(hidden))}
    for name, value in os.environ.items():
        if name.startswith(_CARRIED) and not name.endswith(_SECRET):
            carried[name] = value
    carried.setdefault("OMP_NUM_THREADS", str(max(1, int(options["num_cpus"]))))
    actor: Any = ray.remote(max_restarts=0, **options)(worker)
    return lambda: actor.remote(os.getcwd(), carried)


def _init(ray: Any, settings: dict[str, Any]) -> None:
    """Ray gives its own start half a minute, which a busy machine can take: that is tried again."""
    for left in reversed(range(_STARTS)):
        try:
            ray.init(**settings)
            return
        except RuntimeError as error:
            if not left or "timed out during startup" not in str(error):
                raise
            ray.shutdown()


def _address() -> str | None:
    if os.environ.get("RAY_ADDRESS", "local") == "local":
        return None
    if (address := cluster_address()) and "://" in address:
        raise UserError(
            f"RAY_ADDRESS {address} is a Ray Client's; give the head's HOST:PORT on a machine of that Ray, or use ray "
            "job submit"
        )
    return address


def _options(nodes: Sequence[dict[str, float]], workers: int, gpus: int, hidden: bool) -> dict[str, Any]:
    """What each worker asks Ray for, on machines with these resources.
    Raises UserError if there are GPUs, and not enough for all."""
    there = [int(node.get("GPU", 0)) for node in nodes]
    if any(there) and not hidden:
        if sum(count // gpus for count in there) < workers:
            each = " on one machine" if gpus > 1 else ""
            raise UserError(
                f"--workers {workers} with {gpus} GPUs each{each} find too few: Ray has "
                f"{' + '.join(map(str, filter(None, there)))}; lower --workers, or give more GPUs"
            )
        return {"num_gpus": gpus, "num_cpus": 1}
    return {"num_cpus": _cores([int(node.get("CPU", 0)) for node in nodes], workers), "scheduling_strategy": "SPREAD"}


def _cores(nodes: Sequence[int], workers: int) -> float:
    """The most cores of a worker, so that all find room; a part of one, where there are more workers than cores."""
    for cores in range(sum(nodes) // workers, 0, -1):
        if sum(node // cores for node in nodes) >= workers:
            return cores
    return int(10 * sum(nodes) / workers) / 10 or 0.1


def cause(error: Exception) -> str:
    """A worker's loss in a user's words, with the process and the machine that Ray names."""
    if "creation task" in str(error):  # it could not even begin
        return _line(error)
    told = {
        "ActorDiedError": "its process or machine died",
        "ActorUnavailableError": "it cannot be reached",
        "OutOfMemoryError": "Ray ended it, since its machine's memory is nearly full",
    }
    found = re.findall(r"^\s*(pid|ip): (\S+)", str(error), re.MULTILINE)
    where = "".join(f", {name} {value}" for name, value in found)
    return told.get(type(error).__name__, f"{type(error).__name__}: {brief(error)}") + where


def _versions(error: Exception) -> str:
    """Those of both sides of Ray's error."""
    there, here = re.findall(r"Ray: (\S+)\s+Python: (\S+)", str(error)) or [("?", "?")] * 2
    return f"Ray {there[0]} and Python {there[1]} there, {here[0]} and {here[1]} here"


def _line(error: Exception) -> str:
    """The last line of an error, which in a traceback says what happened."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()[:300]
