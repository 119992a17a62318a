"""Log-probabilities of completions: ``orlhf-ext logprobs --model DIR --data A.jsonl --out A2.jsonl``.

Adds to each record, under ``--key``, the summed log-probability of each completion under the model, in nats, EOS
included where it was sampled. Token ids are those that the engine produced; a completion without them is tokenised,
apart from its prompt, by the text rule of OpenRLHF's `SFTDataset`. With ``--no_eos`` such a completion is a beginning:
nothing is put behind it, so that two of them can differ in their last token alone. A run that was cut short goes on
where it stopped, and gives the numbers of an uninterrupted one.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial

from ..cli.errors import UserError, command
from ..cli.flags import LENGTH, POSITIVE, add_compute, add_workers, make_parser
from ..files.journal import Journal
from ..files.outputs import add_overwrite
from ..files.records import Record
from ..models.batches import add_files, check_files, open_journal, run_batches, with_column
from ..models.folder import check_context, check_ids, find_model, identity, load_tokenizer, read_config
from ..models.large import Part, Source, Tally, add_part_records, run_parts
from ..models.logprobs import encode_rows, load_compute
from ..models.pool import Pool
from ..models.texts import as_sample, cut_key


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = make_parser("orlhf-ext logprobs", __doc__)
    add = parser.add_argument
    add("--model", required=True, metavar="DIR", help="policy: a Hugging Face folder, or a hub name")
    add_files(parser)
    add("--max_len", type=LENGTH, required=True, help="tokens of prompt and completion together")
    add("--key", default="logprobs", help="name of the new column (%(default)s)")
    add("--temperature", type=POSITIVE, default=1.0, help="divides the logits (%(default)s)")
    add("--apply_chat_template", action="store_true", help="strings, too, go through the chat template")
    add("--no_eos", action="store_true", help="completions are beginnings, with no EOS behind them")
    add_compute(parser, batch_tokens=8192)
    add_workers(parser)
    add_part_records(parser)
    add_overwrite(parser)
    args = parser.parse_args(argv)
    if args.key in ("id", "prompt", "completions", "token_ids", "finish_reasons", "prompt_tokens", "rewards"):
        raise UserError(f"--key {args.key} is the name of another column; choose one like logprobs_sft")
    return args


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Do each file; the model is loaded once, and only if something is left to do."""
    args = parse(argv)
    pairs = check_files(args.data, args.out, "logprobs", args.__dict__.pop("overwrite"))
    sources = {data: Source(data, as_sample, args.part_records) for data, _ in pairs}
    folder = find_model(args.model)
    check_context(folder, args.max_len)
    tokenizer = load_tokenizer(folder)
    vocabulary = int(read_config(folder).get("vocab_size") or 0)
    names = ("max_len", "key", "temperature", "apply_chat_template", "no_eos", "batch_tokens", "dtype")
    settings = {name: getattr(args, name) for name in (*names, "attn_implementation")}
    model = {"folder": args.model, "identity": identity(folder)}
    how = (args.dtype, args.attn_implementation, args.temperature, args.batch_tokens)
    load = partial(load_compute, args.model, identity(folder, times=False), *how)

    def work(part: Part, journal: Journal) -> tuple[list[Record], Tally]:
        encoded = encode_rows(part.samples, tokenizer, args.max_len, args.apply_chat_template, vocabulary, args.no_eos)
        rows = encoded.rows
        check_ids(folder, (row.ids for row in rows))
        values = run_batches(rows, part.samples, load, journal, args.batch_tokens, "log-probability", pool)
        records = with_column(part.samples, args.key, values)
        for record, flags in zip(records, encoded.completions_cut, strict=True):
            record.pop(cut_key(args.key), None)
            if any(flags):
                record[cut_key(args.key)] = flags
        tally = {"records": len(records), "completions": len(rows)}
        tally["tokens"] = sum(len(row.ids) - row.prompt_length for row in rows)
        tally |= {"prompts_cut": encoded.prompts_cut, "completions_cut": sum(map(sum, encoded.completions_cut))}
        return records, {**tally, "sum": sum(sum(column) / len(column) for column in values)}

    with Pool(args.workers) as pool:
        for data, out in pairs:
            with open_journal("logprobs", data, out, model, settings) as (journal, meta):
                tally = run_parts(sources[data], out, journal, meta, work, summary)
            cut, prompts_cut, rows = (int(tally[key]) for key in ("completions_cut", "prompts_cut", "completions"))
            if prompts_cut or cut:
                shown = f"{prompts_cut} of {rows} prompts are cut on the left"
                if cut:
                    shown = (
                        f"{cut} of {rows} completions are cut on the right, so that {args.key} are those of their "
                        f"beginnings, and {prompts_cut} prompts on the left"
                    )
                print(f"{data}: at --max_len {args.max_len}, {shown}; raise it")
            mean = tally["sum"] / tally["records"]
            print(f"{out}: mean {args.key} {mean:.3f} nats over {tally['records']} prompts", flush=True)


def summary(tally: Tally) -> Record:
    """Counts."""
    return {"counts": {key: value for key, value in tally.items() if key != "sum"}}


if __name__ == "__main__":
    main()
