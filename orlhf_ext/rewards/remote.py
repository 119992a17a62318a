"""Rewards that hold a model, in Ray actors of their own: each copy on its part of a GPU, none in the controller."""

from __future__ import annotations

import dataclasses
from typing import Any

from ..errors import UserError
from ..user_code import user_code
from .base import Reward, RewardBatch, RewardContext, RewardResult
from .combine import Checked, score_one


class Holder:
    """What runs in an actor: one copy of a reward."""

    def __init__(self, reward: Reward) -> None:
        self._reward = reward

    def setup(self, context: RewardContext) -> None:
        """Set the reward up where this runs."""
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
        with user_code("a copy of it raised"):
            self._reward.setup(dataclasses.replace(context, device=device))

    def score(self, batch: RewardBatch) -> Checked:
        """Score a part of a batch."""
        return score_one(self._reward, batch)

    def teardown(self) -> None:
        """Tear the reward down."""
        with user_code("a copy of it raised"):
            self._reward.teardown()


class InActors(Reward):
    """Stands for a reward that runs in actors; a batch is cut into as many parts as there are copies."""

    def __init__(self, reward: Reward, copies: int) -> None:
        self._reward, self._copies = reward, copies
        self.name = reward.name  # type: ignore[misc]
        self.needs_reference = reward.needs_reference  # type: ignore[misc]
        self.reads_images = reward.reads_images  # type: ignore[misc]
        self.gpus = reward.gpus

    def setup(self, context: RewardContext) -> None:
        """Start the actors and set up a copy in each."""
        import ray

        actor: Any = ray.remote(num_cpus=self.gpus, num_gpus=self.gpus)(Holder)
        self._actors = [actor.remote(self._reward) for _ in range(self._copies)]
        _get([holder.setup.remote(context) for holder in self._actors])

    def score(self, batch: RewardBatch) -> RewardResult:
        """Score the parts at the same time."""
        share = -(-len(batch) // len(self._actors))
        parts = [batch.take(range(start, min(start + share, len(batch)))) for start in range(0, len(batch), share)]
        found: list[Checked] = _get([a.score.remote(part) for a, part in zip(self._actors, parts, strict=False)])
        keys = set(found[0].metrics)
        if any(set(part.metrics) != keys for part in found):
            raise UserError("its copies give different metrics; give the same metrics for every batch")
        scores = None
        if all(part.scores is not None for part in found):
            scores = [value for part in found for value in part.scores or ()]
        metrics = {key: [value for part in found for value in part.metrics[key]] for key in found[0].metrics}
        return RewardResult([value for part in found for value in part.rewards], metrics, scores)

    def teardown(self) -> None:
        """Tear the copies down and end their actors."""
        import ray

        _get([holder.teardown.remote() for holder in self._actors])
        for holder in self._actors:
            ray.kill(holder)


def in_actors(reward: Reward, copies: int) -> Reward:
    """The reward itself, if it holds no model, or what stands for it."""
    return InActors(reward, copies) if reward.gpus else reward


def _get(references: list[Any]) -> list[Any]:
    """``ray.get`` that raises what the actor raised, without Ray's wrapping."""
    import ray

    try:
        return ray.get(references)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
