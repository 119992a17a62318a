"""How often a reward model prefers the better story, with intervals, and what its preference owes to length.

``orlhf-ext litbench evaluate --pairs scored.jsonl --out O.json``: a Bradley-Terry model, on the test pairs
that ``orlhf-ext score`` has scored.

``orlhf-ext litbench evaluate --data D.jsonl --verdicts V.jsonl --logprobs L.jsonl --out O.json``: a
generative one. D is the builder's rationales_test.jsonl, each test pair in both orders. V is what
``orlhf-ext generate`` made of it (an answer each, at temperature 0; one without a verdict is wrong), and L what
``orlhf-ext logprobs --no_eos`` made of it (which verdict is more likely, A or B?); one of the two will do. Accuracy is
that of each pair's primary order.

Beside O.json are the table, as O.md and O.csv, and a record for each pair, as O.records.jsonl.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..cli.errors import UserError, command
from ..cli.flags import make_parser
from ..files.records import Line, Record, object_or_empty, read_records
from ..files.sidecars import sidecar_path
from ..models.texts import Sample, Text, numbers, read_samples, reply_text
from ..reports import summaries
from ..reports.examples import plain
from ..reports.summaries import write_summary
from ..reports.tables import Column, Table
from .accuracy import BUCKETS, MUCH_LONGER_RATIO, length_ratio, measure, measure_orders, share
from .verdict import parse_verdict

if TYPE_CHECKING:
    from .accuracy import Array

BUILD = "give rationales_test.jsonl as build_data litbench rationales writes it"

#: the judges' names in the summary, and in the table
JUDGES = {
    "reward_model": "reward model",
    "verdict": "verdict",
    "logprob": "log-prob",
    "longer_story": "longer story wins",
}


def percent(value: float) -> str:
    """Percent with one decimal, without their sign."""
    return f"{value:.1%}".removesuffix("%")


#: key of `measure` -> title and form in the table
NUMBERS: dict[str, tuple[str, str | Callable[[float], str]]] = {
    "accuracy": ("accuracy", percent),
    "ties": ("ties, no verdict", "{:d} pairs"),
    "accuracy_without_ties": ("without these", percent),
    "length_controlled": ("length-controlled", percent),
    **{f"accuracy_{name}": (name.replace("_", " "), percent) for name in BUCKETS},
    "picks_longer": ("picks the longer", percent),
    "length_correlation": ("length correlation", "{:z.2f}"),
    "parse_rate": ("verdicts parsed", percent),
    "share_a": ("A preferred", percent),
    "both_orders": ("both orders", percent),
    "consistency": ("consistent", percent),
    "joined": ("orders joined", percent),
    "share_a_both_orders": ("A in both orders", percent),
}


class Order(NamedTuple):
    """A test pair as the judge reads it, in one of its two orders."""

    where: str
    id: str
    pair: str
    #: +1 if story A is the chosen one, -1 if it is B
    sign: int
    primary: bool
    #: of the chosen and the rejected story
    words: tuple[int, int]
    #: what the judge reads
    prompt: Text


class Both(NamedTuple):
    """A pair's two orders; data may be limited to the primary ones."""

    first: Order
    second: Order | None


def read_orders(path: str) -> list[Both]:
    """The pairs of a file, in its order.

    Raises:
        UserError: a record lacks what the builder writes, an id is there twice, or a pair's orders do not fit together.
    """
    found: dict[str, list[Order]] = {}
    seen: dict[str, str] = {}
    for line in read_records(path):
        order = _order(line)
        if order.id in seen:
            raise UserError(f"{order.where} has the id {order.id!r} of {seen[order.id]}; {BUILD}")
        seen[order.id] = order.where
        found.setdefault(order.pair, []).append(order)
    if not found:
        raise UserError(f"{path} has no record; {BUILD}")
    pairs = []
    for name, orders in found.items():
        orders.sort(key=lambda order: not order.primary)
        first, *others = orders
        fits = len(others) < 2 and all(one.sign != first.sign and one.words == first.words for one in others)
        if not fits or sum(order.primary for order in orders) != 1:
            raise UserError(f"{orders[-1].where} does not fit to the other order of the pair {name!r}; {BUILD}")
        pairs.append(Both(first, others[0] if others else None))
    return pairs


def _order(line: Line) -> Order:
    row = line.record
    words = row.get("words")
    checks = {
        "id": isinstance(row.get("id"), str),
        "pair": isinstance(row.get("pair"), str),
        "label": row.get("label") in ("A", "B"),
        "primary": isinstance(row.get("primary"), bool),
        "words": isinstance(words, list) and len(words) == 2 and all(isinstance(n, int) and n >= 0 for n in words),
    }
    if bad := [key for key, right in checks.items() if not right]:
        raise UserError(f"{line.where} has no {bad[0]} that says which story is the better one; {BUILD}")
    a, b = row["words"]
    chosen_first = row["label"] == "A"
    return Order(
        line.where,
        row["id"],
        row["pair"],
        1 if chosen_first else -1,
        row["primary"],
        (a, b) if chosen_first else (b, a),
        row.get("prompt") or "",
    )


