"""The experience maker of ``batch-min``: the rewards of the group with the least mean over a whole rollout batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker

from .aggregate import worst_group

if TYPE_CHECKING:
    from openrlhf.trainer.ppo_utils.experience import Experience


class WorstGroup(RemoteExperienceMaker):
    """Puts the worst group's rewards in place before anything is made of rewards."""

    @torch.no_grad()
    def compute_advantages_and_returns(self, experiences: list[Experience]) -> list[Experience]:
        """Length penalties, baselines and advantages follow as ever."""
        own = self.args.ext.batch_min
        take_worst_group(experiences, own["groups"], own["weights"])
        return super().compute_advantages_and_returns(experiences)


def take_worst_group(experiences: list[Experience], name: str, weights: dict[str, float]) -> str:
    """Replace the part of a reward of groups by that of the group whose mean over all experiences is the least.

    Args:
        experiences: micro batches with ``rewards`` ``(B,)`` and, in ``info``, ``NAME/reward_GROUP`` and ``reward/NAME``
            ``(B,)``; ``rewards``, ``info["reward"]`` and ``info["NAME/worst_GROUP"]`` are set.
        name: of the reward of groups.
        weights: of all rewards, by name; rewards are their weighted sum.

    Returns:
        The group's name.
    """
    prefix = f"{name}/reward_"
    groups = [key.removeprefix(prefix) for key in experiences[0].info if key.startswith(prefix)]

    def column(key: str) -> torch.Tensor:
        return torch.cat([experience.info[key] for experience in experiences])

    chosen, worst = worst_group(torch.stack([column(prefix + group) for group in groups], 1))
    parts = [(weight, chosen if own == name else column(f"reward/{own}")) for own, weight in weights.items()]
    rewards = sum(weight * part for weight, part in parts)
    assert isinstance(rewards, torch.Tensor)
    for experience, own in zip(experiences, rewards.split([len(e.rewards) for e in experiences]), strict=True):
        experience.rewards = own.to(experience.rewards.dtype)
        experience.info["reward"] = experience.rewards.clone()
        for i, group in enumerate(groups):
            experience.info[f"{name}/worst_{group}"] = torch.full_like(experience.rewards, float(i == worst))
    return groups[worst]
