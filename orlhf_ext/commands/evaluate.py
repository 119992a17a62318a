"""Compare policies by scored samples: ``orlhf-ext evaluate --sft S.jsonl --policy NAME=P.jsonl --out O.json``

Every file has samples of the same prompts, joined by id, scored by the same reward model. For the KL, a policy's file
also has the log-probabilities of its samples under itself and under the SFT model. The last policy is the final one.
The table is written beside O.json, as O.md and O.csv, and a record for each prompt, as O.records.jsonl.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..cli.errors import UserError, command
from ..cli.flags import make_parser, named_paths, whole
from ..files.records import Record
from ..models.texts import Sample, numbers, read_samples
from ..reports import summaries
from ..reports.examples import plain, print_examples
from ..reports.statistics import (
    Lists,
    at_equal_length,
    bootstrap,
    kl_estimate,
    mean_and_error,
    paired_difference,
    prompt_means,
    win_rates,
)
from ..reports.summaries import write_summary
from ..reports.tables import Column, Table

if TYPE_CHECKING:
    from numpy.typing import NDArray


COLUMNS = (
    Column("reward_mean", "reward", "{:z.3f}", error="reward_se"),
    Column("win_rate_vs_sft", "wins vs SFT", "{:.1%}"),
    Column("win_rate_vs_chosen", "wins vs chosen", "{:.1%}"),
    Column("length_mean", "tokens", "{:.1f}"),
    Column("kl", "KL (nats)", "{:z.2f}"),
)
_FEW = 3  # policies whose differences are all printed
#: what CSV has of each row, beside its name
_NUMBERS = (
    *("step", *(column.key for column in COLUMNS), "reward_se", "kl_se", "gain", "even_gain"),
    *(
        f"{key}_{end}"
        for key in ("gain", "even_gain", "win_rate_vs_sft", "win_rate_vs_chosen")
        for end in ("low", "high")
    ),
)


@dataclass(frozen=True)
class Scored:
    """One file's samples in the order of the prompts: a list of numbers for each prompt, one for each completion."""

    path: str
    samples: dict[str, Sample]
    rewards: Lists
    #: tokens of each completion, or None where the file has no token ids
    lengths: Lists | None = None
    #: log-probabilities of the samples under their own policy, and under the SFT model
    logprobs: Lists | None = None
    sft_logprobs: Lists | None = None


def read_scored(path: str, logprobs_key: str = "logprobs_policy", sft_key: str = "logprobs_sft") -> Scored:
    """Read a file of scored samples.
    Raises UserError if a record has no rewards, or a value that is not a finite number; it is named."""
    samples = read_samples(path)
    columns: dict[str, Lists | None] = {}
    for key in ("rewards", logprobs_key, sft_key):
        have = [sample.record.get(key) is not None for sample in samples]
        if not all(have) and (any(have) or key == "rewards"):
            raise UserError(f"{samples[have.index(False)].name} has no {key}; score the whole file first")
        columns[key] = [numbers(sample, key) for sample in samples] if all(have) else None
    ids = [sample.column("token_ids") for sample in samples]
    lengths = (
        None if any(column is None for column in ids) else [[float(len(x)) for x in column or []] for column in ids]
    )
    by_id = {sample.id: sample for sample in samples}
    return Scored(path, by_id, columns["rewards"] or [], lengths, columns[logprobs_key], columns[sft_key])


def in_order(scored: Scored, like: Scored) -> Scored:
    """The same samples in another file's order of prompts.
    Raises UserError if an id is in one file only, or with another prompt."""
    for one, other in ((like, scored), (scored, like)):
        if lost := [identifier for identifier in one.samples if identifier not in other.samples]:
            more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
            raise UserError(
                f"{other.path} lacks the prompt with id {lost[0]!r}{more}, which {one.path} has; "
                "give files that were sampled on the same prompts"
            )
    for identifier, sample in like.samples.items():
        if scored.samples[identifier].prompt != sample.prompt:
            raise UserError(
                f"{scored.samples[identifier].name} has another prompt than {sample.where}; "
                "give files that were sampled on the same prompts"
            )
    place = {identifier: i for i, identifier in enumerate(scored.samples)}
    order = [place[identifier] for identifier in like.samples]

    def sort(column: Lists | None) -> Any:
        return None if column is None else [column[i] for i in order]

    columns = (scored.rewards, scored.lengths, scored.logprobs, scored.sft_logprobs)
    samples = {identifier: scored.samples[identifier] for identifier in like.samples}
    return Scored(scored.path, samples, *map(sort, columns))


