"""What the benchmarks share: run a command, read its step times, and tell a ratio with its spread.

Every comparison interleaves its two sides (A B A B ..., or both at once on a core each), takes one ratio per pair, and
prints the median with a 95 % interval: the speed of a shared machine drifts, a ratio of neighbours does not.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Run:
    """One finished process: wall seconds, seconds of each logged step, peak memory in MiB, and its folder."""

    wall: float
    steps: list[float]
    peak_mib: float
    out: Path

    @property
    def step(self) -> float:
        """Median seconds per step, without the first two, which warm up."""
        return statistics.median(self.steps[2:])


def run(argv: Sequence[str | os.PathLike], out: Path, core: int | None = None, **env: str) -> Run:
    """Run one process; its steps are read from the TensorBoard events under ``out``/tb when there are any.

    ``core`` keeps it, and all that it starts, on one core.
    """
    out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with open(out / "log", "w") as log:
        process = subprocess.Popen(
            [str(word) for word in argv],
            cwd=out,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}", "OMP_NUM_THREADS": "1", **env},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        if core is not None:
            os.sched_setaffinity(process.pid, {core})
        _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    if status:
        sys.exit(f"a run of the benchmark failed; its log:\n{(out / 'log').read_text()[-3000:]}")
    return Run(wall, step_seconds(out / "tb"), _mib(usage), out)


def _mib(usage: resource.struct_rusage) -> float:
    return usage.ru_maxrss / 1024


def step_seconds(folder: Path, tag: str = "train/loss") -> list[float]:
    """Seconds between the logged steps of a run, from the wall times of its TensorBoard events."""
    times = [event.wall_time for event in scalar_events(folder, tag)]
    return [later - earlier for earlier, later in pairwise(times)]


def scalar_events(folder: Path, tag: str) -> list:
    """The TensorBoard events of one scalar, oldest first; nothing when there are none."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for path in sorted(folder.rglob("events.out.tfevents.*")):
        events = EventAccumulator(str(path.parent))
        events.Reload()
        if tag in events.Tags()["scalars"]:
            return events.Scalars(tag)
    return []


def interleave(
    a: Callable[[Path], Run], b: Callable[[Path], Run], pairs: int, warm_up: bool = True
) -> list[tuple[Run, Run]]:
    """Run the two sides in turn, one warm-up pair first that does not count."""
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(0 if warm_up else 1, pairs + 1):
            # every second pair runs the other side first, so that neither always comes after the other
            order = ((a, "a"), (b, "b")) if number % 2 == 0 else ((b, "b"), (a, "a"))
            done = {name: side(Path(folder) / f"{number}{name}") for side, name in order}
            if number:
                results.append((done["a"], done["b"]))
            print(f"  pair {number}/{pairs}" + ("" if number else " (warm-up)"), file=sys.stderr, flush=True)
    return results


def side_by_side(a: Callable[[Path, int], Run], b: Callable[[Path, int], Run], pairs: int) -> list[tuple[Run, Run]]:
    """Run the two sides at the same time, each on a core of its own, and change cores from pair to pair.

    For two sides of one thread that differ by a few percent: whatever slows the machine slows both.
    """
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        sys.exit("this benchmark needs two cores")
    results = []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        for number in range(pairs + 1):
            first, second = cores if number % 2 else cores[::-1]
            runs = [
                pool.submit(side, Path(folder) / f"{number}{name}", core)
                for side, name, core in ((a, "a", first), (b, "b", second))
            ]
            done = runs[0].result(), runs[1].result()
            if number:
                results.append(done)
            print(f"  pair {number}/{pairs}" + ("" if number else " (warm-up)"), file=sys.stderr, flush=True)
    return results


def ratio(name: str, values: Sequence[float]) -> dict[str, float]:
    """Median of the pairs' ratios with the 95 % t-interval of their geometric mean; printed and returned."""
    import numpy as np
    from scipy import stats

    logs = np.log(np.asarray(values))
    half = stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / np.sqrt(len(logs)) if len(logs) > 1 else float("nan")
    result = {
        "median": float(np.median(values)),
        "mean": float(np.exp(logs.mean())),
        "low": float(np.exp(logs.mean() - half)),
        "high": float(np.exp(logs.mean() + half)),
        "min": float(min(values)),
        "max": float(max(values)),
        "pairs": len(values),
    }
    print(
        f"{name}: median {result['median']:.3f}, mean {result['mean']:.3f} "
        f"[{result['low']:.3f}, {result['high']:.3f}] (95 %), range {result['min']:.3f} to {result['max']:.3f}, "
        f"{len(values)} pairs"
    )
    return result


def spread(name: str, values: Sequence[float], unit: str) -> None:
    """Print median, minimum and maximum of one side."""
    print(f"{name}: median {statistics.median(values):.3f} {unit} (min {min(values):.3f}, max {max(values):.3f})")


def tiny_model(folder: Path) -> Path:
    """The tiny random model of the tests."""
    from orlhf_ext.models.small_models import make_tiny

    return make_tiny(folder / "tiny")


def reward_model(folder: Path, base: Path) -> Path:
    """A random reward model of a causal model's shape."""
    from orlhf_ext import backends

    backends.install()
    import torch
    from openrlhf.models.model import get_llm_for_sequence_regression

    from orlhf_ext.models.folder import load_tokenizer

    torch.manual_seed(1)
    model = get_llm_for_sequence_regression(
        str(base), "reward", attn_implementation="sdpa", init_value_head=True, value_head_prefix="value"
    )
    model.config.value_head_prefix = "value"
    model.save_pretrained(folder / "rm")
    load_tokenizer(base).save_pretrained(folder / "rm")
    return folder / "rm"


def tiny_pairs(path: Path, rows: int) -> Path:
    """Pairs of a few dozen tokens."""
    with path.open("w") as stream:
        for i in range(rows):
            prompt = f"\n\nHuman: what are {i} and {i + 1}?\n\nAssistant:"
            stream.write(json.dumps({"prompt": prompt, "chosen": f" They are {2 * i + 1}.", "rejected": " no"}) + "\n")
    return path


def small_llama(folder: Path) -> Path:
    """A random bf16 Llama of 17 million weights with SmolLM2's tokenizer: steps of about a second on two cores."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from orlhf_ext.models.small_models import make_smollm2

    tokenizer = AutoTokenizer.from_pretrained(make_smollm2(ROOT / "models" / "smollm2-135m-instruct"))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    out = folder / "llama-17m"
    LlamaForCausalLM(config).bfloat16().save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out
