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
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cli.errors import UserError
from ..cli.flags import COUNT, DTYPES, NOT_NEGATIVE, PART, SEED, add_workers, whole
from ..files.outputs import add_overwrite, check_file
from ..files.records import Line, Record, read_records
from ..models.batches import open_journal
from ..models.engines import device_memory, load_vllm
from ..models.folder import check_context, context_length, find_model, find_same, identity, load_tokenizer
from ..models.pool import Calls, Pool, Unit, Work
from ..models.prompts import encode_prompts, sample_all, tally, units_of
from ..models.samplers import Completions, HfSampler, Prompt, Sampling, VllmSampler, derive_seed
from ..models.texts import Sample, collect, id_of
from .generations import prompt_of

if TYPE_CHECKING:
    from torch import Tensor


class Plain:
    """Decoding that leaves the language model's logits alone; `decode_prompts` has another. It is sent to workers."""

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
        """What was counted so far, in this worker."""
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
    add_workers(parser)
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
        if units := units_of(prompts, journal.done, sampling, args.backend, args.batch_size):
            job = Job(
                args.model,
                identity(folder, times=False),
                args.backend,
                sampling,
                args.min_new_tokens,
                -(-len(units) // args.workers) * args.num_returns,
                args.workers,
                args.gpu_memory_utilization,
            )
            with Pool(args.workers) as pool:
                sample_all(units, samples, partial(load_work, job, decoding), journal, _piece, pool)
        counts = _tally(journal.done)
        records = (_output(sample, journal.done[sample.id]) for sample in samples)
        journal.finish(args.out, records, {**meta, "counts": counts})
    return counts


@dataclass(frozen=True)
class Job:
    """What a worker has to know; as in `load_sampler`."""

    model: str
    copy_of: str
    backend: str
    sampling: Sampling
    min_new_tokens: int
    requests: int
    workers: int
    memory: float


def load_work(job: Job, decoding: Plain) -> Work:
    """What samples, in a worker."""
    folder = find_same(job.model, job.copy_of)
    work = Calls(_hf(job, folder, decoding)) if job.backend == "hf" else _vllm(job, folder, decoding)
    return Counting(work, decoding)


def _vllm(job: Job, folder: Path, decoding: Plain) -> VllmSampler:
    from .memory import SEQUENCES, leave_room, say_room

    memory, more = job.memory, decoding.engine()
    rows = min(job.requests, SEQUENCES)
    if (total := device_memory()) and (needed := decoding.beside(rows, job.sampling.max_len)):
        memory, more = leave_room(memory, needed, total), {**more, "max_num_seqs": rows}
        print(say_room(job.memory, memory, needed, total, rows), flush=True)
    how: Record = {"gpu_memory_utilization": memory, "engines": job.workers, "more": more}
    llm = load_vllm(folder, job.sampling, job.requests, **how)
    return VllmSampler(llm, job.sampling, job.requests, {"min_tokens": job.min_new_tokens})


def _hf(job: Job, folder: Path, decoding: Plain) -> HfSampler:
    from ..models.logprobs import load_model

    model, tokenizer = load_model(folder, job.sampling.dtype, "sdpa"), load_tokenizer(folder)
    more = {"min_new_tokens": job.min_new_tokens} if job.min_new_tokens else None
    return HfSampler(model, tokenizer, job.sampling, decoding.processors(model, tokenizer), more)


class Counting:
    """`Work` that tells with what is finished what the decoding has counted since the last time."""

    def __init__(self, work: Work, decoding: Plain) -> None:
        self._work, self._decoding = work, decoding
        self._told = decoding.counts()

    @property
    def room(self) -> int:
        """As `Work.room`."""
        return self._work.room

    def add(self, key: str, payload: Sequence[Prompt]) -> None:
        """As `Work.add`."""
        self._work.add(key, payload)

    def step(self) -> list[Unit]:
        """As `Work.step`."""
        found = self._work.step()
        if found:
            now = self._decoding.counts()
            first: list[Completions] = found[0][1]
            first[0] = first[0]._replace(counted=dict(now - self._told))
            self._told = now
        return found


def _piece(prompt: Prompt, found: Completions) -> Record:
    return {**found._asdict(), "prompt_cut": prompt.cut}


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
