"""``length``: responses of about, or of at most, so many tokens, words or characters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from ..cli.flags import COUNT
from .base import Reward, RewardBatch, RewardResult, Rollout

Unit = Literal["tokens", "words", "characters"]


@dataclass
class Length(Reward):
    """min(L, T) / max(L, T) for a target T; min(1, M / L) for a maximum M; L is the response's length.

    Both lie in [0, 1], are 1 where the length is right, and fall on both sides without ever being flat, so that also
    among responses that are all far too long the shorter one is better. Tokens count the end token; words are what
    white space separates. Logs ``length``.
    """

    target: Annotated[int | None, "the length to hit", COUNT] = None
    maximum: Annotated[int | None, "the length not to exceed", COUNT] = None
    unit: Annotated[Unit, "tokens, words or characters"] = "tokens"

    def __post_init__(self) -> None:
        if (self.target is None) == (self.maximum is None):
            raise ValueError("give one of --length.target and --length.maximum")

    def score(self, batch: RewardBatch) -> RewardResult:
        """Rewards in [0, 1], and the lengths."""
        lengths = [self._length(rollout) for rollout in batch]
        if self.target is not None:
            rewards = [min(n, self.target) / max(n, self.target) for n in lengths]
        else:
            assert self.maximum is not None
            rewards = [min(1.0, self.maximum / max(n, 1)) for n in lengths]
        return RewardResult(rewards, {"length": lengths})

    def _length(self, rollout: Rollout) -> int:
        if self.unit == "tokens":
            return sum(rollout.action_mask)
        return len(rollout.response.split() if self.unit == "words" else rollout.response)
