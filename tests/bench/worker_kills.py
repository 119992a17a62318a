"""Kill workers, nodes and commands at random moments, and see that nothing is lost, doubled or left.

    python tests/bench/worker_kills.py [--kills 50] [--seed 0]

Three commands (score, logprobs, generate --backend hf) run by turns with two workers on a Ray of two nodes, on this
machine. Each run has one to three kills; its output must be that of an undisturbed run of one worker, to the byte. A
line for each run, and a sum.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from chaos import VICTIMS, Chaos
from common import reward_model, tiny_model
from two_nodes import two_nodes


def tiny_models(folder: Path) -> tuple[Path, Path]:
    """The tiny random model of the tests, and a reward model of its shape."""
    tiny = tiny_model(folder)
    return tiny, reward_model(folder, tiny)


def write_data(folder: Path) -> dict[str, list[str]]:
    """The words of each command, whose models and data are made in the folder."""
    tiny, reward = tiny_models(folder)
    rng = random.Random(0)
    with (folder / "samples.jsonl").open("w") as stream:
        for number in range(4000):
            words = [" ".join(rng.choices(["hello", "how", "are", "you"], k=rng.randint(2, 40))) for _ in range(3)]
            record = {"id": f"q{number}", "prompt": words[0], "completions": words[1:]}
            stream.write(json.dumps(record) + "\n")
    data = f"--data {folder}/samples.jsonl --max_len 256"
    lines = {
        "score": f"score --model {reward} {data} --batch_tokens 2048",
        "logprobs": f"logprobs --model {tiny} {data} --batch_tokens 2048",
        "generate": f"generate --model {tiny} {data} --backend hf --limit 1500 --num_completions 16 "
        "--max_new_tokens 32 --temperature 1",
    }
    return {name: line.split() for name, line in lines.items()}


def main() -> None:
    """Run until there were enough kills."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng, killed = random.Random(args.seed), Counter[str]()
    with tempfile.TemporaryDirectory() as folder, two_nodes() as cluster:
        commands = [
            (name, Chaos(cluster, words, Path(folder) / name)) for name, words in write_data(Path(folder)).items()
        ]
        runs = 0
        while killed.total() < args.kills:
            name, chaos = commands[runs % len(commands)]
            runs += 1
            start = time.monotonic()
            told = chaos.run(rng, [rng.choice(VICTIMS) for _ in range(rng.randint(1, 3))])
            killed.update(line.split()[0] for line in told)
            print(f"{name}: {', '.join(told) or 'nothing'}; equal, {time.monotonic() - start:.0f} s", flush=True)
    said = ", ".join(f"{count} {victim}s" for victim, count in sorted(killed.items()))
    print(f"{killed.total()} kills ({said}) in {runs} runs: 0 lost, 0 doubled, every output equal, no process left")


if __name__ == "__main__":
    main()
