"""Rewards in TRL's trainer, for real, and behind verl's interface."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orlhf_ext.cli.errors import UserError
from orlhf_ext.models.folder import load_tokenizer
from orlhf_ext.rewards import Reward, RewardBatch, RewardContext, RewardResult
from orlhf_ext.rewards.adapters import ForVerl, for_trl
from orlhf_ext.rewards.length import Length


class Compares(Reward):
    """1 for the longest response to a prompt that its label names, else 0."""

    def setup(self, context: RewardContext) -> None:
        self.seen: list[RewardBatch] = []

    def score(self, batch: RewardBatch) -> RewardResult:
        self.seen.append(batch)
        found = [0.0] * len(batch)
        for group in batch.groups():
            assert len({(batch[i].prompt, batch[i].label) for i in group}) == 1
            found[max(group, key=lambda i: len(batch[i].response))] = 1.0
        return RewardResult(found, metrics={"labels": [float(label) for label in batch.labels]})


@pytest.mark.launcher
def test_trl_trains_with_a_reward(tiny_model: Path, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    tokenizer, compares = load_tokenizer(tiny_model), Compares()
    rows = [{"prompt": f"\n\nHuman: say {i}\n\nAssistant:", "label": str(i)} for i in range(4)]
    config = trl.GRPOConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=6,
        max_steps=2,
        use_cpu=True,
        bf16=False,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
    )
    context = RewardContext(tokenizer)
    trainer = trl.GRPOTrainer(
        str(tiny_model),
        reward_funcs=[for_trl(compares, context), for_trl(Length(target=4), context)],
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    trainer.train()
    assert [len(batch) for batch in compares.seen] == [8, 8]
    for batch in compares.seen:
        assert sorted(map(len, batch.groups())) == [4, 4]
        for rollout in batch:
            assert rollout.prompt == f"\n\nHuman: say {rollout.label}\n\nAssistant:"
            assert tokenizer.decode(rollout.token_ids).startswith(rollout.prompt)
            assert rollout.response == tokenizer.decode(rollout.response_ids, skip_special_tokens=True)
            assert len(rollout.response_ids) == 6 or not rollout.truncated
    logs = [row for row in trainer.state.log_history if "rewards/compares/mean" in row]
    assert len(logs) == 2
    for row, batch in zip(logs, compares.seen, strict=True):
        lengths = [len(rollout.response_ids) for rollout in batch]
        assert row["rewards/compares/mean"] == pytest.approx(0.25)
        assert row["rewards/length/mean"] == pytest.approx(sum(min(n, 4) / max(n, 4) for n in lengths) / 8, abs=1e-5)
        assert row["compares/labels"] == pytest.approx(sum(map(float, batch.labels)) / 8, abs=1e-5)


def test_chats_and_no_labels(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    score = for_trl(Length(target=2), RewardContext(tokenizer))
    assert score.__name__ == "length"
    chats = [[{"role": "user", "content": "hello"}]] * 2
    answers = [[{"role": "assistant", "content": "hi"}]] * 2
    assert score(prompts=chats, completions=answers, completion_ids=[[5, 6, 7, 1], [5]], trainer_state=None) == [
        0.5,
        0.5,
    ]


def test_verl_gets_a_tensor_by_token(tiny_model: Path) -> None:
    """As its documentation has it: prompts are padded on the left, responses on the right, a reward stands at the last
    token of a response."""
    import numpy as np
    import torch

    tokenizer, compares = load_tokenizer(tiny_model), Compares()
    pad, end = int(tokenizer.pad_token_id), int(tokenizer.eos_token_id)
    prompts = torch.tensor([[pad, 10, 11], [12, 13, 14], [pad, 10, 11], [12, 13, 14]])
    responses = torch.tensor([[20, end, pad], [21, 22, 23], [24, 25, 26], [27, pad, pad]])
    mask = torch.tensor([[0, 1, 1, 1, 1, 0], [1] * 6, [0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    golds = np.array([{"ground_truth": text} for text in ("1", "2", "1", "2")], dtype=object)
    data = SimpleNamespace(
        batch={"prompts": prompts, "responses": responses, "attention_mask": mask},
        non_tensor_batch={"uid": np.array(["a", "b", "a", "b"], dtype=object), "reward_model": golds},
    )
    manager = ForVerl(compares, RewardContext(tokenizer))
    found: Any = manager(data)
    assert found.tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 1], [0, 0, 0]]
    both: Any = manager(data, return_dict=True)
    assert torch.equal(both["reward_tensor"], found)
    assert both["reward_extra_info"] == {"compares/labels": [1.0, 2.0, 1.0, 2.0]}
    first, second, *_ = compares.seen[0]
    assert list(first.token_ids) == [10, 11, 20, end] and list(second.token_ids) == [12, 13, 14, 21, 22, 23]
    assert [rollout.truncated for rollout in compares.seen[0]] == [False, True, True, True]


def test_what_needs_a_model_of_a_run_says_so(tiny_model: Path) -> None:
    class Wants(Compares):
        needs_policy = True

    with pytest.raises(UserError, match="reward 'wants' needs the policy, and this run has none"):
        for_trl(Wants(), RewardContext(load_tokenizer(tiny_model)))
