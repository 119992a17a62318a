"""What `continuations` and `decode_prompts` share: prompts in, the same objects with ``generations`` out.

A prompt is the record's ``prompt``, text or ``{"text": ...}``. The record is written back with ``"generations":
[{"text", "token_ids"}]``, special tokens left out of the text. Each finished prompt is kept at once: a run that was cut
short goes on where it stopped. Every completion has a seed of its own, from ``--seed``, the record's id (or its line)
and the completion's number; with ``--backend hf``, every batch has one, and a run that goes on after a kill writes what
an uninterrupted one would have, to the byte.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cli.errors import UserError
from ..cli.flags import COUNT, DTYPES, NOT_NEGATIVE, PART, SEED, whole
from ..files.journal import Journal
from ..files.outputs import add_overwrite, check_file
from ..files.records import Line, Record, read_records
from ..models.batches import open_journal
from ..models.folder import check_context, context_length, find_model, identity, load_tokenizer
from ..models.prompts import encode_prompts, tally
from ..models.samplers import (
    Completions,
    Prompt,
    Sampling,
    derive_seed,
    device_memory,
    load_vllm,
    sample_hf,
    sample_vllm,
)
from ..models.texts import Sample, collect, id_of
from .generations import prompt_of

if TYPE_CHECKING:
    from torch import Tensor


class Plain:
    """Decoding that leaves the language model's logits alone; `decode_prompts` has another."""

    #: what the output depends on, as JSON values
    arguments: Record = {}  # noqa: RUF012

    def check(self, folder: Path, max_len: int) -> None:
        """Refuse models that do not fit, before anything is loaded."""

    def engine(self) -> Record:
        """Further arguments of vLLM's `LLM`."""
        return {}

    def beside(self, rows: int, max_len: int) -> int:
        """The most bytes of a GPU that it takes beside vLLM, with ``rows`` sequences at a time."""
        return 0

    def processors(self, model: Any, tokenizer: Any) -> Callable[[Tensor], list[Any]] | None:
        """What makes logits processors of ``generate`` for a batch, from its attention mask."""
        return None

    def counts(self) -> Counter[str]:
        """What was counted so far, in this process."""
        return Counter()


def add_flags(parser: argparse.ArgumentParser, num_returns: int, batch_size: int, min_new_tokens: int) -> None:
    """Add the flags that both commands have."""
    add = parser.add_argument
    language_model = "the language model: a folder, or a hub name"
    add("--model", "--model_name_or_path", required=True, metavar="DIR", help=language_model)
    add("--data", "--data_file", required=True, metavar="FILE", help="records with a prompt")
    add("--out", "--save_file", required=True, metavar="FILE", help="a .jsonl (or .json) file of JSON Lines")
    add("--num_returns", type=COUNT, default=num_returns, help="completions of each prompt (%(default)s)")
    add("--batch_size", type=COUNT, default=batch_size, help="prompts at a time, of --backend hf (%(default)s)")
    add("--temperature", type=NOT_NEGATIVE, default=1.0, help="0: greedy (%(default)s)")
    add("--top_k", type=whole(), default=50, help="0: off (%(default)s)")
    add("--top_p", type=PART, default=1.0, help="(%(default)s)")
    add("--max_new_tokens", type=COUNT, default=20, help="(%(default)s)")
    add("--min_new_tokens", type=whole(), default=min_new_tokens, help="no EOS before this many (%(default)s)")
    add("--seed", type=SEED, default=0, help="(%(default)s)")
    add("--backend", choices=["vllm", "hf"], default="vllm", help="(%(default)s)")
    add("--dtype", choices=DTYPES, default=DTYPES[0], help="type of the language model (%(default)s)")
    add("--gpu_memory_utilization", type=PART, default=0.8, help="for vLLM (%(default)s)")
    add_overwrite(parser)


def check_flags(args: argparse.Namespace, name: str) -> None:
    """Check the flags that both commands have.
    Raises UserError if two do not go together, or the output cannot be written; the flag is named."""
    if not args.temperature and args.num_returns > 1:
        raise UserError("greedy decoding makes all completions of a prompt equal; give --num_returns 1")
    if args.min_new_tokens > args.max_new_tokens:
        raise UserError(f"--min_new_tokens {args.min_new_tokens} is more than --max_new_tokens {args.max_new_tokens}")
    ends, inputs = (".jsonl", ".json"), [args.data]
    check_file(args.out, command=name, overwrite=args.overwrite, ends=ends, inputs=inputs)


def read_texts(path: str, size: int, seed: int) -> list[Sample]:
    """The prompts of a file, or a seeded draw of ``size`` of them (-1: all), in the file's order.

    Raises:
        UserError: as `read_records`; there is no record; a prompt is not text, or two records have one id.
    """
    samples = collect(path, map(_sample, read_records(path)))
    if not 0 <= size < len(samples):
        return samples
    drawn = random.Random(derive_seed(seed, "draw")).sample(range(len(samples)), size)
    return [samples[i] for i in sorted(drawn)]


def _sample(line: Line) -> Sample:
    if not (text := prompt_of(line)):
        raise UserError(f"{line.where} has an empty prompt; remove the record")
    return Sample(line.where, id_of(line), text, [], line.record)


