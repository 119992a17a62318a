"""recipes/hh_exo.sh: what it prints, what it refuses, whole runs at smoke size, and kills in every stage."""

from __future__ import annotations

import functools
import json
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import recipe_runs
from helpers import ROOT
from recipe_runs import check_flags, check_pages, commands, following, read, redone, skipped, weights

from orlhf_ext.extensions.releases import OPENRLHF_VERSION
from orlhf_ext.files.records import read_records

SHARED = ("model", "data", "sft", "rm", "sample_train", "label", "sample_test/sft", "score/sft")


recipe = functools.partial(recipe_runs.recipe, "hh_exo")
finished = functools.partial(recipe_runs.finished, "hh_exo")
dry = functools.partial(recipe_runs.dry, "hh_exo")


# --- what it prints and refuses


def test_a_dry_run_needs_neither_set_up_nor_data(tmp_path: Path):
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    result = subprocess.run(
        ["bash", "recipes/hh_exo.sh"],
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "DRY_RUN": "1", "PROFILE": "gpu", "NPROC": "4"},
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "train_dpo" in result.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recipes"]
    assert subprocess.run(["bash", "-n"], input=result.stdout, text=True).returncode == 0  # it is a script


def test_the_gpu_profile_has_the_papers_numbers():
    found = dry(PROFILE="gpu", NPROC="4")
    assert following(found["data"], "hh") == "Anthropic/hh-rlhf"
    align = found["align/exo-rw"]
    assert align[:5] == ["torchrun", "--standalone", "--nproc_per_node", "4", "-m"]
    for flag, value in {
        "--model.model_name_or_path": "outputs/hh_exo-gpu/sft",
        "--train.batch_size": "128",
        "--train.micro_batch_size": "8",
        "--adam.lr": "1e-6",
        "--lr_scheduler": "cosine",
        "--lr_warmup_ratio": "0",
        "--train.seed": "1234",
        "--ds.zero_stage": "2",
        "--data.max_len": "512",
        "--data.max_samples": "22400",
        "--exo.max_completion_len": "200",
        "--exo.beta_pi": "0.5",
        "--exo.beta_r": "0.5",
        "--exo.temperature": "0.8",
        "--ckpt.save_steps": "18",
    }.items():
        assert following(align, flag) == value, flag
    assert following(found["sft"], "--adam.lr") == following(found["rm"], "--adam.lr") == "1e-5"
    policies = [stage for stage in found if stage.startswith("sample_test/exo-rw-step")]
    assert [int(stage.removeprefix("sample_test/exo-rw-step")) for stage in policies] == [*range(18, 163, 18), 175]
    assert following(found["sample_test/exo-rw-step175"], "--model") == "outputs/hh_exo-gpu/align_exo-rw_nc2/model"
    assert following(found["sample_test/exo-rw-step18"], "--model").endswith("/checkpoints/global_step18_hf")
    assert following(found["sample_test/sft"], "--num_completions") == "4"


def test_long_rows_are_cut_on_gpus_and_any_number_of_them_is_taken():
    found = dry(GPUS="4", TEST_PROMPTS="all")["data"]
    assert found[-1] == "--cut" and not {"--limit", "--limit_test", "--shuffle"} & set(found)
    assert [following(found, f"--{flag}") for flag in ("max_prompt_tokens", "max_tokens")] == ["312", "512"]
    assert "--cut" not in dry(GPUS="4", LONG_ROWS="drop")["data"]
    small = dry(PROFILE="cpu", TEST_PROMPTS="all", HH_FOLDER="harmless-base")["data"]
    assert following(small, "--limit") == "128" and "--limit_test" not in small and "--shuffle" in small
    assert following(small, "--data_dir") == "harmless-base" and "--cut" not in small


def test_what_is_given_is_not_trained_again():
    found = dry(PROFILE="smoke", SFT_MODEL="my/sft", REWARD_MODEL="my/rm", ALIGN_DATA="my.jsonl")
    assert not {"sft", "rm", "sample_train", "label", "model"} & set(found)
    assert following(found["align/exo-rw"], "--ref.model_name_or_path") == "my/sft"
    assert following(found["align/exo-rw"], "--data.dataset") == "my.jsonl"
    assert following(found["score/exo-rw"], "--model") == "my/rm"


