"""The reward ``likelihood``: forms by their goldens, what is cut and scored, gates, baselines, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import ROOT
from hypothesis import given
from hypothesis import strategies as st

from orlhf_ext.cli.errors import UserError
from orlhf_ext.models.folder import load_tokenizer
from orlhf_ext.rewards import RewardBatch, RewardContext, Rollout
from orlhf_ext.rewards.combine import RewardSet, score_one
from orlhf_ext.rewards.gold import GoldEncoder, read_gold
from orlhf_ext.rewards.likelihood import Likelihood
from orlhf_ext.rewards.likelihood_forms import jepo, nover, shape, value

GOLDENS = json.loads((ROOT / "tests/goldens/rewards2.json").read_text())["likelihood"]
LOGPROBS = GOLDENS["input"]["gold_logprobs"]
SUMS, MEANS = GOLDENS["logprob_sum"], GOLDENS["logprob_mean"]
GROUP = [[0, 1, 2, 3]]


@pytest.mark.parametrize(
    ("form", "key"),
    [(name, name) for name in ("logprob_mean", "logprob_sum", "prob", "prob_mean")]
    + [("prob_geo", "prob_geometric_mean")],
)
def test_forms_of_one_sample(form: Any, key: str) -> None:
    assert [value(form, found) for found in LOGPROBS] == pytest.approx(GOLDENS[key], rel=1e-12)


def test_jepo() -> None:
    for sums, wanted in ((SUMS, GOLDENS["jepo"]), (GOLDENS["jepo_long"]["logprob_sum"], GOLDENS["jepo_long"])):
        found = jepo(sums)
        assert found.bound == pytest.approx(wanted["bound"], abs=1e-12)
        assert found.advantages == pytest.approx(wanted["advantage"], abs=1e-12)
        assert found.weights == pytest.approx(wanted["answer_weights"], rel=1e-9)
    assert jepo([-3.0]).advantages == [0.0] and jepo([-3.0]).weights == [1.0]


@given(st.lists(st.floats(-900, 0), min_size=2, max_size=9))
def test_jepo_is_bounded_below_and_finite(sums: list[float]) -> None:
    found = jepo(sums)
    assert min(found.advantages) >= math.log((len(sums) - 1) / len(sums)) - 1e-9
    assert all(map(math.isfinite, [*found.advantages, found.bound])) and sum(found.weights) == pytest.approx(1)


def test_nover() -> None:
    case = GOLDENS["input"]
    found = nover(MEANS, case["think_tokens"], case["format_ok"])
    assert found == pytest.approx(GOLDENS["nover"]["total"], abs=1e-12)
    assert nover([-2.0], [5], [True]) == [2.0] and nover([-2.0, -1.0], [0, 1], [False, False]) == [0.0, 0.0]


def test_rlpr_is_a_form_with_a_baseline_a_clip_and_a_gate() -> None:
    case, base = GOLDENS["rlpr"], value("prob_mean", GOLDENS["input"]["alone_logprobs"])
    assert base == pytest.approx(case["alone"], rel=1e-12)
    over = [max(0.0, value("prob_mean", found) - base) for found in LOGPROBS]
    assert over == pytest.approx(case["clipped"], abs=1e-12)
    gate = GOLDENS["input"]["format_ok"]
    held = shape("prob_mean", over, MEANS, GROUP, gate, [0.0] * 4, [0.0] * 4).rewards
    both = [0.9 * reward + 0.1 * ok for reward, ok in zip(held, gate, strict=True)]
    assert both == pytest.approx(case["with_format_0.1_and_gate"], abs=1e-12)


def test_the_gate_and_the_least_spread() -> None:
    gate = [True, True, True, False]
    assert shape("logprob_sum", SUMS, MEANS, GROUP, gate, [0.0] * 4, [0.0] * 4).rewards == [*SUMS[:3], min(SUMS[:3])]
    assert shape("logprob_sum", SUMS, MEANS, GROUP, [False] * 4, [9.0] * 4, [0.0] * 4) == ([0.0] * 4, [False] * 4)
    close = shape(
        "prob", [0.2, 0.4, 0.0, 9.0], [-1.0, -1.25, -7.0, -1.1], GROUP, [*gate[:2], False, True], [0.3] * 4, [-0.5] * 4
    )
    assert close.rewards == pytest.approx([3.2, 3.2, -0.5, 3.2]) and close.flat == [True, True, False, True]
    apart = shape("prob", [0.2, 0.4], [-1.0, -1.5], [[0, 1]], [True, True], [0.5] * 2, [0.0] * 2)
    assert apart == ([0.2, 0.4], [False, False])  # as far apart as asked for
    assert shape("prob", [0.2, 0.4], [-1.0, -1.0], [[0], [1]], [True, True], [0.5] * 2, [0.0] * 2).flat == [False] * 2


# what is scored


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return load_tokenizer(tiny_model)


def rollout(tokenizer: Any, response: str | Sequence[int], label: Any = "gold", **more: Any) -> Rollout:
    prompt = tokenizer("\n\nHuman: hello\n\nAssistant:", add_special_tokens=False)["input_ids"]
    ids = tokenizer(response, add_special_tokens=False)["input_ids"] if isinstance(response, str) else list(response)
    given = {"id": "train 1/1", "prompt": "p", "response": tokenizer.decode(ids, skip_special_tokens=True)} | more
    return Rollout(label=label, token_ids=prompt + ids, action_mask=[0] * len(prompt) + [1] * len(ids), **given)


@pytest.mark.parametrize(
    ("cut", "response", "kept", "marked"),
    [
        ("<answer", "so: <answer>4</answer>", "so: ", True),
        ("<answer", "so: <answer>4</answer> <answer>5", "so: ", True),
        ("<answer", "<answer>4", "", True),
        ("<answer", "how are you?</s>", "how are you?", False),
        ("</think>", "so</think>\n\n4</s>", "so</think>", True),
        ("none", "so: <answer>4</s>", "so: <answer>4", False),
        ("<answer", "naïve 猫 🐈<answer>é</answer>", "naïve 猫 🐈", True),
        ("<answer", "", "", False),
        ("are you", "hello how are you?", "hello how ", True),
    ],
)
def test_cuts(tokenizer: Any, cut: str, response: str, kept: str, marked: bool) -> None:
    encoder, one = GoldEncoder(tokenizer, cut), rollout(tokenizer, response)
    found = encoder.reasoning(one)
    assert (encoder.text(found), found.marked) == (kept, marked)


def test_ids_follow_up_to_a_token_that_reaches_across_the_cut(tokenizer: Any) -> None:
    """Sampled ids are kept even where the tokenizer would join them; a token across the cut is written anew."""
    joined = tokenizer(" how", add_special_tokens=False)["input_ids"]
    assert len(joined) == 1 and tokenizer.decode(joined) == " how"
    spelt = [tokenizer.convert_tokens_to_ids(letter) for letter in "how"]
    encoder = GoldEncoder(tokenizer, "how")
    found = encoder.reasoning(rollout(tokenizer, [*spelt[:2], *joined]))
    assert found.ids[:2] == spelt[:2] and encoder.text(found) == "ho " and found.marked


@given(st.text(max_size=12), st.text(max_size=6))
def test_any_text_is_cut_where_the_marker_is(tokenizer: Any, before: str, after: str) -> None:
    encoder = GoldEncoder(tokenizer, "<answer")
    whole = tokenizer.decode(tokenizer(f"{before}<answer{after}", add_special_tokens=False)["input_ids"])
    found = encoder.reasoning(rollout(tokenizer, f"{before}<answer{after}"))
    if "<answer" in whole and not any(special in whole for special in tokenizer.all_special_tokens):
        assert encoder.text(found) == whole.partition("<answer")[0]


def test_sequences(tokenizer: Any) -> None:
    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    one = rollout(tokenizer, "so <answer>3</answer></s>")
    prompt = list(one.token_ids[: one.action_mask.index(1)])
    thought = encode("so ")
    (gold,) = GoldEncoder(tokenizer).golds([" 42"])
    span = GoldEncoder(tokenizer).span(one, thought, gold)
    assert span.ids == [*prompt, *thought, *encode("<answer>"), *encode(" 42"), *encode("</answer>")]
    assert span.ids[span.start :] == [*encode(" 42"), *encode("</answer>")]
    alone = GoldEncoder(tokenizer, opener=" is", closer="", scored="gold").span(one, [], gold)
    assert alone.ids == [*prompt, *encode(" is"), *gold] and alone.scored == len(gold)
    for end in ("eot", "template"):
        ended = GoldEncoder(tokenizer, closer=".", end=end).span(one, [], gold)  # type: ignore[arg-type]
        assert ended.ids[ended.start :] == [*gold, *encode("."), tokenizer.eos_token_id]
    with pytest.raises(UserError, match=r"sample 'train 1/1' takes \d+ tokens with its gold text .* reads 20; lower"):
        GoldEncoder(tokenizer, context=20).span(one, thought, gold)


def test_labels() -> None:
    assert (
        read_gold("42", "here") == read_gold('{"gold": "42", "id": 1}', "here") == read_gold({"gold": "42"}, "") == "42"
    )
    assert read_gold("{x} = {1, 2}", "here") == "{x} = {1, 2}"
    for label in ("", "  ", None, 42, '{"answer": "42"}', {"gold": 42}, ["42"]):
        with pytest.raises(UserError, match=r"^d.jsonl line 3 has a label without gold text; the label is"):
            read_gold(label, "d.jsonl line 3")


# the reward


class Scorer:
    """The tiny model, and how many sequences it was asked for."""

    device = "cpu"

    def __init__(self, model: Any) -> None:
        self.model, self.asked = model, 0

    def __call__(self, token_ids: Any, masks: Any) -> list[list[float]]:
        from orlhf_ext.models.likelihood import span_logprobs
        from orlhf_ext.models.spans import Span

        self.asked += len(token_ids)
        spans = [Span(list(ids), list(mask).index(1)) for ids, mask in zip(token_ids, masks, strict=True)]
        return [found.tolist() for found in span_logprobs(self.model, spans)]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_model).float().eval()


def arguments(tiny_model: Path, **data: Any) -> SimpleNamespace:
    space = SimpleNamespace
    given = {"label_key": "label", "input_key": "prompt", "max_len": 64, "prompt_dataset": "", "dataset": ""} | data
    return space(
        actor=space(model_name_or_path=str(tiny_model)),
        ds=space(param_dtype="fp32"),
        data=space(**given),
        eval=space(dataset=None),
        rollout=space(n_samples_per_prompt=2),
        algo=space(dynamic_filtering_enable=False, dynamic_filtering_range=(0, 1)),
    )


def set_up(reward: Likelihood, tokenizer: Any, tiny_model: Path, model: Any, **more: Any) -> Scorer:
    scorer = Scorer(model)
    given = {"score_reference": scorer} if reward.needs_reference else {"score_policy": scorer}
    RewardSet([reward]).setup(RewardContext(tokenizer, arguments(tiny_model), **{**given, **more}))
    return scorer


def batch_of(tokenizer: Any, *responses: str, label: Any = "42", **more: Any) -> RewardBatch:
    found = [rollout(tokenizer, text, label, id=f"train 1/{i}", group=1, **more) for i, text in enumerate(responses, 1)]
    return RewardBatch(found)


THREE = ("hello<answer>4</answer></s>", "how are you?<answer>42</answer></s>", "<answer>7</answer></s>")


def whole_nll(model: Any, tokenizer: Any, before: str, scored: str) -> list[float]:
    """Log-probabilities by transformers alone, a token at a time."""
    import torch

    ids = tokenizer(before, add_special_tokens=False)["input_ids"]
    gold = [i for part in scored.split("|") for i in tokenizer(part, add_special_tokens=False)["input_ids"]]
    with torch.no_grad():
        logprobs = model(input_ids=torch.tensor([ids + gold])).logits[0].log_softmax(-1)
    return [logprobs[len(ids) + i - 1, token].item() for i, token in enumerate(gold)]


def test_rewards_are_those_of_transformers(tokenizer: Any, tiny_model: Path, model: Any) -> None:
    reward = Likelihood()
    set_up(reward, tokenizer, tiny_model, model)
    found = score_one(reward, batch_of(tokenizer, *THREE))
    for i, thought in enumerate(("hello", "how are you?", "")):
        wanted = whole_nll(model, tokenizer, f"\n\nHuman: hello\n\nAssistant:{thought}<answer>", "42|</answer>")
        assert found.rewards[i] == pytest.approx(sum(wanted) / len(wanted), abs=1e-5)
        assert found.metrics["logprob_sum"][i] == pytest.approx(sum(wanted), abs=1e-4)
        assert found.metrics["ppl"][i] == pytest.approx(math.exp(-found.rewards[i]))
        assert found.metrics["gold_tokens"][i] == len(wanted)
    assert found.metrics["think_tokens"] == [1, 4, 0] or found.metrics["think_tokens"][2] == 0
    assert found.metrics["gated"] == found.metrics["flat"] == found.metrics["alone"] == found.metrics["leak"] == [0] * 3


def test_a_baseline_is_scored_once_if_its_model_is_frozen(tokenizer: Any, tiny_model: Path, model: Any) -> None:
    reward = Likelihood(form="prob_mean", baseline="alone", clip="zero", gate="off")
    scorer = set_up(reward, tokenizer, tiny_model, model)
    first = score_one(reward, batch_of(tokenizer, *THREE))
    assert scorer.asked == 3  # the third has no reasoning, and is the baseline
    base = first.metrics["alone"][0]
    assert first.metrics["alone"] == [base] * 3 and first.rewards[2] == 0.0
    for i, got in enumerate(first.rewards[:2]):
        thought = ("hello", "how are you?")[i]
        wanted = whole_nll(model, tokenizer, f"\n\nHuman: hello\n\nAssistant:{thought}<answer>", "42|</answer>")
        assert got == pytest.approx(max(0.0, sum(map(math.exp, wanted)) / len(wanted) - base), abs=1e-6)
    assert score_one(reward, batch_of(tokenizer, *THREE[:2])).rewards == pytest.approx(first.rewards[:2], abs=1e-6)
    assert scorer.asked == 5
    assert score_one(reward, batch_of(tokenizer, *THREE[2:])).rewards == [0.0]
    score_one(reward, batch_of(tokenizer, *THREE[:2], label="43"))
    assert scorer.asked == 6 + 3

    reward = Likelihood(model="policy", baseline="alone")
    policy = set_up(reward, tokenizer, tiny_model, model)
    for _ in range(2):
        assert score_one(reward, batch_of(tokenizer, *THREE)).rewards[2] == 0.0
    assert policy.asked == 6  # it changes with the weights
    reward = Likelihood(model="policy", baseline="alone")
    policy, reference = Scorer(model), Scorer(model)
    set_up(reward, tokenizer, tiny_model, model, score_policy=policy, score_reference=reference)
    for _ in range(2):
        score_one(reward, batch_of(tokenizer, *THREE))
    assert (policy.asked, reference.asked) == (6, 1)


def test_samples_without_an_answer_are_scored_and_held_back(
    tokenizer: Any, tiny_model: Path, model: Any, capsys: pytest.CaptureFixture
) -> None:
    texts = (*THREE[:2], "hello how", "fine<answer>4")
    for form in ("logprob_mean", "prob", "nover"):
        reward = Likelihood(form=form)  # type: ignore[arg-type]
        set_up(reward, tokenizer, tiny_model, model)
        one = batch_of(tokenizer, *texts)
        one = RewardBatch([*one.rollouts[:3], rollout(tokenizer, texts[3], "42", id="t", group=1, truncated=True)])
        found = score_one(reward, one)
        assert found.metrics["gated"] == [0, 0, 1, 1] and min(found.metrics["logprob_mean"]) > -20
        assert found.rewards[2:] == ([min(found.rewards[:2])] * 2 if form == "logprob_mean" else [0.0] * 2)
        assert min(found.rewards[:2]) > 0 or form == "logprob_mean"
    reward = Likelihood(gate=r"^how .*\?")
    set_up(reward, tokenizer, tiny_model, model)
    assert score_one(reward, batch_of(tokenizer, *THREE)).metrics["gated"] == [1, 0, 1]
    capsys.readouterr()
    reward = Likelihood()
    set_up(reward, tokenizer, tiny_model, model)
    for _ in range(2):
        score_one(reward, batch_of(tokenizer, "hello", "how"))
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "holds back 2 of 2 responses: 2 do not have <answer, and the length limit" in said


def test_a_group_in_which_nothing_differs_teaches_nothing(tokenizer: Any, tiny_model: Path, model: Any) -> None:
    for form in ("logprob_mean", "jepo"):
        reward = Likelihood(form=form, least_spread=50.0)  # type: ignore[arg-type]
        set_up(reward, tokenizer, tiny_model, model)
        found = score_one(reward, batch_of(tokenizer, *THREE))
        assert len(set(found.rewards)) == 1 and found.metrics["flat"] == [1, 1, 1]
    reward = Likelihood()
    set_up(reward, tokenizer, tiny_model, model)
    assert reward._least_spreads([[0.0] * 4]) == [0.0]
    args = arguments(tiny_model)
    args.ds.param_dtype = "bf16"
    reward.setup(RewardContext(tokenizer, args, score_reference=Scorer(model)))
    assert reward._least_spreads([[0.0] * 4]) == [0.065]


def test_jepo_of_a_batch(tokenizer: Any, tiny_model: Path, model: Any) -> None:
    reward = Likelihood(form="jepo")
    set_up(reward, tokenizer, tiny_model, model)
    both = [*batch_of(tokenizer, *THREE), rollout(tokenizer, THREE[0], "x", id="other", group=2)]
    found = score_one(reward, RewardBatch([both[i] for i in (1, 3, 0, 2)]))
    sums = found.metrics["logprob_sum"]
    wanted = jepo([sums[i] for i in (0, 2, 3)])
    assert [found.rewards[i] for i in (0, 2, 3)] == wanted.advantages and found.rewards[1] == 0.0
    assert found.metrics["bound"][0] == wanted.bound and found.metrics["weight"][1] == 1.0


def test_tiny_probabilities_and_open_thoughts_are_said_once(
    tokenizer: Any, tiny_model: Path, model: Any, capsys: pytest.CaptureFixture
) -> None:
    reward = Likelihood(form="prob", baseline="alone", gate="off")
    set_up(reward, tokenizer, tiny_model, model)
    for _ in range(2):
        score_one(reward, batch_of(tokenizer, *THREE, label="a long one", prompt="<think>\n"))
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2
    assert "all probabilities of a batch are below 1e-08" in said[0] and "prompts open <think>" in said[1]


# what is refused


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"cut": ""}, "cut is empty"),
        ({"form": "jepo", "baseline": "alone"}, "form jepo compares the samples"),
        ({"clip": "zero"}, "clip zero is of differences"),
        ({"scored": "gold", "end": "eot"}, "end eot is not scored"),
        ({"form": "jepo", "gate": "marker"}, "has no gate"),
        ({"cut": "none", "gate": "marker"}, "gate marker has no marker"),
        ({"gate": "("}, r"gate \( is not a regular expression"),
    ],
)
def test_what_does_not_fit(words: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Likelihood(**words)


def test_bad_runs_are_refused_before_they_start(tiny_model: Path, tmp_path: Path) -> None:
    def check(reward: Likelihood, args: SimpleNamespace) -> None:
        reward.check(args)

    def records(*labels: Any) -> str:
        file = tmp_path / "prompts.jsonl"
        file.write_text("".join(json.dumps({"prompt": "what?", "label": label}) + "\n" for label in labels))
        return str(file)

    args = arguments(tiny_model, prompt_dataset=records("42", ""))
    with pytest.raises(UserError, match=r"prompts.jsonl:?,? line 2 has a label without gold text"):
        check(Likelihood(), args)
    args = arguments(tiny_model, prompt_dataset=records("42", "x" * 520))
    with pytest.raises(UserError, match=r"line 2 has a gold text of \d+ tokens, and the model reads 512; remove"):
        check(Likelihood(), args)
    with pytest.raises(UserError, match=r"give --data.label_key NAME"):
        check(Likelihood(), arguments(tiny_model, label_key=None))
    args = arguments(tiny_model)
    args.rollout.n_samples_per_prompt = 1
    with pytest.raises(UserError, match=r"--likelihood.form nover compares the samples of a prompt; give"):
        check(Likelihood(form="nover"), args)
    args = arguments(tiny_model)
    args.algo.dynamic_filtering_enable = True
    with pytest.raises(UserError, match=r"--algo.dynamic_filtering_range 0 1 drops every prompt; begin it below 0"):
        check(Likelihood(), args)
    check(Likelihood(form="prob"), args)


def test_what_a_run_is_told(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "prompts.jsonl"
    rows = [{"prompt": "is it 42?", "label": "42"}, {"prompt": "what?", "label": "x" * 470}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    Likelihood(model="policy", form="jepo").check(arguments(tiny_model, prompt_dataset=str(file)))
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 3
    assert "1 of 2 prompts contain their gold text" in said[0]
    assert "1 of 2 gold texts find no room in the 512 tokens" in said[1]
    assert "is a reward alone: the loss on the gold text itself that JEPO adds is no part of it" in said[2]
