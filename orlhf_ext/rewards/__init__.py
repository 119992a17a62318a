"""Rewards for ``train_ppo_ray``: read `base` to write one, and `combine` for what is done with it."""

from .base import Reward, RewardBatch, RewardContext, RewardResult, Rollout

__all__ = ["Reward", "RewardBatch", "RewardContext", "RewardResult", "Rollout"]
