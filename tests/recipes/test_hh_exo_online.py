"""recipes/hh_exo_online.sh: what it prints and refuses, and a whole run at smoke size."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
import recipe_runs
from recipe_runs import check_flags, check_pages, following, read, redone, refused, weights

finished = functools.partial(recipe_runs.finished, "hh_exo_online")
dry = functools.partial(recipe_runs.dry, "hh_exo_online")


def test_a_rollout_batch_is_an_optimizer_step_and_an_episode_has_whole_ones():
    found = dry(PROFILE="smoke", TRAIN_PROMPTS="30", ROLLOUT_BATCH="8", SAMPLES="4", EPISODES="3")
    train = found["train"]
    assert following(train, "--train.batch_size") == "32" and following(train, "--data.max_samples") == "24"
    assert "sample_test/online-exo-rw-step9" in found


def test_the_reward_model_reads_prompts_as_it_was_trained():
    found = dry(PROFILE="smoke", PROMPT_FORMAT="chat")
    assert "--model.chat" in found["train"] and "--data.apply_chat_template" in found["train"]
    plain = dry(PROFILE="smoke")["train"]
    assert "--model.chat" not in plain and following(plain, "--model.path") == "outputs/hh_exo_online-smoke/rm"


def test_what_it_refuses():
    assert "LOSS=exo-pref learns from the human pairs" in refused("hh_exo_online", {"LOSS": "exo-pref"})
    assert "SAMPLES=1 leaves nothing to compare" in refused("hh_exo_online", {"SAMPLES": "1"})
    said = refused("hh_exo_online", {"TRAIN_PROMPTS": "10", "BATCH_SIZE": "8", "ROLLOUT_BATCH": "16"})
    assert "10 records of TRAIN_PROMPTS are fewer than ROLLOUT_BATCH=16; change one" in said
    assert "NPROC=3" in refused("hh_exo_online", {"NPROC": "3", "PROFILE": "smoke"})


def test_its_page_has_every_variable_and_stage():
    check_pages("hh_exo_online", dry(PROFILE="smoke"))


@pytest.mark.recipe
def test_every_flag_of_every_command_exists():
    every = [dry(PROFILE=profile, NPROC="1") for profile in ("smoke", "cpu", "gpu")]
    assert check_flags([command for found in every for command in found.values()]) >= 8


@pytest.mark.recipe
def test_a_run_ends_in_a_table(tmp_path: Path):
    out = tmp_path / "out"
    run = functools.partial(finished, PROFILE="smoke", OUT=str(out))
    run()
    policy = out / "align_online-exo-rw_nc4"
    summary = read(out / "summary.json")
    assert summary == read(policy / "summary.json") and summary["recipe"] == "hh_exo_online"
    (row,) = summary["metrics"]["checkpoints"]
    assert row["name"] == "step3" and isinstance(row["kl"], float) and isinstance(row["reward_mean"], float)
    assert weights(policy / "model") != weights(out / "sft")
    rollouts = [json.loads(line) for path in sorted((policy / "rollouts").rglob("*.jsonl")) for line in path.open()]
    assert len(rollouts) == 3 * 8 * 4
    assert redone(run()) == {"evaluate"}
