"""Loaded by vLLM inside of its engine's process, which Ray's hook does not reach: what a worker of a CPU run needs
there, and the receiving end of the policy's weights."""

from __future__ import annotations

from typing import Any

import torch
from openrlhf.trainer.ray.vllm_worker_wrap import WorkerWrap as Upstream

from ..backends import kernels
from . import ray_setup

ray_setup.setup()
kernels.draw_exponentials_from_uniforms(torch)


class WorkerWrap(Upstream):
    """Receives weights on the engine's own device; an engine in float32 widens them."""

    def update_weight(self, name: str, dtype: torch.dtype, shape: Any, empty_cache: bool = False) -> None:
        """Receive one weight from the policy's first rank."""
        weight = torch.empty(tuple(shape), dtype=dtype, device=self.device)
        self._model_update_group.broadcast(weight, src=0)
        self.model_runner.model.load_weights(weights=[(name, weight.to(self.model_config.dtype))])
