"""Plans before and after training: ``orlhf-ext vrcli evaluate --before B.jsonl --after A.jsonl --out O.json``

Both files have scored plans for the same held-out records (``orlhf-ext vrcli score``), joined by id; of several samples
of a record the mean counts. Intervals are over records. With --others, scored plans that the trained model wrote for
other records (``vrcli score --plans_of_others``), the table also says whether plans help by what they say. Beside
O.json are the table, as O.md and O.csv, and a record for each held-out one, as O.records.jsonl, with its prompt where
--data has it.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..cli.errors import UserError, command
from ..cli.flags import make_parser, whole
from ..files.records import Record, is_number, read_records
from ..models.texts import read_prompts
from ..reports import summaries
from ..reports.examples import plain, spread
from ..reports.statistics import at_equal_length, mean_and_error, paired_difference, t_interval
from ..reports.summaries import write_summary
from ..reports.tables import Column, Table

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: key of a result -> its mean over records
COLUMNS = {
    "pct_improvement": Column("pct_improvement_mean", "improvement %", "{:+.3f}", interval="pct_improvement"),
    "reward": Column("reward_mean", "reward", "{:.3f}", interval="reward"),
    "marker": Column("marker_share", "with marker", "{:.1%}"),
    "empty": Column("empty_share", "empty", "{:.1%}"),
    "plan_tokens": Column("plan_tokens_mean", "plan tokens", "{:.1f}"),
}
_YES_OR_NO = ("marker", "empty")  # in a record
_WITH_INTERVAL = ("pct_improvement", "reward")

Results = dict[str, list[Record]]


def read_results(path: str) -> Results:
    """Scored plans by record id.
    Raises UserError if a line is not a scored plan, or is there twice, or if there is none."""
    found: Results = {}
    for line in read_records(path):
        row = line.record
        values = {key: row.get(key) for key in (*COLUMNS, "nll", "base_nll")}
        bad = [k for k, v in values.items() if not (is_number(v) or (k in _YES_OR_NO and isinstance(v, bool)))]
        if bad or not isinstance(row.get("id"), str) or not isinstance(row.get("plan"), str):
            lacks = f"no number {bad[0]}" if bad else "no id or no plan"
            raise UserError(f"{line.where} is not a scored plan ({lacks}); give what orlhf-ext vrcli score wrote")
        rows = found.setdefault(row["id"], [])
        if "sample" in row and any(other.get("sample") == row["sample"] for other in rows):
            raise UserError(
                f"{path} has sample {row['sample']} of the record with id {row['id']!r} twice; give what one run of "
                "orlhf-ext vrcli score wrote"
            )
        rows.append(row)
    if not found:
        raise UserError(f"{path} has no record; score some plans first")
    return found


def check_pair(before: Results, after: Results, names: tuple[str, str]) -> None:
    """Refuse two files that do not have the same records with the same baselines."""
    for one, other, name in ((before, after, names[1]), (after, before, names[0])):
        if lost := [identifier for identifier in one if identifier not in other]:
            more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
            raise UserError(f"{name} lacks the record with id {lost[0]!r}{more}; score plans of the same records")
    for identifier, rows in before.items():
        if len({row["base_nll"] for row in (*rows, *after[identifier])}) > 1:
            raise UserError(
                f"{names[0]} and {names[1]} have the record with id {identifier!r} with different baselines; score "
                "both with the same --data and --model"
            )


def record_means(results: Results, key: str, ids: Sequence[str]) -> NDArray[np.float64]:
    """The mean over the samples of each record, ``(ids,)``."""
    return np.array([np.mean([row[key] for row in results[identifier]]) for identifier in ids], dtype=np.float64)


def measure(results: Results, ids: Sequence[str]) -> dict[str, Any]:
    """All numbers of one policy.

    Returns:
        the means of `COLUMNS`; of improvement (in percent) and reward also ``_se``, and ``_low`` and ``_high`` of
        Student's 95 % interval, None for one record; ``pct_improvement_median``; ``improved_share``, the share of
        records whose mean improvement is above 0; ``samples``.
    """
    out: dict[str, Any] = {"samples": sum(len(results[identifier]) for identifier in ids)}
    for key, column in COLUMNS.items():
        values = record_means(results, key, ids)
        out[column.key], error = mean_and_error(values)
        if key in _WITH_INTERVAL:
            out |= {f"{key}_se": error, **t_interval(values).of(key)}
    gains = record_means(results, "pct_improvement", ids)
    return {**out, "pct_improvement_median": float(np.median(gains)), "improved_share": float((gains > 0).mean())}


def compare(before: Results, after: Results, seed: int = 0, others: Results | None = None) -> dict[str, Any]:
    """The metrics of both, and of the difference, paired over records.

    Returns:
        ``records``, ``before`` and ``after`` (see `measure`), ``change`` with the mean of after minus before of
        improvement and reward, Student's and the bootstrap's interval, and of improvement ``at_equal_length`` (see
        `reports.statistics.at_equal_length`); ``after_above_before``: whether the improvement's interval after
        training lies above the one before (None for one record); with plans of other records ``others``, their
        metrics, and ``change`` has ``own_minus_others``, of improvement after training.
    """
    ids = list(before)
    metrics: dict[str, Any] = {"records": len(ids), "before": measure(before, ids), "after": measure(after, ids)}
    metrics["change"] = {
        key: paired_difference(record_means(after, key, ids) - record_means(before, key, ids), seed)
        for key in _WITH_INTERVAL
    }

    def lists(results: Results, key: str) -> list[list[float]]:
        return [[row[key] for row in results[name]] for name in ids]

    metrics["change"]["at_equal_length"] = at_equal_length(
        lists(after, "pct_improvement"),
        lists(after, "plan_tokens"),
        lists(before, "pct_improvement"),
        lists(before, "plan_tokens"),
        seed,
    )
    if others:
        metrics["others"] = measure(others, ids)
        own, other = (record_means(results, "pct_improvement", ids) for results in (after, others))
        metrics["change"]["own_minus_others"] = paired_difference(own - other, seed)
    low, high = metrics["after"]["pct_improvement_low"], metrics["before"]["pct_improvement_high"]
    metrics["after_above_before"] = None if low is None else low > high
    return metrics


def prompt_records(before: Results, after: Results, prompts: Mapping[str, str]) -> list[Record]:
    """A record for each held-out one: the first plans before and after, with the means over all of its plans."""
    ids = list(before)
    answers: list[dict[str, Record]] = [{} for _ in ids]
    for when, results in (("before", before), ("after", after)):
        columns = {key: record_means(results, key, ids).tolist() for key in COLUMNS}
        for i, name in enumerate(ids):
            means = {key: values[i] for key, values in columns.items()}
            answers[i][when] = summaries.answer(results[name][0]["plan"], means)
    return [
        {"id": name, "prompt": prompts.get(name, ""), "base_nll": before[name][0]["base_nll"], "answers": answers[i]}
        for i, name in enumerate(ids)
    ]


def table_of(metrics: Mapping[str, Any]) -> Table:
    """The table of `compare`'s metrics."""
    names = {"before": "before", "after": "after", "others": "after, of others"}
    rows = [{"when": name, **metrics[key]} for key, name in names.items() if key in metrics]
    return Table([Column("when", "")], list(COLUMNS.values()), rows)


