"""Scores of the run's own models, with DeepSpeed's real ZeRO-3: where ranks work in step, and where each is apart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from orlhf_ext.models.spans import Span

SPANS = [Span([5, 6, 7, 8, 9, 10], 3), Span([11, 12, 13], 1), Span([5, 6, 7, 8, 9, 20, 21, 22, 23], 5)]


@pytest.fixture(scope="module")
def actor(strategy: Any, tiny_model: Path) -> Iterator[Any]:
    """A reference actor as Ray would hold it, with its weights in ZeRO-3's parts."""
    from openrlhf.models import Actor
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    from orlhf_ext.rewards.reference import ScoringReference

    strategy.stage = 3
    strategy.args.ds.tensor_parallel_size = 1
    how = {"attn_implementation": "sdpa", "param_dtype": "bf16", "ds_config": strategy.get_ds_eval_config()}
    model = strategy.prepare(Actor(str(tiny_model), temperature=0.7, **how))
    unset_hf_deepspeed_config()
    strategy.args.ext = SimpleNamespace(reference_batch_tokens=4096)
    actor = object.__new__(ScoringReference)
    actor.model, actor.strategy = model.eval(), strategy
    yield actor


def test_the_output_layer_sees_only_what_is_scored(actor: Any) -> None:
    """The values are those of OpenRLHF's forward pass at temperature 1, which computes all logits."""
    from orlhf_ext.rewards.scorers import _tensors

    batch = _tensors(SPANS, 0)
    head, seen = actor.model.model.module.get_output_embeddings(), []
    hook = head.register_forward_hook(lambda _, inputs, output: seen.append(output.shape[:-1].numel()))
    found = actor.score_tokens(**batch)
    actor.model.temperature = 1.0
    wanted = actor.forward(batch["sequences"], batch["action_mask"], batch["attention_mask"])
    hook.remove()
    assert seen == [sum(span.scored for span in SPANS), batch["sequences"].numel()]
    torch.testing.assert_close(found, wanted, atol=2e-2, rtol=0)  # bf16: other shapes of products
    assert (found[batch["action_mask"] == 0] == 0).all() and (found[batch["action_mask"] == 1] < 0).all()


def test_in_step_as_apart(actor: Any) -> None:
    """A whole model, whose shared beginnings are computed once, gives the same."""
    from orlhf_ext.rewards.scorers import _tensors

    batch = _tensors(SPANS, 0)
    found = actor.score_tokens(**batch)
    apart = actor.score_spans(SPANS)
    for row, values, mask in zip(found, apart, batch["action_mask"], strict=True):
        torch.testing.assert_close(row[mask.bool()], torch.tensor(values), atol=2e-2, rtol=0)


