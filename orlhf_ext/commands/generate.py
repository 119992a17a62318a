"""Sample completions: ``orlhf-ext generate --model DIR --data prompts.jsonl --out samples.jsonl``.

Prompts are the ``prompt`` of each record, text or messages; they are cut on the left to ``--max_len`` minus
``--max_new_tokens`` tokens. A record's ``style``, how its prompt was rendered, stays. Each finished record is kept at
once: a run that was cut short goes on where it stopped, with no record lost and none sampled twice. Every completion
has a seed of its own, from ``--seed``, the record's id and the completion's number; vLLM promises no equal text for
other batch shapes all the same.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial

from ..cli.errors import UserError, command
from ..cli.flags import COUNT, DTYPES, LENGTH, NOT_NEGATIVE, PART, SEED, add_workers, make_parser, whole
from ..files.outputs import add_overwrite, check_file
from ..files.records import Record
from ..models.batches import open_journal
from ..models.folder import check_context, find_model, identity
from ..models.pool import Pool
from ..models.prompts import encode_prompts, load_sampler, sample_all, tally, units_of
from ..models.samplers import Completions, Prompt, Sampling
from ..models.texts import Sample, read_prompts


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line, with every number checked."""
    parser = make_parser("orlhf-ext generate", __doc__)
    add = parser.add_argument
    add("--model", required=True, metavar="DIR", help="a Hugging Face folder, or a hub name")
    add("--data", required=True, metavar="FILE", help="records with a prompt")
    add("--out", required=True, metavar="FILE", help="a .jsonl file")
    add("--num_completions", type=COUNT, default=1, metavar="K", help="completions of each prompt (%(default)s)")
    add("--temperature", type=NOT_NEGATIVE, default=0.8, help="0: greedy (%(default)s)")
    add("--top_p", type=PART, default=1.0, help="nucleus sampling; 1: off (%(default)s)")
    add("--top_k", type=whole(), default=0, help="0: off (%(default)s)")
    add("--max_new_tokens", type=COUNT, required=True)
    add("--max_len", type=LENGTH, required=True, help="tokens of prompt and completion together")
    add("--seed", type=SEED, default=0, help="seed of sampling (%(default)s)")
    add("--limit", type=COUNT, metavar="N", help="only the first N records")
    add_workers(parser)
    add("--tensor_parallel_size", type=COUNT, default=1, help="GPUs of each worker (%(default)s)")
    add("--gpu_memory_utilization", type=PART, default=0.9, help="for vLLM (%(default)s)")
    add("--backend", choices=["vllm", "hf"], default="vllm", help="what samples (%(default)s)")
    add("--apply_chat_template", action="store_true", help="strings, too, go through the chat template")
    add("--dtype", choices=DTYPES, default="bfloat16", help="type of the weights (%(default)s)")
    add_overwrite(parser)
    args = parser.parse_args(argv)
    if not args.temperature and args.num_completions > 1:
        raise UserError("--temperature 0 makes all completions of a prompt equal; raise it, or --num_completions 1")
    if args.max_new_tokens >= args.max_len:
        raise UserError(
            f"--max_new_tokens {args.max_new_tokens} leaves no room for a prompt in --max_len {args.max_len}"
        )
    overwrite = args.__dict__.pop("overwrite")
    check_file(args.out, command="generate", overwrite=overwrite, ends=(".jsonl",), inputs=[args.data])
    if args.tensor_parallel_size > 1 and args.backend == "hf":
        raise UserError("--tensor_parallel_size is for vLLM; leave it out with --backend hf")
    return args


def finished(prompt: Prompt, found: Completions) -> Record:
    """What the journal keeps of a prompt; ``prompt_tokens`` says how much of it was seen."""
    return {
        "completions": found.texts,
        "token_ids": found.token_ids,
        "finish_reasons": found.finish_reasons,
        "prompt_tokens": len(prompt.ids),
        "prompt_cut": prompt.cut,
    }


def output_record(sample: Sample, done: Record) -> Record:
    """The record that is written: a chat is answered with messages, text with text; how a prompt was rendered stays."""
    texts = done["completions"]
    if not isinstance(sample.prompt, str):
        texts = [[{"role": "assistant", "content": text}] for text in texts]
    kept = {key: value for key, value in done.items() if key != "prompt_cut"}
    style = {"style": sample.record["style"]} if "style" in sample.record else {}
    return {"id": sample.id, "prompt": sample.prompt, **style, **kept, "completions": texts}


def sampling_of(args: argparse.Namespace) -> Sampling:
    """The part of the command line that says how to sample."""
    names = Sampling.__dataclass_fields__
    return Sampling(**{name: getattr(args, name) for name in names})


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Sample for every record, in this process or by several workers."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # before torch is imported
    args = parse(sys.argv[1:] if argv is None else argv)
    samples = read_prompts(args.data, args.limit)
    folder = find_model(args.model)
    check_context(folder, args.max_len)
    sampling = sampling_of(args)
    model = {"folder": args.model, "identity": identity(folder)}
    settings = {**asdict(sampling), "backend": args.backend}
    settings |= {"limit": args.limit, "apply_chat_template": args.apply_chat_template}
    with open_journal("generate", args.data, args.out, model, settings) as (journal, meta):
        if any(sample.id not in journal.done for sample in samples):
            room = args.max_len - args.max_new_tokens
            prompts = encode_prompts(samples, folder, room, args.apply_chat_template)
            units = units_of(prompts, journal.done, sampling, args.backend)
            requests = -(-len(units) // args.workers) * args.num_completions
            how = (args.backend, sampling, requests, args.workers)
            gpus = (args.tensor_parallel_size, args.gpu_memory_utilization)
            load = partial(load_sampler, args.model, identity(folder, times=False), *how, *gpus)
            with Pool(args.workers, args.tensor_parallel_size) as pool:
                sample_all(units, samples, load, journal, finished, pool)
        counts = tally(journal.done)
        records = (output_record(sample, journal.done[sample.id]) for sample in samples)
        journal.finish(args.out, records, {**meta, "counts": counts})
    cut = f"; {counts['prompts_cut']} prompts were cut on the left" if counts["prompts_cut"] else ""
    print(
        f"{args.out}: {counts['completions']} completions of {len(samples)} prompts, "
        f"{counts['tokens'] / counts['completions']:.1f} tokens each, {counts['stop']} ended by themselves{cut}",
        flush=True,
    )


if __name__ == "__main__":
    main()
