"""A judge compares two policies: ``orlhf-ext judge compare --before B.jsonl --after A.jsonl --out O.json ...``

Both files have completions of the same records (``orlhf-ext generate``), as many of each; the first of one is compared
with the first of the other, and so on, in both orders. Where they also have rewards (``orlhf-ext score``), these are a
second measure, beside the judge and beside one that always takes the longer text. Intervals are over records.

Beside O.json are the table, as O.md and O.csv, and a record for each prompt, as O.records.jsonl.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..cli.errors import UserError, command
from ..cli.flags import make_parser, whole
from ..files.records import Record
from ..litbench.accuracy import length_controlled, length_correlation, length_ratio, share
from ..models.texts import Sample, numbers, read_samples, reply_text
from ..reports import summaries
from ..reports.examples import plain, spread
from ..reports.statistics import bootstrap
from ..reports.summaries import write_summary
from ..reports.tables import Column, Table
from ..rewards import RewardBatch, RewardContext, Rollout, arguments
from . import tournament
from .reward import Judge
from .tournament import Game

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

_AT_ONCE = 256  # pairs, between two steps of the progress bar


def percent(value: float) -> str:
    """Percent with one decimal, without their sign."""
    return f"{value:.1%}".removesuffix("%")


#: who says which of two texts is the better one
JUDGES = {"judge": "judge", "rewards": "reward model", "longer_text": "longer text wins"}
COLUMNS = [
    Column("win_rate", "after wins", percent),
    Column("mean_points", "its points", percent),
    Column("length_controlled", "length-controlled", percent),
    Column("picks_longer", "picks the longer", percent),
    Column("length_correlation", "length correlation", "{:z.2f}"),
    Column("agreement", "agrees with the judge", percent),
    Column("ties", "ties", percent),
    Column("consistency", "consistent", percent),
    Column("share_a", "A preferred", percent),
    Column("unreadable", "unreadable", percent),
]


def read_pairs(before: str, after: str) -> list[tuple[Sample, Sample]]:
    """The records of two files, by id, in the order of the first.
    Raises UserError if they have not the same records, with as many completions each."""
    found = [{sample.id: sample for sample in read_samples(path)} for path in (before, after)]
    for one, other, name in ((*found, after), (*found[::-1], before)):
        if lost := [identifier for identifier in one if identifier not in other]:
            more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
            raise UserError(f"{name} lacks the id {lost[0]!r}{more}, which the other file has; sample the same prompts")
    pairs = [(sample, found[1][identifier]) for identifier, sample in found[0].items()]
    for first, second in pairs:
        if len(first.completions) != len(second.completions):
            raise UserError(
                f"{second.name} has {len(second.completions)} completions, and {first.where} has "
                f"{len(first.completions)}; sample as many of each"
            )
    return pairs


def play(judge: Judge, pairs: Sequence[tuple[Sample, Sample]]) -> list[list[Game]]:
    """The games of each record: a completion after training is first, its counterpart before it second."""
    from tqdm import tqdm

    rollouts = [
        Rollout(f"{sample.name}, completion {k + 1}", prompt_of(sample), reply_text(sample.completions[k]), group=group)
        for group, (k, both) in enumerate((k, both) for both in pairs for k in range(len(both[0].completions)))
        for sample in both[::-1]
    ]
    games: list[Game] = []
    with tqdm(total=len(rollouts) // 2, desc="judging", unit="pair") as bar:
        for start in range(0, len(rollouts), 2 * _AT_ONCE):
            batch = RewardBatch(rollouts[start : start + 2 * _AT_ONCE])
            games += [game for row in judge.play(batch)[1] for game in row]
            bar.update(len(batch) // 2)
    own = iter(games)
    return [[next(own) for _ in both[0].completions] for both in pairs]


def prompt_of(sample: Sample) -> str:
    """A prompt as a judge is shown it: the text, or what a chat's last message says."""
    return reply_text(sample.prompt)


def measure(rates: Sequence[Sequence[float]], words: Array, seed: int) -> dict[str, Any]:
    """How often the completions after training win (a tie counts 1/2), and what of it is their length.

    Args:
        rates: for each record, the points of each completion after training against its counterpart, in [0, 1].
        words: ``(comparisons, 2)``, after and before.
        seed: of the bootstrap over records.
    """
    means = np.array([np.mean([_above(value, 0.5) for value in row]) for row in rates], dtype=np.float64)
    margins = np.array([value - 0.5 for row in rates for value in row], dtype=np.float64)
    ratios = length_ratio(words)
    leaning = np.sign(margins) * np.sign(ratios)
    out: dict[str, Any] = {"win_rate": float(means.mean()), **bootstrap(means, seed).of("win_rate")}
    out |= {"ties": float((margins == 0).mean()), **length_controlled(margins, ratios)}
    return (
        out
        | share("picks_longer", leaning[leaning != 0] > 0)
        | {"length_correlation": length_correlation(margins, ratios)}
    )


