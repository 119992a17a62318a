"""OpenRLHF's frozen reference model, which also scores any tokens for rewards."""

from __future__ import annotations

from typing import Any

from openrlhf.trainer.ray.launcher import ReferenceModelActor

from ..extensions.ray_classes import unwrap
from .scorers import Scoring


class ScoringReference(Scoring, unwrap(ReferenceModelActor)):  # type: ignore[misc]
    """The actor of the reference model, as OpenRLHF makes it."""

    @property
    def scored(self) -> Any:
        """The reference model."""
        return self.model