def test_pref_losses_train_on_the_human_pairs():
    found = dry(PROFILE="smoke", LOSS="exo-pref")
    assert not {"sample_train", "label"} & set(found)
    assert following(found["align/exo-pref"], "--data.dataset").endswith("data/train_kwise.jsonl")
    assert following(found["align/exo-pref"], "--eval.dataset").endswith("data/test_kwise.jsonl")


def test_each_round_begins_with_samples_of_the_last_ones_policy():
    for reference in ("sft", "last"):
        found = dry(PROFILE="smoke", ROUNDS="3", ROUND_REFERENCE=reference, OUT="/o")
        policy, records = "/o/sft", "/o/samples/train_rw.jsonl"
        for number in (1, 2, 3):
            align = found[f"align/exo-rw-round{number}"]
            assert following(align, "--model.model_name_or_path") == policy
            assert following(align, "--ref.model_name_or_path") == ("/o/sft" if reference == "sft" else policy)
            assert following(align, "--data.dataset") == records and "--ckpt.save_hf" not in align
            policy = following(align, "--ckpt.output_dir")
            assert following(found[f"sample_test/exo-rw-round{number}"], "--model") == policy
            if number < 3:
                sample, label = (found[f"{stage}/exo-rw-round{number + 1}"] for stage in ("sample_train", "label"))
                assert following(sample, "--model") == policy
                assert following(sample, "--out") == following(label, "--data")
                records = following(label, "--out")
        assert policy == f"/o/align_exo-rw_nc2_rounds3_{reference}/model"
        assert [word.split("=")[0] for word in found["evaluate"] if word.startswith("round")] == [
            "round1",
            "round2",
            "round3",
        ]


def test_extra_words_come_last_and_keep_their_quotes():
    found = dry(PROFILE="smoke", ALIGN_ARGS="--adam.lr 5e-6 --logger.wandb.project 'two words $HOME'", SFT_ARGS="--x 1")
    assert found["align/exo-rw"][-4:] == ["--adam.lr", "5e-6", "--logger.wandb.project", "two words $HOME"]
    assert found["sft"][-2:] == ["--x", "1"]


def test_the_chat_format_and_wandb_reach_the_trainings():
    found = dry(PROFILE="smoke", PROMPT_FORMAT="chat", WANDB_API_KEY="verysecretkey")
    for stage in ("sft", "rm", "align/exo-rw"):
        assert "--data.apply_chat_template" in found[stage]
        assert following(found[stage], "--logger.wandb.key") == "env"
        assert following(found[stage], "--logger.wandb.group") == "hh_exo-smoke"
        assert following(found[stage], "--logger.wandb.project") == "orlhf-ext"
    assert following(found["rm"], "--logger.wandb.run_name") == "hh_exo-smoke/rm"
    assert "verysecretkey" not in str(found)


def test_hh_dpo_is_dpo_rw_in_a_folder_of_its_own():
    align = recipe_runs.dry("hh_dpo", PROFILE="smoke")["align/dpo-rw"]
    assert following(align, "--exo.loss_type") == "dpo-rw"
    assert following(align, "--ckpt.output_dir") == "outputs/hh_dpo-smoke/align_dpo-rw_nc2/model"


def test_the_readme_has_every_variable_and_stage():
    check_pages("hh_exo", [*dry(PROFILE="smoke"), *dry(PROFILE="smoke", ROUNDS="2")])


# --- whole runs


@pytest.mark.recipe
def test_every_flag_of_every_command_exists():
    """The commands of all profiles against the help of what they start."""
    found = [
        command
        for profile in ("smoke", "cpu", "gpu")
        for loss in ("exo-rw", "exo-pref")
        for command in dry(PROFILE=profile, LOSS=loss, NPROC="1", WANDB_API_KEY="x").values()
    ]
    assert check_flags(found) >= 9


