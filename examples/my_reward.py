"""Short answers: 1 up to so many words, less beyond.

orlhf-ext check reward my_reward:Brevity --brevity.words 5
"""

from dataclasses import dataclass

from orlhf_ext.rewards import Reward, RewardBatch, RewardResult


@dataclass
class Brevity(Reward):
    """1 for a response of at most ``words`` words, less for longer ones."""

    words: int = 50

    def __post_init__(self) -> None:
        if self.words < 1:
            raise ValueError(f"--brevity.words {self.words} must be at least 1")

    def score(self, batch: RewardBatch) -> RewardResult:
        """Rewards, and the number of words as a metric: ``brevity/words`` in the logs."""
        words = [float(max(1, len(text.split()))) for text in batch.responses]
        return RewardResult([min(1.0, self.words / count) for count in words], metrics={"words": words})
