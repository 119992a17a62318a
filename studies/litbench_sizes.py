"""What do more pairs bring a reward model of stories, and what do wrong labels take from it?

``python studies/litbench_sizes.py [--judge btrm] [--seeds 3] [--out TABLE.md] [--plot SIZES.svg] [--json FILE]``

Every number is of a model that ``PROFILE=cpu bash recipes/litbench_btrm.sh`` (or with ``--judge genrm``
``litbench_genrm.sh``) trained and measured on the bundled pairs of graded difficulty: SmolLM2-135M, 78 test pairs of 26
prompts that no training pair has. The recipes get 38, 76 or 152 training pairs, and go through them once, so that fewer
pairs are fewer optimizer steps, too, as in anyone's training; and the 152 with 15 or 30 % of the labels turned round.
They hold a tenth of them out for validation. A seed draws the prompts (the smaller sets are parts of the larger ones),
the turned labels, and the order of training. (A trial on another seed, with 17 steps for all sizes, did not tell 10
pairs from 152, 81 and 82 % right: steps are what is scarce.)

Said before any of this was run. A pair counts 1 where the judge prefers the better story, else 0; each prompt counts by
the mean over its three pairs and over the seeds, and intervals are Student's over the 26 prompts: they are about other
prompts, not about other seeds. *For* "more pairs help" counts that 152 pairs are above 38 with a 95 % interval of the
paired difference above 0, and *against* it an interval that includes 0. The judge *bears* a share of turned labels if
the interval of its loss, against the labels as they are, includes 0 and reaches no further than 10 points. The judge
goes by *length* if its length-controlled accuracy is more than 10 points below its accuracy. A generative judge's order
consistency, and the one of its log-probabilities, is reported, without a rule.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import add_outputs, interval, write_outputs

from data_builders.litbench.sources import BUNDLED
from orlhf_ext.files.records import read_records, write_jsonl

ROOT = Path(__file__).resolve().parent.parent
#: prompts of the training pairs, two pairs each, and the share of turned labels
CONDITIONS = ((19, 0.0), (38, 0.0), (76, 0.0), (76, 0.15), (76, 0.3))
WHOLE = (76, 0.0)  # all pairs as they are
#: in the recipe's summary
NAMES = {"btrm": "reward_model", "genrm": "logprob"}


def write_pairs(path: Path, seed: int, prompts: int, noise: float) -> None:
    """The training pairs of some prompts, in LitBench's columns, with a share of their labels turned round."""
    rows = [line.record for line in read_records(BUNDLED["graded"] / "train.jsonl")]
    names = list(dict.fromkeys(row["prompt"] for row in rows))
    random.Random(f"prompts {seed}").shuffle(names)
    chosen = [row for row in rows if row["prompt"] in set(names[:prompts])]
    turned = set(random.Random(f"labels {seed}").sample(range(len(chosen)), round(noise * len(chosen))))
    for i in turned:
        row = chosen[i]
        row["chosen_story"], row["rejected_story"] = row["rejected_story"], row["chosen_story"]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_jsonl(path, chosen)


def measure(judge: str, seed: int, prompts: int, noise: float, work: Path, profile: str) -> dict[str, Any]:
    """One model: its summary, and for each test pair whether it is right."""
    out = work / f"{judge}-{profile}-{prompts}-{noise:g}-{seed}"
    pairs = out.with_name(f"{out.name}.jsonl")  # not with_suffix: a share has a point
    write_pairs(pairs, seed, prompts, noise)
    settings = {
        "PROFILE": profile,
        "LITBENCH_DATA": str(pairs),
        "TEST_FILE": str(BUNDLED["graded"] / "test.jsonl"),
        "OUT": str(out),
        "SEED": str(seed),
        "EPOCHS": "1",  # the generative one's recipe has more
    }
    began = time.monotonic()
    subprocess.run(["bash", str(ROOT / f"recipes/litbench_{judge}.sh")], env={**os.environ, **settings}, check=True)
    summary = json.loads((out / "summary.json").read_text())
    test = [line.record["prompt"] for line in read_records(BUNDLED["graded"] / "test.jsonl")]
    right: dict[str, list[float]] = {prompt: [] for prompt in test}
    for line in read_records(out / "results" / summary["run"] / "summary.records.jsonl"):
        prompt = next(prompt for prompt in right if prompt in line.record["prompt"])
        right[prompt].append(float(line.record["margin"] > 0))
    return {
        "judge": judge,
        "seed": seed,
        "prompts": prompts,
        "noise": noise,
        "seconds": time.monotonic() - began,
        "right": [statistics.mean(values) for values in right.values()],
        "metrics": summary["metrics"][NAMES[judge]],
    }


