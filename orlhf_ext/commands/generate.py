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
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from ..backends.machine import visible_devices
from ..cli.errors import UserError, command
from ..cli.flags import COUNT, DTYPES, LENGTH, NOT_NEGATIVE, PART, SEED, make_parser, whole
from ..files.journal import Journal, journal_path, part_paths, read_done
from ..files.outputs import add_overwrite, check_file
from ..files.records import Record, sha256_file
from ..models.batches import fingerprint, open_journal
from ..models.folder import check_context, find_model, identity, load_tokenizer
from ..models.logprobs import load_model
from ..models.prompts import encode_prompts, tally
from ..models.samplers import Completions, Prompt, Sampling, load_vllm, sample_hf, sample_vllm
from ..models.texts import Sample, read_prompts

_EXIT_SECONDS = 10.0  # that an engine gets to end by itself


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
    add("--num_engines", type=COUNT, default=1, help="data-parallel engines (%(default)s)")
    add("--tensor_parallel_size", type=COUNT, default=1, help="GPUs of each engine (%(default)s)")
    add("--gpu_memory_utilization", type=PART, default=0.9, help="for each engine (%(default)s)")
    add("--backend", choices=["vllm", "hf"], default="vllm", help="what samples (%(default)s)")
    add("--apply_chat_template", action="store_true", help="strings, too, go through the chat template")
    add("--dtype", choices=DTYPES, default="bfloat16", help="type of the weights (%(default)s)")
    add("--part", help=argparse.SUPPRESS)  # i/E, for the engines of one run
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
    if args.num_engines > 1 and args.backend == "hf":
        raise UserError("--num_engines is for vLLM; leave it out with --backend hf")
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


def sample_here(
    args: argparse.Namespace, folder: Path, samples: Sequence[Sample], done: set[str], keep: Callable[[str, Any], None]
) -> None:
    """Sample in this process for every record that is not done; ``keep`` is called as each is finished."""
    from tqdm import tqdm

    sampling = sampling_of(args)
    prompts = encode_prompts(samples, folder, args.max_len - args.max_new_tokens, args.apply_chat_template)
    by_id = {prompt.id: prompt for prompt in prompts}
    if args.backend == "hf":
        model = load_model(folder, args.dtype, "sdpa")
        stream = sample_hf(model, prompts, sampling, load_tokenizer(folder), done)
    else:
        left = [prompt for prompt in prompts if prompt.id not in done]
        llm = load_vllm(
            folder,
            sampling,
            len(left) * args.num_completions,
            tensor_parallel_size=args.tensor_parallel_size,
            gpu_memory_utilization=args.gpu_memory_utilization,
            engines=int(args.part.split("/")[1]) if args.part else 1,
        )
        stream = sample_vllm(llm, left, sampling)
    tokens, start = 0, time.monotonic()
    with tqdm(total=len(prompts), initial=len(done), desc="sampling", unit="prompt") as bar:
        for identifier, found in stream:
            keep(identifier, finished(by_id[identifier], found))
            tokens += sum(map(len, found.token_ids))
            bar.set_postfix_str(f"{tokens / (time.monotonic() - start):.0f} tokens/s", refresh=False)
            bar.update()


def sampling_of(args: argparse.Namespace) -> Sampling:
    """The part of the command line that says how to sample."""
    names = Sampling.__dataclass_fields__
    return Sampling(**{name: getattr(args, name) for name in names})


