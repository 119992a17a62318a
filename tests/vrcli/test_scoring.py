"""Likelihoods of gold texts against transformers' own loss, with and without a shared context; rewards of plans."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data_builders.story.prompts import from_chapter, from_messages
from orlhf_ext.cli.errors import UserError
from orlhf_ext.models.folder import load_tokenizer
from orlhf_ext.models.likelihood import make_scorer, span_logprobs
from orlhf_ext.models.logprobs import load_model
from orlhf_ext.models.spans import Span
from orlhf_ext.vrcli.improvement import MARKERS, improvement, map_reward
from orlhf_ext.vrcli.labels import Baseline, Label, read_label
from orlhf_ext.vrcli.plans import Noise, measure_noise, result_rows, score_plans
from orlhf_ext.vrcli.sequences import Encoder
from orlhf_ext.vrcli.settings import Settings


def direct(model: Any, span: Span) -> float:
    """One sequence alone: the whole forward pass, and the loss that transformers computes."""
    ids = torch.tensor([span.ids])
    labels = ids.clone()
    labels[:, : span.start] = -100
    with torch.inference_mode():
        return model(input_ids=ids, labels=labels).loss.item()


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    return load_model(tiny_model, "float32", "sdpa")


def spans_of(*shapes: tuple[int, int, int], seed: int = 0, common: int = 0) -> list[Span]:
    """Random sequences of (context, plan, gold) tokens; all begin with the same ``common`` tokens."""
    generator = torch.Generator().manual_seed(seed)

    def draw(count: int) -> list[int]:
        return torch.randint(3, 280, (count,), generator=generator).tolist()

    beginning = draw(common)
    return [Span(beginning + draw(context + plan + gold), common + context + plan) for context, plan, gold in shapes]


def score(model: Any, spans: Any, batch_tokens: int = 16384, pad_id: int = 0) -> Any:
    """What `make_scorer` gives, as a tensor."""
    return torch.tensor(make_scorer(model, pad_id, batch_tokens)(spans))


MIXED = ((4, 0, 9), (1, 0, 1), (12, 3, 3), (80, 0, 20), (5, 40, 1))
PLANS = ((0, 10, 7), (0, 3, 7), (0, 25, 7), (0, 1, 7), (0, 14, 7))


@pytest.mark.parametrize("budget", [2, 60, 100_000])
def test_scores_are_those_of_transformers(model: Any, budget: int) -> None:
    spans = spans_of(*MIXED)
    found = score(model, spans, batch_tokens=budget, pad_id=2)
    assert found.dtype == torch.float32 and found.shape == (5,)
    assert found.tolist() == pytest.approx([direct(model, span) for span in spans], rel=1e-5)
    assert torch.equal(score(model, spans, batch_tokens=budget, pad_id=9), found)  # padding is no context
    assert score(model, []).shape == (0,)


def test_log_probabilities_of_single_tokens(model: Any) -> None:
    (span,) = spans_of((6, 0, 5))
    with torch.inference_mode():
        logits = model(torch.tensor([span.ids])).logits[0].log_softmax(-1)
    wanted = [logits[place - 1, span.ids[place]].item() for place in range(6, 11)]
    assert span_logprobs(model, [span])[0].tolist() == pytest.approx(wanted, abs=1e-5)


def other_models() -> dict[str, Callable[[], Any]]:
    from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM

    small: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
    capped = {"head_dim": 16, "sliding_window": 16, "final_logit_softcapping": 0.5}
    return {
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(vocab_size=300, **small, **heads)),
        "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=300, n_positions=512, n_embd=32, n_layer=2, n_head=4)),
        "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(vocab_size=300, **small, **heads, **capped)),
    }


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "gemma2"])
@pytest.mark.parametrize("budget", [130, 300, 100_000])
def test_a_shared_context_changes_nothing(model: Any, name: str, budget: int) -> None:
    if name != "llama":
        torch.manual_seed(0)
        model = other_models()[name]().eval()
    spans = spans_of(*PLANS, common=100) + spans_of(*PLANS[:2], seed=1, common=40) + spans_of(*MIXED, seed=2)
    order = torch.randperm(len(spans), generator=torch.Generator().manual_seed(3)).tolist()
    spans = [spans[i] for i in order]
    found = score(model, spans, batch_tokens=budget)
    assert found.tolist() == pytest.approx([direct(model, span) for span in spans], abs=1e-5)
    for span, one in zip(spans, span_logprobs(model, spans, budget), strict=True):
        (alone,) = span_logprobs(model, [span])
        assert one.tolist() == pytest.approx(alone.tolist(), abs=2e-5)


def computed(model: Any, spans: list[Span], budget: int = 100_000) -> tuple[int, int]:
    """How many tokens the model's layers saw, and how many positions its output layer."""
    score(model, spans, budget)  # the first check of a model
    tokens, positions = [], []
    hooks = [
        model.get_input_embeddings().register_forward_hook(lambda _m, _i, out: tokens.append(out.shape[:2].numel())),
        model.get_output_embeddings().register_forward_hook(lambda _m, _i, out: positions.append(out.shape[1])),
    ]
    score(model, spans, budget)
    for hook in hooks:
        hook.remove()
    return sum(tokens), sum(positions)


