"""Compare policies for each group: ``orlhf-ext groups evaluate --groups G --sft S --policy gold=P --out O``

Every file has samples of the same prompts with gold ``traits`` (``orlhf-ext groups score``), joined by id. A group's
gold score of a response is its weighted sum of traits; of several samples of a prompt the scores' mean counts, and all
pairs for a win rate, where a tie is one half (in a strict rate, none). Intervals are 95 % bootstrap intervals over
prompts. The table is written beside --out O.json, as O.md and O.csv, and a record for each prompt, as O.records.jsonl.

``--grid SUMMARY.json ... --out GRID.json`` joins the summaries of several runs, which have proportion, k and seed in
them by --run: a row for each proportion, k, method and group, with the mean over seeds and Student's 95 % interval.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ..cli.errors import UserError, command
from ..cli.flags import INNER, make_parser, named_paths, whole
from ..files.records import Record, is_number, read_object
from ..models.texts import Sample, read_samples
from ..reports import summaries
from ..reports.examples import plain, print_examples
from ..reports.statistics import (
    Interval,
    Lists,
    bootstrap,
    least_mean_gain,
    mean_and_error,
    prompt_means,
    t_interval,
    win_rates,
)
from ..reports.summaries import write_summary
from ..reports.tables import Column, Table
from .config import Group, group_scores, read_groups, trait_fault, wanted_traits

MIN_OVERLAP = 0.9  # of each file's prompts
WORST = ("worst_group", "worst_group_name")
RUN = ("proportion", "k", "seed")


@dataclass(frozen=True)
class Scored:
    """One file's samples by id, and for each group and id a gold score for each completion."""

    path: str
    samples: dict[str, Sample]
    scores: dict[str, dict[str, list[float]]]

    def of(self, group: str, ids: Sequence[str]) -> Lists:
        """A group's scores in the order of ids."""
        found = self.scores[group]
        return [found[identifier] for identifier in ids]


def read_scored(path: str, groups: Sequence[Group]) -> Scored:
    """Read samples with traits.

    Raises:
        UserError: a record lacks traits, or one that a group weighs, or a value is not a finite number; it is named.
    """
    samples = {sample.id: sample for sample in read_samples(path)}
    scores: dict[str, dict[str, list[float]]] = {group.name: {} for group in groups}
    for identifier, sample in samples.items():
        traits = sample.record.get("traits")
        if fault := trait_fault(traits, wanted_traits(groups), len(sample.completions)):
            raise UserError(f"{sample.name} has {fault}; score the whole file with orlhf-ext groups score")
        rows = group_scores(groups, traits, sample.name)  # type: ignore[arg-type]
        for place, group in enumerate(groups):
            scores[group.name][identifier] = [row[place] for row in rows]
    return Scored(path, samples, scores)


def common_ids(files: Sequence[Scored], force: bool = False) -> list[str]:
    """The ids that all files have, in the first one's order.

    Raises:
        UserError: a file has less than 90 % of its prompts in common with the others (unless ``force``) or none, or
            an id has another prompt.
    """
    first, *others = files
    ids = [identifier for identifier in first.samples if all(identifier in other.samples for other in others)]
    largest = max(files, key=lambda one: len(one.samples))
    share = len(ids) / len(largest.samples)
    if not ids or (share < MIN_OVERLAP and not force):
        smallest = min(files, key=lambda one: len(one.samples))
        way = "" if not ids else ", or compare what is common with --force"
        raise UserError(
            f"only {len(ids)} of the {len(largest.samples)} prompts of {largest.path} are in every file "
            f"({smallest.path} has {len(smallest.samples)}); give files that were sampled on the same prompts{way}"
        )
    for other in others:
        for identifier in ids:
            if other.samples[identifier].prompt != first.samples[identifier].prompt:
                raise UserError(
                    f"{other.samples[identifier].name} has another prompt than {first.samples[identifier].where}; "
                    "give files that were sampled on the same prompts, in one style"
                )
    return ids


