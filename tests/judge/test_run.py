"""The judge in `train_ppo_ray`, for real, on tiny models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray_runs import flags, launch, rollouts, scalars, write_inputs

from orlhf_ext.judge.reward import Judge
from orlhf_ext.models.folder import load_tokenizer
from orlhf_ext.rewards import RewardBatch, RewardContext, Rollout
from orlhf_ext.rewards.combine import RewardSet

pytest.importorskip("openrlhf")
pytest.importorskip("vllm")
pytestmark = pytest.mark.launcher


def rollout(row: dict[str, Any]) -> Rollout:
    return Rollout(
        row["id"], row["prompt"], row["response"], row["label"], group=int(row["id"].split()[1].split("/")[0])
    )


@pytest.mark.slow
def test_rewards_are_those_of_the_judge(tiny_model: Path, long_model: Path, tmp_path: Path) -> None:
    """In an actor of its own, and in evaluation against the label."""
    write_inputs(tmp_path, prompts=16)
    evaluation = {"eval__dataset": "prompts.jsonl", "eval__steps": 2, "eval__n_samples_per_prompt": 1}
    how: dict[str, Any] = {"pairs": "pivot", "template": "short", "against_label": True}
    words = ["--ext.reward", "judge", "--judge.model", str(long_model), "--judge.against_label"]
    words += ["--judge.pairs", "pivot", "--judge.template", "short"]
    output = launch(tmp_path, *words, *flags(tiny_model, ext__eval_on_start=True, **evaluation))
    assert "judge: 48 calls a batch, 6 for the 4 samples of a prompt" in output
    assert "plain cases, and leans to" in output
    judge = RewardSet([Judge(model=str(long_model), **how)])
    args = type("Args", (), {"train": type("Train", (), {"seed": 42})})
    judge.setup(RewardContext(tokenizer=load_tokenizer(tiny_model), args=args))  # type: ignore[arg-type]
    batches = rollouts(tmp_path)
    assert [len(batch) for batch in batches] == [32, 32]
    for batch in [*batches, *rollouts(tmp_path, "eval")]:
        found = judge.score(RewardBatch([rollout(row) for row in batch]))
        assert [row["reward"] for row in batch] == pytest.approx(found.rewards, abs=0.01)  # bf16, in other batches
        assert [row["judge/calls"] for row in batch] == pytest.approx(found.columns["judge/calls"])
    logged = scalars(tmp_path)
    assert {"train/judge/share_a", "train/judge/bias", "train/judge/consistency", "train/judge/calls"} <= set(logged)
    assert logged["train/reward/judge"] == pytest.approx(
        [sum(row["reward"] for row in batch) / 32 for batch in batches], abs=1e-5
    )


@pytest.mark.slow
def test_a_judge_that_writes_nothing_stops_the_run(tiny_model: Path, long_model: Path, tmp_path: Path) -> None:
    write_inputs(tmp_path, prompts=16)
    words = ["--ext.reward", "judge", "--judge.model", str(long_model), "--judge.verdict", "text"]
    output = launch(tmp_path, *words, *flags(tiny_model), fails=True)
    assert "the judge never answers: it has no verdict in 6 calls about plain cases" in output
    assert not rollouts(tmp_path)
