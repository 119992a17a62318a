"""The reward model of groups, in process: where scores are read, what is saved, who refuses it, adapters."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from orlhf_ext import backends
from orlhf_ext.cli.errors import UserError
from orlhf_ext.extensions import run
from orlhf_ext.groups import trained_groups
from orlhf_ext.models.folder import load_tokenizer
from orlhf_ext.models.head_settings import HeadSettings, read_settings
from orlhf_ext.models.reward_models import RewardModel

torch = pytest.importorskip("torch", reason="no torch", exc_type=ImportError)

SHARED = HeadSettings(["minority", "majority"], k=4)
INDEPENDENT = HeadSettings(["minority", "majority"], head="independent", k=None)
TEXTS = [[5, 6, 7, 8, 9, 1], [9, 8, 7, 1], [40, 41, 42, 43, 44, 45, 46, 1]]


def run_of(settings: HeadSettings, train_backbone: bool = False) -> SimpleNamespace:
    """The arguments of a run that trains such a model."""
    args = SimpleNamespace(groups=SimpleNamespace())
    trained_groups.put(trained_groups.Training(settings, train_backbone, tuple(settings.names)), args)
    return args


def make(folder: Path, settings: HeadSettings = SHARED, **words: Any) -> Any:
    """A model as train_rm makes it, with a head whose scores differ by more than bf16 can blur."""
    backends.install()
    from orlhf_ext.groups.model import get_llm_for_sequence_regression

    torch.manual_seed(3)
    with mock.patch.object(run, "arguments", run_of(settings, words.pop("train_backbone", False))):
        model = get_llm_for_sequence_regression(
            str(folder), "reward", attn_implementation="sdpa", init_value_head=True, **words
        )
    head = getattr(model, model.value_head_prefix)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.3)
    return model


def save(model: Any, base: Path, out: Path) -> Path:
    model.config.value_head_prefix = model.value_head_prefix
    model.save_pretrained(out)
    load_tokenizer(base).save_pretrained(out)
    return out


def scores_of(folder: Path) -> Any:
    """Scores ``(texts, groups)`` of `TEXTS` by a saved model, in one batch."""
    from orlhf_ext.groups.model import get_llm_for_sequence_regression

    model = RewardModel(str(folder), single=False)
    model.load("bfloat16", "sdpa", get_llm_for_sequence_regression)
    return torch.tensor(model.score(TEXTS, 1000))


def padded(texts: list[list[int]], side: str, pad: int) -> tuple[Any, Any]:
    longest = max(map(len, texts))
    rows, masks = [], []
    for ids in texts:
        gap = [pad] * (longest - len(ids))
        rows.append(gap + ids if side == "left" else ids + gap)
        marks, zeros = [1] * len(ids), [0] * len(gap)
        masks.append(zeros + marks if side == "left" else marks + zeros)
    return torch.tensor(rows), torch.tensor(masks)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A tiny GPT-2, with dropout, without a padding token."""
    from transformers import GPT2Config, GPT2Model

    folder = tmp_path_factory.mktemp("gpt2")
    tokenizer = load_tokenizer(tiny_model)
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=64, n_embd=32, n_layer=2, n_head=2, resid_pdrop=0.5)
    config.eos_token_id = tokenizer.eos_token_id
    torch.manual_seed(0)
    GPT2Model(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("settings", [SHARED, INDEPENDENT], ids=["shared", "independent"])
@pytest.mark.parametrize("pad", [2, 1], ids=["pad", "eos"])
@torch.no_grad()
def test_padding_takes_no_part(tiny_model: Path, settings: HeadSettings, pad: int) -> None:
    """Not on either side, and not where the padding token is the EOS that ends the texts: the mask decides."""
    model = make(tiny_model, settings).float().eval()
    alone = torch.cat([model(torch.tensor([ids]), torch.ones(1, len(ids)), all_groups=True) for ids in TEXTS])
    assert alone.shape == (3, 2) and alone.std(0).min() > 0.1
    for side in ("left", "right"):
        found = model(*padded(TEXTS, side, pad), all_groups=True)
        assert torch.allclose(found, alone, atol=1e-4), side


@torch.no_grad()
def test_what_comes_back_and_who_refuses_it(tiny_model: Path, reward_model: Path, tmp_path: Path) -> None:
    from openrlhf.models.model import get_llm_for_sequence_regression as stock

    from orlhf_ext.groups.model import get_llm_for_sequence_regression

    for settings in (SHARED, INDEPENDENT):
        model = make(tiny_model, settings).eval()
        norm = {"mean": [1.0, -1.0], "std": [2.0, 0.5]}
        model.config.group_reward = dataclasses.replace(settings, norm=norm).as_config()
        wanted = model(*padded(TEXTS, "left", 2), all_groups=True)
        folder = save(model, tiny_model, tmp_path / settings.head)
        assert read_settings(folder, "--model") == dataclasses.replace(settings, norm=norm)
        assert torch.allclose(scores_of(folder), wanted, atol=1e-6)

        raw = get_llm_for_sequence_regression(str(folder), "reward", attn_implementation="sdpa").eval()
        assert torch.equal(raw(*padded(TEXTS, "left", 2)), wanted.amin(1))
        words = {"normalize_reward": True, "attn_implementation": "sdpa"}
        normal = get_llm_for_sequence_regression(str(folder), "reward", **words).eval()
        centre, spread = torch.tensor(norm["mean"]), torch.tensor(norm["std"])
        assert torch.allclose(normal(*padded(TEXTS, "left", 2)), ((wanted - centre) / spread).amin(1), atol=1e-5)

        with pytest.raises(RuntimeError, match=r"size mismatch|ignore_mismatched_sizes"):
            stock(str(folder), "reward", attn_implementation="sdpa")
        with pytest.raises(UserError, match="gives 2 scores for a text; take a model with one"):
            RewardModel(str(folder))
    with pytest.raises(UserError, match=r"--model .* is not a reward model of groups: its config.json has no"):
        read_settings(reward_model, "--model")


@torch.no_grad()
def test_other_configs_make_the_stock_model(reward_model: Path) -> None:
    from openrlhf.models.model import get_llm_for_sequence_regression as stock

    from orlhf_ext.groups.model import get_llm_for_sequence_regression

    batch = padded(TEXTS, "left", 2)
    ours, theirs = (
        make_model(str(reward_model), "reward", attn_implementation="sdpa").eval()(*batch)
        for make_model in (get_llm_for_sequence_regression, stock)
    )
    assert torch.equal(ours, theirs) and ours.shape == (3,)
    critic = get_llm_for_sequence_regression(str(reward_model), "critic", attn_implementation="sdpa")
    assert type(critic).__name__ == "CriticModel"


def test_a_frozen_backbone_is_frozen_and_without_dropout(gpt2: Path) -> None:
    model = make(gpt2).train()
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained == {"score.weight", "score.proj.weight", "score.proj.bias"}
    batch = padded(TEXTS, "left", 2)
    assert torch.equal(model(*batch), model(*batch)) and model.training
    whole = make(gpt2, train_backbone=True).train()
    assert all(weight.requires_grad for weight in whole.parameters())
    assert not torch.equal(whole(*batch), whole(*batch))  # dropout


@pytest.mark.parametrize("base", ["tiny_model", "gpt2"])
@torch.no_grad()
def test_adapters_are_merged_when_saved(base: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = request.getfixturevalue(base)
    model = make(folder, lora_rank=2, lora_alpha=8, target_modules="all-linear", lora_dropout=0.0).eval()
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert len(trained) > 3 and all("lora_" in name or name.startswith("score.") for name in trained)
    before = model(*padded(TEXTS, "left", 2), all_groups=True)
    for name, weight in model.named_parameters():
        if "lora_B" in name:  # which are 0 at first
            weight.normal_(0, 0.05)
    wanted = model(*padded(TEXTS, "left", 2), all_groups=True)
    out = save(model, folder, tmp_path / "out")
    assert not any("lora" in name or "base_layer" in name for name in load_file(out / "model.safetensors"))
    found = scores_of(out)
    assert (before - wanted).abs().max() > 0.2
    assert torch.allclose(found, wanted, atol=0.1 * (before - wanted).abs().max())  # bf16


def test_a_model_that_has_groups_goes_on_with_its_head(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from orlhf_ext.groups.model import get_llm_for_sequence_regression

    model = make(tiny_model)
    folder = save(model, tiny_model, tmp_path / "first")
    monkeypatch.setattr(run, "arguments", run_of(SHARED))
    again = get_llm_for_sequence_regression(str(folder), "reward", attn_implementation="sdpa", init_value_head=True)
    assert torch.equal(again.score.weight, model.score.weight)
    assert torch.equal(again.score.proj.weight, model.score.proj.weight)
