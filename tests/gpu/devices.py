"""All numbers of a computation are on one device: on a GPU that is none, no operator mixes, and the results are the
CPU's. `tests/models/test_devices.py` runs these tests in a process of their own."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from deadend_q import new_q_model
from tagged import GPU, MixedDevices, Tagged, pretended_gpu

torch.manual_seed(0)
SIZES: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
SIZES |= {"intermediate_size": 128, "vocab_size": 100, "max_position_embeddings": 256}


@pytest.fixture(scope="module")
def model() -> Any:
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(LlamaConfig(**SIZES), attn_implementation="sdpa").float().eval()


def numbers(value: Any) -> torch.Tensor:
    """A result on the CPU; one that is not on the pretended GPU is an error."""
    assert isinstance(value, Tagged), f"{type(value).__name__} is on the CPU"
    return value.inner


def both(compute: Any, *tensors: torch.Tensor) -> None:
    """A function of tensors gives the same on both devices."""
    wanted = compute(*tensors)
    with pretended_gpu() as move:
        found = compute(*map(move, tensors))
    torch.testing.assert_close(numbers(found), wanted)


def test_mixed_devices_are_found() -> None:
    """The helper itself: what a GPU refuses, and what it allows."""
    with pretended_gpu() as move:
        one = move(torch.arange(3.0))
        refused: list[Any] = [
            lambda: one + torch.ones(3),
            lambda: torch.cat([one, torch.ones(3)]),
            lambda: torch.ones(3)[one.long()],
            lambda: torch.where(one > 1, torch.ones(3), one),
            lambda: torch.nn.functional.linear(torch.ones(2, 3), move(torch.ones(4, 3))),
            lambda: one.index_add_(0, torch.tensor([0]), one[:1]),
            lambda: one + torch.zeros(3, device=GPU).to("cpu"),
        ]
        for mix in refused:
            with pytest.raises(MixedDevices):
                mix()
        allowed: list[Any] = [
            lambda: one + torch.tensor(2.0),  # a number
            lambda: one[torch.tensor([0, 2, 1])],
            lambda: one + torch.ones(3).to(one.device),
            lambda: one + torch.ones(3, device=one.device),
            lambda: one + one.new_tensor([1, 2, 3]),
            lambda: torch.arange(3, device=one.device) * one,
        ]
        for fine in allowed:
            assert fine().device == GPU and numbers(fine()).shape == (3,)
        assert float(one.sum()) == 3.0 and one.tolist() == [0.0, 1.0, 2.0]
        assert one.cpu().device.type == "cpu"


@pytest.mark.parametrize("kind", ["exo-rw", "exo-pref", "dpo-rw", "dpo-pref", "pl", "lipo", "nca"])
@pytest.mark.parametrize("k", [2, 4])
def test_kwise_losses(kind: str, k: int) -> None:
    from orlhf_ext.exo.losses import kwise_loss

    both(lambda *rows: kwise_loss(*rows, kind, 0.5, 0.5), *torch.randn(3, 4, k))


@pytest.mark.parametrize("infeasible", ["normalize", "fallback"])
@pytest.mark.parametrize("passes", [2, None])
def test_rectified_decoding(infeasible: Any, passes: int | None) -> None:
    from orlhf_ext.deadend.decoding import rectify, rectify_counted

    logits, q_values, epsilon = torch.randn(4, 100), -torch.rand(4, 100) * 1.2, torch.rand(4)
    for place in (0, 1):  # the caps, and where they cannot be met
        both(lambda *t, at=place: rectify_counted(*t, passes, 1e-7, infeasible, 50)[at], logits, q_values, epsilon)
    both(lambda *t: rectify(*t, 0.3, passes, 1e-7, infeasible), logits, q_values)


def test_other_losses_and_targets() -> None:
    from orlhf_ext.deadend.loss import sarsa_loss, sarsa_targets
    from orlhf_ext.groups.aggregate import aggregate
    from orlhf_ext.groups.losses import group_pair_loss

    lengths = torch.tensor([5, 3, 6, 2])
    both(lambda q, r, n: sarsa_targets(q, r, n), -torch.rand(4, 5), -torch.ones(4), lengths)
    both(lambda q, t, n: sarsa_loss(q, t, n), -torch.rand(4, 5), -torch.rand(4, 5), lengths)
    both(lambda a, b: group_pair_loss(a, b), torch.randn(4), torch.randn(4))
    for how in ("min", "mean", "softmin"):
        both(lambda rewards, how=how: aggregate(rewards, how), torch.randn(4, 3))


def test_log_probabilities(model: Any) -> None:
    from orlhf_ext.models.batches import Row
    from orlhf_ext.models.likelihood import span_logprobs
    from orlhf_ext.models.logprobs import make_compute, response_logprobs
    from orlhf_ext.models.spans import Span

    rows = [Row(0, 0, [1, 2, 3, 4, 5], 2), Row(1, 0, [5, 6, 7], 1)]
    spans = [Span([*range(1, 50), 60 + i, 61, 62], 49) for i in range(3)]  # a beginning that is worth sharing
    ids, mask, lengths = torch.randint(1, 99, (2, 6)), torch.ones(2, 6).long(), torch.tensor([2, 3])
    with torch.no_grad():
        wanted = response_logprobs(model, ids, mask, lengths, 0.8)
    wanted_sums, wanted_spans = make_compute(model, 0)(rows), span_logprobs(model, spans)
    with pretended_gpu() as move, torch.no_grad():
        there = move(copy.deepcopy(model))
        found = response_logprobs(there, move(ids), move(mask), move(lengths), 0.8)
        sums, shared = make_compute(there, 0)(rows), span_logprobs(there, spans)
    torch.testing.assert_close(numbers(found), wanted)
    assert sums == pytest.approx(wanted_sums)
    for one, other in zip(shared, wanted_spans, strict=True):
        torch.testing.assert_close(one, other)


def test_the_stepper_and_caps_in_transformers() -> None:
    from transformers import LlamaConfig

    from orlhf_ext.deadend.hf import RectifiedLogitsProcessor
    from orlhf_ext.deadend.model import action_values
    from orlhf_ext.deadend.stepper import QStepper

    torch.manual_seed(1)
    q_model = new_q_model(LlamaConfig(**SIZES)).eval()

    def steps(model: Any) -> torch.Tensor:
        stepper = QStepper(model)
        stepper.values([(1, 2, 3), (4, 5)])
        stepper.values([(1, 2, 3, 4), (4, 5, 6), (9, 9)])  # two grow, one comes
        return stepper.values([(4, 5, 6, 7), (9, 9)])  # one is gone, one stays

    ids, logits = torch.tensor([[0, 1, 3], [4, 5, 6]]), torch.randn(2, 100)
    how: dict[str, Any] = {"pad_token_id": 0, "eos_token_id": 2}
    wanted = steps(q_model), RectifiedLogitsProcessor(q_model, 0.3, **how)(ids, logits)
    wanted_values = list(action_values(q_model, [[1, 2, 3], [4, 5]], 100))
    with pretended_gpu() as move:
        there = move(copy.deepcopy(q_model))
        found = steps(there), RectifiedLogitsProcessor(there, 0.3, **how)(move(ids), move(logits))
        values = list(action_values(there, [[1, 2, 3], [4, 5]], 100))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(numbers(one), other)
    assert [place for place, _ in values] == [place for place, _ in wanted_values]
    for (_, row), (_, other) in zip(values, wanted_values, strict=True):
        assert row == pytest.approx(other, abs=1e-5)


@pytest.mark.parametrize("ragged", [False, True])
def test_the_attention_of_a_stream(ragged: bool) -> None:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    from orlhf_ext.models.parts import Part
    from orlhf_ext.models.stream import Stream, _padded

    module = SimpleNamespace(training=False, is_causal=True, num_key_value_groups=2)
    mask = torch.ones(5, 12).long()
    parts = [Part([0, 1], 6), Part([2, 3], 6), Part([4], 0)] if ragged else [Part([0, 1, 2, 3, 4], 6)]
    mask[1, 9 + ragged :] = mask[4, : 2 * ragged] = 0
    tokens = Stream(parts, mask).tokens
    query, key = torch.randn(1, 4, tokens, 8), torch.randn(2, 1, 2, tokens, 8)

    def compute(mask: torch.Tensor, *qkv: torch.Tensor) -> torch.Tensor:
        stream = Stream(parts, mask)
        attended = _padded(stream, sdpa_attention_forward, module, *qkv, scaling=0.3)
        return attended[0][stream.place]

    both(compute, mask, query, *key)


def test_exos_forward_pass_and_loss(model: Any) -> None:
    from orlhf_ext import backends

    backends.install()
    from openrlhf.models import Actor

    from orlhf_ext.exo.dataset import Rows
    from orlhf_ext.exo.trainer import METRICS, KwiseLoss, KwiseTrainer
    from orlhf_ext.models.prompt_once import PromptOnce
    from orlhf_ext.reports.tally import Tally

    space = SimpleNamespace
    exo = space(num_contrastive=2, loss_type="exo-rw", beta_pi=0.5, beta_r=0.5, epsilon=None)
    ids, mask, rewards = torch.randint(1, 99, (4, 9)), torch.ones(4, 9).long(), torch.randn(4)
    mask[1, 6:] = 0

    def step(causal: Any, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        actor = Actor(causal)
        actor.is_vlm, actor.packing_samples, actor.temperature = False, False, 0.8
        trainer = object.__new__(KwiseTrainer)
        trainer.exo, trainer.packing_samples, trainer.model, trainer.ref_model = exo, False, actor, None
        trainer.strategy = space(_unwrap_model=lambda one: one.model, ring_attn_group=None)
        trainer.tally = Tally(METRICS, "kwise")
        trainer._once = [PromptOnce(actor, "off")] * 2
        sums, labels, *_ = trainer.concatenated_forward(actor, *tensors, None, Rows([2, 2, 3, 3], [0, 1], None))
        reference = sums.detach() - torch.arange(4.0, device=sums.device)
        return KwiseLoss(exo, trainer.tally)(sums, labels, reference, None)[0], sums

    with torch.no_grad():
        wanted = step(copy.deepcopy(model), ids, mask, rewards)
    with pretended_gpu() as move, torch.no_grad():
        found = step(move(copy.deepcopy(model)), move(ids), move(mask), move(rewards))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(numbers(one), other)
