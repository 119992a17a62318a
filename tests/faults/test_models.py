"""Folders that are no whole model, in the commands and launchers that read one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import write

torch = pytest.importorskip("torch")
from safetensors.torch import load_file, save_file  # noqa: E402

Plant = Callable[[Path], object]
LAYER = "model.layers.1.mlp.up_proj.weight"


def _weights(change: Callable[[dict], object]) -> Plant:
    def plant(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return plant


def _number(value: float) -> Plant:
    return _weights(lambda weights: weights[LAYER].view(-1)[:1].fill_(value))


def _json(name: str, **changes: Any) -> Plant:
    def plant(folder: Path) -> None:
        found = json.loads((folder / name).read_text())
        (folder / name).write_text(
            json.dumps({key: value for key, value in {**found, **changes}.items() if value != ""})
        )

    return plant


def _text(name: str, text: str) -> Plant:
    return lambda folder: (folder / name).write_text(text)


def _cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def _tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


#: faults that headers and small files show
SHOWN: dict[str, tuple[Plant, str]] = {
    "layer": (_weights(lambda w: w.pop(LAYER)), rf"lacks \S*{LAYER.partition('.')[2]} among its weights; copy"),
    "extra": (
        _weights(lambda w: w.update({LAYER.replace(".1.", ".9."): w[LAYER].clone()})),
        r"has \S*layers.9.mlp.up_proj.weight among its weights, which a model with its config.json does not have",
    ),
    "shape": (_weights(lambda w: w.update({LAYER: w[LAYER].T.contiguous()})), r"and its config.json asks for \["),
    "cut": (_cut, r"model.safetensors is broken or cut short"),
    "index": (_text("model.safetensors.index.json", "{oops"), r"index.json cannot be read as JSON"),
    "index_empty": (_text("model.safetensors.index.json", "{}"), r"index.json has no weight_map"),
    "index_list": (_text("model.safetensors.index.json", "[1]"), r"index.json is not a JSON object"),
    "shard": (
        _text("model.safetensors.index.json", '{"weight_map": {"a": "model-00007.safetensors"}}'),
        r"lacks model-00007.safetensors, which its index names",
    ),
    "config": (_text("config.json", "{"), r"config.json cannot be read as JSON"),
    "type": (_json("config.json", model_type="llamma"), r"the model_type 'llamma' in its config.json, which the inst"),
    "no_type": (_json("config.json", model_type=""), r"the model_type None in its config.json"),
    "layers": (_json("config.json", num_hidden_layers=3), r"lacks \S*layers.2\S+ and \d+ more among its weights"),
    "fewer": (_json("config.json", num_hidden_layers=1), r"among its weights, which a model with its config.json does"),
    "heads": (_json("config.json", num_attention_heads=3), r"config.json (asks for|that cannot be read)"),
    "width": (_json("config.json", hidden_size="wide"), r"has a config.json that cannot be read"),
    "adapter": (_text("adapter_config.json", "{}"), r"is a LoRA adapter, not a model; merge it"),
}
#: faults of a tokenizer
TOKENS: dict[str, tuple[Plant, str]] = {
    "tokenizer": (_tokenizer, r"tokenizer"),
    "broken": (_text("tokenizer.json", '{"model": {}}'), r"has a tokenizer that cannot be read"),
    "eos": (_json("tokenizer_config.json", eos_token=None), r"has a tokenizer without an EOS token; set eos_token"),
}
#: faults in the weights' numbers, which a reader sees and a launcher's look at the headers does not
HIDDEN: dict[str, tuple[Plant, str]] = {
    "nan": (_number(float("nan")), r"has NaN in \S*up_proj.weight; take an earlier checkpoint"),
    "inf": (_number(float("inf")), r"has infinite numbers in \S*up_proj.weight"),
    "minus_inf": (_number(float("-inf")), r"has infinite numbers in \S*up_proj.weight"),
}
ALL = {**SHOWN, **TOKENS, **HIDDEN}


def planted(model: Path, folder: Path, plant: Plant) -> Path:
    """A copy of a model with a fault, beside the watched folder's own files."""
    shutil.copytree(model, folder)
    plant(folder)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [{"id": f"r{i}", "prompt": f"hello {i}", "completions": ["yes", "no"]} for i in range(3)]
    return write(tmp_path / "data.jsonl", rows)


@pytest.mark.parametrize("name", ALL)
def test_generate(fault: Any, tiny_model: Path, tmp_path: Path, data: Path, name: str) -> None:
    plant, says = ALL[name]
    folder = planted(tiny_model, tmp_path / "m", plant)
    words = ("--backend", "hf", "--max_len", 64, "--max_new_tokens", 4, "--out", tmp_path / "o.jsonl")
    fault("generate", "--model", folder, "--data", data, *words, says=says)


@pytest.mark.parametrize("name", ALL)
def test_logprobs(fault: Any, tiny_model: Path, tmp_path: Path, data: Path, name: str) -> None:
    plant, says = ALL[name]
    folder = planted(tiny_model, tmp_path / "m", plant)
    fault("logprobs", "--model", folder, "--data", data, "--max_len", 64, "--out", tmp_path / "o.jsonl", says=says)


@pytest.mark.parametrize("name", ALL)
def test_score(fault: Any, reward_model: Path, tmp_path: Path, data: Path, name: str) -> None:
    plant, says = ALL[name]
    folder = planted(reward_model, tmp_path / "m", plant)
    fault("score", "--model", folder, "--data", data, "--max_len", 64, "--out", tmp_path / "o.jsonl", says=says)


