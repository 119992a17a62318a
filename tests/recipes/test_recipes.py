"""What holds for all recipes: every path of a command is known, defaults fit 1 to 16 GPUs, no arguments but --help."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import recipe_runs
from helpers import ROOT
from hypothesis import given
from hypothesis import strategies as st
from recipe_runs import Call, dry, following, load, refused

RECIPES = (
    "hh_exo",
    "hh_dpo",
    "hh_exo_online",
    "hh_groups",
    "jigsaw_rectify",
    "litbench_btrm",
    "litbench_genrm",
    "litbench_rl",
    "ncp_vrcli",
)
#: settings with which a recipe has other stages
VARIANTS: dict[str, list[dict[str, str]]] = {
    "hh_exo": [{"LOSS": "exo-pref"}, {"NUM_CHECKPOINTS": "2"}, {"ROUNDS": "2"}],
    "hh_exo_online": [{"PROMPT_FORMAT": "chat"}],
    "hh_groups": [{"PRESET": "paper", "PROPORTIONS": "0.1 0.2", "SEEDS": "1 2"}, {"METHOD": "gold"}],
    "jigsaw_rectify": [{"EVAL_PROMPTS": "models/tiny"}],
    "litbench_genrm": [{"USE_COT": "1"}, {"STYLE": "chat"}],
    "litbench_rl": [{"JUDGE": "org/judge", "REWARD_MODEL": "org/btrm"}],
}
#: variables that only these recipes read
OF_SOME = {
    "TRAIN_PROMPTS": ("hh_exo", "hh_dpo", "hh_exo_online", "litbench_rl", "ncp_vrcli"),
    "PROMPT_FORMAT": ("hh_exo", "hh_dpo", "hh_exo_online"),
    "LONG_ROWS": ("hh_exo", "hh_dpo", "hh_exo_online", "hh_groups"),
    "ENGINES": ("hh_exo_online", "hh_groups", "litbench_rl", "ncp_vrcli"),
}


fit = load("fit")
stage = load("stage")


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_ends_with_its_report(name: str) -> None:
    output = recipe_runs.finished(name, PROFILE="smoke", DRY_RUN="1", OUT="/x/out")
    last = output[output.rindex("# --- ") :]
    assert last.startswith("# --- report\npython -m orlhf_ext report /x/out --out /x/out/report.html\n")
    assert "\n# report: /x/out/report.html\n" in last


# --- inputs


def unknown_paths(calls: list[Call], out: str) -> list[tuple[str, str]]:
    """(stage, path) of each path in the recipe's folder that a command names and that nobody accounts for.

    It may be written by the command (an output, or kept by a flag that is known to write), or have been written by an
    earlier stage: then it is there when the stage starts, and stage.py takes it for an input by itself.
    """
    made: list[Path] = []
    unknown = []
    for call in calls:
        written = [Path(path) for flag in ("--out", "--scratch") for path in call.flags.get(flag, ())]
        for text in sorted(set(stage.named(call.command))):
            known = stage.within(Path(text), [*made, *written]) or text == f"{out}/run.json"
            if text.startswith(f"{out}/") and call.flags.get("--out") and not known:
                unknown.append((call.name, text))
        made += [Path(path) for path in call.flags.get("--out", ())]
    return unknown


@pytest.mark.launcher
@pytest.mark.parametrize("profile", ["smoke", "cpu", "gpu"])
@pytest.mark.parametrize("name", RECIPES)
def test_every_path_of_every_command_is_an_input_or_an_output(tmp_path: Path, name: str, profile: str):
    for variant in ({}, *(VARIANTS.get(name, ()) if profile == "smoke" else ())):
        calls = recipe_runs.stage_calls(name, tmp_path, PROFILE=profile, OUT="/x/out", **variant)
        assert len(calls) > 3 and unknown_paths(calls, "/x/out") == []


def test_a_path_that_no_stage_writes_is_found():
    calls = [
        Call("a", {"--out": ["/x/out/a"]}, ["python", "--out", "/x/out/a", "--cache", "/x/out/cache"]),
        Call("b", {"--out": ["/x/out/b"]}, ["python", "--data=/x/out/a/1", "name=/x/out/c", "--out", "/x/out/b"]),
    ]
    assert unknown_paths(calls, "/x/out") == [("a", "/x/out/cache"), ("b", "/x/out/c")]


# --- GPUs

SIZES = st.integers(1, 1024)


@st.composite
def batches(draw: st.DrawFn) -> list[Any]:
    return [fit.Batch(f"B{i}", draw(SIZES), draw(st.integers(1, 32))) for i in range(draw(st.integers(1, 3)))]


@given(batches(), st.integers(1, 16))
def test_processes_and_micro_batches_divide_every_batch(wanted: list[Any], limit: int):
    found = fit.fit(wanted, limit)
    assert 1 <= found.processes <= limit
    for batch, micro in zip(wanted, found.micros, strict=True):
        assert 1 <= micro <= batch.micro and batch.size % (micro * found.processes) == 0
    more = range(found.processes + 1, limit + 1)
    assert not any(all(batch.size % processes == 0 for batch in wanted) for processes in more)
    said = fit.describe(wanted, found, limit)
    assert ("possible processes" in said) == (found.processes < limit)


@given(batches(), st.integers(1, 16), st.sampled_from([None, 1, 2, 4]), st.sampled_from([None, 1, 2]))
def test_training_and_sampling_have_enough_gpus(wanted: list[Any], gpus: int, engines: int | None, tp: int | None):
    try:
        found = fit.share(wanted, gpus, engines=engines, tp=tp)
    except fit.Misfit as error:
        assert f"there are {gpus}" in str(error) and (engines or 1) * (tp or 1) + 1 > gpus
        return
    train, sample = found.fit.processes, found.engines * found.tp
    assert engines in (None, found.engines) and tp in (None, found.tp)
    assert train == sample <= gpus if found.colocate else train + sample <= gpus
    assert all(b.size % (m * train) == 0 for b, m in zip(wanted, found.fit.micros, strict=True))


@given(SIZES, st.integers(1, 32), st.integers(1, 4))
def test_a_number_of_processes_that_a_user_gives_is_taken_or_refused(size: int, processes: int, nodes: int):
    batch = fit.Batch("BATCH_SIZE", size, 8)
    if size % (processes * nodes):
        with pytest.raises(fit.Misfit, match=f"BATCH_SIZE={size} is not a multiple of .*NPROC={processes}"):
            fit.fit([batch], processes, nodes, exact=True)
    else:
        assert fit.fit([batch], processes, nodes, exact=True).processes == processes


def check_launches(found: dict[str, list[str]], gpus: int) -> None:
    """What `orlhf_ext.launch.preflight` and OpenRLHF ask of each launcher's batch, and Ray of the number of GPUs."""
    for name, command in found.items():
        if "--train.batch_size" not in command:
            if command[0] == "torchrun":  # Jigsaw's classifier, whose batch is the sum over processes
                processes = int(following(command, "--nproc_per_node"))
                each = int(following(command, "--per_device_train_batch_size"))
                assert processes <= gpus and processes * each in (16, 32), name
            continue
        batch, micro = (int(following(command, f"--train.{size}_size")) for size in ("batch", "micro_batch"))
        if "train_ppo_ray" not in command:
            processes = int(following(command, "--nproc_per_node")) if command[0] == "torchrun" else 1
            assert processes <= max(gpus, 1) and batch % (micro * processes) == 0, name
            continue
        flags = ("actor.num_gpus_per_node", "vllm.num_engines", "vllm.tensor_parallel_size", "rollout.batch_size")
        train, engines, tp, prompts = (int(following(command, f"--{flag}")) for flag in flags)
        flags = ("rollout.n_samples_per_prompt", "rollout.micro_batch_size")
        samples, rollout_micro = (int(following(command, f"--{flag}")) for flag in flags)
        assert batch % (micro * train) == 0 and prompts * samples % batch == 0, name
        assert prompts * samples // rollout_micro >= train, name
        if "--train.colocate_all" in command:
            assert train == engines * tp <= gpus, name
        elif gpus:
            assert train + engines * tp <= gpus - ("hh_groups" in " ".join(command)), name


