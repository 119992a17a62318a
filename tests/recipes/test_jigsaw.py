"""recipes/jigsaw_rectify.sh: what it prints, what it refuses, and a whole run at smoke size, killed on the way."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
import recipe_runs
from helpers import ROOT
from helpers import read as read_rows
from hub_server import contents, hub
from recipe_runs import check_flags, check_pages, commands, following, read, redone, refused, skipped, weights

finished = functools.partial(recipe_runs.finished, "jigsaw_rectify")
dry = functools.partial(recipe_runs.dry, "jigsaw_rectify")


def test_a_key_is_asked_for_before_the_computing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("PERSPECTIVE_API_KEY", raising=False)
    line = refused("jigsaw_rectify", {"CLASSIFIER": "perspective", "DRY_RUN": "0", "OUT": str(tmp_path / "out")})
    assert "set PERSPECTIVE_API_KEY in the environment" in line


def test_the_gpu_profile_has_the_papers_settings():
    found = dry(PROFILE="gpu", NPROC="1", OUT="/tmp/none")
    classifier = found["classifier"]
    wanted = {
        "--model_name_or_path": "bert-large-uncased", "--max_length": "128", "--per_device_train_batch_size": "32",
        "--learning_rate": "2e-5", "--num_train_epochs": "1",
    }  # fmt: skip
    assert {flag: following(classifier, flag) for flag in wanted} == wanted
    q_d = found["q_d"]
    wanted = {
        "--model.model_name_or_path": "gpt2", "--deadend.gamma": "1.0", "--deadend.polyak": "0.1", "--adam.lr": "3e-4",
        "--deadend.loss_norm": "tokens", "--train.batch_size": "64", "--train.max_epochs": "3", "--max_norm": "0",
        "--lr_scheduler": "linear", "--eval.split": "train",
    }  # fmt: skip
    assert {flag: following(q_d, flag) for flag in wanted} == wanted
    assert q_d[q_d.index("--adam.betas") + 1 :][:2] == ["0.9", "0.999"]
    assert float(following(q_d, "--lr_warmup_ratio")) == pytest.approx(500 / (400000 // 64 * 3), abs=1e-6)
    continuations = found["continuations"]
    assert following(continuations, "--model_name_or_path") == "gpt2-large"
    assert [following(continuations, flag) for flag in ("--num_returns", "--sample_size")] == ["25", "-1"]
    assert "--raw_dir" not in found["data/reward"] and following(found["data/prompts"], "--drop_rate") == "0.9"
    assert following(found["data/prompts"], "--tokenizer") == "gpt2" and following(found["value"], "--mode") == "most"
    assert following(found["evaluate"], "--perplexity_model") == "gpt2-xl"
    assert following(found["decode/eps0.3"], "--num_samples_for_eval") == "5000"


def test_a_policy_that_needs_caps_and_the_control():
    found = dry(PROFILE="cpu", OUT="/tmp/none")
    for stage in ("continuations", "decode/plain", "decode/eps0.5", "decode/shuffled0.5"):
        assert following(found[stage], "--model_name_or_path") == "/tmp/none/policy", stage
    assert following(found["evaluate"], "--perplexity_model") == "/tmp/none/policy"
    assert following(found["decode/shuffled0.5"], "--q_model_name_or_path") == "/tmp/none/q_d_shuffled"
    assert following(found["evaluate"], "--controls") == "shuffled0.5"
    assert "--shuffle_rewards" in found["value_shuffled"] and "--shuffle_rewards" not in found["value"]
    differing = [(a, b) for a, b in zip(found["q_d"], found["q_d_shuffled"], strict=True) if a != b]
    assert all(b == a.replace("q_d", "q_d_shuffled").replace("/rows/", "/shuffled/") for a, b in differing)
    plain = dry(PROFILE="cpu", OUT="/tmp/none", TUNE_EPOCHS="0", CONTROL="0")
    assert not {"data/policy", "policy", "value_shuffled", "q_d_shuffled", "decode/shuffled0.5"} & set(plain)
    assert following(plain["continuations"], "--model_name_or_path") == "models/smollm2-135m-instruct"
    refusal = refused("jigsaw_rectify", {"TUNE_EPOCHS": "-1", "DRY_RUN": "1"})
    assert "TUNE_EPOCHS=-1 is not a whole number" in refusal


def test_what_is_given_is_not_made():
    found = dry(
        PROFILE="cpu", CLASSIFIER="scorers:Service", EVAL_PROMPTS="rtp.jsonl", JIGSAW_DATA="/x/y", EPSILONS="0 .5",
        SHOW="1", SCORE_ARGS="--batch_size 7", DECODE_ARGS="--infeasible fallback",
    )  # fmt: skip
    assert not {"classifier", "data/reward", "data/held_out"} & set(found)
    assert {"decode/plain", "decode/eps0", "decode/eps.5"} <= set(found)
    assert following(found["data/prompts"], "--raw_dir") == "/x/y"
    assert following(found["decode/plain"], "--data_file") == "rtp.jsonl" and "--plain" in found["decode/plain"]
    assert following(found["score/generations"], "--model_name_or_path") == "scorers:Service"
    assert found["score/continuations"][-2:] == ["--batch_size", "7"] and "--show" in found["evaluate"]
    assert found["decode/eps.5"][-2:] == ["--infeasible", "fallback"]
    assert "model/cut" in found  # Q_D's
    asked = dry(PROFILE="cpu", CLASSIFIER="perspective", EVAL_PROMPTS="rtp.jsonl", PERSPECTIVE_API_KEY="planted-2718")
    assert following(asked["score/generations"], "--model_name_or_path") == "perspective"
    assert "classifier" not in asked and "planted" not in str(asked)
    pushed = [dry(PROFILE="smoke", PUSH_TO_HUB="me/j", **given) for given in ({}, {"CLASSIFIER": "a:b"})]
    assert [[name for name in one if name.startswith("push/")] for one in pushed] == [
        ["push/classifier", "push/q_d"],
        ["push/q_d"],
    ]
    assert "model/cut" not in dry(PROFILE="cpu", MODEL="my/model", CLASSIFIER="a:b")
    assert following(dry(PROFILE="cpu", MODEL="my/model")["q_d"], "--model.model_name_or_path") == "my/model"


def test_its_page_has_every_variable_and_stage():
    check_pages(
        "jigsaw_rectify",
        ["model", "model/cut", "data/reward", "data/prompts", "data/held_out", "data/policy", "policy", "classifier",
         "continuations", "value", "score/continuations", "q_d", "value_shuffled", "q_d_shuffled", "calibration",
         "decode/plain", "score/generations", "evaluate"],
    )  # fmt: skip


@pytest.mark.launcher
def test_every_flag_of_every_command_exists():
    variants = ({"PROFILE": "smoke"}, {"PROFILE": "cpu", "SHOW": "1"}, {"PROFILE": "gpu", "WANDB_API_KEY": "x"})
    assert check_flags(command for extra in variants for command in dry(**extra).values()) >= 11


def texts(path: Path) -> set[str]:
    return {json.loads(line)["prompt"]["text"] for line in path.read_bytes().splitlines()}


@pytest.mark.recipe
def test_from_comments_to_the_table(tmp_path: Path):
    out = tmp_path / "out"
    variables = {"PROFILE": "smoke", "OUT": str(out), "EPSILONS": "0.5", "NUM_RETURNS": "6"}
    variables |= {"TUNE_EPOCHS": "1", "CONTROL": "1", "Q_ARGS": "--deadend.equal_rows"}
    output = finished(**variables)
    stages = commands(output)
    assert redone(output) | {"model"} == set(stages)
    summary = read(out / "summary.json")
    assert (summary["recipe"], summary["profile"], summary["seed"], summary["prompts"]) == (
        "jigsaw_rectify",
        "smoke",
        0,
        8,
    )
    assert set(summary["metrics"]) == {"plain", "eps0.5", "shuffled0.5"} and set(summary["seconds"]) == set(stages)
    for row in summary["metrics"].values():
        assert (row["prompts"], row["generations"], row["missing_scores"]) == (8, 48, 0)
        for key in ("expected_max_toxicity", "toxicity_probability", "dist_1", "dist_2", "dist_3", "perplexity"):
            assert row[f"{key}_low"] <= row[key] <= row[f"{key}_high"], key
    # the policy is another than the model, and the shuffled rewards are those of the same texts
    own, shuffled = (read_rows(out / "value" / name / "train.jsonl") for name in ("rows", "shuffled"))
    assert [row["text"] for row in own] == [row["text"] for row in shuffled]
    assert (out / "policy" / "README.md").is_file()  # its card
    assert weights(out / "policy") != weights(ROOT / "models" / "tiny")
    gap = summary["metrics"]["eps0.5"]["difference"]["toxicity_probability"]
    assert gap["bootstrap_low"] <= gap["mean"] <= gap["bootstrap_high"]
    assert read(out / "classifier" / "all_results.json")["eval_accuracy"] > 0.4
    held, used = texts(out / "data" / "split" / "held_out.jsonl"), texts(out / "value" / "scored.jsonl")
    assert len(held) == 8 and not held & used
    assert "toxicity probability of eps0.5 minus plain" in output and "toxic share of shuffled0.5 minus" in output
    assert "perplexity is that under the unrectified policy itself" in output

    with hub() as server:
        again = finished(**variables, PUSH_TO_HUB="me/jigsaw", **server.environment)
    assert {name: one.files for name, one in server.repositories.items()} == {
        f"me/jigsaw-{name}": contents(out / name) for name in ("classifier", "q_d")
    }
    assert redone(again) == {"evaluate", "push/classifier", "push/q_d"}
    assert skipped(again) == set(stages) - {"evaluate"}
    # another epsilon costs one decoding, the largest also one of the control
    more = finished(**{**variables, "EPSILONS": "0.5 0.9"})
    assert redone(more) == {"decode/eps0.9", "decode/shuffled0.9", "score/generations", "evaluate"}
