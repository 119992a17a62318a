"""``train_ppo_ray`` for real on the tiny model with rewards of groups: the worst group of each batch, one model with a
score for each group, and a model for each group."""

from __future__ import annotations

import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest
from ray_runs import flags, launch, rollouts, scalars

from orlhf_ext.files.records import write_json, write_jsonl
from orlhf_ext.groups.reward import Groups
from orlhf_ext.models.folder import read_config
from orlhf_ext.models.head_settings import KEY, HeadSettings
from orlhf_ext.rewards import RewardBatch, RewardContext, Rollout

pytest.importorskip("openrlhf")
pytest.importorskip("vllm")
pytestmark = pytest.mark.launcher

NAMES = ("minority", "majority")
GROUPS = """
groups:
  - {name: minority, proportion: 0.1, weights: {short: 1.0, shorter: -0.8}}
  - {name: majority, proportion: 0.9, weights: {shorter: 1.0, warm: 0.4}}
"""
GOLD = (
    *("--ext.reward", "groups", "--groups.kind", "gold", "--groups.config", "groups.yaml", "--groups.traits"),
    *("warm=positiveness", "short=conciseness:5", "shorter=conciseness:2"),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "groups.yaml").write_text(GROUPS)
    records = []
    for i in range(64):
        label = json.dumps({"v": 1, "id": f"hh-{i}", "style": "hh"})
        records.append({"id": f"hh-{i}", "prompt": f"\n\nHuman: say {i}\n\nAssistant:", "style": "hh", "label": label})
    write_jsonl(tmp_path / "prompts.jsonl", records)
    return tmp_path


def group_scores(batch: list[dict[str, Any]], name: str, what: str = "reward") -> list[float]:
    return [row[f"groups/{what}_{name}"] for row in batch]


@pytest.mark.slow
def test_batch_min_trains_on_the_worst_group_of_each_batch(tiny_model: Path, folder: Path) -> None:
    """With ``reinforce`` and no penalty inside of rewards, a return is the reward that was trained on."""
    words = flags(tiny_model, algo__advantage__estimator="reinforce", data__max_samples=16)
    output = launch(folder, *GOLD, "--groups.aggregate", "batch-min", *words)
    assert "RemoteExperienceMaker is now orlhf_ext.groups.experience:WorstGroup (extension batch-min)" in output
    found, batches = scalars(folder), rollouts(folder)
    assert [len(batch) for batch in batches] == [32] * 2
    for step, batch in enumerate(batches):
        means = {name: statistics.mean(group_scores(batch, name)) for name in NAMES}
        worst = min(means, key=lambda name: means[name])
        for tag in ("return", "reward", "rollout/reward_mean"):
            assert found[f"train/{tag}"][step] == pytest.approx(means[worst], abs=1e-5)
        for name in NAMES:
            assert found[f"train/groups/reward_{name}"][step] == pytest.approx(means[name], abs=1e-5)
            assert found[f"train/groups/worst_{name}"][step] == float(name == worst)
        least = statistics.mean(map(min, *(group_scores(batch, name) for name in NAMES)))
        assert least < means[worst] - 0.01  # response by response it would have been less
        assert json.loads(batch[0]["label"])["id"].startswith("hh-")


@pytest.mark.slow
def test_gold_rewards_and_the_least_of_each_response(tiny_model: Path, folder: Path) -> None:
    evaluation = {"eval__dataset": "prompts.jsonl", "eval__steps": 4, "eval__n_samples_per_prompt": 1}
    launch(folder, *GOLD, *flags(tiny_model, **evaluation))
    found, batches = scalars(folder), rollouts(folder)
    shares = []
    for step, batch in enumerate(batches):
        columns = [group_scores(batch, name) for name in NAMES]
        assert [row["reward"] for row in batch] == [min(row) for row in zip(*columns, strict=True)]
        for name, values in zip(NAMES, columns, strict=True):
            assert found[f"train/groups/reward_{name}"][step] == pytest.approx(statistics.mean(values), abs=1e-5)
        shares.append(statistics.mean(group_scores(batch, "minority", "argmin")))
        assert found["train/groups/argmin_minority"][step] == pytest.approx(shares[-1], abs=1e-5)
    assert len(batches) == 8 and 0 < statistics.mean(shares) < 1
    assert any(tag.startswith("eval/") and "groups/reward_minority" in tag for tag in found), sorted(found)