def read_answers(path: str, pairs: Sequence[Both], read: Callable[[Sample], float]) -> dict[str, float]:
    """What a judge says of each order: above 0 for A, below 0 for B, 0 for neither.

    Args:
        path: samples with the orders' ids.
        pairs: all of them.
        read: the number of one sample.

    Raises:
        UserError: an order has no sample, or a sample no order.
    """
    ids = [order.id for both in pairs for order in both if order]
    found = {sample.id: sample for sample in read_samples(path)}
    if lost := [identifier for identifier in ids if identifier not in found]:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise UserError(f"{path} lacks the id {lost[0]!r}{more}, which --data has; answer the whole of --data")
    known = set(ids)
    if stray := next((sample for sample in found.values() if sample.id not in known), None):
        raise UserError(f"{stray.name} is not in --data; give the answers to that file")
    return {identifier: read(found[identifier]) for identifier in ids}


def lean_of_verdict(sample: Sample) -> float:
    """+1 for the verdict A, -1 for B, 0 without one. Raises UserError if there is more than one answer."""
    if len(sample.completions) != 1:
        raise UserError(
            f"{sample.name} has {len(sample.completions)} answers; sample one for each, with --temperature 0"
        )
    return {"A": 1.0, "B": -1.0, None: 0.0}[parse_verdict(reply_text(sample.completions[0]))]


def lean_of_logprobs(sample: Sample, key: str) -> float:
    """The log-probability of the answer A minus that of the answer B, in nats.
    Raises UserError if there are none, or the completions are not these two answers."""
    if [parse_verdict(reply_text(completion)) for completion in sample.completions] != ["A", "B"]:
        raise UserError(f"{sample.name} has other completions than the verdicts A and B, in this order; {BUILD}")
    values = numbers(sample, key)
    if not values:
        raise UserError(f"{sample.name} has no {key}; run orlhf-ext logprobs --no_eos on --data, or give another key")
    return values[0] - values[1]


def judge_orders(pairs: Sequence[Both], leans: Mapping[str, float], seed: int) -> dict[str, Any]:
    """`measure` of the primary orders; ``share_a`` of their decisions, ``gold_share_a`` of their labels.

    Where every pair has both orders, also `measure_orders`, and ``share_a_both_orders``.
    """
    first = np.array([leans[both.first.id] for both in pairs])
    signs = np.array([both.first.sign for both in pairs])
    out = measure(first * signs, words_of(pairs))
    out |= share("share_a", first[first != 0] > 0)
    out["gold_share_a"] = float((signs > 0).mean())
    second = np.array([leans[both.second.id] for both in pairs if both.second])
    if len(second) == len(pairs):
        out |= measure_orders(first * signs, -second * signs, seed)
        both = np.r_[first, second]
        out |= share("share_a_both_orders", both[both != 0] > 0)
    return out


def words_of(pairs: Sequence[Both]) -> Array:
    """``(pairs, 2)``, words of the chosen and the rejected stories."""
    return np.array([both.first.words for both in pairs], dtype=np.float64)


def evaluate_scores(path: str) -> tuple[dict[str, Any], list[Record]]:
    """The metrics of a Bradley-Terry model and of the longer story, and a record for each pair.
    Raises UserError if a record has not two stories with a finite reward each; it is named."""
    samples = read_samples(path, no_prompt=True)
    scores, words = [], []
    for sample in samples:
        rewards = numbers(sample, "rewards")
        if len(rewards) != 2:
            what = "no rewards" if not rewards else f"{len(rewards)} rewards"
            raise UserError(f"{sample.name} has {what}, and a pair has two; give pairs that orlhf-ext score has scored")
        scores.append(rewards)
        words.append([len(reply_text(story).split()) for story in sample.completions])
    table = np.array(scores)
    margins, lengths = table[:, 0] - table[:, 1], np.array(words, dtype=np.float64)
    rows: list[Record] = [
        {
            "id": sample.id,
            "prompt": plain(sample.prompt).strip(),
            "words": count,
            "margin": rewards[0] - rewards[1],
            "answers": {
                name: summaries.answer(text, {"reward": reward})
                for name, text, reward in zip(("chosen", "rejected"), sample.completions, rewards, strict=True)
            },
        }
        for sample, rewards, count in zip(samples, scores, words, strict=True)
    ]
    return {"reward_model": measure(margins, lengths), "longer_story": longer_story(lengths)}, rows


def longer_story(words: Array) -> dict[str, Any]:
    """The metrics of a judge that prefers the longer story, whatever it is about; without the numbers that say so."""
    found = measure(length_ratio(words), words)
    return {key: value for key, value in found.items() if not key.startswith(("picks_longer", "length_correlation"))}


