"""Rewards with a model, in Ray actors of their own: each copy on its part of a GPU, none in the controller.

The GPUs are those that the run's models leave free. Where they leave none and share theirs among each other
(``--train.colocate_all``), the copies share them, too.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ..backends.machine import torch_device
from ..backends.resources import must_share
from ..cli.errors import UserError
from ..cli.user_code import user_code
from .base import Reward, RewardBatch, RewardContext, RewardResult
from .calls import settle
from .combine import Checked, score_one

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup


class Holder:
    """What runs in an actor: one copy of a reward."""

    def __init__(self, reward: Reward, seconds: float | None = None) -> None:
        self._reward, self._seconds = reward, seconds

    def setup(self, context: RewardContext) -> None:
        """Set the reward up where this runs."""
        with user_code("a copy of it raised"):
            settle(self._reward.setup(dataclasses.replace(context, device=torch_device())))

    def score(self, batch: RewardBatch) -> Checked:
        """Score a part of a batch; where NaN is refused, the controller does so."""
        return score_one(self._reward, batch, True, self._seconds)

    def teardown(self) -> None:
        """Tear the reward down."""
        with user_code("a copy of it raised"):
            settle(self._reward.teardown())


class InActors(Reward):
    """Represents a reward that runs in actors; a batch is cut into as many parts as there are copies.

    Args:
        reward: of which each has a copy.
        copies: how many.
        group: the placement group whose GPUs they share; None: they take their parts of others.
        seconds: that scoring a part may take, or None.
    """

    waits = True
    keeps_time = True

    def __init__(
        self, reward: Reward, copies: int, group: PlacementGroup | None = None, seconds: float | None = None
    ) -> None:
        self._reward, self._copies, self._group, self._seconds = reward, copies, group, seconds
        self.name = reward.name  # type: ignore[misc]
        self.needs_reference, self.needs_policy = reward.needs_reference, reward.needs_policy
        self.reads_images = reward.reads_images  # type: ignore[misc]
        self.gpus = reward.gpus

    def setup(self, context: RewardContext) -> None:
        """Start the actors and set up a copy in each. Raises UserError if it needs a model of the run whose passes all
        processes must enter in one order, which several callers cannot keep."""
        import ray

        reference = context.score_reference if self.needs_reference else None
        policy = context.score_policy if self.needs_policy else None
        for scorer, what in ((reference, "the reference model"), (policy, "the policy")):
            if getattr(scorer, "spread", False):
                raise UserError(
                    f"it holds a model in actors of its own and needs {what}, which is spread over processes; train "
                    "without --ds.zero_stage 3, --ds.packing_samples, ring attention and tensor parallelism"
                )
        context = dataclasses.replace(context, score_reference=reference, score_policy=policy)
        actor: Any = ray.remote(num_cpus=self.gpus, num_gpus=self.gpus)(Holder)
        self._actors = [
            actor.options(**self._place(i)).remote(self._reward, self._seconds) for i in range(self._copies)
        ]
        _get([holder.setup.remote(context) for holder in self._actors])

    def _place(self, copy: int) -> dict[str, Any]:
        """Where Ray puts a copy: the copies share the group's GPUs evenly."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        if self._group is None:
            return {}
        bundle = copy % self._group.bundle_count
        return {
            "scheduling_strategy": PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=bundle)
        }

    def score(self, batch: RewardBatch) -> RewardResult:
        """Score the parts at the same time."""
        shares = cut_at_groups(batch.groups(), len(self._actors))
        parts = [batch.take(share) for share in shares]
        found: list[Checked] = _get([a.score.remote(part) for a, part in zip(self._actors, parts, strict=False)])
        keys = set(found[0].metrics)
        if any(set(part.metrics) != keys for part in found):
            raise UserError("its copies give different metrics; give the same metrics for every batch")
        places = [index for share in shares for index in share]

        def joined(columns: Iterable[list[float]]) -> list[float]:
            return [value for _, value in sorted(zip(places, itertools.chain.from_iterable(columns), strict=True))]

        scores = None
        if all(part.scores is not None for part in found):
            scores = joined(part.scores or [] for part in found)
        metrics = {key: joined(part.metrics[key] for part in found) for key in found[0].metrics}
        apart = {key: joined(part.apart[key] for part in found) for key in found[0].apart}
        return RewardResult(joined(part.rewards for part in found), metrics, scores, apart)

    def teardown(self) -> None:
        """Tear the copies down and end their actors."""
        import ray

        _get([holder.teardown.remote() for holder in self._actors])
        for holder in self._actors:
            ray.kill(holder)


def cut_at_groups(groups: Sequence[Sequence[int]], parts: int) -> list[list[int]]:
    """Indices of a batch in at most so many shares of about one size: the samples of a prompt stay together."""
    size, done = sum(map(len, groups)), 0
    found: list[list[int]] = [[] for _ in range(parts)]
    for group in groups:
        found[(2 * done + len(group)) * parts // (2 * size)] += group  # the part that its middle falls into
        done += len(group)
    return [share for share in found if share]


def in_actors(rewards: Sequence[Reward], args: SimpleNamespace, policy: Any = None) -> list[Reward]:
    """The rewards, those with a model replaced by their actors.

    Args:
        rewards: of the run.
        args: the launcher's nested arguments.
        policy: OpenRLHF's ``RayActorGroup`` of the policy, whose GPUs are shared if there are no others.
    """
    import ray

    copies = args.ext.reward_actors
    group, parts = None, [reward.gpus for reward in rewards if reward.gpus for _ in range(copies)]
    if policy is not None and parts and must_share(args, parts, ray.cluster_resources().get("GPU", 0)):
        group = ray.get(policy._actor_handlers[0].__ray_call__.remote(_current_group))
    seconds = args.ext.reward_timeout
    return [InActors(reward, copies, group, seconds) if reward.gpus else reward for reward in rewards]


def _current_group(_: Any) -> PlacementGroup | None:
    import ray

    return ray.util.get_current_placement_group()


def _get(references: list[Any]) -> list[Any]:
    """``ray.get`` that raises what the actor raised, without Ray's wrapping. Raises UserError if the actor is lost."""
    import ray

    try:
        return ray.get(references)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        from ..models.ray_workers import cause

        raise UserError(f"its process is lost: {cause(error)}") from None
