"""What the studies share: their flags, seeds in processes, intervals, and results as they are written."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

TUNED_ON = 100  # the seed that settings are chosen on, none of those that are reported


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half of Student's 95 % interval (NaN for one value)."""
    import numpy as np
    from scipy import stats

    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values) if len(values) > 1 else float("nan")
    return float(np.mean(values)), float(half)


def add_workers(parser: argparse.ArgumentParser) -> None:
    """The flag of a study that runs in processes of its own."""
    parser.add_argument("--workers", type=int, default=2, help="processes (%(default)s)")


def add_outputs(parser: argparse.ArgumentParser) -> None:
    """The flags of every study for its results."""
    parser.add_argument("--out", type=Path, help="for the Markdown table")
    parser.add_argument("--plot", type=Path, help="for the plot, .svg")
    parser.add_argument("--json", type=Path, help="for all numbers")


def write_outputs(
    args: argparse.Namespace, began: float, results: Sequence[Any], text: str, draw_plot: Callable[[Path], None]
) -> None:
    """Print the table, and write what the flags of `add_outputs` ask for."""
    print(f"{text}\n{(time.monotonic() - began) / 60:.0f} minutes")
    if args.json:
        args.json.write_text(json.dumps(results))
    if args.out:
        args.out.write_text(text)
    if args.plot:
        draw_plot(args.plot)


def run(
    doc: str | None,
    study: Callable[..., Any],
    table: Callable[[Sequence[Any]], str],
    plot: Callable[[Sequence[Any], Path], None],
    tune: Callable[[], Any] | None = None,
) -> None:
    """A whole study from its command line.

    Args:
        doc: what ``--help`` says.
        study: the results of a seed; its second argument is what ``tune`` returns, if there is one.
        table: of all results, in Markdown.
        plot: of all results, written to a file.
        tune: chooses settings before any of the seeds, in a process of its own.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="how many, from 0 (%(default)s)")
    add_workers(parser)
    add_outputs(parser)
    args = parser.parse_args()
    began = time.monotonic()
    with ProcessPoolExecutor(args.workers) as pool:
        chosen = [pool.submit(tune).result()] if tune else []
        results = [one.result() for one in [pool.submit(study, seed, *chosen) for seed in range(args.seeds)]]
    write_outputs(args, began, results, table(results), lambda out: plot(results, out))
