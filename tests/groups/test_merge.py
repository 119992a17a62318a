"""Stacking the heads of reward models of one group each: the outcome scores as they did, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers import failing

from orlhf_ext.files.records import write_json
from orlhf_ext.groups import merge
from orlhf_ext.groups.reward import Groups
from orlhf_ext.models.folder import find_model, read_config, weight_shapes
from orlhf_ext.models.head_settings import KEY, HeadSettings, read_settings
from orlhf_ext.rewards import RewardBatch, RewardContext, Rollout

LABEL = json.dumps({"v": 1, "id": "hh-7", "style": "hh"})
BATCH = RewardBatch(
    [
        Rollout(f"r{i}", "\n\nHuman: hello?\n\nAssistant:", text, LABEL)
        for i, text in enumerate((" fine", " no", " you"))
    ]
)


def one_group(source: Path, folder: Path, name: str, seed: int, **settings: Any) -> Path:
    """What ``train_rm --ext.use group-rm --groups.only NAME`` saves."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, folder)
    weights = load_file(folder / "model.safetensors")
    head = torch.randn(weights["value.weight"].shape, generator=torch.Generator().manual_seed(seed))
    save_file({**weights, "value.weight": head.bfloat16()}, folder / "model.safetensors", metadata={"format": "pt"})
    config = {key: value for key, value in read_config(folder).items() if key not in ("mean", "std")}
    words: dict[str, Any] = {"head": "independent", "k": None, "norm": {"mean": [seed / 2], "std": [1.5]}, **settings}
    write_json(folder / "config.json", {**config, KEY: HeadSettings([name], **words).as_config()})
    return folder


@pytest.fixture
def members(reward_model: Path, tmp_path: Path) -> list[str]:
    names = ("minority", "majority", "rest")
    return [f"{name}={one_group(reward_model, tmp_path / name, name, i)}" for i, name in enumerate(names)]


def changed(member: str, **settings: Any) -> str:
    """Change the settings of a model in place."""
    path = Path(member.partition("=")[2]) / "config.json"
    config = json.loads(path.read_text())
    write_json(path, {**config, KEY: {**config[KEY], **settings}})
    return member


def rewards(reward: Groups) -> dict[str, list[float]]:
    reward.setup(RewardContext())
    return {name: list(map(float, values)) for name, values in reward.score(BATCH).metrics.items()}


def alike(found: dict[str, list[float]], wanted: dict[str, list[float]]) -> None:
    """A product with three rows rounds its last float32 digit otherwise than with one."""
    assert list(found) == list(wanted)
    for name, values in wanted.items():
        assert found[name] == pytest.approx(values, rel=1e-6)


def test_the_merged_model_scores_as_its_members(members: list[str], tmp_path: Path, capsys: Any) -> None:
    merge.main(["--models", *members, "--out", str(tmp_path / "out")])
    assert "3 groups (minority, majority, rest)" in capsys.readouterr().out
    settings = read_settings(tmp_path / "out", "--x")
    assert settings.names == ["minority", "majority", "rest"] and settings.head == "independent"
    assert settings.norm == {"mean": [0.0, 0.5, 1.0], "std": [1.5] * 3}
    assert weight_shapes(tmp_path / "out")["value.weight"] == [3, 128]
    for normalize in (False, True):
        apart = rewards(Groups("ensemble", models=tuple(members), normalize=normalize))
        alike(rewards(Groups("group_rm", model=str(tmp_path / "out"), normalize=normalize)), apart)
    meta = json.loads((tmp_path / "out/merge.meta.json").read_text())
    assert list(meta["models"]) == settings.names


def test_openrlhfs_own_loader_refuses_it(members: list[str], tmp_path: Path) -> None:
    from orlhf_ext import backends

    merge.main(["--models", *members, "--out", str(tmp_path / "out")])
    backends.install()
    from openrlhf.models.model import get_llm_for_sequence_regression

    with pytest.raises(RuntimeError, match=r"size mismatch|mismatched"):
        get_llm_for_sequence_regression(str(tmp_path / "out"), "reward", attn_implementation="sdpa")


