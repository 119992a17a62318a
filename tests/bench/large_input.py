"""Memory and speed of a command on a large input: ``orlhf-ext score`` with the tiny reward model on short records.

    python tests/bench/large_input.py [--records 100000 1000000] [--workers 1]

For each number of records: peak memory of the command itself (not of its workers), seconds, records per second. The
peak must not grow with the input.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path

from common import run


def write_records(path: Path, count: int) -> None:
    """Short records: a prompt of a few words, two completions of one or two."""
    rng = random.Random(0)
    words = ["hello", "how", "are", "you", "fine"]
    with path.open("w") as stream:
        for number in range(count):
            completions = [f" {rng.choice(words)}", f" {rng.choice(words)} {rng.choice(words)}"]
            record = {"id": f"q{number}", "prompt": f"{rng.choice(words)} {number}", "completions": completions}
            stream.write(json.dumps(record) + "\n")


def main() -> None:
    """Measure each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    from worker_kills import tiny_models

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _, reward = tiny_models(folder)
        for count in args.records:
            data = folder / f"{count}.jsonl"
            write_records(data, count)
            line = f"-m orlhf_ext score --model {reward} --data {data} --out {folder}/out.jsonl --max_len 64"
            done = run([sys.executable, *line.split(), "--workers", str(args.workers)], folder / str(count))
            speed = count / done.wall
            print(
                f"{count} records: peak {done.peak_mib:.0f} MiB, {done.wall:.0f} s, {speed:.0f} records/s", flush=True
            )


if __name__ == "__main__":
    main()