def measure(ours: Lists, against: Mapping[str, Lists], seed: int) -> dict[str, Any]:
    """The numbers of one method for one group.

    Args:
        ours: gold scores, for each prompt one for each completion.
        against: the same of the methods to compare with.
        seed: of the bootstrap.

    Returns:
        ``gold_mean``, ``gold_se`` (sample deviation of the prompts' means / sqrt n; None for one prompt), ``gold_low``
        and ``gold_high``; for each other method ``win_rate_vs_NAME`` with ``_low`` and ``_high``, and ``_strict``
        (the last three are None against itself).
    """
    means = prompt_means(ours)
    mean, error = mean_and_error(means)
    out: dict[str, Any] = {"gold_mean": mean, "gold_se": error, **bootstrap(means, seed).of("gold")}
    for name, theirs in against.items():
        key, rates = f"win_rate_vs_{name}", win_rates(ours, theirs)
        # a method against itself ties with itself: nothing to tell about prompts
        same = ours is theirs
        interval = Interval(None, None) if same else bootstrap(rates, seed)
        out |= {key: float(rates.mean()), **interval.of(key)}
        out[f"{key}_strict"] = None if same else float(win_rates(ours, theirs, tie=0).mean())
    return out


def compare(
    methods: Mapping[str, Scored], groups: Sequence[str], baseline: str, ids: Sequence[str], seed: int = 0
) -> dict[str, dict[str, Any]]:
    """``{method: {group: see `measure`, "worst_group": least of the groups' means, "worst_group_name": its name}}``."""
    scores = {name: {group: scored.of(group, ids) for group in groups} for name, scored in methods.items()}
    metrics: dict[str, dict[str, Any]] = {}
    for name, own in scores.items():
        rows = {
            group: measure(own[group], {other: scores[other][group] for other in (baseline, "sft")}, seed)
            for group in groups
        }
        worst = min(groups, key=lambda group: rows[group]["gold_mean"])
        metrics[name] = {**rows, "worst_group": rows[worst]["gold_mean"], "worst_group_name": worst}
    return metrics


def worst_group_gains(
    methods: Mapping[str, Scored], groups: Sequence[str], ids: Sequence[str], seed: int = 0
) -> dict[str, dict[str, Any]]:
    """``{policy: {other method: {"mean", "low", "high"}}}``: what its worst group has above the other's worst group,
    paired over prompts."""
    scores = {name: [scored.of(group, ids) for group in groups] for name, scored in methods.items()}
    return {
        name: {other: least_mean_gain(own, theirs, seed) for other, theirs in scores.items() if other != name}
        for name, own in scores.items()
        if name != "sft"
    }


def gains_table(gains: Mapping[str, Mapping[str, Any]]) -> Table:
    """The table of `worst_group_gains`: a row for each policy, a column for what it is compared with."""
    others = ["sft", *gains]
    columns = [
        Column(f"{other}_mean", f"over {other.replace('sft', 'SFT')}", "{:+.3f}", interval=other) for other in others
    ]
    rows = [
        {"method": name} | {f"{other}_{key}": value for other, gain in row.items() for key, value in gain.items()}
        for name, row in gains.items()
    ]
    return Table([Column("method", "worst group of")], columns, rows)


def prompt_records(methods: Mapping[str, Scored], groups: Sequence[str], ids: Sequence[str]) -> list[Record]:
    """A record for each prompt: each method's first answer, with the mean gold score of its answers for each group."""
    return [
        {
            "id": identifier,
            "prompt": plain(methods["sft"].samples[identifier].prompt).strip(),
            "answers": {
                name: summaries.answer(
                    scored.samples[identifier].completions[0],
                    {group: float(np.mean(scored.scores[group][identifier])) for group in groups},
                )
                for name, scored in methods.items()
            },
        }
        for identifier in ids
    ]


