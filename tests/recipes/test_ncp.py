"""recipes/ncp_vrcli.sh: what it prints, what it refuses, a whole run at smoke size, and a kill in training."""

from __future__ import annotations

import functools
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import recipe_runs
from helpers import ROOT, run_python
from recipe_runs import check_flags, check_pages, commands, following, read, redone, refused, skipped, weights

from orlhf_ext.extensions.releases import OPENRLHF_VERSION

finished = functools.partial(recipe_runs.finished, "ncp_vrcli")
dry = functools.partial(recipe_runs.dry, "ncp_vrcli")

#: Gurung & Lapata's for 3B; those that are defaults of OpenRLHF are left to it
PAPER = {
    "--actor.model_name_or_path": "Qwen/Qwen2.5-3B-Instruct",
    "--actor.num_gpus_per_node": "4",
    "--ref.num_gpus_per_node": "4",
    "--vllm.num_engines": "2",
    "--vllm.tensor_parallel_size": "2",
    "--vllm.gpu_memory_utilization": "0.9",
    "--rollout.n_samples_per_prompt": "16",
    "--rollout.batch_size": "64",
    "--rollout.micro_batch_size": "1",
    "--rollout.max_new_tokens": "2048",
    "--data.max_len": "14048",
    "--train.batch_size": "64",
    "--train.micro_batch_size": "1",
    "--train.max_epochs": "1",
    "--train.num_episodes": "20",
    "--algo.advantage.estimator": "group_norm",
    "--algo.kl.init_coef": "1e-6",
    "--algo.kl.estimator": "k3",
    "--actor.adam.lr": "5e-7",
    "--actor.loss_agg_mode": "seq-mean-token-mean",
    "--ds.zero_stage": "3",
    "--ds.param_dtype": "bf16",
    "--eval.steps": "8",
    "--eval.temperature": "0.7",
    "--eval.n_samples_per_prompt": "1",
    "--ext.eval_top_p": "0.8",
    "--ext.eval_top_k": "20",
    "--ckpt.save_steps": "16",
    "--vrcli.reward": "tiers",
}
PAPER_SWITCHES = {
    "--algo.kl.use_loss",
    "--train.colocate_actor_ref",
    "--ds.adam_offload",
    "--ref.offload",
    "--actor.gradient_checkpointing_enable",
    "--vllm.enable_prefix_caching",
    "--data.apply_chat_template",
    "--ckpt.load_enable",
}


# --- what it prints and refuses


def test_the_gpu_profile_has_the_papers_numbers():
    found = dry(PROFILE="gpu", STORIES="org/stories", ATTENTION="flash_attention_2")
    train = found["train"]
    assert {flag: following(train, flag) for flag in PAPER} == PAPER
    assert set(train) >= PAPER_SWITCHES and "--train.colocate_all" not in train
    for stage, flag in {"baseline": "", "score/before": "", "score/after": "", "train": "ds."}.items():
        assert following(found[stage], f"--{flag}attn_implementation") == "flash_attention_2", stage
    for stage in ("sample/before", "sample/after"):
        sampling = [following(found[stage], flag) for flag in ("--temperature", "--top_p", "--top_k")]
        assert sampling == ["0.7", "0.8", "20"]
    larger = dry(PROFILE="gpu", MODEL="Qwen/Qwen2.5-7B-Instruct-1M", SAMPLES="8")["train"]
    assert following(larger, "--rollout.n_samples_per_prompt") == "8"


def test_a_cluster_gets_its_nodes_and_whole_paths():
    found = dry(PROFILE="gpu", RAY_ADDRESS="auto", NUM_NODES="2", NPROC="8", ENGINES="8", TP="2", OUT="outputs/x")
    train = found["train"]
    assert following(train, "--actor.num_nodes") == following(train, "--ref.num_nodes") == "2"
    assert following(train, "--vllm.num_engines") == "8"
    paths = [word for word in train if "outputs/x" in word]
    assert len(paths) >= 5 and all(path.startswith("/") for path in paths)
    # the other stages use the same GPUs
    assert following(found["baseline"], "--workers") == "32" == following(found["score/after"], "--workers")
    assert following(found["sample/after"], "--workers") == "16"
    assert following(found["sample/after"], "--tensor_parallel_size") == "2"


@pytest.mark.parametrize(
    ("gpus", "training", "engines", "parallel"), [(1, 1, 1, 1), (2, 1, 1, 1), (4, 2, 1, 2), (6, 4, 1, 2), (8, 4, 2, 2)]
)
def test_the_gpus_of_a_machine_are_shared_out(tmp_path: Path, gpus: int, training: int, engines: int, parallel: int):
    """On a machine that says it has GPUs; a single one trains and samples in turn."""
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    with (tmp_path / "recipes" / "setup.sh").open("a") as script:
        script.write("has_gpu() { true; }\n")
    there = {"DRY_RUN": "1", "CUDA_VISIBLE_DEVICES": ",".join(map(str, range(gpus)))}
    result = recipe_runs.recipe("ncp_vrcli", tmp_path, **there)
    assert result.returncode == 0, result.stderr
    found = commands(result.stdout)
    counts = ("--actor.num_gpus_per_node", "--vllm.num_engines", "--vllm.tensor_parallel_size")
    assert [int(following(found["train"], flag)) for flag in counts] == [training, engines, parallel]
    assert ("--train.colocate_all" in found["train"]) == ("--vllm.enable_sleep" in found["train"]) == (gpus == 1)
    shared = [found[stage] for stage in ("baseline", "sample/before", "score/before", "sample/after", "score/after")]
    assert [following(command, "--workers") for command in shared if gpus > 1] == [str(gpus)] * (5 * (gpus > 1))
    told = refused("ncp_vrcli", {**there, "PROFILE": "gpu", "NPROC": "16", "ENGINES": "1"}, tmp_path)
    assert f"there are {gpus}" in told