def print_table(metrics: Mapping[str, Any]) -> None:
    """The table on the terminal, and the change of the improvement under it."""
    change = metrics["change"]
    gap = change["pct_improvement"]
    if gap["low"] is None:
        note = f"improvement after minus before: {gap['mean']:+.3f} points (one record, no interval)"
    else:
        above = "lies above" if metrics["after_above_before"] else "does not lie above"
        note = (
            f"improvement after minus before, paired over records: {gap['mean']:+.3f} points "
            f"[{gap['low']:+.3f}, {gap['high']:+.3f}]; the interval after training {above} the one before"
        )
    notes = [note]
    for key, what in (
        ("at_equal_length", "improvement after minus before, at equal plan length"),
        ("own_minus_others", "improvement by plans of the record minus that by plans of others, paired"),
    ):
        if key in change and change[key]["low"] is not None:
            notes.append("{}: {mean:+.3f} points [{low:+.3f}, {high:+.3f}]".format(what, **change[key]))
    table_of(metrics).show(f"{metrics['records']} held-out records; [95 % interval]", notes)


def print_plans(count: int, before: Results, after: Results) -> None:
    """The first plans before and after of some records, evenly spread over the file."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    for identifier in spread(list(before), count):
        console.rule(f"record {plain(identifier)}")
        for when, row in (("before", before[identifier][0]), ("after", after[identifier][0])):
            worth = f"improvement {row['pct_improvement']:+.3f} %, reward {row['reward']:.3f}"
            console.print(f"-- {when} ({worth}):\n{plain(row['plan']).strip() or '(no plan)'}\n")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = make_parser("orlhf-ext vrcli evaluate", __doc__)
    add = parser.add_argument
    add("--before", required=True, metavar="FILE", help="scored plans of the model that training started from")
    add("--after", required=True, metavar="FILE", help="scored plans of the trained model")
    add("--others", metavar="FILE", help="scored plans of the trained model for other records")
    add("--data", metavar="FILE", help="the prompts of the plans, for the record of each")
    add("--show", type=whole(), default=3, metavar="N", help="print the plans of N records (%(default)s)")
    summaries.add_flags(parser)
    args = parser.parse_args(argv)
    summaries.check_flags(args, "vrcli.evaluate")
    return args


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Read, compare, write, print."""
    args = parse(argv)
    before, after = read_results(args.before), read_results(args.after)
    check_pair(before, after, (args.before, args.after))
    others = read_results(args.others) if args.others else None
    if others:
        check_pair(after, others, (args.after, args.others))
    prompts = {one.id: plain(one.prompt).strip() for one in read_prompts(args.data)} if args.data else {}
    metrics = compare(before, after, args.seed, others)
    table = table_of(metrics)
    summary = {**args.run, "command": "vrcli.evaluate", "metrics": metrics}
    write_summary(args.out, summary, table.markdown(), table.csv(), prompt_records(before, after, prompts))
    print_plans(args.show, before, after)
    print_table(metrics)


if __name__ == "__main__":
    main()
