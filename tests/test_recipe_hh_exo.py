"""recipes/hh_exo.sh: what it prints, what it refuses, whole runs at smoke size, and kills in every stage."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT

from orlhf_ext.records import read_records

LOSSES = ("exo-rw", "dpo-rw", "exo-pref", "dpo-pref")
SHARED = ("model", "data", "sft", "rm", "sample_train", "label", "sample_test/sft", "score/sft")


def environment(**variables: str) -> dict[str, str]:
    """This environment without anything that a recipe reads, and with ``variables``."""
    recipe = re.findall(r"^\| ((?:`[A-Z_]+`(?:, )?)+)", (ROOT / "recipes/README.md").read_text(), flags=re.M)
    known = {name for names in recipe for name in re.findall(r"[A-Z_]+", names)}
    assert {"PROFILE", "LOSS", "OUT", "SFT_ARGS", "DRY_RUN"} <= known
    return {
        **{name: value for name, value in os.environ.items() if name not in known},
        "ORLHF_EXT_PYTHON": sys.executable,
        **variables,
    }


def recipe(name: str = "hh_exo", root: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(root / "recipes" / f"{name}.sh")],
        env=environment(**variables), stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd="/",
    )  # fmt: skip


def commands(output: str) -> dict[str, list[str]]:
    """Stage -> its command, from what a recipe printed."""
    found = re.findall(r"^# --- (\S+)\n(.*)$", output, flags=re.M)
    return {stage: shlex.split(command) for stage, command in found}


def dry(**variables: str) -> dict[str, list[str]]:
    result = recipe(DRY_RUN="1", **variables)
    assert result.returncode == 0, result.stderr
    return commands(result.stdout)


def following(command: list[str], flag: str) -> str:
    return command[command.index(flag) + 1]


# --- what it prints and refuses


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"PROFILE": "tpu"}, ["PROFILE=tpu", "smoke cpu gpu"]),
        ({"LOSS": "ppo"}, ["LOSS=ppo", "exo-rw exo-pref dpo-rw dpo-pref"]),
        ({"PROMPT_FORMAT": "xml"}, ["PROMPT_FORMAT=xml", "hh chat"]),
        ({"NUM_COMPLETIONS": "3"}, ["NUM_COMPLETIONS=3", "NUM_CONTRASTIVE=2"]),
        ({"NUM_CHECKPOINTS": "0"}, ["NUM_CHECKPOINTS=0"]),
        ({"TRAIN_PROMPTS": "many"}, ["TRAIN_PROMPTS=many"]),
        ({"TRAIN_PROMPTS": "4"}, ["4 records", "BATCH_SIZE=8", "TRAIN_PROMPTS"]),
        ({"NPROC": "3"}, ["BATCH_SIZE=8", "NPROC=3"]),
        ({"SEED": "x"}, ["SEED=x"]),
        ({"SFT_MODEL": "my/sft", "SFT_ARGS": "--adam.lr 1"}, ["SFT_ARGS has no effect"]),
        ({"REWARD_MODEL": "my/rm", "RM_ARGS": "--adam.lr 1"}, ["RM_ARGS has no effect"]),
        ({"MAX_NEW_TOKENS": "400"}, ["MAX_NEW_TOKENS=400", "MAX_LEN"]),
        ({"ALIGN_ARGS": "--logger.wandb.project 'half a quote"}, ["ALIGN_ARGS"]),
    ],
)
def test_a_wrong_variable_is_one_sentence(variables: dict[str, str], words: list[str]):
    result = recipe(**{"PROFILE": "smoke", "DRY_RUN": "1", **variables})
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("recipe: error: ") and all(word in line for word in words)


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
    align = found["align"]
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
    policies = [stage for stage in found if stage.startswith("sample_test/step")]
    assert [int(stage.removeprefix("sample_test/step")) for stage in policies] == [*range(18, 163, 18), 175]
    assert following(found["sample_test/step175"], "--model") == "outputs/hh_exo-gpu/align_exo-rw_nc2/model"
    assert following(found["sample_test/step18"], "--model").endswith("/checkpoints/global_step18_hf")
    assert following(found["sample_test/sft"], "--num_completions") == "4"


def test_what_is_given_is_not_trained_again():
    found = dry(PROFILE="smoke", SFT_MODEL="my/sft", REWARD_MODEL="my/rm", ALIGN_DATA="my.jsonl")
    assert not {"sft", "rm", "sample_train", "label", "model"} & set(found)
    assert following(found["align"], "--ref.model_name_or_path") == "my/sft"
    assert following(found["align"], "--data.dataset") == "my.jsonl"
    assert following(found["score/policy"], "--model") == "my/rm"


def test_pref_losses_train_on_the_human_pairs():
    found = dry(PROFILE="smoke", LOSS="exo-pref")
    assert not {"sample_train", "label"} & set(found)
    assert following(found["align"], "--data.dataset").endswith("data/train_kwise.jsonl")
    assert following(found["align"], "--eval.dataset").endswith("data/test_kwise.jsonl")


def test_extra_words_come_last_and_keep_their_quotes():
    found = dry(PROFILE="smoke", ALIGN_ARGS="--adam.lr 5e-6 --logger.wandb.project 'two words $HOME'", SFT_ARGS="--x 1")
    assert found["align"][-4:] == ["--adam.lr", "5e-6", "--logger.wandb.project", "two words $HOME"]
    assert found["sft"][-2:] == ["--x", "1"]


def test_the_chat_format_and_wandb_reach_the_trainings():
    found = dry(PROFILE="smoke", PROMPT_FORMAT="chat", WANDB_API_KEY="verysecretkey")
    for stage in ("sft", "rm", "align"):
        assert "--data.apply_chat_template" in found[stage]
        assert following(found[stage], "--logger.wandb.key") == "env"
    assert "verysecretkey" not in str(found)


def test_hh_dpo_is_dpo_rw_in_a_folder_of_its_own():
    result = recipe("hh_dpo", PROFILE="smoke", DRY_RUN="1")
    align = commands(result.stdout)["align"]
    assert following(align, "--exo.loss_type") == "dpo-rw"
    assert following(align, "--ckpt.output_dir") == "outputs/hh_dpo-smoke/align_dpo-rw_nc2/model"


def test_the_readme_has_every_variable_and_stage():
    text = (ROOT / "recipes/README.md").read_text()
    script = (ROOT / "recipes/hh_exo.sh").read_text() + (ROOT / "recipes/common.sh").read_text()
    for name in set(re.findall(r'"\$\{([A-Z_]+):=', script)) - {"TORCH_COMPILE_DISABLE", "OMP_WAIT_POLICY"}:
        assert f"`{name}`" in text, name
    for stage in dry(PROFILE="smoke"):
        assert f"`{re.sub('step[0-9]+', 'stepN', stage)}`" in text, stage


# --- whole runs


@pytest.mark.recipe
def test_every_flag_of_every_command_exists():
    """The commands of all profiles against the help of what they start."""
    seen: dict[str, set[str]] = {}
    for profile in ("smoke", "cpu", "gpu"):
        for loss in ("exo-rw", "exo-pref"):
            for command in dry(PROFILE=profile, LOSS=loss, NPROC="1", WANDB_API_KEY="x").values():
                words = (
                    command[2:4] if command[2].endswith((".launch", ".build_data", ".small_models")) else command[2:3]
                )
                seen.setdefault(" ".join(words), set()).update(word for word in command if word.startswith("--"))
    assert len(seen) >= 9
    for words, flags in seen.items():
        extra = ["--ext.use", "exo"] if words.endswith("train_dpo") else []
        help_text = subprocess.run(
            [sys.executable, "-m", *words.split(), *extra, "--help"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        known = set(re.findall(r"--[\w.]+", help_text))
        assert not flags - known, f"{words}: {flags - known}"


def read(path: Path) -> Any:
    return json.loads(path.read_text())


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
    assert summary["versions"]["openrlhf"] == "0.11.2"


@pytest.mark.recipe
def test_the_four_losses_share_what_comes_before(tmp_path: Path):
    out = tmp_path / "out"
    start = time.monotonic()
    summaries = {}
    for number, loss in enumerate(LOSSES):
        checkpoints = "1" if number else "2"
        result = recipe(PROFILE="smoke", LOSS=loss, OUT=str(out), NUM_CHECKPOINTS=checkpoints)
        assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]
        stages = commands(result.stdout)
        skipped = set(re.findall(r"^# (\S+): already done", result.stdout, flags=re.M))
        wanted = set(SHARED) & set(stages)
        assert skipped - {"model"} == (wanted - {"model"} if number else set()), loss
        folder = out / f"align_{loss}_nc2"
        summaries[loss] = read(folder / "summary.json")
        assert read(out / "summary.json") == summaries[loss]
        check_summary(summaries[loss], loss, stages, [3] if number else [2, 3])
        assert str(folder) in result.stdout  # where the outputs lie
        if not number:
            first = time.monotonic() - start
    print(f"first run {first:.0f} s, four losses {time.monotonic() - start:.0f} s")
    assert len({summary["metrics"]["policy"]["kl"] for summary in summaries.values()}) == 4

    again = recipe(PROFILE="smoke", LOSS="dpo-pref", OUT=str(out))
    redone = set(re.findall(r"^# (\S+): done in", again.stdout, flags=re.M))
    assert again.returncode == 0 and redone == {"evaluate"}
    assert read(out / "summary.json")["metrics"] == summaries["dpo-pref"]["metrics"]

    changed = recipe(PROFILE="smoke", LOSS="dpo-pref", OUT=str(out), ALIGN_ARGS="--adam.lr 3e-3")
    redone = set(re.findall(r"^# (\S+): done in", changed.stdout, flags=re.M))
    assert changed.returncode == 0 and "align" in redone and not redone & set(SHARED)
    assert read(out / "summary.json")["metrics"]["policy"] != summaries["dpo-pref"]["metrics"]["policy"]


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
    result = recipe(
        PROFILE="smoke", OUT=str(tmp_path / "out"), HH_DATA=str(data), PROMPT_FORMAT="chat", NPROC="2",
        TEST_PROMPTS="4",
    )  # fmt: skip
    assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]
    summary = read(tmp_path / "out" / "summary.json")
    assert summary["metrics"]["policy"]["reward_mean"] is not None
    assert "torchrun" in commands(result.stdout)["align"]


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
    assert "stage align failed" in result.stderr


# --- kills


def end_everything(process: subprocess.Popen[str]) -> None:
    """kill -9 of the recipe's shell alone: what it started must go with it."""
    process.kill()
    process.wait()


