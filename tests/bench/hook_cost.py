"""What an idle Ray worker pays for the setup hook: ``python tests/bench/hook_cost.py [--workers 8]``; goal: less than
50 ms and 20 MB.

On a local Ray, workers with and without the hook start in turn. The hook is that of a run with rewards. Each worker
tells how long after its start it answered, and its resident memory. Those without the hook then call it, which tells
its own time, imports included, and its own memory, without the noise of two processes. Exits with 1 if a goal is
missed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from typing import Any

from common import ROOT, spread

GOALS = {"ms": 50.0, "MB": 20.0}


class Worker:
    """Measures the process that it is in; Ray sends it by value, so that nothing of this file is imported there."""

    def __init__(self) -> None:
        import psutil

        self._process = psutil.Process()
        self._born = 1000 * (time.time() - self._process.create_time())

    def idle(self) -> dict[str, float]:
        """Milliseconds from the start of this process to the first answer, and resident memory in MB."""
        return {"ms": self._born, "MB": self._process.memory_info().rss / 1e6}

    def pay(self, variables: dict[str, str]) -> dict[str, float]:
        """Call the hook here and now; its milliseconds and MB."""
        os.environ.update(variables)
        sys.path[:0] = variables["PYTHONPATH"].split(os.pathsep)
        before, start = self._process.memory_info().rss, time.perf_counter()
        from orlhf_ext.launch.ray_setup import setup

        setup()
        return {
            "ms": 1000 * (time.perf_counter() - start),
            "MB": (self._process.memory_info().rss - before) / 1e6,
        }

    def loaded(self) -> list[str]:
        """The modules of this project here."""
        return sorted(name for name in sys.modules if name.startswith("orlhf_ext"))


def start(ray: Any, number: int, variables: dict[str, str]) -> Any:
    """A worker in a process of its own."""
    environment = {"env_vars": {**variables, "ORLHF_EXT_BENCH": str(number)}}
    return ray.remote(num_cpus=0)(Worker).options(runtime_env=environment).remote()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=8, help="of each kind (%(default)s)")
    args = parser.parse_args()
    os.environ["PYTHONPATH"] = str(ROOT)
    import ray

    from orlhf_ext.extensions import inject
    from orlhf_ext.launch import ray_setup
    from orlhf_ext.rewards.extension import Rewards

    inject.to_environment(inject.plan([Rewards()]))
    variables: dict[str, str] = ray_setup.runtime_environment(os.environ)["env_vars"]
    hooked = {**variables, ray_setup._RAYS_HOOK: ray_setup.HOOK}
    found: dict[str, list[dict[str, float]]] = {"with": [], "without": [], "hook": []}
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        for number in range(args.workers + 1):  # the first two warm the caches of the disk
            for kind in ("with", "without") if number % 2 else ("without", "with"):
                worker = start(ray, number, hooked if kind == "with" else variables)
                idle = ray.get(worker.idle.remote())
                assert bool(ray.get(worker.loaded.remote())) == (kind == "with"), "the hook is not where it should be"
                cost = ray.get(worker.pay.remote(variables)) if kind == "without" else None
                if number:
                    found[kind].append(idle)
                    found["hook"] += [cost] if cost else []
                ray.kill(worker)
    finally:
        ray.shutdown()
    for unit, what in (("ms", "start"), ("MB", "memory")):
        for kind in ("with", "without"):
            spread(f"{what}, worker {kind} the hook", [one[unit] for one in found[kind]], unit)
        spread(f"{what}, the hook itself", [one[unit] for one in found["hook"]], unit)
    missed = [unit for unit, goal in GOALS.items() if statistics.median(one[unit] for one in found["hook"]) >= goal]
    if missed:
        sys.exit(f"goals missed: {', '.join(f'{GOALS[unit]:g} {unit}' for unit in missed)}")


if __name__ == "__main__":
    main()