def with_head(source: Path, folder: Path, settings: HeadSettings, seed: int) -> Path:
    """A reward model of groups on the tiny backbone, as training saves it."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, folder)
    weights = load_file(folder / "model.safetensors")
    d = weights["value.weight"].shape[1]
    made = torch.Generator().manual_seed(seed)
    weights["value.weight"] = torch.randn(settings.num_groups, settings.k or d, generator=made).bfloat16()
    if settings.k is not None:
        weights["value.proj.weight"] = torch.randn(settings.k, d, generator=made).bfloat16() / 4
        weights["value.proj.bias"] = torch.zeros(settings.k).bfloat16()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", {**read_config(folder), KEY: settings.as_config()})
    return folder


def again(reward: Groups, batch: list[dict[str, Any]]) -> list[float]:
    """The rewards of kept rollouts, computed here."""
    reward.setup(RewardContext())
    rows = [Rollout(row["id"], row["prompt"], row["response"], row["label"]) for row in batch]
    return [float(value) for value in reward.score(RewardBatch(rows)).rewards]


@pytest.mark.slow
def test_a_model_with_a_score_for_each_group(tiny_model: Path, reward_model: Path, folder: Path) -> None:
    """Two copies of it, each in an actor of its own."""
    norm = {"mean": [0.1, -0.2], "std": [2.0, 3.0]}
    model = with_head(reward_model, folder / "rm", HeadSettings(list(NAMES), k=4, norm=norm), 1)
    reward = ("--ext.reward", "groups", "--groups.kind", "group_rm", "--groups.model", "rm", "--groups.normalize")
    words = (*reward, "--groups.config", "groups.yaml", "--ext.reward_actors", "2")
    launch(folder, *words, *flags(tiny_model, data__max_samples=24))
    batches, found = rollouts(folder), scalars(folder)
    for step, batch in enumerate(batches):
        wanted = again(Groups("group_rm", model=str(model), normalize=True), batch)
        assert [row["reward"] for row in batch] == pytest.approx(wanted, abs=0.05)  # bf16, in other batches
        assert statistics.stdev(wanted) > 0.1
        for name in NAMES:
            mean = statistics.mean(group_scores(batch, name))
            assert found[f"train/groups/reward_{name}"][step] == pytest.approx(mean, abs=1e-4)
        assert max(row["groups/cut"] for row in batch) == 0
    assert len(batches) == 3


@pytest.mark.slow
def test_a_model_for_each_group_and_the_worst_of_a_batch(tiny_model: Path, reward_model: Path, folder: Path) -> None:
    """Colocated, and in micro batches of other sizes than a prompt's samples; a second reward is added as it is."""
    settings = HeadSettings(["minority"], "independent", None)
    only = with_head(reward_model, folder / "only", settings, 2)
    models = (f"minority={only}", f"majority={reward_model}")
    words = ("--ext.reward", "groups=2", "--groups.kind", "ensemble", "--groups.models", *models)
    words += ("--ext.use", "batch-min", "--groups.aggregate", "batch-min", "--ext.reward", "length=0.5")
    output = launch(
        folder,
        *(*words, "--length.target", "3"),
        *flags(
            tiny_model,
            train__colocate_all=True,
            train__colocate_actor_ref=None,
            ds__enable_sleep=True,
            algo__advantage__estimator="reinforce",
            reward__clip_range=[-1000, 1000],
            rollout__micro_batch_size=6,
            data__max_samples=24,
        ),
    )
    assert "extension batch-min" in output
    batches, found = rollouts(folder), scalars(folder)
    assert len(batches) == 3
    for step, batch in enumerate(batches):
        wanted = again(Groups("ensemble", models=models, aggregate="mean"), batch)
        assert [row["reward/groups"] for row in batch] == pytest.approx(wanted, abs=0.1)
        worst = min(NAMES, key=lambda name: statistics.mean(group_scores(batch, name)))
        trained = [2 * row[f"groups/reward_{worst}"] + 0.5 * row["reward/length"] for row in batch]
        assert found["train/rollout/reward_mean"][step] == pytest.approx(statistics.mean(trained), abs=1e-4)
        assert found[f"train/groups/worst_{worst}"][step] == 1


@pytest.mark.slow
def test_a_reward_model_on_the_policys_own_ids(tiny_model: Path, reward_model: Path, folder: Path) -> None:
    """OpenRLHF's own reward actor with a head whose scores are known: of 3 and -2 the least is what is trained on."""
    from safetensors.torch import load_file, save_file

    model = with_head(reward_model, folder / "rm", HeadSettings(list(NAMES), k=2), 1)
    weights = load_file(model / "model.safetensors")
    weights["value.proj.weight"].zero_()
    weights["value.proj.bias"].copy_(weights["value.proj.bias"].new_tensor([1.0, 1.0]))
    weights["value.weight"].copy_(weights["value.weight"].new_tensor([[1.0, 2.0], [-3.0, 1.0]]))
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    words = flags(
        tiny_model,
        ext__rollouts_dir=None,
        reward__model_name_or_path="rm",
        reward__num_nodes=1,
        reward__num_gpus_per_node=1,
        data__max_samples=16,
    )
    output = launch(folder, "--ext.use", "group-reward", *words)
    assert "get_llm_for_sequence_regression is now orlhf_ext.groups.model" in output
    found = scalars(folder)
    assert found["train/reward"] == pytest.approx([-2.0] * 2)
    assert "add --ext.use group-rm (train_rm) or group-reward (train_ppo_ray)" in launch(folder, *words, fails=True)