def check_summary(summary: dict[str, Any], loss: str, stages: dict[str, list[str]], steps: list[int]) -> None:
    assert summary["recipe"] == "hh_exo" and summary["profile"] == "smoke" and summary["loss"] == loss
    assert summary["num_contrastive"] == 2 and summary["seed"] == 1234
    assert summary["data"]["source"] == "sample" and (summary["data"]["train"], summary["data"]["test"]) == (24, 8)
    assert summary["data"]["dropped"]
    metrics = summary["metrics"]
    assert {"reward_mean", "reward_se", "length_mean"} <= set(metrics["sft"])
    assert {"reward_mean", "reward_se", "win_rate_vs_sft", "win_rate_vs_chosen", "kl", "length_mean"} <= set(
        metrics["policy"]
    )
    assert [checkpoint["step"] for checkpoint in metrics["checkpoints"]] == steps
    last = metrics["checkpoints"][-1]
    for key in ("reward_mean", "reward_se", "win_rate_vs_sft", "kl"):
        assert metrics["policy"][key] == last[key] and isinstance(last[key], float)
    assert 0 < metrics["policy"]["length_mean"] <= 16
    assert set(stages) <= set(summary["seconds"]) and all(value > 0 for value in summary["seconds"].values())
    assert summary["versions"]["openrlhf"] == OPENRLHF_VERSION


@pytest.mark.slow
@pytest.mark.recipe
def test_rounds_end_in_one_table(tmp_path: Path):
    out = tmp_path / "out"
    finished(PROFILE="smoke", OUT=str(out), ROUNDS="2", LOSS="pl")
    policy = out / "align_pl_nc2_rounds2_sft"
    summary = read(policy / "summary.json")
    assert [row["name"] for row in summary["metrics"]["checkpoints"]] == ["round1", "round2"]
    assert len({weights(folder) for folder in (out / "sft", policy / "rounds" / "model1", policy / "model")}) == 3


@pytest.mark.slow
@pytest.mark.recipe
def test_the_four_losses_share_what_comes_before(tmp_path: Path):
    """One loss with two checkpoints; then a second one beside it, in one table; then two on the human pairs."""
    out = tmp_path / "out"
    run = functools.partial(finished, PROFILE="smoke", OUT=str(out))
    output = run(LOSS="exo-rw", NUM_CHECKPOINTS="2")
    alone = read(out / "align_exo-rw_nc2" / "summary.json")
    assert read(out / "summary.json") == alone
    check_summary(alone, "exo-rw", commands(output), [2, 3])
    assert str(out / "align_exo-rw_nc2" / "model") in output  # where the outputs lie
    assert "# no report: pip install" in output or (out / "report.html").is_file()
    for folder, said in (("rm", "A reward model"), ("align_exo-rw_nc2/model", "A policy, aligned with preferences")):
        card = (out / folder / "README.md").read_text()
        assert said in card and "| SFT |" in card and "smoke" in card and str(tmp_path) not in card

    output = run(LOSSES="dpo-rw exo-rw", NUM_CHECKPOINTS="2")
    of_exo = {"align/exo-rw", "sample_test/exo-rw-step2", "sample_test/exo-rw-step3", "logprobs/exo-rw-step2"}
    assert {*SHARED, *of_exo} - {"logprobs/exo-rw-step2"} <= skipped(output)
    both = read(out / "align_dpo-rw+exo-rw_nc2" / "summary.json")
    check_summary(both, "dpo-rw exo-rw", commands(output), [2, 3, 2, 3])
    names = [one["name"] for one in both["metrics"]["checkpoints"]]
    assert names == ["dpo-rw-step2", "dpo-rw-step3", "exo-rw-step2", "exo-rw-step3"]
    assert both["metrics"]["policy"] == alone["metrics"]["policy"]

    pairs = {"LOSSES": "exo-pref dpo-pref"}
    output = run(**pairs)
    assert {"data", "sft", "rm", "sample_test/sft", "score/sft"} <= skipped(output)
    last = read(out / "summary.json")
    check_summary(last, "exo-pref dpo-pref", commands(output), [3, 3])
    policies = [*both["metrics"]["checkpoints"][1::2], *last["metrics"]["checkpoints"]]
    assert len({one["kl"] for one in policies}) == 4

    assert redone(run(**pairs)) == {"evaluate"}
    assert read(out / "summary.json")["metrics"] == last["metrics"]
    changed = redone(run(LOSS="dpo-pref", ALIGN_ARGS="--adam.lr 3e-3"))
    assert "align/dpo-pref" in changed and not changed & set(SHARED)
    assert read(out / "summary.json")["metrics"]["policy"] != last["metrics"]["policy"]


