"""Mistakes of OpenRLHF, shown and fixed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orlhf_ext import backends, openrlhf_fixes

pytest.importorskip("torch", reason="no torch")


def experiences(groups: list[list[float]], order: list[int], cut: int) -> list[Any]:
    """Samples of several prompts in an order of their own, as micro batches of ``cut``."""
    import torch

    flat = torch.tensor([value for group in groups for value in group])
    parts = [order[start : start + cut] for start in range(0, len(order), cut)]
    return [SimpleNamespace(index=part, rewards=flat[part].clone()) for part in parts]


@pytest.mark.parametrize("size", [6, 7, 8, 12, 16])
def test_groups_of_one_value_become_zero_and_others_stay(size: int) -> None:
    import torch

    constant, other = [0.9] * size, [0.9] * (size - 1) + [0.5]
    order = torch.randperm(2 * size, generator=torch.Generator().manual_seed(size)).tolist()
    found = experiences([constant, other], order, cut=4)
    openrlhf_fixes.zero_constant_groups(found, size)
    rewards = torch.empty(2 * size)
    for experience in found:
        rewards[experience.index] = experience.rewards
    assert rewards[:size].tolist() == [0.0] * size
    assert torch.equal(rewards[size:], torch.tensor(other))


def test_upstreams_normalisation_needs_it() -> None:
    """If this fails, OpenRLHF's formula or torch's mean has changed, and the fix can go."""
    import torch

    rewards = torch.full((1, 8), 0.9)
    normal = (rewards - rewards.mean(-1, keepdim=True)) / (rewards.std(-1, keepdim=True) + 1e-9)
    assert normal.abs().max() > 0.5


def test_reward_statistics_are_those_of_the_config(tiny_model: Path, tmp_path: Path) -> None:
    backends.install()
    openrlhf_fixes.install()
    import torch
    from openrlhf.models.model import get_llm_for_sequence_regression

    model = get_llm_for_sequence_regression(
        str(tiny_model), "reward", attn_implementation="sdpa", init_value_head=True, normalize_reward=True
    )
    model.config.mean, model.config.std = 5.0, 3.0
    model.save_pretrained(tmp_path)
    again = get_llm_for_sequence_regression(str(tmp_path), "reward", attn_implementation="sdpa", normalize_reward=True)
    assert (again.mean.item(), again.std.item()) == (5.0, 3.0)
    assert torch.isfinite(model.mean).all() and (model.mean.item(), model.std.item()) == (0.0, 1.0)


def test_rotary_frequencies_are_float32_under_zero_3(tiny_model: Path, strategy: Any) -> None:
    """And all else that a model is made from there has its dtype."""
    openrlhf_fixes.install()
    import deepspeed
    import torch
    from transformers import AutoConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = AutoConfig.from_pretrained(tiny_model)
    wanted = LlamaRotaryEmbedding(config).inv_freq
    zero = {"train_batch_size": 1, "zero_optimization": {"stage": 3}, "bf16": {"enabled": True}}
    with deepspeed.zero.Init(config_dict_or_path=zero):
        found = LlamaRotaryEmbedding(config).inv_freq
        assert torch.ones(1).dtype is torch.bfloat16
    assert found.dtype is torch.float32 and torch.equal(found, wanted)


def test_zero_3_needs_it() -> None:
    """If this fails, DeepSpeed asks what a number is for, and the fix can go."""
    import torch
    from deepspeed.runtime.zero import partition_parameters as zero

    assert zero.zero_wrapper_for_fp_tensor_constructor(torch.arange, torch.bfloat16, None)(3.0).dtype is torch.bfloat16