#: commands that several workers share
SHARED = (
    *(("generate",), ("score",), ("logprobs",), ("vrcli", "baseline"), ("vrcli", "score"), ("groups", "score")),
    *(("deadend", name) for name in ("continuations", "decode", "score")),
)


def check_workers(found: dict[str, list[str]], workers: int) -> int:
    """Every stage that can be shared is, by so many workers; returns the number of these stages."""
    shared = {
        stage: command
        for stage, command in found.items()
        if command[2] == "orlhf_ext" and any(command[3 : 3 + len(words)] == list(words) for words in SHARED)
    }
    for stage, command in shared.items():
        assert command.count("--workers") == (workers > 1), stage
        assert workers == 1 or following(command, "--workers") == str(workers), stage
        assert "--tensor_parallel_size" not in command, stage
    assert not any("--workers" in command for stage, command in found.items() if stage not in shared)
    return len(shared)


@pytest.mark.launcher
@pytest.mark.parametrize("gpus", range(1, 17))
def test_defaults_fit_every_number_of_gpus(gpus: int):
    for name in RECIPES:
        if name != "hh_dpo":
            for variables in ({}, {"PRESET": "paper"})[: 2 if name == "hh_groups" else 1]:
                found = dry(name, GPUS=str(gpus), **variables)
                check_launches(found, gpus)
                assert check_workers(found, gpus)


def test_workers_can_be_given():
    assert check_workers(dry("hh_exo", PROFILE="cpu", WORKERS="2"), 2) > 5
    assert check_workers(dry("jigsaw_rectify", GPUS="8", WORKERS="16"), 16) > 5
    # a service is asked by one process
    found = dry("jigsaw_rectify", GPUS="8", CLASSIFIER="perspective")
    assert "--workers" not in found["score/continuations"] and following(found["decode/plain"], "--workers") == "8"


