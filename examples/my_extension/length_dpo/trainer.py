"""Imported only when OpenRLHF imports the trainer that it replaces."""

from typing import Any

import torch
from openrlhf.trainer.dpo_trainer import DPOTrainer


class LengthTrainer(DPOTrainer):
    """OpenRLHF's trainer with one method changed."""

    def _get_batch_logps(
        self, per_token_logps: torch.Tensor, attention_mask: torch.Tensor, prompt_id_lens: list[int]
    ) -> tuple[Any, Any]:
        """``(B,)`` sums of log-probabilities, divided by a power of the response's length, and their means."""
        sums, means = super()._get_batch_logps(per_token_logps, attention_mask, prompt_id_lens)
        lengths = attention_mask.sum(-1) - attention_mask.new_tensor(prompt_id_lens)
        return sums / lengths**self.strategy.args.length.power, means