def test_plans_of_a_record_go_to_one_process(actor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where each has all weights: the prompt is computed in one alone, and the scores are those of each alone."""
    from orlhf_ext.rewards import scorers
    from orlhf_ext.vrcli.reward import VRCLI

    drawn = torch.Generator().manual_seed(1)

    def draw(count: int) -> list[int]:
        return torch.randint(3, 280, (count,), generator=drawn).tolist()

    preamble, contexts, gold = draw(40), [draw(100), draw(100)], [draw(9), draw(7)]
    keys = ["b", "a"] * 4 + ["a"]
    spans = []
    for key in keys:
        before = preamble + contexts[key == "a"] + draw(int(torch.randint(1, 30, (), generator=drawn)))
        spans.append(Span(before + gold[key == "a"], len(before)))
    seen: list[list[Span]] = []

    class Group:
        _actor_handlers = ("first", "second")

        def async_run_method_batch(self, name: str, spans: list[list[Span]]) -> list[Any]:
            seen.extend(spans)
            return [[getattr(actor, name)(some)] for some in spans]

    monkeypatch.setattr(scorers.ray, "get", lambda found: found)
    ds = SimpleNamespace(ring_attn_size=1, tensor_parallel_size=1, zero_stage=2, packing_samples=False)
    train = SimpleNamespace(colocate_all=False, colocate_actor_ref=False)
    reward = VRCLI()
    reward._score_reference = scorers.GroupScorer(Group(), SimpleNamespace(ds=ds, train=train), 0)
    found = reward._nlls(spans)
    wanted = [[span for span, key in zip(spans, keys, strict=True) if key == one] for one in ("a", "b")]
    assert sorted(seen, key=len, reverse=True) == wanted
    alone = [reward._nlls([span])[0] for span in spans]
    assert found == pytest.approx(alone, rel=2e-2)  # bf16: other shapes of products


def test_a_scorer_reaches_a_reward_in_an_actor_if_its_passes_need_no_order() -> None:
    """It goes there pickled; where all processes take part in a pass, two callers' passes would meet."""
    from ray import cloudpickle

    from orlhf_ext.cli.errors import UserError
    from orlhf_ext.rewards import Reward, RewardContext
    from orlhf_ext.rewards.remote import InActors
    from orlhf_ext.rewards.scorers import GroupScorer

    def scorer(stage: int) -> GroupScorer:
        ds = SimpleNamespace(ring_attn_size=1, tensor_parallel_size=1, zero_stage=stage, packing_samples=False)
        return GroupScorer(SimpleNamespace(_actor_handlers=("first", "second")), SimpleNamespace(ds=ds), 0)

    class Both(Reward):
        needs_reference, gpus = True, 0.5

        def score(self, batch: Any) -> list[float]:
            return [0.0] * len(batch)

    found = cloudpickle.loads(cloudpickle.dumps(scorer(2)))
    assert not found.spread and scorer(3).spread
    with pytest.raises(UserError, match="the reference model, which is spread over processes; train without"):
        InActors(Both(), 1).setup(RewardContext(score_reference=scorer(3)))
    Both.needs_reference, Both.needs_policy = False, True
    with pytest.raises(UserError, match="needs the policy, which is spread over processes; train without"):
        InActors(Both(), 1).setup(RewardContext(score_policy=scorer(3)))


def test_a_model_in_training_is_as_it_was_afterwards(actor: Any) -> None:
    """It is scored without dropout, at temperature 1; then it has its own mode and temperature again."""
    from orlhf_ext.rewards.policy import ScoringPolicy
    from orlhf_ext.rewards.scorers import _tensors

    policy = object.__new__(ScoringPolicy)
    policy.actor, policy.strategy = actor.model, actor.strategy
    seen: list[bool] = []
    hook = policy.actor.model.module.model.register_forward_pre_hook(lambda module, _: seen.append(module.training))
    policy.actor.temperature = 0.7
    try:
        for training in (True, False):
            policy.actor.train(training)
            for found in (policy.score_tokens(**_tensors(SPANS, 0)), policy.score_spans(SPANS)):
                assert len(found) == len(SPANS)
            assert (policy.actor.training, policy.actor.model.module.training) == (training, training)
            assert policy.actor.temperature == 0.7
        policy.actor.train()
        policy.strategy.args.ds.packing_samples = True  # OpenRLHF's own pass, which leaves the mode of training behind
        policy.actor.eval()
        policy.score_tokens(**_tensors(SPANS, 0))
        assert not policy.actor.training and policy.actor.temperature == 0.7
    finally:
        policy.strategy.args.ds.packing_samples = False
        hook.remove()
        policy.actor.eval()
    assert seen and not any(seen)


def test_adapters_count(tiny_model: Path) -> None:
    """What is trained with LoRA is scored with its adapters."""
    from openrlhf.models import Actor

    from orlhf_ext.rewards.policy import ScoringPolicy

    policy = object.__new__(ScoringPolicy)
    how = {"attn_implementation": "sdpa", "param_dtype": "bf16", "lora_rank": 4, "target_modules": "all-linear"}
    model = Actor(str(tiny_model), **how)
    policy.actor = SimpleNamespace(training=True, temperature=1.0, train=model.train, eval=model.eval)
    policy.actor.model = SimpleNamespace(module=model.model.float())  # what DeepSpeed's engine holds
    args = SimpleNamespace(ext=SimpleNamespace(reference_batch_tokens=4096))
    policy.strategy = SimpleNamespace(args=args)
    before = policy.score_spans(SPANS)
    for name, weight in model.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(0))
    after = policy.score_spans(SPANS)
    for span, one, other in zip(SPANS, before, after, strict=True):
        wanted = model.model(torch.tensor([span.ids])).logits.log_softmax(-1)[0, :-1]
        chosen = wanted.gather(-1, torch.tensor(span.ids[1:])[:, None])[:, 0][span.start - 1 :]
        torch.testing.assert_close(torch.tensor(other), chosen.detach(), atol=1e-5, rtol=0)
        assert (torch.tensor(one) - torch.tensor(other)).abs().max() > 1e-3


def test_an_error_of_the_run_is_not_hidden_by_one_of_tearing_down(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from orlhf_ext import backends
    from orlhf_ext.cli.errors import UserError

    backends.install()
    from orlhf_ext.rewards.trainer import RewardedTrainer

    def teardown() -> None:
        raise UserError("reward 'a' cannot be torn down")

    def fit(self: Any, step: int) -> None:
        if step:
            raise RuntimeError("what went wrong first")

    monkeypatch.setattr(RewardedTrainer.__mro__[1], "fit", fit)
    trainer = object.__new__(RewardedTrainer)
    trainer.args = SimpleNamespace(ext=SimpleNamespace(eval_on_start=False))
    trainer.samples_generator = SimpleNamespace(teardown_rewards=teardown)
    with pytest.raises(RuntimeError, match="what went wrong first"):
        trainer.fit(1)
    assert "after an error: reward 'a' cannot be torn down" in capsys.readouterr().out
    with pytest.raises(UserError, match="cannot be torn down"):
        trainer.fit(0)
