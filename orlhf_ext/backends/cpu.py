"""OpenRLHF and DeepSpeed without CUDA: gloo, torch's AdamW, and a ``torch.cuda`` that answers "cpu".

Nothing here happens where ``torch.cuda.is_available()``: every patch asks that first, when its module is imported.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

from ..inject import on_import


class CpuDevice(str):
    """``"cpu"`` for ``tensor.to(...)``, and ``"0"`` inside an f-string.

    OpenRLHF uses ``torch.cuda.current_device()`` both as a device and as the number in ``f"cuda:{...}"``.
    """

    def __format__(self, spec: str) -> str:
        return "0"


def _without_cuda(patch: Callable[[Any], None]) -> Callable[[ModuleType], None]:
    def patched(module: ModuleType) -> None:
        import torch

        if not torch.cuda.is_available():
            patch(module)

    return patched


def _torch(torch: Any) -> None:
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    torch.cuda.current_device = lambda: CpuDevice("cpu")
    for name in ("set_device", "synchronize", "current_stream", "empty_cache"):
        setattr(torch.cuda, name, lambda *args, **kwargs: None)
    keep_freed_memory()
    if not bf16_units():
        multiply_bf16_in_float32(torch)


def bf16_units() -> bool:
    """Whether this CPU's vector units know bf16 (AVX-512 or newer); imports torch."""
    import torch

    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _device_mesh(module: Any) -> None:
    original = module.init_device_mesh

    @functools.wraps(original)
    def init_device_mesh(device_type: str, *args: Any, **kwargs: Any) -> Any:
        return original("cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    module.init_device_mesh = init_device_mesh


def _shared_memory_operator(module: Any) -> None:
    module.build_shm_op = functools.wraps(module.build_shm_op)(lambda: None)


def _train_config(module: Any) -> None:
    original = module.get_train_ds_config

    @functools.wraps(original)
    def get_train_ds_config(*args: Any, **kwargs: Any) -> dict:
        config = original(*args, **kwargs)
        optimizer = config.get("optimizer") or {}
        if "adam" in optimizer.get("type", "").lower():
            optimizer.setdefault("params", {})["torch_adam"] = True
        return config

    module.get_train_ds_config = get_train_ds_config


def keep_freed_memory() -> None:
    """Let glibc keep freed memory instead of giving it back to the kernel after every large tensor.

    A training step on a CPU allocates and frees the same hundreds of megabytes again and again; mapping and clearing
    them anew costs a third of the step. ``tests/bench`` measures it. Other C libraries are left alone.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # M_* of malloc.h
    for parameter, value in ((mmap_threshold, 2**31 - 1), (trim_threshold, 2**31 - 1), (top_pad, 2**28)):
        libc.mallopt(parameter, value)


_library: Any = None  # torch forgets the kernels when their library is collected


def multiply_bf16_in_float32(torch: Any) -> None:
    """Multiply bf16 matrices through float32 kernels, on a CPU whose vector units know no bf16 (AVX2 and older).

    There, torch multiplies bf16 with plain loops: a training step of a 135M model takes minutes instead of seconds
    (``tests/bench`` measures it). Operands are widened, multiplied in float32, and the product is rounded once to bf16,
    as CPUs and GPUs with bf16 units do; weights, activations and files stay bf16.
    """
    global _library
    import warnings

    _library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that a kernel is overridden, which is what we are here for
        for name in ("mm", "addmm", "bmm", "baddbmm"):
            original = torch.library.get_kernel(f"aten::{name}", "CPU")

            def kernel(keys: Any, *operands: Any, _original: Any = original, **options: Any) -> Any:
                if operands[0].dtype is not torch.bfloat16:
                    return _original.call_boxed(keys, *operands, **options)
                return _original.call_boxed(keys, *(operand.float() for operand in operands), **options).bfloat16()

            _library.impl(name, kernel, "CPU", with_keyset=True, allow_override=True)


def install() -> None:
    """Register every patch; each looks for CUDA when its module is imported."""
    on_import("torch", _without_cuda(_torch))
    on_import("torch.distributed.device_mesh", _without_cuda(_device_mesh))
    on_import("deepspeed.comm.torch", _without_cuda(_shared_memory_operator))
    on_import("openrlhf.utils.deepspeed.deepspeed_utils", _without_cuda(_train_config))