def compare(
    pairs: Sequence[tuple[Sample, Sample]], games: Sequence[Sequence[Game]], letters: bool, seed: int
) -> dict[str, Any]:
    """The metrics of all `JUDGES`, and of the texts' lengths.

    Args:
        pairs: of `read_pairs`.
        games: of `play`.
        letters: as in `tournament.points`.
        seed: of the bootstrap.
    """
    lengths = [[_words(sample) for sample in both[::-1]] for both in pairs]  # after, before
    words = np.array([two for both in lengths for two in zip(*both, strict=True)], dtype=np.float64)
    rates = [[tournament.points(game, letters) for game in row] for row in games]
    every = [game for row in games for game in row]
    metrics: dict[str, Any] = {"records": len(pairs), "comparisons": len(every)}
    metrics |= {"words_after": float(words[:, 0].mean()), "words_before": float(words[:, 1].mean())}
    metrics["judge"] = measure(rates, words, seed) | {
        name: getattr(tournament, name)(every) for name in ("consistency", "share_a", "unreadable", "skipped")
    }
    metrics["judge"]["mean_points"] = float(np.mean([np.mean(row) for row in rates]))
    if not letters:
        metrics["judge"] |= {name: getattr(tournament, name)(every) for name in ("bias", "margin")}
    scores = [[numbers(sample, "rewards") for sample in both] for both in pairs]
    if all(one and other for one, other in scores):
        second = [[_above(a, b) for b, a in zip(*both, strict=True)] for both in scores]
        metrics["rewards"] = measure(second, words, seed) | {"agreement": _agreement(rates, second)}
        for place, when in enumerate(("before", "after")):
            metrics["rewards"][f"mean_{when}"] = float(np.mean([value for both in scores for value in both[place]]))
    longer = [[_above(a, b) for a, b in zip(*both, strict=True)] for both in lengths]
    found = measure(longer, words, seed)
    metrics["longer_text"] = {
        key: value for key, value in found.items() if not key.startswith(("picks_longer", "length_"))
    } | {"agreement": _agreement(rates, longer)}
    return metrics


def _words(sample: Sample) -> list[int]:
    return [len(reply_text(text).split()) for text in sample.completions]


def _above(one: float, other: float) -> float:
    return (1 + (one > other) - (one < other)) / 2


def _agreement(one: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> float | None:
    """The share of comparisons with the same winner, among those that both decide."""
    both = [
        (a - 0.5) * (b - 0.5) for row, column in zip(one, other, strict=True) for a, b in zip(row, column, strict=True)
    ]
    decided = [value > 0 for value in both if value]
    return sum(decided) / len(decided) if decided else None


def records_of(pairs: Sequence[tuple[Sample, Sample]], games: Sequence[Sequence[Game]], letters: bool) -> list[Record]:
    """A record for each prompt: the first completions, with the points that those after training win."""
    rows: list[Record] = []
    for (before, after), row in zip(pairs, games, strict=True):
        won = float(np.mean([tournament.points(game, letters) for game in row]))
        answers = {}
        for when, sample, points in (("before", before, 1 - won), ("after", after, won)):
            scores = {"points": points}
            if rewards := numbers(sample, "rewards"):
                scores["reward"] = float(np.mean(rewards))
            answers[when] = summaries.answer(sample.completions[0], scores)
        rows.append(
            {
                "id": before.id,
                "prompt": plain(prompt_of(before)).strip(),
                "leans": [list(game.leans) for game in row],
                "answers": answers,
            }
        )
    return rows


def table_of(metrics: Mapping[str, Any]) -> Table:
    """The table of all judges."""
    rows = [{"by": name, **metrics[name]} for name in JUDGES if name in metrics]
    return Table([Column("by", "", JUDGES.__getitem__)], COLUMNS, rows)


def caption(metrics: Mapping[str, Any]) -> str:
    """What the table is of."""
    return (
        f"after against before, {metrics['records']} prompts; in %, [95 % interval]; "
        f"{metrics['words_before']:.0f} words before, {metrics['words_after']:.0f} after"
    )


def print_texts(count: int, rows: Sequence[Record]) -> None:
    """The first texts before and after of some records, evenly spread over the file."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    for row in spread(list(rows), count):
        console.rule(f"record {plain(row['id'])}")
        for when, found in row["answers"].items():
            scores = ", ".join(f"{name} {value:.2f}" for name, value in found["scores"].items())
            console.print(f"-- {when} ({scores}):\n{found['text'] or '(nothing)'}\n")


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, Judge]:
    """The command line, and the judge that it names."""
    parser = make_parser("orlhf-ext judge compare", __doc__)
    add = parser.add_argument
    add("--before", required=True, metavar="FILE", help="completions of the model that training started from")
    add("--after", required=True, metavar="FILE", help="completions of the trained model")
    add("--show", type=whole(), default=0, metavar="N", help="print the texts of N records (%(default)s)")
    summaries.add_flags(parser)
    group: Any = parser.add_argument_group("judge", "as those of the reward")
    arguments.add_flags(group, Judge)
    args = parser.parse_args(argv)
    summaries.check_flags(args, "judge.compare")
    judge = arguments.make(Judge, vars(args), {})
    assert isinstance(judge, Judge)
    for name in ("pairs", "form", "against_label"):
        if getattr(args, f"judge.{name}") is not None:
            raise UserError(f"--judge.{name} has no effect here, where two texts are compared; leave it out")
    return args, judge


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Read, judge, write, print."""
    args, judge = parse(argv)
    pairs = read_pairs(args.before, args.after)
    judge.setup(RewardContext())
    games = play(judge, pairs)
    letters = judge.verdict == "text"
    metrics = compare(pairs, games, letters, args.seed)
    rows = records_of(pairs, games, letters)
    table, title = table_of(metrics), caption(metrics)
    summary = {**args.run, "command": "judge.compare", "metrics": metrics}
    write_summary(args.out, summary, f"{title}\n\n{table.markdown(across=True)}", table.csv(), rows)
    print_texts(args.show, rows)
    table.show(title, across=True, gap=" ")


if __name__ == "__main__":
    main()