def sample_file(args: argparse.Namespace, name: str, size: int, decoding: Plain) -> Record:
    """Sample for every prompt of ``--data`` and write ``--out`` with its sidecar.

    Args:
        args: the flags of `add_flags`.
        name: of the command, for the sidecar.
        size: how many prompts to draw, -1 for all.
        decoding: what happens to the logits.

    Returns:
        counts, as in the sidecar.
    """
    samples = read_texts(args.data, size, args.seed)
    folder = find_model(args.model)
    context = context_length(folder)
    check_context(folder, args.max_new_tokens + 1, "--max_new_tokens")
    room = (context or 1 << 30) - args.max_new_tokens
    prompts = encode_prompts(samples, folder, room, chat=False)
    max_len = max(len(prompt.ids) for prompt in prompts) + args.max_new_tokens
    decoding.check(folder, max_len)
    sampling = Sampling(
        num_completions=args.num_returns,
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        max_new_tokens=args.max_new_tokens,
        max_len=max_len,
        seed=args.seed,
        dtype=args.dtype,
    )
    model = {"folder": args.model, "identity": identity(folder)}
    settings: Record = {**asdict(sampling), "min_new_tokens": args.min_new_tokens, "backend": args.backend}
    settings |= {"batch_size": args.batch_size, "prompts": size, **decoding.arguments}
    with open_journal(name, args.data, args.out, model, settings) as (journal, meta):
        left = [prompt for prompt in prompts if prompt.id not in journal.done]
        if left:
            if args.backend == "hf":
                stream = _with_hf(args, folder, prompts, sampling, set(journal.done), decoding)
            else:
                stream = _with_vllm(args, folder, left, sampling, decoding)
            _keep(stream, journal, {prompt.id: prompt for prompt in prompts}, decoding)
        counts = _tally(journal.done)
        records = (_output(sample, journal.done[sample.id]) for sample in samples)
        journal.finish(args.out, records, {**meta, "counts": counts})
    return counts


Stream = Iterator[tuple[str, Completions]]


def _with_vllm(
    args: argparse.Namespace, folder: Path, prompts: Sequence[Prompt], sampling: Sampling, decoding: Plain
) -> Stream:
    from .memory import SEQUENCES, leave_room, say_room

    memory, more = args.gpu_memory_utilization, decoding.engine()
    requests = len(prompts) * args.num_returns
    rows = min(requests, SEQUENCES)
    if (total := device_memory()) and (needed := decoding.beside(rows, sampling.max_len)):
        memory, more = leave_room(memory, needed, total), {**more, "max_num_seqs": rows}
        print(say_room(args.gpu_memory_utilization, memory, needed, total, rows), flush=True)
    llm = load_vllm(folder, sampling, requests, gpu_memory_utilization=memory, more=more)
    return sample_vllm(llm, prompts, sampling, {"min_tokens": args.min_new_tokens})


def _with_hf(
    args: argparse.Namespace,
    folder: Path,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    done: set[str],
    decoding: Plain,
) -> Stream:
    from ..models.logprobs import load_model

    model, tokenizer = load_model(folder, args.dtype, "sdpa"), load_tokenizer(folder)
    processors = decoding.processors(model, tokenizer)
    more = {"min_new_tokens": args.min_new_tokens} if args.min_new_tokens else None
    for start in range(0, len(prompts), args.batch_size):
        yield from sample_hf(
            model, prompts[start : start + args.batch_size], sampling, tokenizer, done, processors, more
        )


def _keep(stream: Stream, journal: Journal, prompts: dict[str, Prompt], decoding: Plain) -> None:
    from tqdm import tqdm

    before = decoding.counts()
    with tqdm(total=len(prompts), initial=len(journal.done), desc="sampling", unit="prompt") as bar:
        for identifier, found in stream:
            now = decoding.counts()
            piece = {**found._asdict(), "prompt_cut": prompts[identifier].cut, "counted": dict(now - before)}
            journal.add(identifier, piece)
            before = now
            bar.update()


def _output(sample: Sample, done: Record) -> Record:
    pairs = zip(done["texts"], done["token_ids"], strict=True)
    return {**sample.record, "generations": [{"text": text, "token_ids": ids} for text, ids in pairs]}


def _tally(done: dict[str, Record]) -> Record:
    """Counts of a whole run. Steps that a kill made necessary a second time are counted twice."""
    counted: Counter[str] = Counter()
    for record in done.values():
        counted.update(record["counted"])
    return {**tally(done), **counted}


def print_counts(path: str, counts: Record) -> None:
    """Print one line about a finished file."""
    parts = [f"{counts['completions']} completions of {counts['prompts']} prompts, {counts['tokens']} tokens"]
    if counts["prompts_cut"]:
        parts.append(f"{counts['prompts_cut']} prompts were cut on the left")
    if "steps" in counts:
        infeasible = counts.get("infeasible_steps", 0)
        share = infeasible / counts["steps"]
        parts.append(f"at {infeasible} of {counts['steps']} steps ({share:.1%}) all caps summed to less than 1")
    print(f"{path}: {'; '.join(parts)}", flush=True)
