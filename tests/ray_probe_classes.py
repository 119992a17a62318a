"""The classes of `ray_probe`."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import ray
import torch
from openrlhf.trainer.ray.ppo_actor import PolicyModelActor
from openrlhf.trainer.ray.vllm_engine import RolloutRayActor

from orlhf_ext.actors import unwrap


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.detach().bfloat16().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def engine_weights(worker: Any) -> dict[str, str]:
    """vLLM's name -> hash; rows that pad the vocabulary are left out."""
    size = worker.model_config.get_vocab_size()
    found = {}
    for name, weight in worker.model_runner.model.named_parameters():
        padded = "embed_tokens" in name or "lm_head" in name
        found[name] = digest(weight[:size] if padded else weight)
    return found


def as_vllm(weights: Any) -> dict[str, str]:
    """Hashes of a policy's weights under vLLM's names: q, k, v and gate, up are one tensor each there."""
    merged: dict[str, list[torch.Tensor]] = {}
    for name, weight in weights:
        for parts, whole in ((("q_proj", "k_proj", "v_proj"), "qkv_proj"), (("gate_proj", "up_proj"), "gate_up_proj")):
            for part in parts:
                name = name.replace(part, whole)
        merged.setdefault(name, []).append(weight)
    return {name: digest(torch.cat(parts) if len(parts) > 1 else parts[0]) for name, parts in merged.items()}


class Rollouts(unwrap(RolloutRayActor)):  # type: ignore[misc]
    async def weights(self) -> dict[str, str]:
        return (await self.llm.collective_rpc(engine_weights))[0]


class Policy(unwrap(PolicyModelActor)):  # type: ignore[misc]
    def broadcast_to_vllm(self) -> None:
        if os.environ.get("ORLHF_TEST_NO_SYNC") != "1":
            super().broadcast_to_vllm()
        ours = as_vllm(self.actor.model.module.named_parameters())
        if torch.distributed.get_rank() == 0:
            for number, engine in enumerate(self.vllm_engines):
                theirs = ray.get(engine.weights.remote())
                equal = sum(ours.get(name) == value for name, value in theirs.items())
                print(f"weights: {equal} of {len(theirs)} equal in engine {number}", flush=True)