def test_a_shared_context_is_computed_once(model: Any) -> None:
    spans = spans_of((0, 12, 8), (0, 12, 8), (0, 12, 8), common=100)
    assert computed(model, spans) == (100 + 3 * 20, 3 * 8)  # nothing of the context reaches the output layer
    assert computed(model, spans, budget=150) == (100 + 2 * 20 + 120, 3 * 8)  # in two batches
    assert computed(model, spans[:1]) == (120, 8)
    few = spans_of((0, 12, 8), (0, 12, 8), common=15)
    assert computed(model, few)[0] == sum(len(span.ids) for span in few)


def test_equal_sequences_share_all_but_what_predicts(model: Any) -> None:
    spans = spans_of((60, 0, 5)) * 3
    assert computed(model, spans) == (64 + 3, 3 * 5)
    assert score(model, spans).tolist() == pytest.approx([direct(model, spans[0])] * 3, abs=1e-5)


@pytest.mark.parametrize("start", [0, 5, 6])
def test_sequences_without_a_beginning_or_an_end(model: Any, start: int) -> None:
    with pytest.raises(ValueError, match="a scored token and one before it"):
        score(model, [Span([5, 6, 7, 8, 9], start)])


CHAT = [{"role": "user", "content": "Why did the hen cross the road by the old mill?"}]
GOLD = "To lay it on the line."


def labels() -> list[Label]:
    tasks: list[Any] = [
        from_messages({"messages": [*CHAT, {"role": "assistant", "content": GOLD}]}, "keep", None),
        from_messages({"messages": [*CHAT, {"role": "assistant", "content": "Ha!"}]}, "keep", None),
        from_chapter({"text_before": "It rained.", "next_chapter": "Then it poured."}, "drop", None),
    ]
    return [read_label(json.dumps(task.label(f"r{i}")), f"line {i}") for i, task in enumerate(tasks)]


@pytest.fixture(scope="module")
def encoder(tiny_model: Path) -> Encoder:
    return Encoder(load_tokenizer(tiny_model))


def by_hand(model: Any, encoder: Encoder, label: Label, plan: str | None) -> float:
    """The rendered conversation, written out: the tiny template puts names before, and </s> behind an answer."""
    content = label.messages()[-1]["content"]
    if plan is not None and label.adapter == "generic":
        content += f"\n\nThoughts on what the answer should say:\n{plan}" if plan else ""
    elif plan is not None:
        content, _, ask = content.partition("\n\n### Instructions: ###\n")
        ask = ask.replace("information above", "information and the preliminary thoughts above")
        content += f"\n\n### Detailed Plan for the Next Chapter: ###\n{plan}" if plan else ""
        content += f"\n\n### Instructions: ###\n{ask}"
    tokenizer = encoder.tokenizer
    pre, gold = (
        tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in (f"\n\nHuman: {content}\n\nAssistant: ", f"{label.gold}</s>")
    )
    return direct(model, Span([*pre, *gold], len(pre)))


def with_baselines(model: Any, encoder: Encoder, fingerprint: str = "f") -> list[Label]:
    spans = encoder.encode(labels(), [None] * 3)
    nlls = score(model, spans).tolist()
    return [
        label._replace(base=Baseline(nll, span.scored, fingerprint))
        for label, span, nll in zip(labels(), spans, nlls, strict=True)
    ]


RESPONSES = ["First, hens. In summary: a hen wants fame.", "No marker here", "In summary:", "In summary: </s> "]