def test_rows_are_not_cut_and_extra_words_come_last(tmp_path: Path):
    (tmp_path / "story_dataset_train.jsonl").touch()
    found = dry(
        PROFILE="smoke", STORIES=str(tmp_path), DATA_ARGS="--dataset_name story_dataset", RL_ARGS="--x 'two words'"
    )
    assert "--context_words" not in found["data"] and found["data"][-2:] == ["--dataset_name", "story_dataset"]
    assert found["train"][-2:] == ["--x", "two words"]
    (tmp_path / "book.txt").touch()
    assert "--context_words" in dry(PROFILE="smoke", STORIES=str(tmp_path))["data"]


def test_a_tuned_model_is_what_all_else_is_about():
    found = dry(PROFILE="smoke", STORIES="generated", TUNE_EPOCHS="2", TUNE_ARGS="--adam.lr 1", OUT="/x")
    tune = found["tune"]
    assert following(tune, "--data.output_key") == "plan" and following(tune, "--train.max_epochs") == "2"
    assert tune[-2:] == ["--adam.lr", "1"]
    assert following(found["train"], "--actor.model_name_or_path") == "/x/tuned"
    for stage in ("baseline", "sample/before", "score/before", "score/after"):
        assert following(found[stage], "--model") == "/x/tuned"
    assert "tune" not in dry(PROFILE="smoke")


def test_its_page_has_every_variable_and_stage():
    check_pages("ncp_vrcli", dry(PROFILE="smoke", TUNE_EPOCHS="1"))


# --- whole runs


@pytest.mark.recipe
def test_every_flag_of_every_command_exists():
    found = [c for profile in ("smoke", "cpu", "gpu") for c in dry(PROFILE=profile, WANDB_API_KEY="x").values()]
    assert check_flags(found) == 8


def check_summary(summary: dict[str, Any], stages: dict[str, list[str]]) -> None:
    assert (summary["recipe"], summary["profile"], summary["seed"]) == ("ncp_vrcli", "smoke", 1234)
    data = summary["data"]
    assert (data["train"], data["val"], data["test"]) == (16, 2, 4) and data["source"] == "sample"
    assert set(data["dropped"]) == {"train", "val", "test"}
    for when in ("before", "after"):
        metrics = summary["metrics"][when]
        assert {"pct_improvement_mean", "pct_improvement_se", "reward_mean", "marker_share"} <= set(metrics)
        assert isinstance(metrics["pct_improvement_mean"], float) and metrics["pct_improvement_se"] > 0
        assert metrics["plan_tokens_mean"] > 0
    assert set(summary["seconds"]) == set(stages) and all(value > 0 for value in summary["seconds"].values())
    assert summary["versions"]["openrlhf"] == OPENRLHF_VERSION


@pytest.mark.recipe
def test_a_whole_run_and_the_same_again(tmp_path: Path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "out"
    output = finished(PROFILE="smoke", OUT=str(out))
    stages = commands(output)
    check_summary(read(out / "summary.json"), stages)
    assert read(out / "policy" / "summary.json") == read(out / "summary.json")
    assert len((out / "policy" / "summary.records.jsonl").read_bytes().splitlines()) == 4
    assert output.count("-- before (") == 3 == output.count("-- after (")

    policy = out / "policy"
    assert os.readlink(policy / "best") == "checkpoints/best_global_step2_hf" and f"{policy}/best -> " in output
    for folder in (policy / "model", policy / "best"):
        AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        assert weights(folder) != weights(ROOT / "models" / "tiny-2048")
    exported = run_python(
        "-m", "orlhf_ext", "export", str(policy / "checkpoints"), "--model", "models/tiny-2048",
        "--tag", "global_step2", "--out", str(tmp_path / "exported"),
    )  # fmt: skip
    assert exported.returncode == 0, exported.stderr
    assert weights(tmp_path / "exported") == weights(policy / "model")

    again = finished(PROFILE="smoke", OUT=str(out))
    assert redone(again) == {"evaluate"} and skipped(again) == set(stages) - {"evaluate"}
    assert read(out / "summary.json")["metrics"] == read(policy / "summary.json")["metrics"]


@pytest.mark.slow
@pytest.mark.recipe
def test_a_run_killed_in_training_goes_on_from_its_checkpoint(tmp_path: Path):
    out = tmp_path / "out"
    variables = {
        "PROFILE": "smoke",
        "OUT": str(out),
        "EPISODES": "4",
        "EVAL_STEPS": "1",
        "RL_ARGS": "--ckpt.max_num 20",
    }
    checkpoints = out / "policy" / "checkpoints"
    process = recipe_runs.started("ncp_vrcli", **variables)
    assert process.stdout is not None
    for _ in process.stdout:
        if (checkpoints / "_actor" / "latest").exists():
            break
    recipe_runs.kill(process, out)
    assert "train" not in read(out / "run.json")["seconds"]
    before = {path.name for path in (checkpoints / "_actor").glob("global_step*")}
    assert before and len(before) < 8

    output = finished(**variables)
    assert {"baseline", "data"} <= skipped(output) and "train" in redone(output)
    assert "Loading the checkpoint" in output
    steps = {int(step) for step in re.findall(r"Global step (\d+):", output)}
    assert max(steps) == 8 and min(steps) > 1  # 16 prompts, 8 a step, 4 episodes; the first ones were not done again
    assert {path.name for path in (checkpoints / "_actor").glob("global_step*")} == {
        f"global_step{step}" for step in range(1, 9)
    }
    assert set(read(out / "summary.json")["seconds"]) == set(commands(output))
    assert (out / "policy" / "best" / "tokenizer_config.json").is_file()
