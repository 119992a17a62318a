"""Two workers on a core each against one on one core, and what the pool itself costs.

    python tests/bench/workers.py [--pairs 3] [--records 240] [--commands score logprobs baseline generate]

Each command works on a few records and then on all of them, with the same workers. The time between its two finished
files is its work; what comes before the first, the few records included, is its start. `generate --backend hf` has one
file, so that it is run on a sixth of the records and on all of them, and the difference is its work. The pool's cost:
two workers with blocks that sleep for a second, against blocks / 2 seconds.

Two cores are seldom twice as fast as one: they share caches, memory and power. What this machine can give is measured
beside it: the same command with one worker, twice at the same time, on a core each.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from common import ratio, reward_model, run, small_llama

WORDS = ["the", "old", "lamp", "went", "out", "over", "a", "quiet", "harbour", "and", "she", "counted"]
PART = 6  # the small run has one record in so many


def write_inputs(folder: Path, records: int) -> dict[str, tuple[Path, Path]]:
    """For each kind of data: a small file and a whole one."""
    from orlhf_ext.build_data import main as build_data

    rng = random.Random(0)

    def text(count: int) -> str:
        return " ".join(rng.choices(WORDS, k=count))

    pairs, talks = [], []
    for number in range(records):
        pairs.append({"id": f"q{number}", "prompt": text(100), "completions": [text(60) for _ in range(4)]})
        turns = (("user", f"{number}: {text(300)}"), ("assistant", text(150)))
        talks.append({"messages": [{"role": role, "content": words} for role, words in turns]})
    found = {}
    for count, size in ((records // PART, "small"), (records, "whole")):
        (folder / f"{size}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs[:count]))
        (folder / f"talks_{size}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in talks[:count]))
        build_data(["story", f"{folder}/talks_{size}.jsonl", "--out", f"{folder}/story_{size}"])
    found["samples"] = folder / "small.jsonl", folder / "whole.jsonl"
    found["stories"] = folder / "story_small" / "train.jsonl", folder / "story_whole" / "train.jsonl"
    return found


def measure(
    folder: Path, words: list[str], data: tuple[Path, Path], workers: int, apart: bool, core: int = 0
) -> tuple[float, float]:
    """Seconds of a command's work, and of its start; one worker has a core for itself."""
    folder.mkdir(exist_ok=True)
    outs = [folder / f"out{number}.jsonl" for number in range(2)]

    def one(data: tuple[Path, ...], outs: list[Path]) -> float:
        files = ["--data", *map(str, data), "--out", *map(str, outs), "--overwrite", "--workers", str(workers)]
        argv = [sys.executable, "-m", "orlhf_ext", *words, *files]
        return run(argv, folder / "run", core if workers == 1 else None).wall

    if apart:
        small, whole = (one((path,), [out]) for path, out in zip(data, outs, strict=True))
        work = (whole - small) * PART / (PART - 1)
    else:
        whole = one(data, outs)
        work = outs[1].stat().st_mtime - outs[0].stat().st_mtime
    for path in folder.glob("out[01].*"):
        path.unlink()
    return work, whole - work


def twins(folder: Path, words: list[str], data: tuple[Path, Path], apart: bool) -> float:
    """Mean seconds of the work of two commands at the same time, each with one worker on a core of its own."""
    with ThreadPoolExecutor(2) as threads:
        runs = [threads.submit(measure, folder / f"twin{core}", words, data, 1, apart, core) for core in (0, 1)]
        return statistics.mean(run.result()[0] for run in runs)


def sleep(payload: float) -> float:
    """A unit's work."""
    time.sleep(payload)
    return payload


def load_sleep() -> object:
    """What loads it."""
    return sleep


def pool_cost(blocks: int) -> float:
    """The pool's wall time above the sleep of its workers, as a part of that; its start is left out."""
    from orlhf_ext.models.pool import Pool

    with Pool(2) as pool:
        list(pool.run(load_sleep, [(f"w{number}", 0.01) for number in range(4)]))
        start = time.perf_counter()
        list(pool.run(load_sleep, [(f"u{number}", 1.0) for number in range(blocks)], total=blocks))
        return (time.perf_counter() - start) / (blocks / 2) - 1


def main() -> None:
    """Measure the commands, then the pool."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--records", type=int, default=240)
    parser.add_argument("--blocks", type=int, default=40, help="of a second each, for the pool's own cost")
    known = ["score", "logprobs", "baseline", "generate"]
    parser.add_argument("--commands", nargs="*", choices=known, default=known)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        llama = small_llama(folder)
        data = write_inputs(folder, args.records)
        reward = reward_model(folder, llama)
        lines = {
            "score": ("samples", f"score --model {reward} --max_len 512 --batch_tokens 1024"),
            "logprobs": ("samples", f"logprobs --model {llama} --max_len 512 --batch_tokens 1024"),
            "baseline": ("stories", f"vrcli baseline --model {llama} --batch_tokens 1024"),
            "generate": (
                "samples",
                f"generate --model {llama} --backend hf --num_completions 2 --max_new_tokens 32 --max_len 512",
            ),
        }
        for command in args.commands:
            kind, line = lines[command]
            speeds, machine, starts = [], [], []
            apart = command == "generate"
            for number in range(args.pairs):
                work = {}
                for workers in (1, 2) if number % 2 else (2, 1):
                    work[workers], start = measure(folder, line.split(), data[kind], workers, apart)
                    starts.append((workers, start))
                speeds.append(work[1] / work[2])
                machine.append(2 * work[1] / twins(folder, line.split(), data[kind], apart))
            told = ", ".join(
                f"{statistics.median(start for n, start in starts if n == workers):.1f} s with {workers}"
                for workers in (1, 2)
            )
            ratio(f"{command}: speed of two workers over one", speeds)
            ratio("  what two cores of this machine give (two commands at once)", machine)
            ratio("  of which two workers reach", [a / b for a, b in zip(speeds, machine, strict=True)])
            print(f"  work {work[1]:.1f} s with one; start-up {told} (medians)", flush=True)
        if args.blocks:
            print(f"the pool's own cost: {100 * pool_cost(args.blocks):.1f} % over {args.blocks} blocks of a second")


if __name__ == "__main__":
    main()