def evaluate_answers(args: argparse.Namespace) -> tuple[dict[str, Any], list[Record]]:
    """The metrics of a generative model's verdicts and log-probabilities, and a record for each pair.
    Raises UserError as `read_orders` and `read_answers` do."""
    pairs = read_orders(args.data)
    metrics: dict[str, Any] = {}
    rows: list[Record] = [
        {
            "id": both.first.pair,
            "prompt": plain(both.first.prompt).strip(),
            "label": "A" if both.first.sign > 0 else "B",
            "words": list(both.first.words),
            "answers": {"judge": {"text": "", "scores": {}}},
        }
        for both in pairs
    ]
    if args.verdicts:
        leans = read_answers(args.verdicts, pairs, lean_of_verdict)
        metrics["verdict"] = judge_orders(pairs, leans, args.seed)
        parsed = np.array([leans[both.first.id] != 0 for both in pairs])
        metrics["verdict"] |= share("parse_rate", parsed)
        _put(rows, pairs, "verdict", {name: {1.0: "A", -1.0: "B"}.get(lean) for name, lean in leans.items()})
        replies = {sample.id: plain(sample.completions[0]).strip() for sample in read_samples(args.verdicts)}
        for row, both in zip(rows, pairs, strict=True):
            row["answers"]["judge"]["text"] = replies[both.first.id]
            row["answers"]["judge"]["scores"]["verdict"] = leans[both.first.id] * both.first.sign
    if args.logprobs:
        leans = read_answers(args.logprobs, pairs, lambda sample: lean_of_logprobs(sample, args.logprobs_key))
        metrics["logprob"] = judge_orders(pairs, leans, args.seed)
        _put(rows, pairs, "logprob_a_minus_b", leans)
        for row, both in zip(rows, pairs, strict=True):
            row["margin"] = row["answers"]["judge"]["scores"]["log-prob"] = leans[both.first.id] * both.first.sign
    return {**metrics, "longer_story": longer_story(words_of(pairs))}, rows


def _put(rows: Sequence[Record], pairs: Sequence[Both], key: str, values: Mapping[str, Any]) -> None:
    """What a judge says of each pair, as ``KEY`` in its primary order and ``KEY_swapped`` in the other."""
    for row, both in zip(rows, pairs, strict=True):
        row[key] = values[both.first.id]
        if both.second:
            row[f"{key}_swapped"] = values[both.second.id]


def origin(path: str) -> str | None:
    """Where a file's pairs come from, as the builder's sidecar has it; that of scored pairs names their file."""
    for _ in range(2):
        meta = object_or_empty(sidecar_path(path))
        if "builder" in meta:
            return meta.get("test_source")
        if not (path := meta.get("data", {}).get("path", "")):
            break
    return None


def table_of(metrics: Mapping[str, Any]) -> Table:
    """The table of all judges."""
    columns = []
    for key, (title, form) in NUMBERS.items():
        if (bucket := key.removeprefix("accuracy_")) in BUCKETS:
            title += f" ({metrics['longer_story'][f'pairs_{bucket}']})"
        columns.append(Column(key, title, form))
    rows = [{"judge": name, **metrics[name]} for name in JUDGES if name in metrics]
    return Table([Column("judge", "", JUDGES.__getitem__)], columns, rows)


def caption(metrics: Mapping[str, Any]) -> str:
    """What the table is of."""
    return f"{metrics['pairs']} test pairs ({metrics['test_source'] or 'of unknown origin'}); in %, [95 % interval]"


NOTE = f"shorter, longer: the chosen story, in words; much: by a ratio of {MUCH_LONGER_RATIO} or more"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = make_parser("orlhf-ext litbench evaluate", __doc__)
    add = parser.add_argument
    add("--pairs", metavar="FILE", help="Bradley-Terry: the test pairs, scored by orlhf-ext score")
    add("--data", metavar="FILE", help="generative: the test pairs in both orders, rationales_test.jsonl")
    add("--verdicts", metavar="FILE", help="answers to --data, by orlhf-ext generate")
    add("--logprobs", metavar="FILE", help="log-probabilities of the two verdicts of --data, by orlhf-ext logprobs")
    add("--logprobs_key", default="logprobs", metavar="NAME", help="the column of log-probabilities (%(default)s)")
    summaries.add_flags(parser)
    args = parser.parse_args(argv)
    summaries.check_flags(args, "litbench.evaluate")
    answers = args.verdicts or args.logprobs
    if bool(args.pairs) == bool(answers) or bool(answers) != bool(args.data):
        raise UserError("give --pairs FILE alone, or --data FILE with --verdicts FILE, --logprobs FILE or both")
    return args


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Read, measure, write, print."""
    args = parse(argv)
    metrics, rows = evaluate_scores(args.pairs) if args.pairs else evaluate_answers(args)
    metrics = {"pairs": len(rows), "test_source": origin(args.pairs or args.data), **metrics}
    table, title = table_of(metrics), caption(metrics)
    summary = {**args.run, "command": "litbench.evaluate", "metrics": metrics}
    write_summary(args.out, summary, f"{title}\n\n{table.markdown(across=True)}\n{NOTE}\n", table.csv(), rows)
    table.show(title, [NOTE], across=True, gap=" ")


if __name__ == "__main__":
    main()
