"""OpenRLHF's reward model, with one score for each group in the place of its one score.

A config with ``group_reward`` makes such a model, any other config the stock one. The score is read where OpenRLHF
reads it, at the last attended token, so that neither padding side nor padding token matters; the head is applied there
alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import deepspeed
import openrlhf.models.model as upstream
import torch
from torch import nn

from ..extensions import run
from ..models.group_heads import initialise, make_head
from ..models.head_settings import KEY, HeadSettings, from_config
from . import trained_groups
from .aggregate import aggregate, standardise

_stock_class = upstream._get_reward_model
_stock = upstream.get_llm_for_sequence_regression


def reward_model_class(
    base: Any, backbone: Any, value_head_prefix: str = "score", packing_samples: bool = False
) -> Any:
    """What OpenRLHF's `_get_reward_model` makes, with heads for groups where the config asks for them."""
    stock = _stock_class(base, backbone, value_head_prefix, packing_samples)

    class GroupRewardModel(stock):  # type: ignore[misc, valid-type]
        """A backbone and a head ``(B, d) -> (B, U)``."""

        group_settings: HeadSettings | None = None
        frozen = False

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            if not hasattr(config, KEY):
                if (now := trained_groups.from_args(run.arguments)) is None:
                    return
                setattr(config, KEY, now.settings.as_config())
            self.group_settings = from_config(getattr(config, KEY), "the reward model")
            setattr(self, value_head_prefix, make_head(config.hidden_size, self.group_settings))
            self.post_init()

        @property
        def backbone(self) -> nn.Module:
            """The model without its head."""
            return getattr(self, self.base_model_prefix)

        def train(self, mode: bool = True) -> Any:
            """As usual; a frozen backbone stays in evaluation mode, because dropout would be mere noise."""
            super().train(mode)
            if self.frozen:
                self.backbone.eval()
            return self

        def last_hidden(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, Any]:
            """The hidden state ``(B, d)`` of the last attended token of each row, and the backbone's output."""
            mask = attention_mask.long()
            positions = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 1)
            outputs = self.backbone(input_ids, attention_mask=attention_mask, position_ids=positions)
            last = mask.shape[1] - 1 - mask.fliplr().argmax(1)
            return outputs["last_hidden_state"][torch.arange(len(last), device=last.device), last], outputs

        def forward(
            self,
            input_ids: torch.Tensor | None = None,
            attention_mask: torch.Tensor | None = None,
            return_output: bool = False,
            ring_attn_group: Any = None,
            pad_sequence: bool = False,
            packed_seq_lens: Any = None,
            hidden: torch.Tensor | None = None,
            all_groups: bool = False,
        ) -> Any:
            """As OpenRLHF's, with two more arguments.

            Args:
                hidden: ``(B, d)``, what `last_hidden` gave earlier, in the place of ids and mask.
                all_groups: give all scores ``(B, U)``, not the one reward ``(B,)`` that the settings aggregate.
            """
            if self.group_settings is None:
                return super().forward(
                    input_ids, attention_mask, return_output, ring_attn_group, pad_sequence, packed_seq_lens
                )
            outputs: Any = {}
            if hidden is None:
                assert input_ids is not None and attention_mask is not None
                hidden, outputs = self.last_hidden(input_ids, attention_mask)
            scores = getattr(self, self.value_head_prefix)(hidden)
            if not all_groups:
                norm = self.group_settings.norm
                if self.normalize_reward and not self.training and norm:
                    scores = standardise(scores, norm["mean"], norm["std"])
                scores = aggregate(scores, self.group_settings.aggregate)
            return (scores, outputs) if return_output else scores

        def save_pretrained(self, save_directory: Any, state_dict: Any = None, **words: Any) -> Any:
            """As usual; LoRA's adapters are merged into the weights that are written."""
            if any(".lora_A." in name for name in self.state_dict()):
                state_dict = merge_adapters(self, self.state_dict() if state_dict is None else state_dict)
            return super().save_pretrained(save_directory, state_dict=state_dict, **words)

    return GroupRewardModel


@contextlib.contextmanager
def _group_class() -> Iterator[None]:
    """OpenRLHF's builder makes our class meanwhile."""
    before = upstream._get_reward_model
    upstream._get_reward_model = reward_model_class
    try:
        yield
    finally:
        upstream._get_reward_model = before


def get_llm_for_sequence_regression(model_name_or_path: str, model_type: str, **words: Any) -> Any:
    """As OpenRLHF's. In a run that trains groups, also freezes the backbone, or gives it adapters, and makes the head.

    LoRA's adapters go into the backbone alone, so that the head is trained, and what is saved is a whole model.
    """
    now = trained_groups.from_args(run.arguments) if model_type == "reward" else None
    lora_rank = 0
    if now is not None:  # head and adapters are made here
        words["init_value_head"] = False
        lora_rank, words["lora_rank"] = words.get("lora_rank", 0), 0
    with _group_class():
        model = _stock(model_name_or_path, model_type, **words)
    if now is None:
        return model
    if not has_head(model_name_or_path):
        head = getattr(model, model.value_head_prefix)
        with deepspeed.zero.GatheredParameters(list(head.parameters()), modifier_rank=0):
            initialise(head)
    # the statistics of an earlier head are not those of this one
    model.group_settings = replace(now.settings, norm=None)
    setattr(model.config, KEY, model.group_settings.as_config())
    if not now.train_backbone or lora_rank:
        model.backbone.requires_grad_(False)
    if lora_rank:
        adapters = {name: words[name] for name in ("lora_alpha", "lora_dropout", "target_modules") if name in words}
        _add_adapters(model.backbone, r=lora_rank, **adapters)
    model.frozen = not now.train_backbone and not lora_rank
    return model


def has_head(name_or_path: str) -> bool:
    """Whether a model is a reward model of groups already."""
    from transformers import AutoConfig

    return hasattr(AutoConfig.from_pretrained(name_or_path), KEY)


def _add_adapters(backbone: nn.Module, **words: Any) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    backbone.enable_input_require_grads()  # type: ignore[operator]
    inject_adapter_in_model(LoraConfig(**words, bias="none"), backbone)


def merge_adapters(model: nn.Module, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights without adapters: ``W + scaling * B A``, under the names that the model had without them."""
    from peft.tuners.lora import LoraLayer

    merged = dict(weights)
    for name, module in model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        (adapter,) = module.scaling
        base = merged.pop(f"{name}.base_layer.weight")
        a, b = (merged.pop(f"{name}.lora_{part}.{adapter}.weight").float() for part in "AB")
        update = module.scaling[adapter] * (b @ a).to(base.device)
        if getattr(module, "fan_in_fan_out", False):
            update = update.T
        merged[f"{name}.weight"] = (base.float() + update).to(base.dtype)
    return {name.replace(".base_layer.", "."): weight for name, weight in merged.items()}
