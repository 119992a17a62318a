"""Q_D as a reward."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import ray_runs
from deadend_q import make_q

from orlhf_ext.cli.errors import UserError
from orlhf_ext.deadend.reward import DeadEndValue
from orlhf_ext.models.folder import load_tokenizer
from orlhf_ext.rewards import RewardBatch, RewardContext, Rollout
from orlhf_ext.rewards.combine import RewardSet

PROMPT = "Human: hello?"
RESPONSES = [" fine", " no idea, and you?", " hello" * 20, ""]


@pytest.fixture(scope="module")
def q_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_q(tmp_path_factory.mktemp("q") / "q", tiny_model)


def rollouts(tokenizer: Any, ended: bool) -> RewardBatch:
    prompt = tokenizer(PROMPT, add_special_tokens=False)["input_ids"]
    found = []
    for i, text in enumerate(RESPONSES):
        written = tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id] * ended
        mask = [0] * len(prompt) + [1] * len(written)
        found.append(Rollout(f"r{i}", PROMPT, text, token_ids=[*prompt, *written], action_mask=mask))
    return RewardBatch(found)


def run(reward: DeadEndValue, batch: RewardBatch, **context: Any) -> list[float]:
    rewards = RewardSet([reward])
    rewards.setup(RewardContext(**context))
    return list(rewards.score(batch).rewards)


def forward(model: Any, ids: Sequence[int], mask: Sequence[int]) -> Any:
    """The values of a response's tokens; of the prompt's last one, if there are none."""
    import torch

    given = torch.tensor([list(ids)])
    with torch.inference_mode():
        values = model.q_head(model.hidden_states(given)[:, :-1])[0].gather(1, given[0, 1:, None])[:, 0].clamp(-1, 0)
    mine = values[torch.tensor(mask[1 : given.shape[1]]).bool()]
    return mine if len(mine) else values[-1:]


@pytest.mark.parametrize("at", ["last", "worst"])
def test_values_are_those_of_a_forward_pass(at: Any, q_model: Path, tiny_model: Path) -> None:
    from orlhf_ext.deadend.model import load_q_model

    tokenizer = load_tokenizer(tiny_model)
    batch = rollouts(tokenizer, ended=False)
    model = load_q_model(q_model)
    values = [forward(model, rollout.token_ids, rollout.action_mask) for rollout in batch]
    wanted = [float(mine[-1] if at == "last" else mine.min()) for mine in values]
    found = run(DeadEndValue(str(q_model), at=at, batch_tokens=64), batch, tokenizer=tokenizer)
    assert found == pytest.approx(wanted, abs=1e-5) and len(set(found)) > 1
    # EOS has no trained value: whether a response ends with it changes nothing
    assert run(DeadEndValue(str(q_model), at=at), rollouts(tokenizer, ended=True)) == pytest.approx(wanted, abs=1e-5)


def test_what_does_not_fit_is_refused(q_model: Path, tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    with pytest.raises(UserError, match="is not a value function"):
        run(DeadEndValue(str(tiny_model)), rollouts(tokenizer, ended=False))
    tokenizer.add_tokens(["<new>"])
    with pytest.raises(UserError, match="another tokenizer than the policy"):
        run(DeadEndValue(str(q_model)), rollouts(tokenizer, ended=False), tokenizer=tokenizer)
    with pytest.raises(UserError, match="has no token ids to read"):
        run(DeadEndValue(str(q_model)), RewardBatch([Rollout("a", PROMPT, " fine")]))


@pytest.mark.slow
@pytest.mark.launcher
def test_a_policy_is_trained_on_it(tiny_model: Path, tmp_path: Path) -> None:
    """``train_ppo_ray`` gives each response what a forward pass over its ids says, and reports it."""
    pytest.importorskip("vllm")
    from orlhf_ext.deadend.model import load_q_model

    q_model = make_q(tmp_path / "q", tiny_model, mean=-0.5)
    ray_runs.write_inputs(tmp_path)
    flags = ray_runs.flags(tiny_model, data__max_samples=16, rollout__n_samples_per_prompt=2, train__batch_size=16)
    ray_runs.launch(tmp_path, "--ext.reward", "deadend", "--deadend.model", str(q_model), *flags)
    batches, found = ray_runs.rollouts(tmp_path), ray_runs.scalars(tmp_path)
    assert [len(batch) for batch in batches] == [16] * 2
    model, eos = load_q_model(q_model), load_tokenizer(tiny_model).eos_token_id
    for step, batch in enumerate(batches):
        for row in batch:
            ids = row["token_ids"][:-1] if row["token_ids"][-1] == eos else row["token_ids"]
            values = forward(model, ids, row["action_mask"])
            assert row["reward"] == row["deadend/last"] == pytest.approx(float(values[-1]), abs=1e-5)
            assert row["deadend/worst"] == pytest.approx(float(values.min()), abs=1e-5)
        rewards = [row["reward"] for row in batch]
        assert len(set(rewards)) > 8 and -1 <= min(rewards) < max(rewards) <= 0
        assert found["train/deadend/worst"][step] == pytest.approx(
            sum(row["deadend/worst"] for row in batch) / len(batch), abs=1e-5
        )
