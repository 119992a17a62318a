"""What ``--groups.cache_features`` saves in a sweep.

``python tests/bench/group_sweep.py [--configs 10] [--pairs 1] [--rows 400] [--epochs 3] [--model DIR]``

So many configurations (k, head, seed, proportion of the minority) of ``train_rm --ext.use group-rm`` on the same
texts, once with the cache, which the first of them fills, and once without. Told are the whole sweep's wall time, start
of each process included, and that of the steps and evaluations alone (first to last step).
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import Run, interleave, ratio, run, small_llama, spread

WORDS = ("bread", "river", "green", "seven", "music", "stone", "early", "paper")
LENGTH = 50  # words of an answer, about as many tokens
BATCH, MICRO = 16, 8


@dataclass(frozen=True)
class Config:
    """One training of the sweep."""

    head: str
    k: int | None
    seed: int
    proportion: float


CONFIGS = [
    Config("shared", 16, 1, 0.1),
    Config("independent", None, 1, 0.1),
    Config("shared", 2, 1, 0.1),
    Config("shared", 16, 2, 0.1),
    Config("shared", 16, 1, 0.2),
    Config("independent", None, 2, 0.1),
    Config("independent", None, 1, 0.2),
    Config("shared", 4, 1, 0.1),
    Config("shared", 8, 1, 0.1),
    Config("shared", 32, 1, 0.1),
]


def write_pairs(path: Path, texts: list[tuple[str, str]], proportion: float, seed: int) -> Path:
    """The same texts, with the groups of a proportion and a seed; the minority likes what the others do not."""
    generator = random.Random(seed)
    with path.open("w") as stream:
        for number, pair in enumerate(texts):
            group = 0 if generator.random() < proportion else 1
            chosen, rejected = sorted(pair, key=lambda text: text.count(WORDS[0]), reverse=group == 0)
            row = {"id": f"p-{number}", "group_id": group, "group": ("minority", "majority")[group], "style": "hh"}
            row |= {"prompt": f"\n\nHuman: number {number}?\n\nAssistant:", "chosen": chosen, "rejected": rejected}
            stream.write(json.dumps(row) + "\n")
    return path


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--configs", type=int, default=10, help=f"1 to {len(CONFIGS)} (%(default)s)")
    add("--pairs", type=int, default=1, help="of sweeps (%(default)s)")
    add("--rows", type=int, default=400, help="pairs of texts to train on (%(default)s)")
    add("--epochs", type=int, default=3, help="(%(default)s)")
    add("--model", type=Path, help="a Hugging Face folder (default: a random Llama, 17M)")
    args = parser.parse_args()
    configs = CONFIGS[: args.configs]
    generator = random.Random(0)
    texts = [
        tuple("".join(f" {generator.choice(WORDS)}" for _ in range(LENGTH)) for _ in range(2)) for _ in range(args.rows)
    ]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = (args.model or small_llama(folder)).resolve()
        training: dict[bool, list[float]] = {True: [], False: []}

        def sweep(out: Path, cached: bool) -> Run:
            runs = [one(out / str(number), config, out, cached) for number, config in enumerate(configs)]
            training[cached].append(sum(sum(done.steps) for done in runs))
            return Run(sum(done.wall for done in runs), [], max(done.peak_mib for done in runs), out)

        def one(out: Path, config: Config, sweep: Path, cached: bool) -> Run:
            out.mkdir(parents=True)
            data = write_pairs(out / "pairs.jsonl", texts, config.proportion, config.seed)  # type: ignore[arg-type]
            flags: list[Any] = ["--model.model_name_or_path", model, "--data.dataset", data]
            flags += ["--data.prompt_key", "prompt", "--data.max_len", 128, "--train.max_epochs", args.epochs]
            flags += ["--train.batch_size", BATCH, "--train.micro_batch_size", MICRO, "--train.seed", config.seed]
            flags += ["--adam.lr", "5e-4", "--groups.head", config.head, "--logger.tensorboard_dir", out / "tb"]
            flags += ["--ckpt.output_dir", out / "model", "--ckpt.path", out / "ckpt", "--logger.logging_steps", 1]
            flags += ["--groups.k", config.k] if config.k else []
            flags += ["--groups.cache_features", sweep / "cache"] if cached else []
            words = [sys.executable, "-m", "orlhf_ext.launch", "train_rm", "--ext.use", "group-rm", *flags]
            return run(words, out, HF_DATASETS_CACHE=str(out / "datasets"), HF_HUB_OFFLINE="1")

        pairs = interleave(lambda out: sweep(out, True), lambda out: sweep(out, False), args.pairs, warm_up=False)
    print(f"{len(configs)} configurations, {args.rows} pairs of answers of {LENGTH} words, {args.epochs} epochs")
    spread("sweep, cached", [a.wall for a, _ in pairs], "s")
    spread("sweep, uncached", [b.wall for _, b in pairs], "s")
    spread("steps of the sweep, cached", training[True], "s")
    spread("steps of the sweep, uncached", training[False], "s")
    ratio("whole sweep, uncached / cached", [b.wall / a.wall for a, b in pairs])
    ratio("steps, uncached / cached", [b / a for a, b in zip(training[True], training[False], strict=True)])


if __name__ == "__main__":
    main()