def wait_for_release(out: Path) -> None:
    """Until no process of a killed recipe holds its output folder."""
    deadline = time.monotonic() + 60
    while subprocess.run(["flock", "-n", str(out / ".lock"), "true"]).returncode:
        assert time.monotonic() < deadline, "a killed recipe left a process that holds its output folder"
        time.sleep(0.1)


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.slow
@pytest.mark.recipe
def test_a_recipe_killed_in_every_stage_ends_as_an_uninterrupted_one(tmp_path: Path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    # Longer than smoke, so that there is something to interrupt in each stage.
    variables = {"PROFILE": "smoke", "TRAIN_PROMPTS": "64", "TEST_PROMPTS": "16"}
    result = recipe(OUT=str(whole), **variables)
    assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]
    seconds = read(whole / "run.json")["seconds"]
    stages = [stage for stage in commands(result.stdout) if stage != "model"]
    interrupted = []
    for stage in stages:
        process = subprocess.Popen(
            ["bash", str(ROOT / "recipes/hh_exo.sh")], env=environment(OUT=str(killed), **variables),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd="/",
        )  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            if line.rstrip() == f"# --- {stage}":
                break
        # Well into the stage's work: most of its time is imports.
        time.sleep(max(0.1, 0.8 * seconds[stage]))
        end_everything(process)
        wait_for_release(killed)
        if stage not in read(killed / "run.json")["seconds"]:
            interrupted.append(stage)
    result = recipe(OUT=str(killed), **variables)
    assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]
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
