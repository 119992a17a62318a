"""An extension that replaces two classes by subclasses that change nothing."""

from __future__ import annotations

from orlhf_ext.extensions import Extension


class Null(Extension):
    """Costs what injection costs, and nothing else."""

    name = "null"
    launchers = ("train_dpo",)
    replacements = {  # noqa: RUF012
        "openrlhf.trainer.dpo_trainer:DPOTrainer": "null_classes:Trainer",
        "openrlhf.datasets.reward_dataset:RewardDataset": "null_classes:Dataset",
    }