def test_rewards_of_plans_against_a_computation_by_hand(model: Any, encoder: Encoder) -> None:
    stored = with_baselines(model, encoder)
    responses, its = RESPONSES * 3, [label for label in stored for _ in RESPONSES]
    settings = Settings(reward="raw")
    found = score_plans(responses, its, encoder, make_scorer(model, 2, 4096), settings, "f")
    plans = ["a hen wants fame.", "No marker here", "", ""]
    assert found.plans == plans * 3
    for i, label in enumerate(its):
        before, after = by_hand(model, encoder, label, None), by_hand(model, encoder, label, plans[i % 4])
        assert found.metrics["vrcli_base_nll"][i] == pytest.approx(before, abs=1e-5)
        assert found.metrics["vrcli_nll"][i] == pytest.approx(after, abs=1e-5)
        gain = 100 * (math.exp(before) - math.exp(after)) / math.exp(before)
        assert found.metrics["pct_improvements"][i] == pytest.approx(gain, abs=2e-3)
    assert found.rewards == found.metrics["pct_improvements"]
    assert found.scores == [float(reward > 0) for reward in found.rewards]
    # a conversation without a plan is the baseline's own, to the last bit, unless the instruction changes
    empty = [reward for reward, label, plan in zip(found.rewards, its, found.plans, strict=True) if not plan]
    assert empty[:4] == [0.0] * 4 and 0.0 not in empty[4:] and 0.0 not in found.rewards[:2]
    assert found.metrics["vrcli_marker"] == [1.0, 0.0, 1.0, 1.0] * 3
    assert found.metrics["vrcli_empty"] == [0.0, 0.0, 1.0, 1.0] * 3
    assert found.metrics["vrcli_plan_tokens"][:4] == [float(n) for n in encoder.count(plans)]


@pytest.mark.parametrize("kind", ["tiers", "binary", "positive"])
def test_the_reward_is_that_of_the_improvement(model: Any, encoder: Encoder, kind: Any) -> None:
    its = [label for label in with_baselines(model, encoder) for _ in RESPONSES]
    settings = Settings(reward=kind, cap=0.5 if kind == "positive" else None)
    found = score_plans(RESPONSES * 3, its, encoder, make_scorer(model, 2, 4096), settings)
    gains = [
        improvement(before, after)
        for before, after in zip(found.metrics["vrcli_base_nll"], found.metrics["vrcli_nll"], strict=True)
    ]
    assert found.rewards == [map_reward(gain, kind, cap=settings.cap) for gain in gains]
    assert found.scores == (found.rewards if kind != "positive" else [float(gain > 0) for gain in gains])


def test_baselines_are_scored_beside_their_plans_and_empty_plans_are_not(model: Any, encoder: Encoder) -> None:
    calls: list[int] = []
    real = make_scorer(model, 2, 4096)

    def scorer(spans: Any) -> list[float]:
        calls.append(len(spans))
        return real(spans)

    first, second, _ = with_baselines(model, encoder)
    score_plans(["a", "In summary:", "b", "c"], [first, first, second, first], encoder, scorer, Settings())
    assert calls == [5]  # the baselines beside their plans
    nothing = score_plans(["", ""], [first, second], encoder, scorer, Settings())
    assert nothing.rewards == [0.0, 0.0] and len(calls) == 1
    assert score_plans([], [], encoder, scorer, Settings()).rewards == []


def test_a_baseline_by_another_path_changes_no_improvement(model: Any, encoder: Encoder) -> None:
    """What a path adds to every likelihood, as another dtype or kernel would, is in the stored baseline or not."""
    real = make_scorer(model, 2, 4096)
    its = [label for label in with_baselines(model, encoder) for _ in RESPONSES]

    def elsewhere(spans: Any) -> list[float]:
        return [nll + 0.004 for nll in real(spans)]

    settings = Settings(reward="raw")
    wanted, found = (score_plans(RESPONSES * 3, its, encoder, scorer, settings) for scorer in (real, elsewhere))
    assert found.rewards == pytest.approx(wanted.rewards, abs=1e-9)
    assert found.metrics["vrcli_base_nll"] == wanted.metrics["vrcli_base_nll"] == [one.base.nll for one in its]  # type: ignore[union-attr]


