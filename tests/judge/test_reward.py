"""The judge as a reward: who is compared, what comes out, and what is refused. Judges are functions or tiny models."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orlhf_ext.cli.errors import UserError
from orlhf_ext.extensions import REWARDS, names
from orlhf_ext.judge import tournament
from orlhf_ext.judge.local import Answer, Two
from orlhf_ext.judge.probe import PAIRS, check_judge
from orlhf_ext.judge.prompts import prompt_reader
from orlhf_ext.judge.reward import Judge, walkover
from orlhf_ext.models.folder import load_tokenizer
from orlhf_ext.rewards import RewardBatch, RewardContext, Rollout
from orlhf_ext.rewards.combine import Combined, RewardSet
from orlhf_ext.rewards.remote import cut_at_groups

#: strengths of words, of `additive`'s golden values
STRENGTH = {"zero": 0.0, "best": 0.75, "worst": -0.5, "good": 0.25}
BIAS = 0.5


class Heard:
    """A judge that is a function of two texts, and keeps what it was asked."""

    writes = False

    def __init__(self, lean: Callable[[str, str], float | None]) -> None:
        self.lean = lean
        self.calls: list[list[Two]] = []

    def compare(self, pairs: Sequence[Two]) -> list[Answer]:
        self.calls.append(list(pairs))
        return [Answer((self.lean(two.first, two.second), self.lean(two.second, two.first))) for two in pairs]


def additive(a: str, b: str) -> float:
    return STRENGTH[a] - STRENGTH[b] + BIAS


def batch_of(*groups: Sequence[str], label: Any = "") -> RewardBatch:
    return RewardBatch(
        [
            Rollout(f"train {g}/{i}", f"prompt {g}", text, label, group=g)
            for g, texts in enumerate(groups, 1)
            for i, text in enumerate(texts, 1)
        ]
    )


def judged(
    batch: RewardBatch, lean: Callable[[str, str], float | None] = additive, **how: Any
) -> tuple[Combined, Heard]:
    judge = Judge(model="any", **how)
    heard = Heard(lean)
    judge._seed, judge._judge, judge._tokens, judge._question = 1, heard, set(), lambda prompt: prompt  # type: ignore[assignment]
    return RewardSet([judge]).score(batch), heard


def letters(a: str, b: str) -> float | None:
    return 1.0 if STRENGTH[a] > STRENGTH[b] else -1.0


def test_its_name() -> None:
    assert names(REWARDS)["judge"] == "orlhf_ext.judge.reward:Judge" and Judge.name == "judge"


def test_win_rates_and_what_is_logged() -> None:
    found, heard = judged(batch_of([*STRENGTH]))
    assert found.rewards == pytest.approx([0.460368, 0.692979, 0.307021, 0.539632], abs=1e-6)
    assert len(heard.calls) == 1 and len(heard.calls[0]) == 6
    columns = {name.removeprefix("judge/"): values for name, values in found.columns.items()}
    assert set(columns) == {
        "reward/judge", "ties", "skipped", "unreadable", "share_a", "consistency", "bias", "margin", "length_corr",
        "calls", "cut", "bounded", "forged",
    }  # fmt: skip
    assert columns["bias"] == pytest.approx([0.5] * 4) and columns["calls"] == [3.0] * 4
    assert sum(columns["share_a"]) / 4 == pytest.approx(0.666667, abs=1e-6)
    assert sum(columns["consistency"]) / 4 == pytest.approx(0.5)
    strong, _ = judged(batch_of([*STRENGTH]), form="bradley_terry")
    assert strong.rewards == pytest.approx([-0.125, 0.625, -0.625, 0.125])


@pytest.mark.parametrize(("pairs", "calls"), [("round_robin", 56), ("pivot", 14), ("circle", 16)])
def test_a_batch_is_one_call(pairs: str, calls: int) -> None:
    """Whatever the number of its prompts."""
    texts = [f"a {i}" for i in range(8)]
    found, heard = judged(batch_of(texts, texts, texts), lambda a, b: 0.1 * len(a + b) + (a > b), pairs=pairs)
    assert len(heard.calls) == 1 and 2 * len(heard.calls[0]) == 3 * calls
    assert sum(found.columns["judge/calls"]) == 3 * calls
    for two in heard.calls[0]:  # pairs are of one prompt
        assert two.name.count(f"train {two.prompt.split()[1]}/") == 2


def test_a_pivot_is_worth_a_half_and_does_not_depend_on_the_order() -> None:
    batch = batch_of([*STRENGTH])
    found, heard = judged(batch, pairs="pivot")
    pivots = set.intersection(*({two.first, two.second} for two in heard.calls[0]))
    place = [*STRENGTH].index(pivots.pop())
    wanted = [tournament.sigmoid(STRENGTH[text] - STRENGTH[[*STRENGTH][place]]) for text in STRENGTH]
    assert found.rewards == pytest.approx(wanted) and found.rewards[place] == 0.5
    for form in ("win_rate", "bradley_terry"):
        for seed in range(5):
            order = list(range(4))
            random.Random(seed).shuffle(order)
            other, _ = judged(batch.take(order), pairs="pivot", form=form)
            first, _ = judged(batch, pairs="pivot", form=form)
            assert other.rewards == pytest.approx([first.rewards[i] for i in order])


def test_brpo() -> None:
    found, _ = judged(batch_of([*STRENGTH]), letters, verdict="text", pairs="pivot", form="brpo", most_skew=1.0)
    assert sorted(found.rewards) == [-1.0, -1.0, 0.0, 1.0] or set(found.rewards) <= {-1.0, 0.0, 1.0}
    assert found.rewards.count(0.0) == 1
    even, _ = judged(batch_of([*STRENGTH]), letters, verdict="text", pairs="pivot", form="brpo", most_skew=0.0)
    assert even.rewards == [0.0] * 4


def test_equal_and_empty_responses_need_no_call() -> None:
    found, heard = judged(batch_of(["best", "best", "", "<|im_end|>"]))
    assert len(heard.calls) == 0
    assert found.rewards == pytest.approx([(0.5 + 1 + 1) / 3] * 2 + [0.5 / 3] * 2)
    assert found.columns["judge/skipped"] == [1.0] * 4 and found.columns["judge/calls"] == [0.0] * 4
    assert found.columns["judge/forged"] == [0, 0, 0, 1]
    assert [walkover(*pair) for pair in (("a", "a"), ("", ""), ("a", ""), ("", "a"), ("a", "b"))] == [
        0.5,
        0.5,
        1,
        0,
        None,
    ]


def test_only_what_follows_the_reasoning_is_judged() -> None:
    _, heard = judged(batch_of(["plan</think>best", "plan</think>\nworst ", "only a plan"]), after="</think>")
    assert [(two.first, two.second) for two in heard.calls[0]] == [("best", "worst")]


def test_a_sample_alone() -> None:
    alone = batch_of(["best"], ["worst"], label="zero")
    found, heard = judged(alone)
    assert found.rewards == [0.5, 0.5] and not heard.calls
    for pairs in ("round_robin", "pivot", "circle"):
        found, heard = judged(alone, against_label=True, pairs=pairs)
        assert found.rewards == pytest.approx([tournament.sigmoid(0.75), tournament.sigmoid(-0.5)]), pairs
        assert found.columns["judge/calls"] == [1.0, 1.0]  # the label has the other half


def test_unreadable_verdicts_count_half_and_are_logged() -> None:
    found, _ = judged(batch_of(["zero", "best"]), lambda a, b: None if a == "zero" else 1.0, verdict="text")
    assert found.rewards == [0.25, 0.75] and found.columns["judge/unreadable"] == [0.5, 0.5]


def test_comparisons_are_kept(tmp_path: Path) -> None:
    for batch in (batch_of([*STRENGTH]), batch_of([*STRENGTH][:2], ["good", ""])):
        judged(batch, keep=str(tmp_path / "kept"))
        judged(batch, keep=str(tmp_path / "kept"))  # again: the same file
    first, second = sorted((tmp_path / "kept").glob("train-1-1-*.jsonl"), key=lambda path: -path.stat().st_size)
    rows = [json.loads(line) for line in first.read_bytes().splitlines()]
    assert len(rows) == 6 and rows[0]["samples"] == ["train 1/1", "train 1/2"]
    assert rows[0]["leans"] == [-0.25, 1.25] and rows[0]["points"] == pytest.approx(tournament.sigmoid(-0.75))
    assert json.loads(second.read_bytes().splitlines()[1]) == {
        "samples": ["train 2/1", "train 2/2"], "leans": [None, None], "points": 1.0, "answers": [],
    }  # fmt: skip


def test_copies_of_it_see_whole_groups() -> None:
    """As `InActors` cuts a batch: the parts have the rewards of the whole."""
    batch = batch_of([*STRENGTH], [*STRENGTH][::-1], ["good", "best"])
    whole, _ = judged(batch)
    parts = cut_at_groups(batch.groups(), 3)
    assert len(parts) == 3
    rewards = {
        row: value for rows in parts for row, value in zip(rows, judged(batch.take(rows))[0].rewards, strict=True)
    }
    assert [rewards[row] for row in range(len(batch))] == whole.rewards


# what is refused


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({}, "no judge is named; give --judge.model PATH, or --judge.url URL"),
        ({"url": ["localhost:8000"]}, "--judge.url localhost:8000 is not an http:// or https:// address"),
        ({"url": ["http://x"], "style": "marker"}, "--judge.style has no effect with --judge.url"),
        ({"model": "x", "parallel": 2}, "--judge.parallel has no effect with --judge.model alone"),
        ({"model": "x", "reasons": True}, "--judge.reasons has no effect with --judge.verdict logprob"),
        ({"model": "x", "verdict": "text", "opening": "x"}, "--judge.opening has no effect with --judge.verdict text"),
        ({"model": "x", "most_skew": 0.5}, "--judge.most_skew has no effect with --judge.form win_rate"),
        ({"model": "x", "form": "brpo"}, "--judge.form brpo compares with a pivot; give --judge.pairs pivot"),
    ],
)
def test_arguments_that_make_no_sense(how: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}"):
        Judge(**how)


def args_of(samples: int = 4, **data: Any) -> SimpleNamespace:
    return SimpleNamespace(
        rollout=SimpleNamespace(n_samples_per_prompt=samples, batch_size=8),
        data=SimpleNamespace(prompt_dataset="", label_key=None, **data),
        eval=SimpleNamespace(dataset=None),
    )


def test_a_group_of_one_sample(long_model: Path) -> None:
    judge = Judge(model=str(long_model))
    with pytest.raises(UserError, match=r"--rollout.n_samples_per_prompt 1 leaves nothing to compare; give 2 or more"):
        judge.check(args_of(1))


def test_evaluation_without_labels(long_model: Path, tmp_path: Path) -> None:
    (tmp_path / "eval.jsonl").write_text('{"prompt": "a", "gold": "x"}\n{"prompt": "b", "gold": " "}\n')
    judge = Judge(model=str(long_model), against_label=True)
    args = args_of()
    args.eval.dataset, args.data.label_key = str(tmp_path / "eval.jsonl"), "gold"
    with pytest.raises(UserError, match=r"eval.jsonl line 2 has no text 'gold' to compare samples with; give"):
        judge.check(args)
    Judge(model=str(long_model)).check(args)


def test_what_a_batch_costs_is_said(long_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Judge(model=str(long_model), pairs="pivot").check(args_of(8))
    assert "judge: 112 calls a batch, 14 for the 8 samples of a prompt" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"--judge.model .*none is not a folder"):
        Judge(model=str(long_model / "none")).check(args_of(8))


@pytest.mark.parametrize(
    ("lean", "written", "said"),
    [
        (lambda a, b: None, True, r"never answers: it has no verdict in 6 calls about plain cases, and writes nothing"),
        (lambda a, b: 1.0, True, r"always says A, in 6 calls about plain cases in both orders; take another"),
        (lambda a, b: -1.0, True, r"always says B"),
        (lambda a, b: 1.5, False, r"does not read what it is shown: .* its leaning to A is always the same"),
    ],
)
def test_a_judge_that_is_none_is_found_before_the_run(
    lean: Callable[[str, str], float | None], written: bool, said: str
) -> None:
    with pytest.raises(UserError, match=f"^the judge {said}"):
        check_judge(Heard(lean).compare, written)


def test_a_judge_of_plain_cases(capsys: pytest.CaptureFixture[str]) -> None:
    check_judge(Heard(lambda a, b: len(a) - len(b) + 0.25).compare, False)
    assert "prefers the better text in 3 of 3 plain cases, and leans to A by 0.25 nats" in capsys.readouterr().out
    assert len(PAIRS) == 3


def test_a_judge_that_goes_deaf_in_the_run() -> None:
    batch = batch_of([*STRENGTH], [*STRENGTH])
    with pytest.raises(UserError, match=r"^reward 'judge': none of the judge's 24 answers has a verdict"):
        judged(batch, lambda a, b: None, verdict="text")
    with pytest.raises(UserError, match=r"^reward 'judge': the judge says B in each of 24 calls, whatever it is shown"):
        judged(batch, lambda a, b: -1.0, verdict="text")
    found, _ = judged(batch_of([*STRENGTH][:3]), lambda a, b: -1.0, verdict="text")  # six of them may be chance
    assert found.rewards == [0.5] * 3


# with a model


def test_a_model_end_to_end(long_model: Path) -> None:
    """Its rewards are those of its margins, and a chat's prompt is shown without the policy's template."""
    tokenizer = load_tokenizer(long_model)
    prompt = str(
        tokenizer.apply_chat_template(
            [{"role": "user", "content": "hello"}], tokenize=False, add_generation_prompt=True
        )
    )
    texts = ["fine", "how are you?", "hello hello"]
    batch = RewardBatch([Rollout(f"r{i}", prompt, text, group=1) for i, text in enumerate(texts)])
    judge = Judge(model=str(long_model), dtype="float32")
    rewards = RewardSet([judge])
    rewards.setup(RewardContext(tokenizer=tokenizer))
    assert judge._question(prompt) == "hello"
    found = rewards.score(batch)
    pairs = tournament.pairs_of(3, "round_robin")
    answers = judge._judge.compare([Two("", "hello", texts[i], texts[j]) for i, j in pairs])
    games = [tournament.Game(i, j, answer.leans) for (i, j), answer in zip(pairs, answers, strict=True)]
    assert found.rewards == pytest.approx(tournament.win_rates(3, games, False), abs=1e-6)
    assert len(set(found.rewards)) == 3


def test_a_random_model_never_answers(long_model: Path) -> None:
    rewards = RewardSet([Judge(model=str(long_model), verdict="text", backend="hf", retries=0, max_new_tokens=4)])
    with pytest.raises(UserError, match=r"the judge never answers: it has no verdict in 6 calls about plain cases"):
        rewards.setup(RewardContext())


def test_prompts_as_they_were_asked(long_model: Path) -> None:
    tokenizer = load_tokenizer(long_model)
    args = SimpleNamespace(data=SimpleNamespace(input_template="Q: {}\nA:"))
    read = prompt_reader(RewardContext(tokenizer=tokenizer, args=args))
    assert read("Q: who?\nA:") == "who?"
    assert read("\n\nHuman: hello\n\nAssistant: ") == "hello"
    assert (
        read("\n\nHuman: a\n\nAssistant: b</s>\n\nHuman: c\n\nAssistant: ")
        == "Human: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
    )
    assert read("plain text ") == "plain text" == prompt_reader(RewardContext())("plain text ")
