"""OpenRLHF's policy, which also scores any tokens for rewards: with the weights that have sampled the batch."""

from __future__ import annotations

from typing import Any

from openrlhf.trainer.ray.ppo_actor import PolicyModelActor

from ..extensions.ray_classes import unwrap
from .scorers import Scoring


class ScoringPolicy(Scoring, unwrap(PolicyModelActor)):  # type: ignore[misc]
    """The actor of the policy, as OpenRLHF makes it."""

    @property
    def scored(self) -> Any:
        """The model that is trained."""
        return self.actor
