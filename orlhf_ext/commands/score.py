"""Score completions with a reward model: ``orlhf-ext score --model RM --data A.jsonl --out A2.jsonl``.

Takes any reward model folder that OpenRLHF's ``train_rm`` wrote, and reads samples (``completions``) or pairs
(``chosen``, ``rejected``). Text, EOS and truncation are those of its training. Rewards are the head's raw output: the
mean and deviation that ``train_rm`` may have put into the config are not applied. A run that was cut short goes on
where it stopped, and gives the numbers of an uninterrupted one.

A file of a few records is printed, too, with the completion that has the highest reward.

With ``--no_prompt`` the model reads the completion alone, as ``train_rm`` trains without ``--data.prompt_key``, and a
record needs no prompt: ``{"completions": ["Once upon a time ..."]}`` is a story to score.

``python -m orlhf_ext.launch serve_rm --reward.model_name_or_path RM --data.max_len N --host 127.0.0.1 --port P`` serves
the same numbers: ``POST /get_reward {"query": [TEXT, ...]}`` answers ``{"rewards": [...]}``. A query is read as it is:
it must end in one space and the EOS token, and fit into N tokens, since a longer one is cut and loses its EOS. (Without
``--host``, other machines can ask, too.)
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial

from ..cli.errors import command
from ..cli.flags import DTYPES, LENGTH, add_compute, add_workers, make_parser
from ..files.journal import Journal
from ..files.outputs import add_overwrite
from ..files.records import Line, Record, read_records
from ..models.batches import add_files, check_files, open_journal, run_batches, with_column
from ..models.folder import check_context, check_ids, identity
from ..models.large import Part, Source, Tally, add_part_records, run_parts
from ..models.pool import Pool
from ..models.reward_models import RewardModel, encode_rows, load_scorer
from ..models.texts import Sample, as_sample

_SHOWN = 5  # records of a file that are printed


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = make_parser("orlhf-ext score", __doc__)
    add = parser.add_argument
    add("--model", required=True, metavar="DIR", help="reward model folder, as train_rm writes it")
    add_files(parser)
    add("--max_len", type=LENGTH, required=True, help="tokens; the same as in the model's training")
    add("--apply_chat_template", action="store_true", help="strings, too, go through the chat template")
    add("--no_prompt", action="store_true", help="the model was trained on completions alone")
    add_compute(parser, dtypes=DTYPES[:2])
    add_workers(parser)
    add_part_records(parser)
    add_overwrite(parser)
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Score each file; the model is loaded once, and only if something is left to do."""
    args = parse(argv)
    pairs = check_files(args.data, args.out, "score", args.__dict__.pop("overwrite"))
    make = partial(as_sample, no_prompt=args.no_prompt)
    sources = {data: Source(data, make, args.part_records) for data, _ in pairs}
    reader = RewardModel(args.model)
    folder, tokenizer = reader.folder, reader.tokenizer
    check_context(folder, args.max_len)
    names = ("max_len", "apply_chat_template", "no_prompt", "batch_tokens", "dtype", "attn_implementation")
    settings = {name: getattr(args, name) for name in names}
    model = {"folder": args.model, "identity": identity(folder)}
    copy_of = identity(folder, times=False)
    load = partial(load_scorer, args.model, copy_of, args.dtype, args.attn_implementation, args.batch_tokens)

    def work(part: Part, journal: Journal) -> tuple[list[Record], Tally]:
        encoded = encode_rows(part.samples, tokenizer, args.max_len, args.apply_chat_template, args.no_prompt)
        check_ids(folder, (row.ids for row in encoded.rows))
        if encoded.truncated:
            of = f"{encoded.truncated} of {len(encoded.rows)}"
            print(f"{part.name}: {of} completions are cut at {args.max_len} tokens")
        if encoded.unseen:
            print(
                f"{part.name}: {encoded.unseen} of them have a prompt that fills --max_len {args.max_len}, so that "
                "the reward says nothing about them; raise it, or drop such prompts"
            )
        rewards = run_batches(encoded.rows, part.samples, load, journal, args.batch_tokens, "reward", pool)
        tally = {"completions": len(encoded.rows), "truncated": encoded.truncated, "unseen": encoded.unseen}
        return with_column(part.samples, "rewards", rewards), {**tally_of(part.samples, rewards), **tally}

    with Pool(args.workers) as pool:
        for data, out in pairs:
            with open_journal("score", data, out, model, settings) as (journal, meta):
                found = summary(run_parts(sources[data], out, journal, meta, work, summary))
            ranked = f", chosen above rejected in {found['accuracy']:.1%} of pairs" if "accuracy" in found else ""
            count = found["counts"]["records"]
            if count <= _SHOWN:
                for line in read_records(out):
                    print(compared(line), flush=True)
            print(f"{out}: mean reward {found['mean_reward']:.4f} over {count} prompts{ranked}", flush=True)


def compared(line: Line) -> str:
    """A scored record in a line: its rewards, and which is the highest."""
    rewards = line.record["rewards"]
    ahead = ""
    if len(rewards) > 1 and rewards.count(max(rewards)) == 1:
        best = rewards.index(max(rewards))
        name = f"completion {best + 1}" if "completions" in line.record else ("chosen", "rejected")[best]
        ahead = f"; {name} has the highest"
    return f"{line.where}: {', '.join(f'{reward:.4f}' for reward in rewards)}{ahead}"


def tally_of(samples: Sequence[Sample], rewards: Sequence[Sequence[float]]) -> dict[str, float]:
    """Records, the sum of their mean rewards, how many are pairs, and in how many chosen is above rejected."""
    pairs = [values for sample, values in zip(samples, rewards, strict=True) if "completions" not in sample.record]
    return {
        "records": len(samples),
        "reward": sum(sum(values) / len(values) for values in rewards),
        "pairs": len(pairs),
        "above": sum(chosen > rejected for chosen, rejected in pairs),
    }


def summary(tally: Tally) -> Record:
    """Counts, and the mean over prompts of the mean reward; for pairs, also how often chosen is above rejected (a tie
    is not)."""
    counts = {name: tally[name] for name in ("records", "completions", "truncated", "unseen")}
    out: Record = {"counts": counts, "mean_reward": tally["reward"] / tally["records"]}
    return out | ({"accuracy": tally["above"] / tally["pairs"]} if tally["pairs"] == tally["records"] else {})


if __name__ == "__main__":
    main()
