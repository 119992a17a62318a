"""The arithmetic of an evaluation, and its command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import failing
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from orlhf_ext.commands import evaluate
from orlhf_ext.commands.evaluate import step_of
from orlhf_ext.files.records import write_jsonl
from orlhf_ext.reports.statistics import bootstrap, kl_estimate, prompt_means, t_interval, win_rates

numbers = st.integers(-8, 8).map(lambda n: n / 4)  # exact in floating point, with many ties
tables = st.integers(1, 6).flatmap(
    lambda n: st.tuples(*[st.lists(st.lists(numbers, min_size=1, max_size=4), min_size=n, max_size=n)] * 2)
)


def test_kl_of_the_specification() -> None:
    policy, sft = [[-10, -12.5], [-8, -9.25]], [[-11, -12], [-9.5, -9]]
    assert kl_estimate(policy, sft).mean() == 0.4375


def test_win_rates_by_hand() -> None:
    assert win_rates([[1.0, 3.0], [0.0]], [[2.0], [0.0, 0.0]]).tolist() == [0.5, 0.5]
    assert win_rates([[1.0, 3.0, 2.0]], [[2.0, 0.0]]).tolist() == [pytest.approx((1 + 2 + 1.5) / 6)]


@given(tables)
def test_win_rates_are_fractions_that_add_up(pair: tuple[list, list]) -> None:
    ours, theirs = pair
    rates = win_rates(ours, theirs)
    assert ((rates >= 0) & (rates <= 1)).all()
    np.testing.assert_allclose(rates + win_rates(theirs, ours), 1.0, rtol=0, atol=1e-12)
    assert (win_rates(ours, ours) == 0.5).all()
    # only the order of rewards counts
    np.testing.assert_array_equal(rates, win_rates(*([[3 * x + 1 for x in row] for row in side] for side in pair)))


@given(tables)
def test_a_higher_reward_never_wins_less(pair: tuple[list, list]) -> None:
    ours, theirs = pair
    raised = [[x + 0.25 for x in row] for row in ours]
    assert (win_rates(raised, theirs) >= win_rates(ours, theirs)).all()


@given(st.lists(numbers, min_size=2, max_size=30))
def test_intervals_hold_the_mean_and_follow_the_seed(values: list[float]) -> None:
    array = np.array(values)
    low, high = bootstrap(array, 3)
    assert low is not None and high is not None
    assert array.min() <= low <= array.mean() <= high <= array.max()
    assert bootstrap(array, 3) == (low, high)


def test_intervals_against_scipy() -> None:
    values = np.random.default_rng(0).normal(0.3, 1.0, 60)
    wanted = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    np.testing.assert_allclose(t_interval(values), [wanted.low, wanted.high], rtol=1e-12)
    # for a mean of 60 normal values, the two kinds of interval nearly agree
    np.testing.assert_allclose(bootstrap(values, 0), t_interval(values), atol=0.04)
    assert t_interval(np.array([1.0])) == bootstrap(np.array([1.0]), 0) == (None, None)
    assert t_interval(np.array([2.0, 2.0])) == bootstrap(np.array([2.0, 2.0]), 0) == (2.0, 2.0)


def test_step_names() -> None:
    assert [step_of(name) for name in ("global_step17_hf", "ckpt3", "sft", "step_8")] == [17, 3, None, 8]


def test_prompt_means_weigh_prompts_equally() -> None:
    assert prompt_means([[1.0, 1.0, 1.0], [3.0]]).mean() == 2.0


def records(rewards: dict[str, list[float]], **columns: dict[str, list]) -> list[dict]:
    return [
        {
            "id": identifier,
            "prompt": f"\n\nHuman: {identifier}?\n\nAssistant:",
            "completions": [f" answer {i} [red]" for i, _ in enumerate(values)],
            "rewards": values,
            **{key: column[identifier] for key, column in columns.items()},
        }
        for identifier, values in rewards.items()
    ]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    tokens = {key: [[5, 6, 1], [7, 1]] for key in "abc"}
    write_jsonl(tmp_path / "sft.jsonl", records({"a": [0, 1], "b": [2, 0], "c": [1, 1]}, token_ids=tokens))
    logps = {"logprobs_policy": {"b": [-8, -9.25], "c": [-3, -4], "a": [-10, -12.5]}}
    logps["logprobs_sft"] = {"b": [-9.5, -9], "c": [-3, -4], "a": [-11, -12]}
    write_jsonl(tmp_path / "p1.jsonl", records({"b": [3, 3], "c": [1, 2], "a": [0, 1]}, token_ids=tokens, **logps))
    write_jsonl(tmp_path / "p2.jsonl", records({"c": [4, 5], "b": [3, 3], "a": [2, 2]}))
    write_jsonl(tmp_path / "chosen.jsonl", records({k: [1, 9] for k in "cab"}))
    (tmp_path / "run.json").write_text(json.dumps({"recipe": "hh_exo", "seconds": {"sft": 2.5}}))
    return tmp_path


def run(folder: Path, *more: str) -> None:
    evaluate.main([*f"--sft {folder}/sft.jsonl --out {folder}/summary.json --seed 1".split(), *more])


def test_the_whole_command(files: Path, capsys: pytest.CaptureFixture) -> None:
    policies = ["--policy", f"step10={files}/p1.jsonl", "--policy", f"step20={files}/p2.jsonl"]
    run(files, *policies, "--chosen", f"{files}/chosen.jsonl", "--run", f"{files}/run.json", "--show", "2")
    summary = json.loads((files / "summary.json").read_text())
    assert summary["recipe"] == "hh_exo" and summary["seconds"] == {"sft": 2.5}
    metrics = summary["metrics"]
    assert metrics["prompts"] == 3
    sft, policy, checkpoints = metrics["sft"], metrics["policy"], metrics["checkpoints"]
    assert sft["reward_mean"] == pytest.approx((0.5 + 1 + 1) / 3)
    assert sft["reward_se"] == pytest.approx(np.std([0.5, 1, 1], ddof=1) / 3**0.5)
    assert sft["length_mean"] == 2.5
    assert sft["win_rate_vs_chosen"] == pytest.approx((0.25 + 0.5 + 0.5) / 3)
    assert [(row["name"], row["step"]) for row in checkpoints] == [("step10", 10), ("step20", 20)]
    assert {**checkpoints[1]} == {"name": "step20", "step": 20, **policy}
    assert checkpoints[0]["kl"] == pytest.approx((0.25 + 0.625 + 0) / 3)  # a, b, c, whatever the file's order
    assert checkpoints[0]["length_mean"] == 2.5
    assert checkpoints[0]["win_rate_vs_sft"] == pytest.approx((0.5 + 1 + 0.75) / 3)
    assert policy["kl"] is None and policy["length_mean"] is None
    assert policy["win_rate_vs_sft"] == policy["win_rate_vs_sft_low"] == policy["win_rate_vs_sft_high"] == 1
    assert policy["win_rate_vs_chosen"] == 1
    assert policy["reward_diff"]["mean"] == pytest.approx((1.5 + 2 + 3.5) / 3)
    wanted = stats.ttest_1samp([1.5, 2, 3.5], 0).confidence_interval(0.95)
    assert (policy["reward_diff"]["low"], policy["reward_diff"]["high"]) == pytest.approx((wanted.low, wanted.high))
    assert metrics["chosen"]["reward_mean"] == 1
    said = capsys.readouterr().out
    assert "answer 0 [red]" in said and "prompt a" in said and "no KL for step20" in said and "wins vs SFT" in said
    table = (files / "summary.md").read_text().splitlines()
    assert len(table) == 6 and table[3].startswith("| step10 | 1.667 ± ")
    assert (files / "summary.csv").read_text().splitlines()[2].startswith("step10,10,1.66666")


def test_without_policies(files: Path) -> None:
    run(files)
    assert set(json.loads((files / "summary.json").read_text())["metrics"]) == {"prompts", "sft"}


def test_upstreams_single_number(files: Path, capsys: pytest.CaptureFixture) -> None:
    evaluate.main(["--rewards_only", f"{files}/p2.jsonl"])
    assert json.loads(capsys.readouterr().out) == {"mean reward": pytest.approx((4.5 + 3 + 2) / 3)}


def edit(path: Path, number: int, **changes: object) -> None:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[number].update(changes)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rewards": [float("nan"), 1]}, "p1.jsonl line 2 (id 'c') has nan among its rewards"),
        ({"rewards": [1]}, "line 2 (id 'c') has 1 rewards for 2 completions"),
        ({"rewards": None}, "line 2 (id 'c') has no rewards"),
        ({"rewards": [True, 1]}, "True among its rewards"),
        ({"logprobs_sft": None}, "line 2 (id 'c') has no logprobs_sft"),
        ({"logprobs_sft": ["x", 1]}, "'x' among its logprobs_sft"),
        ({"logprobs_sft_cut": [False, True]}, "line 2 (id 'c') has logprobs_sft of a completion that was cut"),
        ({"logprobs_policy_cut": [True, True]}, "line 2 (id 'c') has logprobs_policy of a completion that was cut"),
        ({"id": "d"}, "p1.jsonl lacks the prompt with id 'c'"),
        ({"prompt": "other"}, "line 2 (id 'c') has another prompt than"),
        ({"id": "a"}, "line 3 has the id 'a' of"),
    ],
)
def test_bad_records_are_named(files: Path, capsys: pytest.CaptureFixture, change: dict, said: str) -> None:
    edit(files / "p1.jsonl", 1, **change)
    with pytest.raises(SystemExit) as stop:
        run(files, "--policy", f"step10={files}/p1.jsonl")
    assert stop.value.code == 2 and not (files / "summary.json").exists()
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--sft sft.jsonl", "--out"),
        ("--sft sft.jsonl --out x.csv", "must end in .json"),
        ("--sft sft.jsonl --out x.json --policy p.jsonl", "NAME=FILE"),
        ("--sft sft.jsonl --out x.json --policy a=p.jsonl --policy a=q.jsonl", "twice"),
        ("--sft lost.jsonl --out x.json", "lost.jsonl does not exist"),
    ],
)
def test_bad_command_lines(line: str, said: str, capsys: pytest.CaptureFixture) -> None:
    assert said in failing(capsys, evaluate.main, *line.split())


def test_a_run_file_must_be_an_object(files: Path, capsys: pytest.CaptureFixture) -> None:
    (files / "run.json").write_text("[1]")
    with pytest.raises(SystemExit):
        run(files, "--run", f"{files}/run.json")
    assert "run.json is not a JSON object" in capsys.readouterr().err
