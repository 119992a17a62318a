"""The reward of `reward_path` on both sides: a class for ``--ext.reward``, and OpenRLHF's ``reward_func``."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor

from orlhf_ext.rewards import Reward, RewardBatch

SECONDS = float(os.environ.get("ORLHF_EXT_BENCH_SECONDS", "0"))  # that one sample waits, as for an answer of a server


def letters(text: str) -> float:
    """The share of small letters."""
    time.sleep(SECONDS)
    return sum("a" <= c <= "z" for c in text) / max(1, len(text))


class Letters(Reward):
    """All samples of a batch at once; waiting ones at the same time."""

    def score(self, batch: RewardBatch) -> list[float]:
        if not SECONDS:
            return [letters(text) for text in batch.responses]
        with ThreadPoolExecutor(len(batch)) as pool:
            return list(pool.map(letters, batch.responses))


def reward_func(queries: list[str], prompts: list[str], labels: list[str]) -> dict:
    """``--reward.remote_url FILE.py``: OpenRLHF calls it in a thread for each sample, while others are generated."""
    rewards = [letters(query[len(prompt) :]) for query, prompt in zip(queries, prompts, strict=True)]
    return {"rewards": rewards[0], "scores": rewards[0], "extra_logs": {"letters": rewards[0]}}
