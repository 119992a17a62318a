"""The classes of `ray_probe`."""

from __future__ import annotations

import os
from collections.abc import Iterator

import deepspeed
import ray
import torch
from openrlhf.trainer.ray.ppo_actor import PolicyModelActor
from openrlhf.trainer.ray.vllm_engine import RolloutRayActor
from ray_probe_hashes import as_vllm, engine_weights

from orlhf_ext.extensions.ray_classes import unwrap


class Rollouts(unwrap(RolloutRayActor)):  # type: ignore[misc]
    async def weights(self) -> dict[str, str]:
        return (await self.llm.collective_rpc(engine_weights))[0]


class Policy(unwrap(PolicyModelActor)):  # type: ignore[misc]
    def broadcast_to_vllm(self) -> None:
        if os.environ.get("ORLHF_TEST_NO_SYNC") != "1":
            super().broadcast_to_vllm()
        ours = as_vllm(self._whole())
        if torch.distributed.get_rank() == 0:
            for number, engine in enumerate(self.vllm_engines):
                theirs = ray.get(engine.weights.remote())
                equal = sum(ours.get(name) == value for name, value in theirs.items())
                print(f"weights: {equal} of {len(theirs)} equal in engine {number}", flush=True)

    def _whole(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The weights; ZeRO-3 keeps a part of each on every rank."""
        parts = self.strategy.args.ds.zero_stage == 3
        for name, weight in self.actor.model.module.named_parameters():
            with deepspeed.zero.GatheredParameters([weight], enabled=parts):
                yield name, weight.data.clone()
