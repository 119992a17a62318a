"""The subclasses of the null extension."""

from __future__ import annotations

from openrlhf.datasets.reward_dataset import RewardDataset
from openrlhf.trainer.dpo_trainer import DPOTrainer


class Dataset(RewardDataset):
    """OpenRLHF's own."""


class Trainer(DPOTrainer):
    """OpenRLHF's own."""