@pytest.mark.parametrize("name", ["layer", "shape", "nan", "type", "index", "broken"])
def test_check_reward(fault: Any, reward_model: Path, tmp_path: Path, name: str) -> None:
    plant, says = ALL[name]
    folder = planted(reward_model, tmp_path / "m", plant)
    words = ("--model.path", folder, "--model.max_len", 64)
    fault("check", "reward", "model", *words, says=says, rc=1)


@pytest.mark.parametrize("name", ["layer", "shape", "inf", "type", "index", "eos"])
def test_traits(fault: Any, reward_model: Path, tmp_path: Path, data: Path, name: str) -> None:
    plant, says = ALL[name]
    folder = planted(reward_model, tmp_path / "m", plant)
    words = ("--trait", f"helpful={folder}", "--max_len", 64, "--out", tmp_path / "o.jsonl")
    fault("groups.score", "--data", data, *words, says=says)


@pytest.mark.parametrize("name", ["layer", "shape", "nan", "type", "cut", "tokenizer"])
def test_continuations(fault: Any, tiny_model: Path, tmp_path: Path, data: Path, name: str) -> None:
    plant, says = ALL[name]
    folder = planted(tiny_model, tmp_path / "m", plant)
    words = ("--backend", "hf", "--save_file", tmp_path / "o.jsonl", "--num_returns", 1)
    fault("deadend.continuations", "--model_name_or_path", folder, "--data_file", data, *words, says=says)


@pytest.mark.parametrize("name", ["layer", "shape", "layers", "type", "index"])
def test_cut_model(fault: Any, tiny_model: Path, tmp_path: Path, name: str) -> None:
    plant, says = ALL[name]
    folder = planted(tiny_model, tmp_path / "m", plant)
    fault("small_models", "cut", "--model", folder, "--layers", 1, "--out", tmp_path / "o", says=says)


@pytest.mark.parametrize("name", [*SHOWN, *TOKENS])
@pytest.mark.parametrize("launcher", ["train_sft", "train_rm", "train_ppo_ray"])
def test_launchers(fault: Any, tiny_model: Path, tmp_path: Path, launcher: str, name: str) -> None:
    from orlhf_ext.launch.models import check_models

    plant, says = ALL[name]
    folder = planted(tiny_model, tmp_path / "m", plant)
    group = "actor" if launcher == "train_ppo_ray" else "model"
    args = SimpleNamespace(**{group: SimpleNamespace(model_name_or_path=str(folder))})
    fault.call(check_models, launcher, args, says=says)


@pytest.mark.parametrize(
    ("launcher", "groups", "says"),
    [
        (
            "train_sft",
            {"model": "rm"},
            r"--model\S+ \S+ is not a causal language model: its weights have no lm_head.weight",
        ),
        ("train_dpo", {"model": "tiny", "ref": "rm"}, r"--ref.model_name_or_path \S+ is not a causal language model"),
        (
            "train_ppo_ray",
            {"actor": "tiny", "reward": "tiny"},
            r"--reward.model_name_or_path \S+ has lm_head.weight among",
        ),
        ("serve_rm", {"reward": "tiny"}, r"--reward.model_name_or_path \S+ has lm_head.weight among its weights"),
        ("train_sft", {"model": "q"}, r"is a value function; add --ext.use dead-end"),
        (
            "train_ppo_ray",
            {"actor": "tiny", "reward": "groups"},
            r"is a reward model of groups; add --ext.use group-rm",
        ),
    ],
)
def test_models_of_another_kind(
    fault: Any, tiny_model: Path, reward_model: Path, tmp_path: Path, launcher: str, groups: dict, says: str
) -> None:
    from orlhf_ext.launch.models import check_models

    folders = {"tiny": tiny_model, "rm": reward_model}
    for name, key in (("q", "dead_end"), ("groups", "group_reward")):
        folders[name] = planted(tiny_model, tmp_path / name, _json("config.json", **{key: {"version": 1}}))
    given = {flag: SimpleNamespace(model_name_or_path=str(folders[name])) for flag, name in groups.items()}
    fault.call(check_models, launcher, SimpleNamespace(**given), says=says)


def test_an_extensions_model_is_read_with_it(fault: Any, tiny_model: Path, reward_model: Path, tmp_path: Path) -> None:
    from orlhf_ext.launch.models import check_models
    from orlhf_ext.models.head_settings import HeadSettings

    settings = HeadSettings(["a"], head="independent", k=None).as_config()
    groups = planted(reward_model, tmp_path / "groups", _json("config.json", group_reward=settings))
    given = {"actor": SimpleNamespace(model_name_or_path=str(tiny_model))}
    given["reward"] = SimpleNamespace(model_name_or_path=str(groups))
    given["ds"] = SimpleNamespace(value_head_prefix="value")
    check_models("train_ppo_ray", SimpleNamespace(**given, ext=SimpleNamespace(use=["group-reward"])))
    for use in ([], ["batch-min"], ["orlhf_ext.exo:EXO"]):
        args = SimpleNamespace(**given, ext=SimpleNamespace(use=use))
        fault.call(check_models, "train_ppo_ray", args, says="is a reward model of groups; add --ext.use group-rm")


@pytest.mark.parametrize(
    "text", ['{"temperature": 0.6, "top_p": 0.9}', '{"temperature": "warm"}', "[]", "{", '{"eos_token_id": "</s>"}']
)
def test_generation_config(fault: Any, tiny_model: Path, tmp_path: Path, text: str) -> None:
    """transformers refuses to save some of them with a model, which a training would learn at its end."""
    from orlhf_ext.models.weights import check_causal

    folder = planted(tiny_model, tmp_path / "m", _text("generation_config.json", text))
    fault.call(check_causal, folder, "--model", saved=True, says=r"generation_config.json")
