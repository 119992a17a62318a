"""The first layers of a model: its own weights, its tokenizer, and the hidden states that it has after them."""

from __future__ import annotations

from pathlib import Path

import pytest

from orlhf_ext.cli.errors import UserError
from orlhf_ext.models import small_models


def test_a_cut_model_is_the_beginning_of_the_whole_one(tiny_model: Path, tmp_path: Path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = small_models.make_cut(tiny_model, 1, tmp_path / "cut")
    stamp = (out / "model.safetensors").stat().st_mtime_ns
    assert small_models.make_cut(tiny_model, 1, out) == out and (out / "model.safetensors").stat().st_mtime_ns == stamp
    whole, cut = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in (tiny_model, out))
    ids = AutoTokenizer.from_pretrained(out)("hello how are you?", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        after = whole(ids, output_hidden_states=True).hidden_states[1]
        wanted = whole.lm_head(whole.model.norm(after))
        assert torch.equal(cut(ids).logits, wanted) and not torch.equal(whole(ids).logits, wanted)
    for layers in (0, 2):
        with pytest.raises(UserError, match=f"--layers {layers} of .*, which has 2"):
            small_models.make_cut(tiny_model, layers, tmp_path / "other")
