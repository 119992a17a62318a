"""OpenRLHF and DeepSpeed without CUDA: gloo, torch's AdamW, and a ``torch.cuda`` that answers "cpu".

Nothing here happens in a run with CUDA: every patch asks that first, when its module is imported.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

from ..extensions.inject import on_import
from . import kernels
from .machine import gpu_present


class CpuDevice(str):
    """``"cpu"`` for ``tensor.to(...)``, and ``"0"`` inside an f-string.

    OpenRLHF uses ``torch.cuda.current_device()`` both as a device and as the number in ``f"cuda:{...}"``.
    """

    def __format__(self, spec: str) -> str:
        return "0"


def without_cuda(patch: Callable[[Any], None]) -> Callable[[ModuleType], None]:
    """A callback for `on_import` that patches where there is no CUDA. Ray hides a machine's GPUs from workers that ask
    for none; such a worker is of a run with GPUs all the same."""

    def patched(module: ModuleType) -> None:
        import torch

        # Asked last: looking for devices starts CUDA, with which a process can no longer be forked.
        if not gpu_present() and not torch.cuda.is_available():
            patch(module)

    return patched


def _torch(torch: Any) -> None:
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    torch.cuda.current_device = lambda: CpuDevice("cpu")
    for name in ("set_device", "synchronize", "current_stream", "empty_cache"):
        setattr(torch.cuda, name, lambda *args, **kwargs: None)
    kernels.keep_freed_memory()
    if not kernels.bf16_units():
        kernels.multiply_bf16_in_float32(torch)


def _device_mesh(module: Any) -> None:
    original = module.init_device_mesh

    @functools.wraps(original)
    def init_device_mesh(device_type: str, *args: Any, **kwargs: Any) -> Any:
        return original("cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    module.init_device_mesh = init_device_mesh


def _shared_memory_operator(module: Any) -> None:
    module.build_shm_op = functools.wraps(module.build_shm_op)(lambda: None)


def use_torch_adam(module: Any) -> None:
    """Let DeepSpeed take torch's fused AdamW, which needs no compiler, on a CPU and on a GPU."""
    original = module.get_train_ds_config

    @functools.wraps(original)
    def get_train_ds_config(*args: Any, **kwargs: Any) -> dict:
        config = original(*args, **kwargs)
        optimizer = config.get("optimizer") or {}
        if "adam" in optimizer.get("type", "").lower():
            optimizer.setdefault("params", {}).update(torch_adam=True, fused=True)
        return config

    module.get_train_ds_config = get_train_ds_config


def install() -> None:
    """Register every patch; each looks for CUDA when its module is imported."""
    on_import("torch", without_cuda(_torch))
    on_import("torch.distributed.device_mesh", without_cuda(_device_mesh))
    on_import("deepspeed.comm.torch", without_cuda(_shared_memory_operator))
    on_import("openrlhf.utils.deepspeed.deepspeed_utils", without_cuda(use_torch_adam))
