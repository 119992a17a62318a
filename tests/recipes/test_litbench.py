"""recipes/litbench_btrm.sh and litbench_genrm.sh: batches, folders of runs, refusals, and whole runs at smoke size."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import ROOT
from recipe_runs import (
    check_flags,
    check_pages,
    commands,
    dry,
    environment,
    finished,
    following,
    kill,
    load,
    read,
    redone,
    run_stage,
    skipped,
    stage_calls,
    started,
    values,
)

BTRM, GENRM = "litbench_btrm", "litbench_genrm"


@pytest.mark.parametrize(
    ("processes", "batch"),
    [
        (1, 128), (2, 128), (3, 132), (4, 128), (5, 130), (6, 132), (7, 140), (8, 128), (16, 128), (48, 192), (64, 128),
        (65, 130),
    ],
)  # fmt: skip
def test_the_batch_fits_the_number_of_gpus(processes: int, batch: int):
    found = values(GENRM, PROFILE="gpu", NPROC=str(processes))
    assert (found["batch"], found.number("MICRO_BATCH_SIZE"), found["NPROC"]) == (batch, 2, processes)
    assert processes == 1 or following(found["launch"], "--nproc_per_node") == str(processes)


def test_the_batch_that_fits_is_the_trainings():
    train = dry(GENRM, PROFILE="gpu", NPROC="3")["train"]
    assert following(train, "--train.batch_size") == "132" and following(train, "--train.micro_batch_size") == "2"
    assert following(train, "--nproc_per_node") == "3"


@pytest.mark.launcher
def test_the_gpu_profiles_have_upstreams_settings():
    words = ["--data.max_len", "--train.max_epochs", "--adam.lr", "--lr_scheduler", "--lr_warmup_ratio", "--max_norm"]
    found = dry(BTRM, PROFILE="gpu", NPROC="1", OUT="/tmp/none")
    train = found["train"]
    assert [following(train, word) for word in words] == ["2048", "1", "1e-5", "linear", "0.1", "1.0"]
    assert following(train, "--model.model_name_or_path") == "meta-llama/Llama-3.2-1B"
    assert following(train, "--train.batch_size") == "128" and following(train, "--train.micro_batch_size") == "8"
    assert "--data.prompt_key" not in train and "--no_prompt" in found["score"]
    # 43,327 pairs are 338 steps: upstream's interval of 500 would never fire
    assert following(train, "--ckpt.save_steps") == following(train, "--eval.steps") == "169"

    found = dry(GENRM, PROFILE="gpu", NPROC="1", OUT="/tmp/none")
    train = found["train"]
    assert [following(train, word) for word in words] == ["8192", "3", "2e-5", "linear", "0.1", "1.0"]
    assert following(train, "--data.input_template") == "{}" and following(train, "--ckpt.save_steps") == "50"
    assert [following(found["verdicts"], word) for word in ("--temperature", "--max_new_tokens")] == ["0", "8"]
    assert "logprobs" in found
    reasoning = dry(GENRM, PROFILE="gpu", USE_COT="1", OUT="/tmp/none")
    assert "logprobs" not in reasoning and "--use_cot" in reasoning["data"]
    assert following(reasoning["verdicts"], "--max_new_tokens") == "1024"


@pytest.mark.launcher
def test_the_seeds_flags_stand_for_variables(tmp_path: Path):
    words = ["--epochs", "2", "--max_length=512", "--learning_rate", "3e-6", "--output_dir", str(tmp_path)]
    train = dry(BTRM, words, PROFILE="gpu", TARGET_BATCH_SIZE="64", NPROC="1")["train"]
    names = ["--train.max_epochs", "--data.max_len", "--adam.lr", "--train.batch_size"]
    assert [following(train, name) for name in names] == ["2", "512", "3e-6", "64"]
    assert following(train, "--ckpt.output_dir").startswith(f"{tmp_path}/bt_reward_model_2")
    # a rehydrated file is found where the seed has it, and where this project puts it
    (tmp_path / "rehydrated_test_data.csv").touch()
    found = values(BTRM, PROFILE="gpu", DATA_DIR=str(tmp_path))
    assert found["tested"] == ["--test_file", f"{tmp_path}/rehydrated_test_data.csv"]
    # a relative folder, the default one included, is the caller's
    for folder, words in (("data/litbench", []), ("mine", ["--data_dir=mine"])):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "rehydrated_test_data.csv").touch()
        done = subprocess.run(
            ["bash", str(ROOT / "recipes" / "litbench_btrm.sh"), *words],
            env=environment(DRY_RUN="1", PROFILE="gpu"), cwd=tmp_path, capture_output=True, text=True,
        )  # fmt: skip
        wanted = str(tmp_path / folder / "rehydrated_test_data.csv")
        assert following(commands(done.stdout)["data"], "--test_file") == wanted
    assert values(BTRM, PROFILE="gpu", OUTPUT_DIR="/tmp/x")["OUT"] == "/tmp/x"
    reasoning = dry(GENRM, ["--use_cot", "--epochs", "2"], PROFILE="gpu", OUT="/tmp/none")
    assert "--use_cot" in reasoning["data"] and following(reasoning["train"], "--train.max_epochs") == "2"
    assert "wandb.key" not in " ".join(train)
    logged = dry(BTRM, PROFILE="gpu", WANDB_API_KEY="secret", WANDB_PROJECT="stories")
    assert following(logged["train"], "--logger.wandb.project") == "stories" and "secret" not in str(logged)
    assert following(logged["train"], "--logger.wandb.key") == "env"


@pytest.mark.launcher
def test_a_run_goes_on_in_the_newest_unfinished_folder_of_its_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DRY_RUN", "1")
    ours, other = "sample models/tiny 8 256 1 1e-3 0 1234  ", "sample models/tiny 8 256 1 5e-4 0 1234  "

    def folder(words: str = ours, new: bool = False) -> str:
        return load("settings").find_run(str(tmp_path), "bt_reward", new, words).removeprefix("bt_reward_model_")

    def begin(stamp: str, words: str = ours, done: bool = False) -> None:
        (tmp_path / f"bt_reward_model_{stamp}.begun").write_text(f"{words}\n")
        if done:
            (tmp_path / f"bt_reward_model_{stamp}.done").touch()

    assert folder().startswith("20")  # nothing is there: the time is its name
    begin("1", done=True)
    assert folder() == "1"  # finished: shown again
    begin("2")
    begin("3", done=True)
    begin("4", words=other)
    assert folder() == "2" and folder(other) == "4"
    assert folder(new=True).startswith("20") and folder("sample models/tiny 8 256 2 1e-3 0 1234").startswith("20")
    # and those are the words that the recipe has
    for given, wanted in ({}, "2"), ({"LEARNING_RATE": "5e-4"}, "4"):
        train = dry(BTRM, PROFILE="smoke", OUT=str(tmp_path), **given)["train"]
        assert following(train, "--ckpt.output_dir") == f"{tmp_path}/bt_reward_model_{wanted}"
    train = dry(BTRM, PROFILE="smoke", OUT=str(tmp_path), NEW="1")["train"]
    assert following(train, "--ckpt.output_dir").startswith(f"{tmp_path}/bt_reward_model_20")


@pytest.mark.launcher
@pytest.mark.parametrize("name", [BTRM, GENRM])
def test_more_rehydrated_rows_make_the_test_pairs_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes], name: str
):
    """The stage that builds the data, as the recipe asks for it, on a test file that grows; nothing is built."""
    monkeypatch.chdir(ROOT)
    sample = ROOT / "data_builders" / "samples" / "litbench"
    rows = [json.loads(line) for line in (sample / "test.jsonl").read_bytes().splitlines()]
    given = tmp_path / "mine" / "rehydrated_test_data.csv"
    given.parent.mkdir()
    build = [sys.executable, "-S", "-c", f"import os; os.makedirs({str(tmp_path / 'out' / 'data')!r})"]

    def built(count: int) -> str:
        with given.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows[:count])
        variables = {"DATA_DIR": str(given.parent), "OUT": str(tmp_path / "out")}
        variables["LITBENCH_DATA"] = str(sample / "train.jsonl")
        calls = stage_calls(name, tmp_path / "copy", PROFILE="smoke", **variables)
        call = next(call for call in calls if call.name == "data")
        words = [word for flag, values in call.flags.items() for word in (flag, *values)]
        run_stage(["run", "data", "--base", str(tmp_path / "out"), *words, "--", *build, *call.command])
        return capfdbinary.readouterr().out.decode()

    assert "done in" in built(10) and "already done" in built(10) and "done in" in built(20)


def test_their_page_has_every_variable_and_stage():
    stages = ["model", "data", "train", "score", "verdicts", "logprobs", "evaluate"]
    check_pages("litbench", stages, BTRM, GENRM)


@pytest.mark.launcher
def test_every_flag_of_every_command_exists():
    variants = ({"PROFILE": "smoke"}, {"PROFILE": "cpu", "USE_COT": "1"}, {"PROFILE": "gpu", "WITH_PROMPT": "1"})
    found = [command for name in (BTRM, GENRM) for extra in variants for command in dry(name, **extra).values()]
    assert check_flags(found) >= 7


@pytest.mark.recipe
def test_from_stories_to_the_accuracy(tmp_path: Path):
    variables = {"PROFILE": "smoke", "OUT": str(tmp_path)}
    # killed in training, the same folder is gone on with
    process = started(BTRM, **variables)
    assert process.stdout
    for line in process.stdout:
        if line.startswith("# --- train"):
            break
    time.sleep(1)
    kill(process, tmp_path)
    (begun,) = tmp_path.glob("*.begun")
    output = finished(BTRM, **variables)
    name = begun.name.removesuffix(".begun")
    assert [path.name for path in tmp_path.glob("bt_reward_model_*.begun")] == [begun.name]
    model = tmp_path / name
    assert (model / "model.safetensors").exists() and (tmp_path / f"{name}.done").exists()
    summary = read(tmp_path / "summary.json")
    assert (summary["recipe"], summary["profile"], summary["run"]) == (BTRM, "smoke", name)
    metrics = summary["metrics"]
    assert metrics["test_source"] and set(metrics) == {"pairs", "test_source", "reward_model", "longer_story"}
    found = metrics["reward_model"]
    assert found["accuracy_low"] <= found["accuracy"] <= found["accuracy_high"]
    pairs = (tmp_path / "results" / name / "summary.records.jsonl").read_bytes().splitlines()
    assert len(pairs) == metrics["pairs"] == found["pairs"] >= 20
    assert sum(json.loads(pair)["margin"] > 0 for pair in pairs) == found["correct"]
    again = finished(BTRM, **variables)
    assert redone(again) == {"evaluate"} and skipped(again) == set(commands(output)) - {"evaluate"}
    # other settings, or NEW=1, make another folder beside it
    other = finished(BTRM, ["--learning_rate", "5e-4"], **variables)
    assert {"train", "score"} <= redone(other) and len([*tmp_path.glob("bt_reward_model_*.begun")]) == 2
    assert (model / "model.safetensors").exists()


@pytest.mark.recipe
def test_from_rationales_to_verdicts(tmp_path: Path):
    variables = {"PROFILE": "smoke", "OUT": str(tmp_path)}
    output = finished(GENRM, **variables)
    summary = read(tmp_path / "summary.json")
    for judge in ("verdict", "logprob"):
        found = summary["metrics"][judge]
        assert found["accuracy_low"] <= found["accuracy"] <= found["accuracy_high"] and 0 <= found["consistency"] <= 1
    assert summary["metrics"]["verdict"]["parse_rate"] > 0.9  # it has learned to answer, and to stop
    assert set(summary["seconds"]) == set(commands(output))