def join_summaries(paths: Sequence[str]) -> dict[str, Any]:
    """One table of several runs.

    Returns:
        ``runs``, how many; ``baseline``; ``rows`` with ``proportion, k, method, group, seeds`` and the means over seeds
        of `measure`'s ``gold_mean`` and win rates, with ``gold_low``, ``..._low`` and so on from Student's interval
        (None for one seed). The group ``worst_group`` is the least group's gold score of each run.

    Raises:
        UserError: one is not such a summary, two are of one run, or their baselines differ.
    """
    found: dict[tuple[Any, ...], dict[int, Record]] = {}
    seen: dict[tuple[Any, ...], str] = {}
    baselines: dict[str, str] = {}
    for path in paths:
        summary = _read_summary(path)
        run = tuple(summary[key] for key in RUN)
        if run in seen:
            raise UserError(f"--grid {path} has the proportion, k and seed of {seen[run]}; give each run once")
        seen[run] = path
        baselines.setdefault(summary["baseline"], path)
        for method, metrics in summary["metrics"].items():
            for group, value in metrics.items():
                if group != WORST[1]:
                    numbers = {"gold_mean": value} if group == WORST[0] else value
                    found.setdefault((*run[:2], method, group), {})[run[2]] = numbers
    if len(baselines) > 1:
        (one, a), (two, b) = list(baselines.items())[:2]
        raise UserError(f"--grid {a} compares with {one} and {b} with {two}; evaluate both with one --baseline")
    baseline = next(iter(baselines))
    cells = sorted(found, key=lambda cell: [(value is not None, value or 0) for value in cell[:2]])  # stable
    rows = []
    for cell in cells:
        of_seed = found[cell]
        row: Record = dict(zip(("proportion", "k", "method", "group"), cell, strict=True)) | {"seeds": list(of_seed)}
        for key in ("gold", *rates(baseline)):
            for suffix in ("_mean",) if key == "gold" else ("", "_strict"):
                values = [one[key + suffix] for one in of_seed.values() if one.get(key + suffix) is not None]
                if values:
                    row[key + suffix] = float(np.mean(values))
                    if suffix != "_strict":
                        row |= t_interval(np.array(values, dtype=np.float64)).of(key)
        rows.append(row)
    return {"runs": len(paths), "baseline": baseline, "rows": rows}


def _read_summary(path: str) -> dict[str, Any]:
    summary = read_object(path, "give what orlhf-ext groups evaluate wrote at --grid")
    metrics = summary.get("metrics")
    if not isinstance(metrics, dict) or not all(isinstance(m, dict) and WORST[0] in m for m in metrics.values()):
        raise UserError(f"--grid {path} is not a summary of groups; give what orlhf-ext groups evaluate wrote")
    if lost := [key for key in ("baseline", *RUN) if key not in summary]:
        raise UserError(f"--grid {path} has no {lost[0]}; put it into the JSON file of --run and evaluate again")
    for key in RUN:
        if not is_number(summary[key]) and not (key == "k" and summary[key] is None):
            raise UserError(f"--grid {path} has {summary[key]!r} as {key}, which is not a number; fix it")
    return summary


def rates(baseline: str) -> list[str]:
    """The names of the win rates."""
    return [f"win_rate_vs_{name}" for name in dict.fromkeys((baseline, "sft"))]


def table_of(rows: Sequence[Record], baseline: str, names: Sequence[str]) -> Table:
    """The table of rows that ``names`` tell apart; the worst of a method's groups is marked."""
    columns = [Column("gold_mean", "gold score", "{:z.3f}", error="gold_se", interval="gold")]
    for key in rates(baseline):
        title = key.replace("win_rate_vs_", "wins vs ").replace("sft", "SFT")
        columns.append(Column(key, title, "{:.1%}", more=partial(_strict, f"{key}_strict")))
    *first, last = names
    return Table([*(Column(name, name) for name in first), Column(last, last, more=_worst)], columns, rows)


def _strict(key: str, row: Mapping[str, Any], gap: str) -> str:
    return "" if row.get(key) is None else f"{gap}strict {row[key]:.1%}"


