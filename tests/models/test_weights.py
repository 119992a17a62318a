"""Whole and finite weights: what the headers of a folder say, for families that name and merge weights differently."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlhf_ext.cli.errors import UserError

torch = pytest.importorskip("torch")
import transformers  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from orlhf_ext.models.folder import model_config, weight_shapes  # noqa: E402
from orlhf_ext.models.weights import (  # noqa: E402
    check_causal,
    check_files,
    check_reward,
    check_weights,
    is_finite,
    load_whole,
    trunk_class,
)

_SIZE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
}
_GPT2: dict[str, Any] = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}
FAMILIES = {
    "llama": ("LlamaConfig", {**_SIZE, "num_key_value_heads": 2}),
    "llama-tied": ("LlamaConfig", {**_SIZE, "num_key_value_heads": 2, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2Config", {**_SIZE, "num_key_value_heads": 2, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", {**_SIZE, "num_key_value_heads": 2, "head_dim": 8}),
    "qwen3-moe": (
        "Qwen3MoeConfig",
        {
            **_SIZE,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
        },
    ),
    "mistral": ("MistralConfig", {**_SIZE, "num_key_value_heads": 2}),
    "gemma": ("GemmaConfig", {**_SIZE, "num_key_value_heads": 2, "head_dim": 8}),
    "gpt2": ("GPT2Config", _GPT2),
    "gpt-neox": ("GPTNeoXConfig", _SIZE),
    "opt": ("OPTConfig", {**_SIZE, "ffn_dim": 48, "word_embed_proj_dim": 32}),
}


@pytest.fixture(scope="module", params=FAMILIES)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    name, words = FAMILIES[request.param]
    folder = tmp_path_factory.mktemp("whole") / request.param
    transformers.AutoModelForCausalLM.from_config(getattr(transformers, name)(**words)).save_pretrained(folder)
    return folder


def planted(whole: Path, out: Path, change: Any) -> Path:
    """A copy of a model whose weights have been changed."""
    shutil.copytree(whole, out)
    weights = load_file(out / "model.safetensors")
    change(weights)
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    return out


def last_matrix(whole: Path) -> str:
    """The name of a matrix of the second layer that is not square, so that its transpose is of another shape."""
    shapes = weight_shapes(whole)
    return max(name for name, shape in shapes.items() if ".1." in name and len(shape) == 2 and shape[0] != shape[1])


def refused(folder: Path, says: str) -> None:
    with pytest.raises(UserError, match=says) as told:
        check_causal(folder, "--model")
    assert str(told.value).startswith(f"--model {folder} ") and len(str(told.value).splitlines()) == 1


def test_a_whole_model_is_loaded(whole: Path) -> None:
    cls, config = check_causal(whole, "--model", saved=True)
    check_reward(whole, "--model", fresh=True)
    model = load_whole(cls, config, whole, "--model", dtype="float32")
    reference = transformers.AutoModelForCausalLM.from_pretrained(whole, dtype=torch.float32)
    ids = torch.tensor([[3, 5, 7, 9]])
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, reference(ids).logits)


def test_a_layer_is_missing(whole: Path, tmp_path: Path) -> None:
    def drop(weights: dict) -> None:
        for name in [name for name in weights if ".1." in name and "experts" not in name]:
            del weights[name]

    refused(planted(whole, tmp_path / "m", drop), r"lacks \S+\.1\.\S+ and \d+ more among its weights; copy")


def test_a_layer_is_too_many(whole: Path, tmp_path: Path) -> None:
    def add(weights: dict) -> None:
        name = last_matrix(whole)
        weights[name.replace(".1.", ".2.", 1)] = weights[name].clone()

    if whole.name == "qwen3-moe":
        pytest.skip("the experts of one layer are one weight")
    refused(planted(whole, tmp_path / "m", add), r"has \S+\.2\.\S+ among its weights, which a model with its config")


def test_a_matrix_is_transposed(whole: Path, tmp_path: Path) -> None:
    def turn(weights: dict) -> None:
        weights[last_matrix(whole)] = weights[last_matrix(whole)].T.contiguous()

    says = r"of shape \[\d+, \d+\], and its config.json asks for|do not fit its config.json"
    refused(planted(whole, tmp_path / "m", turn), says)


@pytest.mark.parametrize(("value", "says"), [("nan", "has NaN in"), ("inf", "has infinite numbers in")])
def test_a_number_is_not_finite(whole: Path, tmp_path: Path, value: str, says: str) -> None:
    def spoil(weights: dict) -> None:
        weights[last_matrix(whole)][3, 1] = float(value)

    folder = planted(whole, tmp_path / "m", spoil)
    cls, config = check_causal(folder, "--model")  # the headers do not show it
    for read in (
        lambda: load_whole(cls, config, folder, "--model", dtype="float32"),
        lambda: check_files(folder, "--model"),
    ):
        with pytest.raises(UserError, match=says):
            read()


def test_a_numeric_type_with_too_little_range(whole: Path, tmp_path: Path) -> None:
    def grow(weights: dict) -> None:
        weights[last_matrix(whole)][3, 1] = 1e6

    folder = planted(whole, tmp_path / "m", grow)
    cls, config = check_causal(folder, "--model")
    load_whole(cls, config, folder, "--model", dtype="bfloat16")
    with pytest.raises(UserError, match=r"has infinite numbers in .*; take .* a numeric type with more range"):
        load_whole(cls, config, folder, "--model", dtype="float16")


def test_a_language_model_is_no_reward_model(whole: Path) -> None:
    says = r"lacks score.weight among its weights|has \S+ among its weights, which"
    with pytest.raises(UserError, match=says):
        check_reward(whole, "--model")


def test_old_buffers_are_no_weights(tmp_path: Path) -> None:
    for name, buffers in (
        ("gpt2", ("transformer.h.0.attn.bias", "transformer.h.1.attn.masked_bias")),
        ("llama", ("model.layers.0.self_attn.rotary_emb.inv_freq",)),
    ):
        cls, words = FAMILIES[name]
        whole = tmp_path / f"{name}-whole"
        transformers.AutoModelForCausalLM.from_config(getattr(transformers, cls)(**words)).save_pretrained(whole)
        added = {one: torch.ones(1) for one in buffers}
        folder = planted(whole, tmp_path / name, lambda weights, added=added: weights.update(added))
        check_causal(folder, "--model")


def test_a_pooler_that_a_classifier_does_not_have(tmp_path: Path) -> None:
    """Classifiers of the hub were saved with the pooler that RoBERTa's classifier does not read; BERT's does."""
    for name, lost in (("Roberta", False), ("Bert", True)):
        config = getattr(transformers, f"{name}Config")(**_SIZE, num_labels=2)
        cls = getattr(transformers, f"{name}ForSequenceClassification")
        cls(config).save_pretrained(tmp_path / name)
        pooler = {f"{name.lower()}.pooler.dense.{one}": torch.zeros(1) for one in ("weight", "bias")}
        change = (lambda w, p=pooler: [w.pop(one) for one in p]) if lost else (lambda w, p=pooler: w.update(p))
        folder = planted(tmp_path / name, tmp_path / f"{name}-planted", change)
        if not lost:
            load_whole(cls, config, folder, "--model", dtype="float32")
            continue
        with pytest.raises(UserError, match=r"lacks bert.pooler.dense.bias and 1 more among its weights"):
            check_weights(cls, config, folder, "--model")


def test_files_beside_the_weights_are_not_read(tiny_model: Path, tmp_path: Path) -> None:
    """Folders of the hub hold the same weights a second time, under the names of another library."""
    folder = shutil.copytree(tiny_model, tmp_path / "m")
    save_file({"layers.0.attention.wq.weight": torch.full((2,), torch.nan)}, folder / "consolidated.safetensors")
    check_causal(folder, "--model")
    check_files(folder, "--model")


def test_shards(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    transformers.AutoModelForCausalLM.from_pretrained(tiny_model).save_pretrained(folder, max_shard_size="100KB")
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 1
    check_causal(folder, "--model")
    weights = load_file(shards[-1])
    name = min(weights)
    save_file({key: value for key, value in weights.items() if key != name}, shards[-1], metadata={"format": "pt"})
    refused(folder, rf"lacks {name} among its weights")


def test_reward_models(reward_model: Path, tiny_model: Path, tmp_path: Path) -> None:
    check_reward(reward_model, "--model")
    check_reward(tiny_model, "--model", fresh=True)
    folder = planted(reward_model, tmp_path / "wide", lambda w: w.update({"value.weight": torch.zeros(2, 128)}))
    with pytest.raises(UserError, match="wide gives 2 scores for a text, and a reward model gives one"):
        check_reward(folder, "--model")
    folder = planted(reward_model, tmp_path / "lost", lambda w: w.pop("model.layers.1.mlp.up_proj.weight"))
    for fresh in (False, True):
        with pytest.raises(UserError, match=r"lacks \S*layers.1.mlp.up_proj.weight among its weights"):
            check_reward(folder, "--model", fresh=fresh)


def test_the_trunk_of_a_model(tiny_model: Path) -> None:
    config = model_config(tiny_model, "--model")
    check_weights(trunk_class(config), config, tiny_model, "--model", spare=[r"^lm_head\."])


@given(st.lists(st.floats(width=16), max_size=6), st.sampled_from(["float32", "bfloat16", "float16"]))
def test_extremes_tell_what_each_number_would(numbers: list[float], dtype: str) -> None:
    weight = torch.tensor(numbers).to(getattr(torch, dtype))
    assert is_finite(weight) == bool(weight.isfinite().all())
    assert is_finite(torch.tensor([1, 2]))
