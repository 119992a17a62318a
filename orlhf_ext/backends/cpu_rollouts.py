"""Rollouts without CUDA: vLLM's CPU build inside Ray workers, and its weights in step with the policy's.

Registered by a worker's hook only (see `orlhf_ext.launch.ray_setup`): an engine that never gets new weights, such as
that of ``orlhf-ext generate``, is faster with the packed weights that this does without.
"""

from __future__ import annotations

import datetime
import functools
from typing import Any

from ..extensions.inject import on_import
from . import kernels
from .cpu import without_cuda

_UPSTREAM = "openrlhf.trainer.ray.vllm_worker_wrap.WorkerWrap"
_OURS = "orlhf_ext.launch.cpu_engine.WorkerWrap"
_SEQUENCES = 64  # of full length, that the cache for keys and values has room for
_TIMEOUT = datetime.timedelta(minutes=10)


class GlooBroadcast:
    """``broadcast`` over a gloo group of its own, in place of NCCL's.

    DeepSpeed and vLLM each have a default group in their process; neither is touched.
    """

    def __init__(self, host: str, port: int, rank: int, world_size: int) -> None:
        import torch.distributed as dist

        self.rank = rank
        self._store = dist.TCPStore(
            host, int(port), world_size, is_master=rank == 0, timeout=_TIMEOUT, wait_for_workers=False
        )
        store = dist.PrefixStore("orlhf_ext", self._store)
        self._group: Any = dist.ProcessGroupGloo(store, rank, world_size, _TIMEOUT)

    def broadcast(self, tensor: Any, src: int, stream: Any = None) -> None:
        """Send ``tensor`` from rank ``src``, or fill it there; any dtype and shape, as bytes."""
        import torch
        import torch.distributed as dist

        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor = src, 0
        whole = tensor.detach().contiguous()
        self._group.broadcast([whole.reshape(-1).view(torch.uint8)], options).wait()
        if self.rank != src and whole.data_ptr() != tensor.data_ptr():
            tensor.copy_(whole)


def _sync_group(module: Any) -> None:
    @functools.wraps(module.stateless_init_process_group)
    def stateless_init_process_group(
        master_address: str, master_port: int, rank: int, world_size: int, device: Any
    ) -> GlooBroadcast:
        return GlooBroadcast(master_address, master_port, rank, world_size)

    module.stateless_init_process_group = stateless_init_process_group


def _plain_weights(module: Any) -> None:
    """Weights stay where `load_weights` finds them; vLLM would pack them and leave an empty tensor behind."""

    @functools.wraps(module.dispatch_cpu_unquantized_gemm)
    def dispatch_cpu_unquantized_gemm(layer: Any, remove_weight: bool) -> None:
        import torch

        layer.cpu_linear = torch.nn.functional.linear

    module.dispatch_cpu_unquantized_gemm = dispatch_cpu_unquantized_gemm


def _engine(module: Any) -> None:
    original = module.EngineArgs.create_engine_config

    @functools.wraps(original)
    def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        import torch

        kernels.allow_amx()
        if self.worker_extension_cls == _UPSTREAM:
            self.worker_extension_cls = _OURS
        if self.dtype in ("bfloat16", torch.bfloat16) and not kernels.bf16_units():
            self.dtype = "float32"  # the same weights; plain loops over bf16 would take several times as long
        if self.kv_cache_memory_bytes is None and self.max_model_len:
            self.kv_cache_memory_bytes = _cache_bytes(self.model, self.max_model_len)
        return original(self, *args, **kwargs)

    module.EngineArgs.create_engine_config = create_engine_config


def _cache_bytes(model: str, max_len: int) -> int:
    """Room for keys and values of some sequences, within an eighth of the memory that is free."""
    import psutil
    from transformers import AutoConfig

    from .resources import kv_bytes_per_token

    one = (max_len + 256) * kv_bytes_per_token(AutoConfig.from_pretrained(model), element_bytes=4)
    return max(2 * one, min(_SEQUENCES * one, psutil.virtual_memory().available // 8))


def install() -> None:
    """Register every patch; each looks for CUDA when its module is imported."""
    on_import("openrlhf.utils.distributed_util", without_cuda(_sync_group))
    on_import("vllm.model_executor.layers.utils", without_cuda(_plain_weights))
    on_import("vllm.engine.arg_utils", without_cuda(_engine))
