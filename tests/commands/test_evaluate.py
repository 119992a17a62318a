"""The comparison of policies: numbers, tables, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import failing
from scipy import stats

from orlhf_ext.commands import evaluate
from orlhf_ext.commands.evaluate import step_of
from orlhf_ext.files.records import write_jsonl


def test_step_names() -> None:
    assert [step_of(name) for name in ("global_step17_hf", "ckpt3", "sft", "step_8")] == [17, 3, None, 8]


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
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
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
        ("--sft sft.jsonl --out x.json --policy a=p.jsonl --policy a=q.jsonl", "names 'a' a second time"),
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