@pytest.mark.launcher
@pytest.mark.parametrize("name", RECIPES)
def test_small_profiles_fit_any_machine(name: str):
    for profile in ("smoke", "cpu"):
        for gpus in (0, 1, 2, 3, 8, 16):
            check_launches(dry(name, PROFILE=profile, GPUS=str(gpus), PRESET="paper"), gpus)


def test_gpus_shows_another_machine():
    said = recipe_runs.finished("hh_exo", DRY_RUN="1", GPUS="6")
    shown = recipe_runs.commands(said)
    assert (
        following(shown["align/exo-rw"], "--nproc_per_node") == "4"
        and following(shown["align/exo-rw"], "--train.batch_size") == "128"
    )
    assert following(shown["sample_train"], "--workers") == "6"
    assert "# 4 of 6 possible processes train, so that batches keep their sizes" in said
    assert "profile cpu" in recipe_runs.finished("hh_exo", DRY_RUN="1", GPUS="0")
    # what the authors have is what is printed where it fits
    assert "possible processes" not in recipe_runs.finished("hh_exo", DRY_RUN="1", GPUS="4")


# --- the command line


def test_relative_paths_are_those_of_the_folder_that_a_recipe_is_called_from(tmp_path: Path):
    """Variables, words for stages, and traits; what is not there is left as it is: it may be a name on a hub."""
    for name in ("data", "model", "rm", "mine.yaml"):
        (tmp_path / name).mkdir()
    (tmp_path / "groups.yaml").write_text("groups: []")
    variables = {
        "HH_DATA": "data", "MODEL": "model", "RM_MODEL": "org/model", "GROUPS_FILE": "groups.yaml", "OUT": "out",
        "TRAITS": "a=rm b=conciseness:20", "RM_ARGS": "--x mine.yaml --y=rm --z 'no file'", "DRY_RUN": "1",
    }  # fmt: skip
    done = subprocess.run(
        ["bash", str(ROOT / "recipes" / "hh_groups.sh")],
        env=recipe_runs.environment(PROFILE="smoke", **variables), cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = recipe_runs.commands(done.stdout)
    assert found["data"][4] == f"{tmp_path}/data" and following(found["data"], "--tokenizer") == f"{tmp_path}/model"
    assert following(found["sft"], "--ckpt.output_dir") == f"{tmp_path}/out/sft"
    reward_model = found["rm/maxmin-prop0.1-seed42"]
    assert following(reward_model, "--model.model_name_or_path") == "org/model"
    assert reward_model[-5:] == ["--x", f"{tmp_path}/mine.yaml", f"--y={tmp_path}/rm", "--z", "no file"]
    words = found["score/pairs"]
    assert words[words.index("--trait") :] == ["--trait", f"a={tmp_path}/rm", "--trait", "b=conciseness:20"]
    assert following(found["policy/gold-seed42"], "--groups.config") == f"{tmp_path}/groups.yaml"


@pytest.mark.parametrize("name", [*RECIPES, "setup"])
def test_a_recipe_is_a_program(name: str):
    path = ROOT / "recipes" / f"{name}.sh"
    assert os.access(path, os.X_OK) and path.read_text().startswith("#!/usr/bin/env bash\n")


@pytest.mark.parametrize(("name", "word"), [*((name, "--help") for name in RECIPES), ("hh_exo", "-h")])
def test_help_shows_every_variable_and_runs_nothing(tmp_path: Path, name: str, word: str):
    said = recipe_runs.finished(name, [word], OUT=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists() and "# ---" not in said
    for variable in ("PROFILE", "DRY_RUN", "GPUS", "OUT"):
        assert f"\n  {variable}" in said or f", {variable}" in said, variable
    head = (ROOT / "recipes" / f"{name}.sh").read_text().splitlines()[1].removeprefix("# ")
    assert said.startswith(head)
    assert "`" not in said and " | " not in said
    variables = ", ".join(re.findall(r"^  ([A-Z_]+(?:, [A-Z_]+)*)(?: \[.*)?$", said, flags=re.M)).split(", ")
    assert len(variables) == len(set(variables)) > 15
    for variable, recipes in OF_SOME.items():
        assert (variable in variables) == (name in recipes), variable


def test_a_part_of_recipes_says_so():
    done = subprocess.run(["bash", ROOT / "recipes" / "common.sh", "--help"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        "recipe: error: common.sh is a part of recipes; run one of those that recipes/README.md lists\n"
    )


@pytest.mark.parametrize("word", ["--dry-run", "smoke", "PROFILE=smoke", "--helping", ""])
@pytest.mark.parametrize("name", RECIPES)
def test_any_other_argument_is_refused(name: str, word: str):
    line = refused(name, {}, words=[word])
    assert f"{word} is not known" in line