def _worst(row: Mapping[str, Any], gap: str) -> str:
    return " (worst)" if row.get("worst") else ""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = make_parser("orlhf-ext groups evaluate", __doc__)
    add = parser.add_argument
    add("--groups", metavar="FILE", help="groups and their trait weights, YAML")
    add("--sft", metavar="FILE", help="scored samples of the SFT model")
    add("--policy", action="append", default=[], metavar="METHOD=FILE", help="scored samples of a policy; repeatable")
    add("--baseline", default="gold", metavar="METHOD", help="the method that win rates are against (%(default)s)")
    add("--proportion", type=INNER, help="share of the first of two groups, instead of the file's")
    add("--show", type=whole(), default=0, metavar="N", help="print N prompts with SFT's and the last policy's answer")
    add("--force", action="store_true", help="compare files that have less than 90 %% of their prompts in common")
    add("--grid", nargs="+", metavar="SUMMARY", help="join these summaries into one table; with --out alone")
    summaries.add_flags(parser)
    args = parser.parse_args(argv)
    summaries.check_flags(args, "groups.evaluate")
    if args.grid:
        if args.groups or args.sft or args.policy or args.run:
            raise UserError("--grid joins summaries that are there already; give it --out alone")
        return args
    if not (args.groups and args.sft):
        raise UserError("evaluate needs --groups FILE.yaml and --sft FILE, or --grid SUMMARY.json ...")
    return args


def named_files(args: argparse.Namespace) -> dict[str, str]:
    """The methods' files, SFT's first.

    Raises:
        UserError: a ``--policy`` is not METHOD=FILE, a name is given twice or is ``sft``, or there is no baseline.
    """
    files = named_paths([f"sft={args.sft}", *args.policy], "--policy", "METHOD=FILE")
    if args.baseline not in files:
        raise UserError(
            f"--baseline {args.baseline} is not a method that was given; add --policy {args.baseline}=FILE, or name "
            f"one of {', '.join(files)}"
        )
    return files


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Read, compare, write, print."""
    args = parse(argv)
    if args.grid:
        grid = join_summaries(args.grid)
        table = table_of(grid["rows"], grid["baseline"], ["proportion", "k", "method", "group"])
        write_summary(args.out, {**grid, "command": "groups.evaluate"}, table.markdown(), table.csv())
        table.show(f"{grid['runs']} runs; means over seeds, [95 % interval]")
        return
    files = named_files(args)
    groups = read_groups(args.groups, args.proportion)
    names = [group.name for group in groups]
    if taken := [name for name in names if name in WORST]:
        raise UserError(f"--groups {args.groups} has a group named {taken[0]!r}, a key of the summary; rename it")
    methods = {name: read_scored(path, groups) for name, path in files.items()}
    ids = common_ids(list(methods.values()), args.force)
    metrics = compare(methods, names, args.baseline, ids, args.seed)
    run = {} if args.proportion is None else {"proportion": args.proportion}
    gains = worst_group_gains(methods, names, ids, args.seed)
    summary = {**run, **args.run, "baseline": args.baseline, "prompts": len(ids), "metrics": metrics}
    summary["worst_group_gains"] = gains
    rows = [
        {"method": name, "group": group, **found[group], "worst": found["worst_group_name"] == group}
        for name, found in metrics.items()
        for group in names
    ]
    table = table_of(rows, args.baseline, ["method", "group"])
    records = prompt_records(methods, names, ids)
    markdown, above = table.markdown(), gains_table(gains)
    if gains:
        markdown += "\n" + above.markdown()
    write_summary(args.out, {**summary, "command": "groups.evaluate"}, markdown, table.csv(), records)
    last = list(methods)[-1]
    print_examples(args.show, {key: methods["sft"].samples[key] for key in ids}, last, methods[last].samples)
    table.show(f"{len(ids)} held-out prompts; ± standard error, [95 % interval]; ties ½, strict 0")
    if gains:
        above.show("worst group's gold score, row over column; paired over prompts, [95 % interval]")


if __name__ == "__main__":
    main()
