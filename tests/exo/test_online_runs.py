"""``--ext.use online-exo`` in ``train_ppo_ray`` on the tiny model: the reward rises, on ranks and ZeRO stages,
colocated, asynchronous, with groups, with evaluation, and after a kill."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from ray_runs import Running, flags, launch, mean_reward, rollouts, scalars, write_inputs

pytest.importorskip("openrlhf")
pytest.importorskip("vllm")
pytestmark = pytest.mark.launcher

LENGTH = ("--ext.reward", "length", "--length.target", "64", "--length.unit", "characters")
ONLINE = ("--ext.use", "online-exo", "--kwise.beta_pi", "0.5", "--kwise.beta_r", "0.1")
NO_PENALTY = {"algo__advantage__estimator": None, "algo__kl__use_loss": None, "algo__kl__estimator": "k1"}


def words(model: Path, **changes: Any) -> list[str]:
    return [*ONLINE, *flags(model, **{**NO_PENALTY, "train__num_episodes": 2, "actor__adam__lr": 2e-3, **changes})]


@pytest.mark.slow
def test_it_trains(tiny_model: Path, tmp_path: Path) -> None:
    """With the reward `length`, 16 tokens come to have more characters. The first batch is sampled by the reference."""
    write_inputs(tmp_path)
    output = launch(tmp_path, *LENGTH, *words(tiny_model))
    assert "RemoteExperienceMaker is now orlhf_ext.exo.experience:KwiseExperience (extension online-exo)" in output
    assert "--ext.use online-exo has no critic: --algo.advantage.estimator dr_grpo" in output
    check_training(tmp_path)


def check_training(folder: Path) -> None:
    """The reward rises, what is logged fits together, and the policy loss clips nothing."""
    batches = rollouts(folder)  # of a generation each, which are several steps' where sampling runs beside training
    quarter = len(batches) // 4
    assert mean_reward(batches[-quarter:]) > mean_reward(batches[:quarter]) + 0.05
    logged = scalars(folder)
    metrics = {name.removeprefix("train/kwise/"): found for name, found in logged.items() if "/kwise/" in name}
    assert set(metrics) == {*"loss entropy target_entropy ranking_acc margin log_ratio decided".split()}  # noqa: SIM905
    assert metrics["entropy"][0] == pytest.approx(math.log(4)) and metrics["log_ratio"][0] == metrics["margin"][0] == 0
    labels = torch.tensor([row["reward"] for row in batches[0][:32]], dtype=torch.float64).view(-1, 4)
    log_q = (labels / 0.1).log_softmax(-1)
    entropy = -(log_q.exp() * log_q).sum(-1).mean().item()
    assert metrics["target_entropy"][0] == pytest.approx(entropy, abs=1e-4)
    assert metrics["loss"][0] == pytest.approx(-(log_q.mean(-1) + math.log(4)).mean().item(), abs=1e-4)
    assert metrics["log_ratio"][-1] > 0.5 and metrics["ranking_acc"][-1] > 0
    assert set(logged["train/ppo_clip_ratio"]) == {0}


TWO_RANKS = {f"{group}__num_gpus_per_node": 2 for group in ("actor", "ref")}
COLOCATED = {"train__colocate_all": True, "train__colocate_actor_ref": None, "ds__enable_sleep": True}
EVALUATION = {"eval__dataset": "prompts.jsonl", "eval__steps": 8, "eval__n_samples_per_prompt": 1}


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {**TWO_RANKS, **EVALUATION},
        {**TWO_RANKS, "ds__zero_stage": 3},
        COLOCATED,
        {"train__async_enable": True, "rollout__vllm_generate_batch_size": 16},
    ],
    ids=["two ranks and evaluation", "ZeRO-3 on two ranks", "colocated", "asynchronous"],
)
def test_other_ways_to_train(changes: dict[str, Any], tiny_model: Path, tmp_path: Path) -> None:
    write_inputs(tmp_path)
    launch(tmp_path, *LENGTH, *words(tiny_model, **changes))
    check_training(tmp_path)
    if "eval__dataset" in changes:
        rewards = scalars(tmp_path)["eval/eval_reward"]
        assert rewards[-1] > rewards[0] > 0


GROUPS = """
groups:
  - {name: few, proportion: 0.1, weights: {long: 1.0}}
  - {name: many, proportion: 0.9, weights: {short: 0.2, long: 0.2}}
"""


@pytest.mark.slow
def test_the_worst_groups_score_is_a_label(tiny_model: Path, tmp_path: Path) -> None:
    write_inputs(tmp_path)
    (tmp_path / "groups.yaml").write_text(GROUPS)
    with (tmp_path / "prompts.jsonl").open("w") as stream:
        for i in range(64):
            label = json.dumps({"v": 1, "id": f"hh-{i}", "style": "hh"})
            stream.write(json.dumps({"prompt": f"\n\nHuman: say {i}\n\nAssistant:", "label": label}) + "\n")
    gold = ("--ext.reward", "groups", "--groups.kind", "gold", "--groups.config", "groups.yaml", "--groups.traits")
    launch(tmp_path, *gold, "long=conciseness:2", "short=conciseness:1", *words(tiny_model, train__num_episodes=1))
    batches, logged = rollouts(tmp_path), scalars(tmp_path)
    for row in batches[0]:
        assert row["reward"] == pytest.approx(min(row["groups/reward_few"], row["groups/reward_many"]), abs=1e-6)
    labels = torch.tensor([row["reward"] for row in batches[0]], dtype=torch.float64).view(-1, 4)
    log_q = (labels / 0.1).log_softmax(-1)
    assert logged["train/kwise/target_entropy"][0] == pytest.approx(
        -(log_q.exp() * log_q).sum(-1).mean().item(), abs=1e-4
    )


@pytest.mark.slow
def test_a_killed_run_goes_on(tiny_model: Path, tmp_path: Path) -> None:
    """The reference is the model that training began with, also after a resume."""
    write_inputs(tmp_path)
    saving = {"ckpt__save_steps": 1, "ckpt__max_num": 2, "ckpt__load_enable": True}
    with Running(tmp_path, *LENGTH, *words(tiny_model, **saving)) as first:
        first.until(lambda: 8 in first.steps)
        first.kill()
        assert not first.left(60)
    with Running(tmp_path, *LENGTH, *words(tiny_model, **saving)) as second:
        assert second.wait() == 0, second.output[-6000:]
    assert second.steps[0] > 6 and second.steps[-1] == 16
    ratios = [float(one) for one in re.findall(r"'kwise/log_ratio': ([-+.e\d]+)", second.output)]
    assert len(ratios) == len(second.steps) and ratios[0] > 0.5  # 0 would be a reference of the resumed policy
