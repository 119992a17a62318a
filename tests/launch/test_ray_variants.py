"""`train_ppo_ray` for real on the tiny model, each other way to run it once: ranks, engines and ZeRO stages, a critic,
colocation, asynchronous training, filtering, kills and resumes, an experience maker of one's own, no extension."""

from __future__ import annotations

import json
import math
import re
import shutil
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from ray_runs import Running, flags, judge, launch, rollouts, scalars, synced, write_inputs

pytest.importorskip("openrlhf")
pytest.importorskip("vllm")
pytestmark = [pytest.mark.launcher, pytest.mark.slow]

LETTERS = ("--ext.reward", "my_rewards:Letters")
PROBE = ("--ext.use", "ray_probe:Probe")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_inputs(tmp_path)
    return tmp_path


@pytest.mark.parametrize("stage", [2, 3])
def test_two_ranks_and_two_engines(stage: int, tiny_model: Path, folder: Path) -> None:
    """The reference group scores tokens as transformers does, whatever the policy has learned and at temperature 1;
    both engines get all weights. ZeRO-2 has ranks that work apart, ZeRO-3 ranks that work in step."""
    changes: dict[str, Any] = {f"{group}__num_gpus_per_node": 2 for group in ("actor", "ref")}
    output = launch(
        folder,
        *("--ext.reward", "my_rewards:Likely", *PROBE),
        *flags(
            tiny_model,
            **changes,
            vllm__num_engines=2,
            ds__zero_stage=stage,
            data__max_samples=24,
            actor__adam__lr=2e-3,
            rollout__temperature=0.8,
            algo__advantage__is_correction_level="token",
            ext__reference_batch_tokens=100,
        ),
    )
    batches = rollouts(folder)
    assert [len(batch) for batch in batches] == [32] * 3
    nll = judge(tiny_model)
    for row in (row for batch in batches for row in batch):  # a mean over few tokens hides less of bf16's noise
        tolerance = 8e-3 / sum(row["action_mask"])
        assert row["reward"] == pytest.approx(-nll(row["token_ids"], row["action_mask"]), abs=tolerance)
    counts = synced(output)
    assert len(counts) == 2 * len(batches) and all(equal == every > 0 for equal, every in counts), counts
    assert {"in engine 0", "in engine 1"} == set(re.findall(r"in engine \d", output))
    assert max(scalars(folder)["train/vllm_kl"]) < 1e-3


def test_without_weight_sync_the_checks_fail(tiny_model: Path, folder: Path) -> None:
    """The negative control of what other tests look at."""
    changes = {"actor__adam__lr": 2e-3, "algo__advantage__is_correction_level": "token"}
    output = launch(folder, *LETTERS, *PROBE, *flags(tiny_model, **changes), ORLHF_TEST_NO_SYNC="1")
    counts = synced(output)
    assert len(counts) == 8
    assert counts[0][0] == counts[0][1]  # the learning rate of the first step is 0
    assert all(equal < every for equal, every in counts[2:]), counts
    assert scalars(folder)["train/vllm_kl"][-1] > 1e-3


COLOCATED = {
    "train__colocate_all": True,
    "train__colocate_actor_ref": None,
    "ds__enable_sleep": True,
    "algo__advantage__estimator": "gae",
    "algo__kl__use_loss": None,
    "algo__kl__estimator": "k1",
    "critic__num_gpus_per_node": 1,
    "critic__adam__lr": 1e-3,
}


@pytest.mark.parametrize(
    ("changes", "logged"),
    [(COLOCATED, "train/critic_loss"), ({"train__async_enable": True}, "train/policy_loss")],
    ids=["colocated with a critic", "asynchronous"],
)
def test_other_ways_to_train(changes: dict[str, Any], logged: str, tiny_model: Path, folder: Path) -> None:
    evaluation = {"eval__dataset": "prompts.jsonl", "eval__steps": 4, "eval__n_samples_per_prompt": 1}
    output = launch(folder, *LETTERS, *flags(tiny_model, **changes, **evaluation))
    assert "is now orlhf_ext.rewards.generator:RewardedSamples" in output
    found = scalars(folder)
    assert all(math.isfinite(value) for values in found.values() for value in values)
    assert len(found[logged]) == len(found["train/reward"]) == 8
    means = [statistics.mean(row["reward"] for row in batch) for batch in rollouts(folder)]
    assert found["train/reward"] == pytest.approx(means, abs=1e-5) and min(means) > 0
    assert found["eval/eval_reward"] and min(found["eval/eval_reward"]) > 0


