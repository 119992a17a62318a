"""recipes/litbench_rl.sh: what it prints and refuses, and a whole run at smoke size."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
import recipe_runs
from helpers import ROOT
from recipe_runs import check_flags, check_pages, commands, following, read, redone, refused, skipped, weights

finished = functools.partial(recipe_runs.finished, "litbench_rl")
dry = functools.partial(recipe_runs.dry, "litbench_rl")


def test_the_judge_and_the_second_measure_are_those_of_their_recipes():
    found = dry(PROFILE="smoke", OUT="/x/out", JUDGE_ARGS="EPOCHS=2 STYLE=chat")
    judge, second = found["litbench_genrm"], found["litbench_btrm"]
    assert judge[0] == second[0] == "env" and judge[-1] == "recipes/litbench_genrm.sh" and "RM_ARGS" in second
    assert judge[-4:-2] == ["EPOCHS=2", "STYLE=chat"] and {"OUT=/x/out/litbench_genrm", "PROFILE=smoke"} <= set(judge)
    assert "LITBENCH_DATA=sample" in judge and "LITBENCH_DATA=sample" in second
    hub = dry(PROFILE="gpu")["litbench_genrm"]
    assert not any(word.startswith("LITBENCH_DATA=") for word in hub)  # each has its own there
    for stage in ("train", "evaluate"):
        assert following(found[stage], "--judge.model").startswith("/x/out/litbench_genrm/")
    assert following(found["score/after"], "--model").startswith("/x/out/litbench_btrm/")
    mine = dry(PROFILE="smoke", JUDGE="org/judge", REWARD_MODEL="org/btrm", LITBENCH_DATA="org/stories")
    assert not {"litbench_genrm", "litbench_btrm"} & set(mine)
    assert following(mine["train"], "--judge.model") == "org/judge" and "org/stories" in mine["data"]
    assert "LITBENCH_DATA=org/stories" in dry(PROFILE="smoke", LITBENCH_DATA="org/stories")["litbench_btrm"]


def test_training_and_table_ask_the_judge_alike():
    for profile in ("smoke", "cpu", "gpu"):
        found = dry(PROFILE=profile)
        for flag in ("--judge.model", "--judge.template", "--judge.style"):
            assert following(found["train"], flag) == following(found["evaluate"], flag)
        assert found["train"][4:6] == ["--ext.reward", "judge"]
        assert f"STYLE={following(found['train'], '--judge.style')}" in found["litbench_genrm"]
    assert following(found["train"], "--judge.pairs") == "pivot"


def test_what_it_refuses():
    assert "SAMPLES=1 leaves nothing to compare" in refused("litbench_rl", {"SAMPLES": "1", "BATCH_SIZE": "8"})
    said = refused("litbench_rl", {"JUDGE": "org/judge", "JUDGE_ARGS": "EPOCHS=2"})
    assert "JUDGE_ARGS has no effect with JUDGE, which is not trained; unset one" in said
    assert "PAIRS=all is not known; choose one of: round_robin pivot circle" in refused("litbench_rl", {"PAIRS": "all"})


def test_its_page_has_every_variable_and_stage():
    check_pages("litbench_rl", dry(PROFILE="smoke"))


@pytest.mark.recipe
def test_every_flag_of_every_command_exists():
    every = [dry(PROFILE=profile) for profile in ("smoke", "cpu", "gpu")]
    found = [c for one in every for name, c in one.items() if not name.startswith("litbench_")]
    assert check_flags(found) >= 6


def check_summary(out: Path, stages: dict[str, list[str]]) -> None:
    summary = read(out / "summary.json")
    assert (summary["recipe"], summary["profile"], summary["command"]) == ("litbench_rl", "smoke", "judge.compare")
    assert set(summary["seconds"]) == set(stages) and summary["data"]["source"] == "sample"
    metrics = summary["metrics"]
    assert metrics["records"] == 8 and metrics["words_before"] > 0 and metrics["words_after"] > 0
    assert set(metrics) >= {"judge", "rewards", "longer_text"}
    judge = metrics["judge"]
    assert judge["win_rate_low"] <= judge["win_rate"] <= judge["win_rate_high"] and judge["unreadable"] == 0
    assert 0 <= judge["consistency"] <= 1 and "length_correlation" in judge
    assert weights(out / "policy" / "model") != weights(ROOT / "models" / "tiny-2048")


@pytest.mark.recipe
def test_a_whole_run_and_the_same_again(tmp_path: Path, reward_model: Path):
    """With models that are there; the judge is a random one."""
    out = tmp_path / "out"
    variables = {"PROFILE": "smoke", "OUT": str(out), "JUDGE": "models/tiny-2048", "REWARD_MODEL": str(reward_model)}
    output = finished(**variables)
    stages = commands(output)
    check_summary(out, stages)
    kept = sorted((out / "policy" / "rollouts").glob("train-*.jsonl"))
    rows = [json.loads(line) for path in kept for line in path.read_bytes().splitlines()]
    assert len(rows) == 64
    for start in range(0, len(rows), 4):  # win rates of a prompt's four stories
        assert sum(row["reward"] for row in rows[start : start + 4]) == pytest.approx(2, abs=1e-5)
    assert {row["judge/unreadable"] for row in rows} == {0.0}
    again = finished(**variables)
    assert redone(again) == {"evaluate"} and skipped(again) == set(stages) - {"evaluate"}


@pytest.mark.slow
@pytest.mark.recipe
def test_a_run_with_reward_models_of_their_own_recipes(tmp_path: Path):
    out = tmp_path / "out"
    output = finished(PROFILE="smoke", OUT=str(out))
    check_summary(out, dry(PROFILE="smoke", OUT=str(out)))  # without the stages of the other recipes
    judge = read(out / "litbench_genrm" / "summary.json")
    assert judge["recipe"] == "litbench_genrm" and "length_correlation" in judge["metrics"]["logprob"]
    train = commands(output)["train"]
    assert following(train, "--judge.model") == str(out / "litbench_genrm" / judge["run"])
