"""Prompts to sample for: their token ids, sampling for all of them, and counts of what was sampled."""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Any

from ..cli.errors import UserError
from ..files.journal import Journal
from ..files.records import Record
from .engines import load_vllm
from .folder import check_ids, find_same, load_tokenizer
from .logprobs import load_model
from .pool import Calls, Pool, Work, some_of
from .samplers import Completions, HfSampler, Prompt, Sampling, VllmSampler, hf_batches
from .texts import Sample, encode, prompt_text


def encode_prompts(samples: Sequence[Sample], folder: Path, room: int, chat: bool) -> list[Prompt]:
    """Prompts as token ids, cut on the left to ``room`` of them. Raises UserError if a prompt has no token."""
    tokenizer = load_tokenizer(folder)
    encoded = encode(tokenizer, [prompt_text(tokenizer, sample, chat) for sample in samples])
    for sample, ids in zip(samples, encoded, strict=True):
        if not ids:
            raise UserError(f"{sample.name} has a prompt without any token; remove the record")
    check_ids(folder, encoded)
    return [Prompt(sample.id, ids[-room:], len(ids) > room) for sample, ids in zip(samples, encoded, strict=True)]


def load_sampler(
    name: str, copy_of: str, backend: str, sampling: Sampling, requests: int, workers: int, gpus: int, memory: float
) -> Work:
    """What samples, in a worker.

    Args:
        name, copy_of: the model, as in `find_same`.
        backend: "vllm" or "hf".
        sampling: how.
        requests: completions that the worker will be asked for, or about as many.
        workers: how many there are, which may share a machine's memory.
        gpus: of each engine.
        memory: the part of a GPU's memory that vLLM may take.
    """
    folder = find_same(name, copy_of)
    if backend == "hf":
        return Calls(HfSampler(load_model(folder, sampling.dtype, "sdpa"), load_tokenizer(folder), sampling))
    how: dict[str, Any] = {"tensor_parallel_size": gpus, "engines": workers}
    return VllmSampler(load_vllm(folder, sampling, requests, gpu_memory_utilization=memory, **how), sampling, requests)


def units_of(
    prompts: Sequence[Prompt], done: Container[str], sampling: Sampling, backend: str, at_once: int = 0
) -> list[list[Prompt]]:
    """What workers are given: prompts one by one, or for Hugging Face's ``generate`` batches that have one to do.

    Args:
        prompts: all of a run.
        done: ids of those that have their completions.
        sampling: how.
        backend: "vllm" or "hf".
        at_once: of Hugging Face's batches, prompts that are batched together (0: all).
    """
    units = [[prompt] for prompt in prompts]
    if backend == "hf":
        step = at_once or len(prompts)
        parts = (prompts[start : start + step] for start in range(0, len(prompts), step))
        units = [batch for part in parts for batch in hf_batches(part, sampling)]
    return [unit for unit in units if not all(prompt.id in done for prompt in unit)]


def sample_all(
    units: Sequence[Sequence[Prompt]],
    samples: Sequence[Sample],
    load: Callable[[], Work],
    journal: Journal,
    piece: Callable[[Prompt, Completions], Record],
    pool: Pool,
) -> None:
    """Sample for every prompt that the journal has not; it gets each as it is finished.

    Args:
        units: of `units_of`.
        samples: the run's records.
        load: what `load_sampler` does, as `Pool.run` asks for.
        journal: of the output.
        piece: what the journal keeps of a prompt.
        pool: who samples.

    Raises:
        UserError: as `Pool.run`.
    """
    from tqdm import tqdm

    names = {sample.id: sample.name for sample in samples}

    def name(key: str) -> str:
        return some_of([names[prompt.id] for prompt in units[int(key)]])

    tokens, start = 0, time.monotonic()
    with tqdm(total=len(samples), initial=len(journal.done), desc="sampling", unit="prompt") as bar:
        for key, found in pool.run(load, ((str(number), unit) for number, unit in enumerate(units)), name, len(units)):
            for prompt, completions in zip(units[int(key)], found, strict=True):
                if prompt.id not in journal.done:
                    journal.add(prompt.id, piece(prompt, completions))
                    tokens += sum(map(len, completions.token_ids))
                    bar.update()
            bar.set_postfix_str(f"{tokens / (time.monotonic() - start):.0f} tokens/s", refresh=False)


def tally(done: dict[str, Record]) -> dict[str, int]:
    """Prompts, completions, tokens, and completions that ended by themselves."""
    reasons = [reason for record in done.values() for reason in record["finish_reasons"]]
    return {
        "prompts": len(done),
        "prompts_cut": sum(record["prompt_cut"] for record in done.values()),
        "completions": len(reasons),
        "tokens": sum(len(ids) for record in done.values() for ids in record["token_ids"]),
        "stop": reasons.count("stop"),
    }