@pytest.mark.recipe
def test_chat_format_two_processes_and_own_data(tmp_path: Path):
    """Another road through the recipe: messages, two training processes, a user's own file, one checkpoint."""
    rows = [
        {
            "chosen": f"\n\nHuman: What is {i} plus {i}?\n\nAssistant: It is {2 * i}.",
            "rejected": f"\n\nHuman: What is {i} plus {i}?\n\nAssistant: I will not say.",
        }
        for i in range(60)
    ]
    data = tmp_path / "own.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = functools.partial(
        finished, PROFILE="smoke", OUT=str(tmp_path / "out"), HH_DATA=str(data), PROMPT_FORMAT="chat", NPROC="2",
        TEST_PROMPTS="all", LONG_ROWS="cut",
    )  # fmt: skip
    output = run()
    summary = read(tmp_path / "out" / "summary.json")
    assert summary["metrics"]["policy"]["reward_mean"] is not None
    assert "torchrun" in commands(output)["align/exo-rw"]
    assert redone(run()) == {"evaluate"}


@pytest.mark.recipe
def test_a_mistake_in_the_data_is_the_last_line(tmp_path: Path, tiny_model: Path):
    result = recipe(PROFILE="smoke", OUT=str(tmp_path / "out"), HH_DATA=str(tmp_path / "absent.jsonl"))
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        f"recipe: error: stage data needs {tmp_path}/absent.jsonl, which does not exist"
    ]
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "p", "completions": ["a", "b"], "rewards": [1.0]}\n' * 24)
    given = {"SFT_MODEL": str(tiny_model), "REWARD_MODEL": str(tiny_model), "ALIGN_DATA": str(bad)}
    result = recipe(PROFILE="smoke", OUT=str(tmp_path / "out"), **given)
    assert result.returncode != 0 and "bad.jsonl line 1" in result.stdout and "Traceback" not in result.stdout
    assert "stage align/exo-rw failed" in result.stderr


# --- kills


@pytest.mark.slow
@pytest.mark.recipe
def test_a_recipe_killed_in_every_stage_ends_as_an_uninterrupted_one(tmp_path: Path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    # Longer than smoke, so that there is something to interrupt in each stage.
    variables = {"PROFILE": "smoke", "TRAIN_PROMPTS": "64", "TEST_PROMPTS": "16"}
    output = finished(OUT=str(whole), **variables)
    seconds = read(whole / "run.json")["seconds"]
    stages = [stage for stage in commands(output) if stage != "model"]
    interrupted = []
    for stage in stages:
        process = recipe_runs.started("hh_exo", OUT=str(killed), **variables)
        assert process.stdout is not None
        for line in process.stdout:
            if line.rstrip() == f"# --- {stage}":
                break
        # Well into the stage's work: most of its time is imports.
        time.sleep(max(0.1, 0.8 * seconds[stage]))
        recipe_runs.kill(process, killed)
        if stage not in read(killed / "run.json")["seconds"]:
            interrupted.append(stage)
    finished(OUT=str(killed), **variables)
    assert len(interrupted) >= 0.7 * len(stages), interrupted

    for name in ("data/train.jsonl", "data/test.jsonl", "data/train_kwise.jsonl"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes(), name
    for name in ("sft", "rm"):
        assert weights(whole / name) == weights(killed / name), name
    for name in ("samples/train.jsonl", "samples/test_sft.jsonl"):
        one, other = ([line.record for line in read_records(folder / name)] for folder in (whole, killed))
        assert [row["id"] for row in one] == [row["id"] for row in other], name
        assert all(len(row["completions"]) == 2 for row in other)
    summaries = [read(folder / "summary.json") for folder in (whole, killed)]
    same = all(
        (whole / path.relative_to(killed)).read_bytes() == path.read_bytes()
        for path in [*killed.rglob("samples/*.jsonl")]
    )
    print(f"interrupted: {interrupted}; all samples equal: {same}")
    if same:  # vLLM does not promise it, but where the samples are equal everything is
        assert summaries[0]["metrics"] == summaries[1]["metrics"]
    assert set(summaries[0]["seconds"]) == set(summaries[1]["seconds"])


def test_a_second_recipe_in_the_same_folder_is_refused(tmp_path: Path):
    with subprocess.Popen(["flock", str(tmp_path / ".lock"), "sleep", "60"]) as holder:
        time.sleep(0.3)
        result = recipe(PROFILE="smoke", OUT=str(tmp_path))
        holder.send_signal(signal.SIGTERM)
    assert result.returncode == 2 and "another recipe is running" in result.stderr
