"""`train_ppo_ray` for real, with rewards from the policy's and the reference's likelihoods."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
from helpers import read
from ray_runs import flags, judge, launch, rollouts, scalars

from orlhf_ext.models.folder import load_tokenizer

pytest.importorskip("openrlhf")
pytest.importorskip("vllm")
pytestmark = pytest.mark.launcher

REWARDS = """
from orlhf_ext.rewards import Reward
from orlhf_ext.rewards.likelihood import Likelihood

class Own(Reward):
    \"\"\"The mean log-probability of a response under the policy that wrote it.\"\"\"
    needs_policy = True
    def setup(self, context):
        self.logprobs = context.score_policy
    def score(self, batch):
        with open("engine.txt", "a") as stream:
            stream.write("score\\n")
        return [sum(found) / len(found) for found in self.logprobs(batch.token_ids, batch.action_masks)]

class First(Own):
    needs_policy, needs_reference = False, True
    def setup(self, context):
        self.logprobs = context.score_reference

class Second(Likelihood):
    \"\"\"Another one beside the first.\"\"\"
"""
WAYS: dict[str, dict[str, Any]] = {
    "ZeRO-2 on two ranks": {"actor__num_gpus_per_node": 2, "ref__num_gpus_per_node": 2},
    "ZeRO-3 on two ranks": {"actor__num_gpus_per_node": 2, "ref__num_gpus_per_node": 2, "ds__zero_stage": 3},
    "colocated and asleep": {
        "train__colocate_all": True,
        "train__colocate_actor_ref": None,
        "vllm__enable_sleep": True,
        "ds__enable_sleep": True,
    },
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my_rewards.py").write_text(REWARDS)
    rows = [{"prompt": f"\n\nHuman: say {i}\n\nAssistant:", "label": str(i % 10)} for i in range(64)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("changes", WAYS.values(), ids=list(WAYS))
def test_the_policys_scores_are_its_own_old_log_probabilities(
    changes: dict[str, Any], tiny_model: Path, folder: Path
) -> None:
    """In float32, before and after updates, while the reference's stay where they were."""
    launch(
        folder,
        *("--ext.reward", "my_rewards:Own", "--ext.reward", "my_rewards:First=0"),
        *("--ext.use", "exact_scores:ExactScores"),
        *flags(tiny_model, **changes, data__max_samples=24, actor__adam__lr=2e-3, ext__reference_batch_tokens=300),
    )
    batches = rollouts(folder)
    made = read(folder / "logprobs.jsonl")
    assert [len(batch) for batch in batches] == [32] * 3 and len(made) == 96
    for number, batch in enumerate(batches):
        found = {tuple(row["ids"]): row["logprobs"] for row in made[32 * number : 32 * number + 32]}
        for row in batch:
            logprobs = found[tuple(row["token_ids"])]
            assert row["reward/own"] == pytest.approx(sum(logprobs) / len(logprobs), abs=1e-5)
        apart = [abs(row["reward/own"] - row["reward/first"]) for row in batch]
        assert (max(apart) < 1e-5) == (number < 2), apart  # the learning rate of the first step is 0
    events = [event for event, _ in itertools.groupby((folder / "engine.txt").read_text().split())]
    if "train__colocate_all" in changes:
        before = [events[i - 1] for i, event in enumerate(events) if event == "score"]
        assert before == ["sleep"] * 3, events


@pytest.mark.slow
def test_likelihoods_of_gold_texts(tiny_model: Path, folder: Path) -> None:
    """Under the reference and the policy in one run: the first are transformers' own; the second are the same until the
    policy is another one, and then are not."""
    output = launch(
        folder,
        *("--ext.reward", "likelihood=1", "--likelihood.model", "policy", "--likelihood.cut", "none"),
        *("--likelihood.least_spread", "0"),
        *("--ext.reward", "my_rewards:Second=1", "--second.cut", "none", "--second.least_spread", "0"),
        *("--second.form", "prob_mean", "--second.baseline", "alone"),
        *flags(tiny_model, data__max_samples=24, actor__adam__lr=2e-3),
    )
    assert "PolicyModelActor is now orlhf_ext.rewards.policy:ScoringPolicy (extension rewards)" in output
    batches, tokenizer, nll = rollouts(folder), load_tokenizer(tiny_model), judge(tiny_model)
    assert [len(batch) for batch in batches] == [32] * 3

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    for row in (row for batch in batches for row in batch):
        before, gold = row["token_ids"], [*encode(row["label"]), *encode("</answer>")]
        while before[-1] in tokenizer.all_special_ids:
            before = before[:-1]
        ids = [*before, *encode("<answer>"), *gold]
        wanted = -nll(ids, [0] * (len(ids) - len(gold)) + [1] * len(gold))
        assert row["second/logprob_mean"] == pytest.approx(wanted, abs=8e-3 / len(gold) ** 0.5)
        assert row["reward"] == pytest.approx(row["likelihood/logprob_mean"] + row["reward/second"], abs=1e-6)
    apart = [
        max(abs(row["second/logprob_mean"] - row["likelihood/logprob_mean"]) for row in batch) for batch in batches
    ]
    assert max(apart[:2]) < 5e-3 < apart[2], apart
    logged = scalars(folder)
    assert all(math.isfinite(value) for values in logged.values() for value in values)
    assert {"train/likelihood/gold_tokens", "train/second/alone", "train/likelihood/gated"} <= set(logged)
