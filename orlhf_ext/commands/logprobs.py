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
from ..files.outputs import add_overwrite
from ..models.batches import add_files, check_files, open_journal, run_batches, with_column
from ..models.folder import check_context, check_ids, find_model, identity, load_tokenizer, read_config
from ..models.logprobs import encode_rows, load_compute
from ..models.pool import Pool
from ..models.texts import cut_key, read_samples


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
    samples = {data: read_samples(data) for data, _ in pairs}
    folder = find_model(args.model)
    check_context(folder, args.max_len)
    tokenizer = load_tokenizer(folder)
    vocabulary = int(read_config(folder).get("vocab_size") or 0)
    names = ("max_len", "key", "temperature", "apply_chat_template", "no_eos", "batch_tokens", "dtype")
    settings = {name: getattr(args, name) for name in (*names, "attn_implementation")}
    model = {"folder": args.model, "identity": identity(folder)}
    how = (args.dtype, args.attn_implementation, args.temperature, args.batch_tokens)
    load = partial(load_compute, args.model, identity(folder, times=False), *how)
    with Pool(args.workers) as pool:
        for data, out in pairs:
            with open_journal("logprobs", data, out, model, settings) as (journal, meta):
                rows, prompts_cut, completions_cut = encode_rows(
                    samples[data], tokenizer, args.max_len, args.apply_chat_template, vocabulary, args.no_eos
                )
                cut = sum(map(sum, completions_cut))
                check_ids(folder, (row.ids for row in rows))
                values = run_batches(rows, samples[data], load, journal, args.batch_tokens, "log-probability", pool)
                counts = {"records": len(samples[data]), "completions": len(rows)}
                counts["tokens"] = sum(len(row.ids) - row.prompt_length for row in rows)
                counts |= {"prompts_cut": prompts_cut, "completions_cut": cut}
                records = with_column(samples[data], args.key, values)
                for record, flags in zip(records, completions_cut, strict=True):
                    record.pop(cut_key(args.key), None)
                    if any(flags):
                        record[cut_key(args.key)] = flags
                journal.finish(out, records, {**meta, "counts": counts})
            if prompts_cut or cut:
                shown = f"{prompts_cut} of {len(rows)} prompts are cut on the left"
                if cut:
                    shown = (
                        f"{cut} of {len(rows)} completions are cut on the right, so that {args.key} are those of their "
                        f"beginnings, and {prompts_cut} prompts on the left"
                    )
                print(f"{data}: at --max_len {args.max_len}, {shown}; raise it")
            mean = sum(sum(column) / len(column) for column in values) / len(values)
            print(f"{out}: mean {args.key} {mean:.3f} nats over {len(values)} prompts", flush=True)


if __name__ == "__main__":
    main()