def test_constant_groups_never_reach_training(tiny_model: Path, folder: Path) -> None:
    """Half of 64 prompts are filtered out, and the others are four batches of eight."""
    launch(folder, "--ext.reward", "my_rewards:Constant", *flags(tiny_model, algo__dynamic_filtering_enable=True))
    sampled = [row for batch in rollouts(folder) for row in batch]
    assert len(sampled) == 64 * 4
    kept = [row["reward"] for row in sampled if int(row["label"]) % 2 == 0]
    found = scalars(folder)
    means = [statistics.mean(kept[start : start + 32]) for start in range(0, len(kept), 32)]
    assert found["train/rollout/reward_mean"] == pytest.approx(means, abs=1e-6) and len(means) == 4
    assert found["train/rollout/num_samples"] == [32] * 4


def test_killed_runs_go_on_from_their_checkpoint(tiny_model: Path, folder: Path) -> None:
    """One worker is killed, and the run ends with a sentence; it is started again as that says, killed as a whole, and
    started once more."""
    words = [
        *LETTERS,
        *flags(tiny_model, train__num_episodes=2, ckpt__save_steps=1, ckpt__max_num=2, ckpt__load_enable=True),
    ]
    with Running(folder, *words) as first:
        first.until(lambda: 2 in first.steps)
        first.kill_worker("PolicyModelActor")
        assert first.wait() == 2
        assert not first.left(30)
        told = [line for line in first.output.splitlines() if line.startswith("orlhf-ext: error:")]
        assert len(told) == 1 and re.search(r"a Ray worker died .*go on from .* --ckpt\.load_enable$", told[0]), told
    saved = int((folder / "out/checkpoints/_actor/latest").read_text().removeprefix("global_step"))
    assert first.steps[0] == 1 and saved >= first.steps[-1] - 1 > 0
    with Running(folder, *words) as second:
        second.until(lambda: saved + 2 in second.steps)
        second.kill()
        assert not second.left(60)
    assert second.steps[0] == saved + 1
    saved = int((folder / "out/checkpoints/_actor/latest").read_text().removeprefix("global_step"))
    with Running(folder, *words) as third:
        assert third.wait() == 0, third.output[-6000:]
        assert not third.left(30)
    assert third.steps == list(range(saved + 1, 17))
    assert len(rollouts(folder)) >= 16  # no run wrote over those of another


IN_ORDER = """
from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker

class Maker(RemoteExperienceMaker):
    def make_experience_batch(self, samples):
        return super().make_experience_batch(sorted(samples, key=lambda sample: sample.prompts))
"""
IN_ORDER_EXTENSION = """
from orlhf_ext.extensions import Extension

class InOrder(Extension):
    \"\"\"Samples in the order of their prompts; they arrive in another one every time.\"\"\"
    name, launchers = "in-order", ("train_ppo_ray",)
    replacements = {"openrlhf.trainer.ppo_utils.experience_maker:RemoteExperienceMaker": "in_order_maker:Maker"}
"""


def test_a_resumed_run_is_the_run_as_a_whole(tiny_model: Path, tmp_path: Path) -> None:
    """10 prompts, 4 a step, two episodes, the likeliest tokens only, and dropout. From a checkpoint within an
    episode, and from one at the end of an episode whose last step had 2 of 4: the same prompts and responses follow,
    and the same weights come out, bit for bit."""
    write_inputs(tmp_path, prompts=10)
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.1}))
    (tmp_path / "in_order_maker.py").write_text(IN_ORDER)
    (tmp_path / "in_order.py").write_text(IN_ORDER_EXTENSION)
    sizes = {"rollout__batch_size": 4, "rollout__n_samples_per_prompt": 1, "rollout__micro_batch_size": 2}
    sizes |= {"train__batch_size": 4, "train__micro_batch_size": 2, "train__num_episodes": 2}
    words = [
        *("--ext.reward", "my_rewards:Letters", "--ext.use", "in_order:InOrder"),
        *flags(
            model,
            **sizes,
            rollout__top_p=1e-6,
            algo__advantage__estimator="reinforce",
            actor__adam__lr=1e-2,
            ckpt__save_steps=1,
            ckpt__max_num=9,
            ckpt__load_enable=True,
        ),
    ]

    def run(name: str) -> tuple[list[list[tuple[str, str]]], bytes]:
        launch(tmp_path, *words)
        (tmp_path / "out").rename(tmp_path / name / "out")
        steps = [sorted((row["prompt"], row["response"]) for row in batch) for batch in rollouts(tmp_path / name)]
        return steps, (tmp_path / name / "out/model/model.safetensors").read_bytes()

    (tmp_path / "whole").mkdir()
    steps, weights = run("whole")
    assert [len(step) for step in steps] == [4, 4, 2, 4, 4, 2]
    assert weights != (model / "model.safetensors").read_bytes()
    for done in (2, 3):
        tag = f"global_step{done}"
        kept = tmp_path / "out/checkpoints/_actor"
        shutil.copytree(tmp_path / "whole/out/checkpoints/_actor" / tag, kept / tag)
        (kept / "latest").write_text(tag)
        (tmp_path / str(done)).mkdir()
        assert run(str(done)) == (steps[done:], weights), done


