"""Run the steps of `steps.py`, each in a process of its own: see ``run.sh``.

    bash tests/gpu/run.sh [--out gpu.json] [--device cuda|cpu] [--size tiny|1b] [--only STEP...] [--limit SECONDS]

A step that fails, or takes longer than its limit, is told as that, and the next one is run. Exit code 1 if one failed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import steps


def run(name: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One step's outcome: its figures, or why there are none."""
    for module in steps.NEEDS.get(name, ()):
        if not steps.importable(module):
            return {"status": "left out", "why": f"{module} is not installed"}
    job = {"step": name, "device": args.device, "size": args.size, "folder": str(folder)}
    environment = dict(os.environ)
    if args.device == "cpu":
        environment |= {"CUDA_VISIBLE_DEVICES": "", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    log, found = folder / f"{name}.log", folder / f"{name}.json"
    start = time.perf_counter()
    with log.open("w") as stream:
        try:
            done = subprocess.run(
                [sys.executable, steps.__file__, json.dumps(job)],
                env=environment, cwd=folder, stdout=stream, stderr=subprocess.STDOUT, timeout=args.limit,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return {"status": "failed", "why": f"it took longer than {args.limit} s", "log": log.read_text()[-4000:]}
    if done.returncode or not found.exists():
        text = log.read_text()
        return {"status": "failed", "why": (text.strip().splitlines() or ["no output"])[-1], "log": text[-4000:]}
    return {"status": "passed", "seconds": round(time.perf_counter() - start, 1), **json.loads(found.read_text())}


def describe(value: Any) -> str:
    """A figure in the table."""
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {describe(one)}" for name, one in value.items())
    return ", ".join(map(describe, value)) if isinstance(value, list) else str(value)


def main() -> None:
    """Run what is asked for, smallest first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--size", choices=["tiny", "1b"], default="1b", help="of the random Llama that is timed")
    parser.add_argument("--only", nargs="+", choices=[*steps.STEPS], metavar="STEP", help=", ".join(steps.STEPS))
    parser.add_argument("--limit", type=float, default=600, help="seconds of a step (%(default)s)")
    args = parser.parse_args()
    if args.device == "cuda" and not steps.has_gpu():
        sys.exit("there is no GPU that torch can use (orlhf-ext doctor says why); give --device cpu to try the script")
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        for step in args.only or steps.STEPS:
            results[step] = found = run(step, args, Path(name))
            rest = {key: value for key, value in found.items() if key not in ("status", "log")}
            print(f"{step:10} {found['status']:9} {describe(rest)}", flush=True)
            new = args.out.with_name(f".{args.out.name}.new")  # what was measured stays, whatever comes
            new.write_text(json.dumps(results, indent=1) + "\n")
            new.replace(args.out)
    failed = [step for step, found in results.items() if found["status"] == "failed"]
    print(f"{args.out}: {len(results) - len(failed)} of {len(results)} steps did not fail")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