def measure(scored: Scored, sft: Scored | None, chosen: Scored | None, seed: int) -> dict[str, Any]:
    """All numbers of one policy; ``sft`` is None for the SFT model itself.

    Returns:
        ``reward_mean``, ``reward_se``, ``length_mean`` (tokens; None without token ids), ``win_rate_vs_chosen`` with
        its interval. Against SFT also ``win_rate_vs_sft`` with its interval, ``kl`` and ``kl_se`` (nats a response;
        None without log-probabilities), ``reward_diff``: the paired difference, with Student's and the bootstrap's
        interval, and ``reward_diff_at_equal_length`` (None without token ids), see `at_equal_length`.
    """
    rewards = prompt_means(scored.rewards)
    mean, error = mean_and_error(rewards)
    out: dict[str, Any] = {"reward_mean": mean, "reward_se": error}
    out["length_mean"] = None if scored.lengths is None else mean_and_error(prompt_means(scored.lengths))[0]
    if sft is not None:
        out |= _rate("win_rate_vs_sft", win_rates(scored.rewards, sft.rewards), seed)
    if chosen is not None:
        out |= _rate("win_rate_vs_chosen", win_rates(scored.rewards, [row[:1] for row in chosen.rewards]), seed)
    if sft is None:
        return out
    out["kl"], out["kl_se"] = None, None
    if scored.logprobs is not None and scored.sft_logprobs is not None:
        out["kl"], out["kl_se"] = mean_and_error(kl_estimate(scored.logprobs, scored.sft_logprobs))
    out["reward_diff"] = paired_difference(rewards - prompt_means(sft.rewards), seed)
    out["reward_diff_at_equal_length"] = None
    if scored.lengths is not None and sft.lengths is not None:
        out["reward_diff_at_equal_length"] = at_equal_length(
            scored.rewards, scored.lengths, sft.rewards, sft.lengths, seed
        )
    return out


def _rate(key: str, rates: NDArray[np.float64], seed: int) -> dict[str, Any]:
    return {key: float(rates.mean()), **bootstrap(rates, seed).of(key)}


def step_of(name: str) -> int | None:
    """The last whole number in a checkpoint's name: 17 for ``global_step17_hf``."""
    numbers = re.findall(r"\d+", name)
    return int(numbers[-1]) if numbers else None


def compare(sft: Scored, policies: Mapping[str, Scored], chosen: Scored | None = None, seed: int = 0) -> dict[str, Any]:
    """The metrics of SFT, of each checkpoint, and of the final policy (the last one).
    Raises UserError if the files do not have the same prompts."""
    if chosen is not None:
        chosen = in_order(chosen, sft)
    metrics: dict[str, Any] = {"prompts": len(sft.samples), "sft": measure(sft, None, chosen, seed)}
    if chosen is not None:
        mean, error = mean_and_error(np.array([row[0] for row in chosen.rewards]))
        metrics["chosen"] = {"reward_mean": mean, "reward_se": error}
    measured = {name: measure(in_order(scored, sft), sft, chosen, seed) for name, scored in policies.items()}
    if measured:
        metrics["policy"] = list(measured.values())[-1]
        metrics["checkpoints"] = [{"name": name, "step": step_of(name), **found} for name, found in measured.items()]
    return metrics


def table_of(metrics: Mapping[str, Any]) -> Table:
    """The table of `compare`'s metrics, SFT first."""
    rows = [{**metrics["sft"], "name": "SFT"}, *map(_flat, metrics.get("checkpoints", []))]
    rows += [{**metrics["chosen"], "name": "chosen"}] if "chosen" in metrics else []
    rows = [{"model": row["name"], **{key: row.get(key) for key in _NUMBERS}} for row in rows]
    return Table([Column("model", "model")], COLUMNS, rows)