MAKER = """
import torch
from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker

class Maker(RemoteExperienceMaker):
    def compute_advantages_and_returns(self, experiences):
        rewards = torch.cat([e.rewards for e in experiences])
        topics = torch.tensor([int(label) % 3 for e in experiences for label in e.labels])
        worst = min(range(3), key=lambda topic: rewards[topics == topic].mean())
        sizes = [len(e.rewards) for e in experiences]
        for e, topic in zip(experiences, topics.split(sizes)):
            e.rewards = torch.where(topic == worst, e.rewards, 0)
        experiences = super().compute_advantages_and_returns(experiences)
        learned = torch.cat([e.advantages.abs().amax(1) > 0 for e in experiences])
        print(f"topic {worst} is the worst; learned from:", *topics[learned].bincount(minlength=3).tolist(), flush=True)
        return experiences
"""
EXTENSION = """
from orlhf_ext.extensions import Extension

class WorstTopic(Extension):
    \"\"\"Only the topic with the least mean reward is learned from: a minimum over the means of groups.\"\"\"
    name, launchers = "worst_topic", ("train_ppo_ray",)
    replacements = {"openrlhf.trainer.ppo_utils.experience_maker:RemoteExperienceMaker": "my_maker:Maker"}
"""


def test_an_experience_maker_of_ones_own(tiny_model: Path, folder: Path) -> None:
    """A reward of the whole batch, beside one of samples."""
    (folder / "my_maker.py").write_text(MAKER)
    (folder / "my_extension.py").write_text(EXTENSION)
    output = launch(folder, *LETTERS, "--ext.use", "my_extension:WorstTopic", *flags(tiny_model, data__max_samples=24))
    assert "RemoteExperienceMaker is now my_maker:Maker (extension worst_topic)" in output
    printed = re.findall(r"topic (\d) is the worst; learned from: (\d+) (\d+) (\d+)", output)
    batches = rollouts(folder)
    assert len(printed) == len(batches) == 3
    for (worst, *learned), batch in zip(printed, batches, strict=True):
        topics = defaultdict(list)
        for row in batch:
            topics[int(row["label"]) % 3].append(row["reward"])
        means = {topic: statistics.mean(rewards) for topic, rewards in topics.items()}
        assert means[int(worst)] == pytest.approx(min(means.values()))
        counts = dict(enumerate(map(int, learned)))
        assert 0 < counts.pop(int(worst)) <= len(topics[int(worst)]) and set(counts.values()) == {0}


REWARD_FUNC = """
import torch

def reward_func(queries, prompts, labels):
    responses = [query[len(prompt):] for query, prompt in zip(queries, prompts)]
    rewards = [sum("a" <= c <= "z" for c in text) / max(1, len(text)) for text in responses]
    with open(ASKED, "a") as stream:
        stream.writelines(f"{reward}\\n" for reward in rewards)
    return {"rewards": torch.tensor(rewards), "scores": torch.tensor(rewards), "extra_logs": {}}
"""


def test_without_extensions_a_run_is_stock(tiny_model: Path, folder: Path) -> None:
    """A `reward_func` of OpenRLHF's own; what it gave is what was trained on."""
    asked = folder / "asked.jsonl"
    (folder / "reward_func.py").write_text(REWARD_FUNC.replace("ASKED", repr(str(asked))))
    words = flags(
        tiny_model,
        ext__rollouts_dir=None,
        reward__remote_url="reward_func.py",
        data__max_samples=24,
        algo__advantage__is_correction_level="token",
    )
    output = launch(folder, *words)
    assert "is now" not in output
    rewards = [json.loads(line) for line in asked.read_bytes().splitlines()]
    assert len(rewards) == 96
    found = scalars(folder)
    means = [statistics.mean(rewards[start : start + 32]) for start in range(0, 96, 32)]
    assert found["train/rollout/reward_mean"] == pytest.approx(means, abs=1e-5)
    assert max(found["train/vllm_kl"]) < 1e-3
    assert (folder / "out/model/model.safetensors").read_bytes() != (tiny_model / "model.safetensors").read_bytes()
