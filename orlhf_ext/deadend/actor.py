"""OpenRLHF's `Actor` around a `QModel`, so that its strategy treats Q_D as it treats a language model."""

from __future__ import annotations

from typing import Any

import torch
from openrlhf.models.actor import Actor
from transformers.integrations.deepspeed import HfDeepSpeedConfig

from ..extensions import run
from .model import open_model

#: flags of training that decoding has to know, see `settings.QSettings`
_SAVED = ("gamma", "q_min", "q_max", "append_eos")


class QActor(Actor):
    """Replaces `Actor` in ``train_sft``, with the same constructor."""

    def __init__(
        self,
        pretrain_or_model: Any,
        attn_implementation: str = "sdpa",
        param_dtype: str = "bf16",
        ds_config: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Load a Q_D, or make one of a language model; the extension's check has refused what is not read here."""
        model = pretrain_or_model
        if isinstance(model, str):
            sharded = ds_config is not None and ds_config["zero_optimization"]["stage"] == 3
            self._sharding = HfDeepSpeedConfig(ds_config) if sharded else None  # transformers asks whether it lives
            dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[param_dtype]
            flags = run.arguments.deadend if run.arguments else None  # OpenRLHF passes no arguments on
            settings = {name: getattr(flags, name) for name in _SAVED if hasattr(flags, name)}
            equal_rows = getattr(flags, "equal_rows", False)
            model = open_model(model, dtype, attn_implementation, settings, equal_rows=equal_rows)
        super().__init__(model)
        self.is_vlm = self.packing_samples = False
        self.model.config.use_cache = False

    def forward(  # type: ignore[override]
        self, sequences: torch.Tensor, attention_mask: torch.Tensor, return_output: bool = False, **_: Any
    ) -> Any:
        """Values ``(B, T-1)`` of the actions taken: the online head's and the target head's; ``train_sft`` asks for an
        output beside them, which is empty."""
        values = self.model(sequences, attention_mask=attention_mask)
        return (values, {}) if return_output else values