def run_engines(args: argparse.Namespace, argv: Sequence[str], total: int, journal: Journal) -> None:
    """Run the engines as processes of this module, each with its share of what is left, and take over their pieces.
    Raises UserError if one of them failed; the others are ended, and what is finished is kept."""
    from tqdm import tqdm

    devices = _devices(args.num_engines, args.tensor_parallel_size)
    engines: list[tuple[subprocess.Popen, Path]] = []
    try:
        for i in range(args.num_engines):
            log = journal_path(args.out, f"{i}.log")
            environment = dict(os.environ)
            if devices:
                own = devices[i * args.tensor_parallel_size : (i + 1) * args.tensor_parallel_size]
                environment["CUDA_VISIBLE_DEVICES"] = ",".join(own)
            else:
                environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // args.num_engines)))
            line = [sys.executable, "-m", "orlhf_ext", "generate", *argv, "--part", f"{i}/{args.num_engines}"]
            with open(log, "wb") as stream:  # the pipe to its input tells the engine when this process is gone
                pipe = subprocess.PIPE
                engines.append((subprocess.Popen(line, env=environment, stdin=pipe, stdout=stream, stderr=stream), log))
        counters = [_LineCounter(journal_path(args.out, str(i))) for i in range(args.num_engines)]
        with tqdm(total=total, initial=len(journal.done), desc="sampling", unit="prompt") as bar:
            while any(engine.poll() is None for engine, _ in engines):
                if any(engine.poll() for engine, _ in engines):
                    break
                time.sleep(0.2)
                bar.update(sum(counter.more() for counter in counters))
            bar.update(sum(counter.more() for counter in counters))
    finally:
        failed = [bool(engine.poll()) for engine, _ in engines]  # by themselves: those that are ended fail, too
        _end(engine for engine, _ in engines)
        journal.absorb(part_paths(args.out))
    for i, (engine, log) in enumerate(engines):
        if failed[i] and engine.returncode > 0:
            raise UserError(f"engine {i} failed: {_last_words(log)} (log: {log})")
        if failed[i] and len(journal.done) < total:
            raise UserError(
                f"engine {i} was killed (signal {-engine.returncode}); finished records are kept: run it again"
            )
    for _, log in engines:
        log.unlink()


def _devices(engines: int, each: int) -> list[str]:
    """The GPUs to share out, or none on a machine without. Raises UserError if there are too few."""
    import torch

    if not torch.cuda.is_available():
        return []
    visible = visible_devices(os.environ.get("CUDA_VISIBLE_DEVICES"))
    devices = visible or [str(i) for i in range(torch.cuda.device_count())]
    if len(devices) < engines * each:
        raise UserError(
            f"--num_engines {engines} with {each} GPUs each need {engines * each}, and {len(devices)} are here"
        )
    return devices


class _LineCounter:
    """How many pieces a growing journal has got since the last look; its first line is the fingerprint."""

    def __init__(self, path: Path) -> None:
        self.path, self.place, self.skip = path, 0, 1

    def more(self) -> int:
        if not self.path.exists():
            return 0
        with open(self.path, "rb") as stream:
            stream.seek(self.place)
            lines = stream.read().count(b"\n")
            self.place = stream.tell()
        pieces = max(0, lines - self.skip)
        self.skip = max(0, self.skip - lines)
        return pieces


def _end(engines: Any) -> None:
    """End those of our engines that still run: by closing their input, and by force if that does not help."""
    for engine in engines:
        if engine.poll() is None:
            engine.stdin.close()
            try:
                engine.wait(_EXIT_SECONDS)
            except subprocess.TimeoutExpired:
                engine.kill()
                engine.wait()


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or ["no word"])[-1].removeprefix("orlhf-ext: error: ")[:300]


def _end_with_parent(stream: IO[str]) -> None:
    """End this process when the one that started it is gone: then its pipe closes."""

    def watch() -> None:
        stream.read()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Sample for every record, in this process or in several."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # before torch is imported
    argv = list(sys.argv[1:] if argv is None else argv)
    args = parse(argv)
    samples = read_prompts(args.data, args.limit)
    folder = find_model(args.model)
    check_context(folder, args.max_len)
    model = {"folder": args.model, "identity": identity(folder)}
    settings = {**asdict(sampling_of(args)), "backend": args.backend}
    settings |= {"limit": args.limit, "apply_chat_template": args.apply_chat_template}
    if args.part:
        _end_with_parent(sys.stdin)
        index, count = map(int, args.part.split("/"))
        mark = fingerprint(model=model["identity"], data=sha256_file(args.data), arguments=settings)
        done = read_done(args.out, mark)
        share = [sample for sample in samples if sample.id not in done][index::count]
        with Journal(args.out, mark, part=str(index)) as journal:
            if share:
                sample_here(args, folder, share, set(journal.done), journal.add)
        return
    with open_journal("generate", args.data, args.out, model, settings) as (journal, meta):
        journal.absorb(part_paths(args.out))
        if any(sample.id not in journal.done for sample in samples):
            if args.num_engines > 1:
                run_engines(args, argv, len(samples), journal)
            else:
                sample_here(args, folder, samples, set(journal.done), journal.add)
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