def _flat(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """With the paired differences as the table has them."""
    found = dict(numbers)
    for key, gap in (("gain", numbers["reward_diff"]), ("even_gain", numbers["reward_diff_at_equal_length"])):
        if gap is not None:
            found |= {key: gap["mean"], f"{key}_low": gap["low"], f"{key}_high": gap["high"]}
    return found


def prompt_records(sft: Scored, policies: Mapping[str, Scored], chosen: Scored | None) -> list[Record]:
    """A record for each prompt: the first answers of SFT and of the final policy, the chosen one, and their scores."""
    shown = {"SFT": sft} | ({"chosen": chosen} if chosen else {}) | dict(list(policies.items())[-1:])
    answers: dict[str, dict[str, Record]] = {}
    for name, scored in shown.items():
        rewards = [row[:1] for row in scored.rewards] if scored is chosen else scored.rewards
        for i, sample in enumerate(scored.samples.values()):
            scores = {"reward": float(np.mean(rewards[i]))}
            if scored.lengths and scored is not chosen:
                scores["tokens"] = float(np.mean(scored.lengths[i]))
            answers.setdefault(sample.id, {})[name] = summaries.answer(sample.completions[0], scores)
    return [
        {"id": sample.id, "prompt": plain(sample.prompt).strip(), "answers": answers[sample.id]}
        for sample in sft.samples.values()
    ]


def print_table(metrics: Mapping[str, Any], table: Table) -> None:
    """The table on the terminal, and under it the paired differences of the final policy, or of a few."""
    notes = []
    rows = metrics.get("checkpoints", [])
    for row in map(_flat, rows if len(rows) <= _FEW else rows[-1:]):
        if row["gain_low"] is not None:
            gap = f"{row['gain']:+.3f} [{row['gain_low']:+.3f}, {row['gain_high']:+.3f}]"
            notes.append(f"reward of {row['name']} minus SFT, paired over prompts: {gap}")
        if row.get("even_gain_low") is not None:
            gap = f"{row['even_gain']:+.3f} [{row['even_gain_low']:+.3f}, {row['even_gain_high']:+.3f}]"
            notes.append(f"the same at equal length: {gap}")
    table.show(f"{metrics['prompts']} held-out prompts; ± standard error, [95 % interval]", notes)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = make_parser("orlhf-ext evaluate", __doc__)
    add = parser.add_argument
    add("--sft", metavar="FILE", help="scored samples of the SFT model")
    add(
        "--policy",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="scored samples of a policy; repeatable, in order",
    )
    add("--chosen", metavar="FILE", help="scored pairs; a record's first reward is the chosen one's")
    add("--logprobs_key", default="logprobs_policy", help="column of those under the policy itself (%(default)s)")
    add("--sft_logprobs_key", default="logprobs_sft", help="column of those under the SFT model (%(default)s)")
    add("--show", type=whole(), default=0, metavar="N", help="print N prompts with answers before and after")
    add("--rewards_only", metavar="FILE", help='print {"mean reward": x} of one file, and nothing else')
    summaries.add_flags(parser, required=False)
    args = parser.parse_args(argv)
    if not args.rewards_only and not (args.sft and args.out):
        raise UserError("evaluate needs --sft FILE and --out FILE.json, or --rewards_only FILE alone")
    if args.out:
        summaries.check_flags(args, "evaluate")
    args.policy = named_paths(args.policy, "--policy")
    return args


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Read, compare, write, print."""
    args = parse(argv)
    if args.rewards_only:
        print(json.dumps({"mean reward": float(prompt_means(read_scored(args.rewards_only).rewards).mean())}))
        return
    keys = (args.logprobs_key, args.sft_logprobs_key)
    sft = read_scored(args.sft, *keys)
    policies = {name: read_scored(path, *keys) for name, path in args.policy.items()}
    chosen = read_scored(args.chosen, *keys) if args.chosen else None
    for sample in chosen.samples.values() if chosen else ():
        if len(sample.completions) != 2:
            raise UserError(f"{sample.name} has {len(sample.completions)} completions, and --chosen takes scored pairs")
    metrics = compare(sft, policies, chosen, args.seed)
    table = table_of(metrics)
    summary = {**args.run, "command": "evaluate", "metrics": metrics}
    write_summary(args.out, summary, table.markdown(), table.csv(), prompt_records(sft, policies, chosen))
    if policies:
        name, last = list(policies.items())[-1]
        print_examples(args.show, sft.samples, name, last.samples)
        lacking = [row["name"] for row in metrics["checkpoints"] if row["kl"] is None]
        if lacking:
            print(f"no KL for {', '.join(lacking)}: add {keys[0]} and {keys[1]} to the samples (orlhf-ext logprobs)")
    print_table(metrics, table)


if __name__ == "__main__":
    main()