def test_weights_in_several_files(members: list[str], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for member in members:
        folder = Path(member.partition("=")[2])
        weights = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        parts = {
            "model-00001-of-00002.safetensors": {k: v for k, v in weights.items() if k != "value.weight"},
            "model-00002-of-00002.safetensors": {"value.weight": weights["value.weight"]},
        }
        for name, part in parts.items():
            save_file(part, folder / name, metadata={"format": "pt"})
        index = {"metadata": {"total_size": sum(value.nbytes for value in weights.values())}}
        write_json(
            folder / "model.safetensors.index.json",
            {**index, "weight_map": {key: name for name, part in parts.items() for key in part}},
        )
    merge.main(["--models", *members, "--out", str(tmp_path / "out")])
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    merged = [load_file(path) for path in sorted((tmp_path / "out").glob("*.safetensors"))]
    assert index["metadata"]["total_size"] == sum(value.nbytes for part in merged for value in part.values())
    apart = rewards(Groups("ensemble", models=tuple(members)))
    alike(rewards(Groups("group_rm", model=str(tmp_path / "out"))), apart)


def test_plain_models_say_their_texts_on_the_command_line(reward_model: Path, tmp_path: Path, capsys: Any) -> None:
    two = ["--models", f"a={reward_model}", f"b={reward_model}", "--out", str(tmp_path / "out")]
    assert "does not say what texts it was trained on; give --style and --eos" in failing(capsys, merge.main, *two)
    merge.main([*two, "--style", "chat", "--eos", "append"])
    settings = read_settings(tmp_path / "out", "--x")
    assert (settings.style, settings.eos, settings.squash) == ("chat", "append", "identity")
    assert settings.norm == {"mean": [5.0, 5.0], "std": [3.0, 3.0]}
    assert not {"mean", "std"} & set(read_config(find_model(str(tmp_path / "out"))))


def test_what_cannot_be_stacked(members: list[str], reward_model: Path, tmp_path: Path, capsys: Any) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    out = tmp_path / "out"

    def said(*words: str) -> str:
        told = failing(capsys, merge.main, "--out", str(out), "--models", *words)
        assert not out.exists() and not list(tmp_path.glob(".out*"))
        return told

    first, second = members[:2]
    assert "two models or more" in said(first)
    assert "must be NAME=DIR" in said(first, "majority")
    assert "is a reward model of majority; give it that name" in said(first, second.replace("majority=", "other="))
    assert "--style chat is not that of" in said(first, second, "--style", "chat")
    assert "have no effect: every model says" in said(first, second, "--style", "hh")
    assert "gone is not a folder" in said(first, f"b={tmp_path / 'gone'}")
    assert "were trained with style hh and chat" in said(first, changed(second, style="chat"))
    assert "were trained with eos append and none" in said(first, changed(second, style="hh", eos="none"))
    assert "squash tanh and identity" in said(first, changed(second, eos="append", squash="identity"))
    assert "has a shared layer of its own" in said(first, changed(second, squash="tanh", head="shared", k=2))
    changed(second, head="independent", k=None)
    folder = Path(second.partition("=")[2])
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("layers.1.mlp.up_proj.weight"))
    broken = weights[name].clone()
    broken[3, 5] += 1
    save_file({**weights, name: broken}, folder / "model.safetensors", metadata={"format": "pt"})
    assert f"have backbones that differ, in {name}" in said(first, second)
    save_file({**weights, "more": torch.ones(1)}, folder / "model.safetensors", metadata={"format": "pt"})
    assert "only one of them has more" in said(first, second)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["merges"].pop()
    write_json(folder / "tokenizer.json", tokenizer)
    assert "have different tokenizers" in said(first, second)
    out.mkdir()
    (out / "kept").touch()
    assert "exists already" in failing(capsys, merge.main, "--out", str(out), "--models", first, members[2])
    assert [path.name for path in out.iterdir()] == ["kept"]
