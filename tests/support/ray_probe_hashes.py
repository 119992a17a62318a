"""Hashes of weights for `ray_probe`. vLLM's engine processes import this too, and so it imports nothing of OpenRLHF."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import torch


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.detach().bfloat16().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def engine_weights(worker: Any) -> dict[str, str]:
    """vLLM's name -> hash; rows that pad the vocabulary are left out."""
    size = worker.model_config.get_vocab_size()
    found = {}
    for name, weight in worker.model_runner.model.named_parameters():
        padded = "embed_tokens" in name or "lm_head" in name
        found[name] = digest(weight[:size] if padded else weight)
    return found


def as_vllm(weights: Any) -> dict[str, str]:
    """Hashes of a policy's weights under vLLM's names: q, k, v and gate, up are one tensor each there."""
    merged: dict[str, list[torch.Tensor]] = {}
    for name, weight in weights:
        name = re.sub(r"\b[qkv]_proj\b", "qkv_proj", name)
        name = re.sub(r"\b(gate|up)_proj\b", "gate_up_proj", name)
        merged.setdefault(name, []).append(weight)
    return {name: digest(torch.cat(parts) if len(parts) > 1 else parts[0]) for name, parts in merged.items()}