def of(results: Sequence[dict[str, Any]], prompts: int, noise: float) -> list[dict[str, Any]]:
    """The results of one condition, a seed each."""
    return [one for one in results if (one["prompts"], one["noise"]) == (prompts, noise)]


def rates(results: Sequence[dict[str, Any]], prompts: int, noise: float) -> list[float]:
    """The share of right pairs for each test prompt, in percent, a mean over seeds."""
    columns = zip(*(one["right"] for one in of(results, prompts, noise)), strict=True)
    return [100 * statistics.mean(column) for column in columns]


def mean_of(results: Sequence[dict[str, Any]], key: str) -> str:
    """A number of the recipe's summary, in percent, a mean over seeds."""
    values = [one["metrics"].get(key) for one in results]
    return "" if None in values else f"{100 * statistics.mean(values):.1f}"


def table(results: Sequence[dict[str, Any]]) -> str:
    """Markdown: accuracy with its interval, its seeds, control for length, and what was lost or won."""
    seeds = len(of(results, *CONDITIONS[0]))
    lines = [
        f"{seeds} seed{'s' * (seeds > 1)}, {len(results[0]['right'])} test prompts with three pairs each; in percent, "
        "± half of the 95 % interval.",
        "",
        "| training pairs | turned labels | accuracy | each seed | length-controlled | picks the longer "
        "| same in both orders | against all pairs as they are |",
        "|---|---|---|---|---|---|---|---|",
    ]
    whole = rates(results, *WHOLE)
    for prompts, noise in CONDITIONS:
        some, found = of(results, prompts, noise), rates(results, prompts, noise)
        mean, half = interval(found)
        change, apart = interval([a - b for a, b in zip(found, whole, strict=True)])
        each = ", ".join(f"{100 * one['metrics']['accuracy']:.0f}" for one in some)
        cells = [mean_of(some, key) for key in ("length_controlled", "picks_longer", "consistency")]
        against = "" if (prompts, noise) == WHOLE else f"{change:+.1f} ± {apart:.1f}"
        lines.append(
            f"| {2 * prompts} | {noise:.0%} | {mean:.1f} ± {half:.1f} | {each} | {' | '.join(cells)} | {against} |"
        )
    return "\n".join(lines) + "\n"


def plot(results: Sequence[dict[str, Any]], out: Path) -> None:
    """Accuracy against training pairs and against turned labels, each seed a point: an SVG file."""
    import altair as alt
    import pandas as pd

    rows = [
        {"pairs": 2 * one["prompts"], "turned": 100 * one["noise"], "accuracy": 100 * one["metrics"]["accuracy"]}
        for one in results
    ]
    frame, scale = pd.DataFrame(rows), alt.Scale(domain=[40, 100])
    sides = []
    for column, title, kept in (
        ("pairs", "training pairs", frame[frame.turned == 0]),
        ("turned", "turned labels (%)", frame[frame.pairs == frame.pairs.max()]),
    ):
        base = alt.Chart(kept).encode(x=alt.X(f"{column}:Q", title=title))
        points = base.mark_circle(size=40, opacity=0.6).encode(y=alt.Y("accuracy:Q", scale=scale))
        line = base.mark_line().encode(y=alt.Y("mean(accuracy):Q", scale=scale, title="accuracy (%)"))
        sides.append((points + line).properties(width=260, height=200))
    alt.hconcat(*sides).configure(background="white").save(str(out))


def main() -> None:
    """The whole study, one model after the other; what is there already is not trained again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--judge", choices=NAMES, default="btrm", help="the reward model, or the generative one (%(default)s)")
    add("--seeds", type=int, default=3, help="how many, from 0 (%(default)s)")
    add("--first", type=int, default=0, help="the first of them (%(default)s)")
    add("--profile", default="cpu", help="of the recipe (%(default)s)")
    add("--work", type=Path, default=ROOT / "outputs/litbench_sizes", help="folder of data and models (%(default)s)")
    add_outputs(parser)
    args = parser.parse_args()
    began = time.monotonic()
    results = [
        measure(args.judge, seed, *condition, args.work.resolve(), args.profile)
        for seed in range(args.first, args.first + args.seeds)
        for condition in CONDITIONS
    ]
    write_outputs(args, began, results, table(results), lambda out: plot(results, out))


if __name__ == "__main__":
    main()
