"""The classes of `ray_probe`."""

from __future__ import annotations

import os

import ray
import torch
from openrlhf.trainer.ray.ppo_actor import PolicyModelActor
from openrlhf.trainer.ray.vllm_engine import RolloutRayActor
from ray_probe_hashes import as_vllm, engine_weights

from orlhf_ext.actors import unwrap


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