@pytest.mark.launcher
def test_the_noise_is_what_improvements_are_off_by(tiny_model: Path, encoder: Encoder, model: Any) -> None:
    """In bf16, of the size of their errors against the same weights in double precision; in float32, nothing."""
    scorer = make_scorer(load_model(tiny_model, "bfloat16", "sdpa"), 2, 4096)
    exact = make_scorer(load_model(tiny_model, "bfloat16", "sdpa").double(), 2, 4096)  # type: ignore[arg-type]
    plans = [f"A hen, {i} eggs and {i * i} ideas." for i in range(8)]
    its, responses = [label for label in with_baselines(model, encoder) for _ in plans], plans * 3
    found, truth = (
        score_plans(responses, its, encoder, one, Settings(reward="raw")).rewards for one in (scorer, exact)
    )
    errors = [abs(one - other) for one, other in zip(found, truth, strict=True)]
    noise = measure_noise(responses, its, encoder, scorer, MARKERS)
    assert noise is not None and noise.records == 3
    if noise.percent:
        assert 0.2 * noise.percent < sum(errors) / len(errors) < 3 * noise.percent
    else:  # kernels that do not depend on the batch, as with AMX
        assert min(errors) > 0 and "noise is unknown" in noise.describe(Settings())
    exactly = measure_noise(responses, its, encoder, make_scorer(model, 2, 4096), MARKERS)
    assert exactly is not None and exactly.percent < 1e-3
    assert measure_noise(["", "In summary:"], labels()[:2], encoder, scorer, MARKERS) is None


@pytest.mark.parametrize(
    ("percent", "settings", "said"),
    [
        (0.3, Settings(), r"^--vrcli.thresholds begins with 0.05 %, below the scorer's own noise of 0.3 % \(.* of 4\)"),
        (0.05, Settings(), r"^--vrcli.thresholds begins with 0.05 %"),
        (0.04, Settings(), r"^the scorer's own noise is 0.04 % \(the same gold text in several batches, .* of 4\)$"),
        (0.3, Settings(thresholds=(0.5, 1), values=(0.5, 1)), r"^the scorer's own noise is 0.3 %"),
        (0.3, Settings(reward="positive"), r"^the scorer's own noise is 0.3 %"),
        (0.0, Settings(), r"^the scorer's own noise is unknown: .* in any batch \(4 measured\)"),
    ],
)
def test_a_first_tier_below_the_noise_is_told(percent: float, settings: Settings, said: str) -> None:
    assert re.search(said, Noise(percent, 4).describe(settings))


def test_what_plans_cannot_be_scored_against(model: Any, encoder: Encoder, tiny_model: Path) -> None:
    label, *_ = with_baselines(model, encoder)
    scorer = make_scorer(model, 2, 4096)

    def refused(label: Label, said: str, scorer: Any = scorer, encoder: Encoder = encoder) -> None:
        with pytest.raises(UserError, match=rf"^line 0 \(id 'r0'\) {said}"):
            score_plans(["a plan"], [label], encoder, scorer, Settings(), "f")

    refused(label._replace(base=None), "has no baseline")
    refused(label._replace(base=label.base._replace(fingerprint="g")), "has a baseline of another model")  # type: ignore[union-attr]
    refused(label._replace(base=label.base._replace(tokens=4)), r"has \d+ scored tokens here and a baseline over 4")  # type: ignore[union-attr]
    refused(label, r"takes \d+ tokens with its gold text", encoder=Encoder(encoder.tokenizer, context=40))
    broken = load_model(tiny_model, "float32", "sdpa")
    with torch.no_grad():
        broken.get_output_embeddings().weight[7] = math.nan
    refused(label, r"has a gold text with a likelihood that is not finite \(nan\)", make_scorer(broken, 2, 4096))


def test_results_are_plain_json(model: Any, encoder: Encoder) -> None:
    its = with_baselines(model, encoder)[:2]
    found = score_plans(RESPONSES[:2], its, encoder, make_scorer(model, 2, 4096), Settings())
    one, other = (json.loads(json.dumps(row)) for row in result_rows(its, [0, 3], found))
    assert (one["id"], one["sample"], one["plan"], one["marker"], one["empty"]) == (
        "r0",
        0,
        found.plans[0],
        True,
        False,
    )
    assert (other["id"], other["sample"], other["marker"]) == ("r1", 3, False)
    assert one["base_nll"] == its[0].base.nll and one["reward"] == found.rewards[0]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"thresholds": (1.0,)}, "1 thresholds and 3 values"),
        ({"reward": "raw", "values": (1.0, 2.0, 3.0)}, "are of reward tiers, not of raw"),
        ({"cap": 1.0}, "cap bounds the rewards positive and raw"),
        ({"reward": "positive", "cap": 0.0}, "cap 0 would make"),
        ({"reward": "raw", "cap": math.inf}, "by a finite number"),
        ({"markers": ("a", "")}, "an empty marker"),
        ({"reward": "best"}, "unknown kind of reward 'best'"),
    ],
)
def test_settings_that_make_no_sense(values: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Settings(**values)
