"""Recipes with variables and words that cannot work: one sentence, before set-up and any stage."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from helpers import ROOT
from recipe_runs import asked, called, load, variable_names

BTRM, GENRM = "litbench_btrm", "litbench_genrm"
#: recipe -> variables, and what the sentence has of them
WRONG: dict[str, list[tuple[dict[str, str], list[str]]]] = {
    "hh_exo": [
        ({"PROFILE": "tpu"}, ["PROFILE=tpu", "smoke cpu gpu"]),
        ({"LOSS": "ppo"}, ["LOSS=ppo", "exo-rw exo-pref dpo-rw dpo-pref"]),
        ({"PROMPT_FORMAT": "xml"}, ["PROMPT_FORMAT=xml", "hh chat"]),
        ({"NUM_COMPLETIONS": "3", "NUM_CONTRASTIVE": "2"}, ["NUM_COMPLETIONS=3", "NUM_CONTRASTIVE=2"]),
        ({"NUM_CHECKPOINTS": "0"}, ["NUM_CHECKPOINTS=0"]),
        ({"TRAIN_PROMPTS": "many"}, ["TRAIN_PROMPTS=many"]),
        ({"TRAIN_PROMPTS": "4"}, ["4 records", "BATCH_SIZE=8", "TRAIN_PROMPTS"]),
        ({"NPROC": "3"}, ["BATCH_SIZE=8", "NPROC=3"]),
        ({"SEED": "x"}, ["SEED=x"]),
        ({"SFT_MODEL": "my/sft", "SFT_ARGS": "--adam.lr 1"}, ["SFT_ARGS has no effect"]),
        ({"REWARD_MODEL": "my/rm", "RM_ARGS": "--adam.lr 1"}, ["RM_ARGS has no effect"]),
        ({"MAX_NEW_TOKENS": "400"}, ["MAX_NEW_TOKENS=400", "MAX_LEN"]),
        ({"ALIGN_ARGS": "--logger.wandb.project 'half a quote"}, ["ALIGN_ARGS"]),
        ({"PROFILE": "GPU"}, ["PROFILE=GPU"]),
        ({"DRY_RUN": "yes"}, ["DRY_RUN=yes", "0 1"]),
        ({"SEED": "-1"}, ["SEED=-1"]),
        ({"SEED": "1.5"}, ["SEED=1.5"]),
        ({"SEED": "99999999999999999999"}, ["SEED=9", "too large"]),
        ({"GPUS": "two"}, ["GPUS=two"]),
        ({"GPUS": "-1"}, ["GPUS=-1"]),
        ({"GPUS": "08"}, ["GPUS=08"]),
        ({"GPUS": "4", "DRY_RUN": "0"}, ["GPUS=4 is for DRY_RUN=1", "CUDA_VISIBLE_DEVICES"]),
        ({"NPROC": "0"}, ["NPROC=0"]),
        ({"NPROC": "2 4"}, ["NPROC=2 4"]),
        ({"GPUS": "8", "NPROC": "6", "PROFILE": "gpu"}, ["BATCH_SIZE=128", "6 training processes of NPROC=6"]),
        ({"BATCH_SIZE": "1e2"}, ["BATCH_SIZE=1e2"]),
        ({"BATCH_SIZE": "99999999999999999999"}, ["BATCH_SIZE=9", "too large"]),
        ({"MICRO_BATCH_SIZE": "0"}, ["MICRO_BATCH_SIZE=0"]),
        ({"TEST_PROMPTS": "0"}, ["TEST_PROMPTS=0"]),
        ({"TEST_PROMPTS": "some"}, ["TEST_PROMPTS=some", "at least 1, or all"]),
        ({"ALIGN_PROMPTS": "-5"}, ["ALIGN_PROMPTS=-5"]),
        ({"LONG_ROWS": "keep"}, ["LONG_ROWS=keep", "cut drop"]),
        ({"NUM_CONTRASTIVE": "1"}, ["NUM_CONTRASTIVE=1", "at least 2"]),
        ({"LOSS": "exo-pref", "NUM_CONTRASTIVE": "4"}, ["NUM_CONTRASTIVE=4", "two completions"]),
        ({"ROUNDS": "0"}, ["ROUNDS=0"]),
        ({"ROUNDS": "2", "ROUND_REFERENCE": "first"}, ["ROUND_REFERENCE=first", "sft last"]),
        ({"ROUNDS": "2", "LOSS": "exo-pref"}, ["ROUNDS=2", "LOSS=exo-pref learns from the human pairs"]),
        ({"ROUNDS": "2", "ALIGN_DATA": "a.jsonl"}, ["ROUNDS=2", "ALIGN_DATA is sampled already"]),
        ({"ROUNDS": "2", "NUM_CHECKPOINTS": "2"}, ["NUM_CHECKPOINTS has no effect with ROUNDS=2"]),
        ({"ROUND_REFERENCE": "last"}, ["ROUND_REFERENCE has no effect on a single round"]),
        ({"PUSH_TO_HUB": "me/exo"}, ["PUSH_TO_HUB has no effect on hh_exo"]),
        ({"SFT_ARGS": 'a "b'}, ["SFT_ARGS", "open quote"]),
    ],
    "hh_groups": [
        ({"METHOD": "shared"}, ["METHOD=shared", "all gold single maxmin sharedrep"]),
        ({"STYLE": "plain"}, ["STYLE=plain", "hh chat legacy"]),
        ({"PRESET": "fair"}, ["PRESET=fair"]),
        ({"K": "0"}, ["K=0"]),
        ({"PROPORTION": "1.5"}, ["PROPORTIONS=1.5", "between 0 and 1"]),
        ({"PROPORTION": "0.0"}, ["PROPORTIONS=0.0", "between 0 and 1"]),
        ({"PROPORTIONS": "0.1 a"}, ["PROPORTIONS=0.1 a", "a is not"]),
        ({"SEEDS": "1 x"}, ["SEEDS=1 x", "x is not"]),
        ({"KS": " "}, ["KS names at least one value"]),
        ({"METHOD": "gold", "PROPORTIONS": "0.1 0.2"}, ["METHOD=gold has no proportion to vary"]),
        ({"SAMPLES": "1"}, ["SAMPLES=1"]),
        ({"ROLLOUT_BATCH": "3"}, ["ROLLOUT_BATCH=3", "BATCH_SIZE=16"]),
        ({"MAX_NEW_TOKENS": "320"}, ["MAX_NEW_TOKENS=320"]),
        ({"SFT_MODEL": "models/tiny", "SFT_ARGS": "--x"}, ["SFT_ARGS"]),
        ({"AGGREGATE": "max"}, ["AGGREGATE=max"]),
        ({"PROPORTION": "-0.1"}, ["PROPORTIONS=-0.1"]),
        ({"PROPORTION": "0.1;ls"}, ["PROPORTIONS=0.1;ls"]),
        ({"KS": "2 0"}, ["KS=2 0", "at least 1", "0 is not"]),
        ({"SEEDS": "1 -2"}, ["-2 is not"]),
        ({"SEEDS": "12345678901"}, ["12345678901 is not"]),
        ({"GROUPS_FILE": "/gone.yaml"}, ["GROUPS_FILE=/gone.yaml does not exist"]),
        ({"TRAITS": " "}, ["TRAITS names at least one trait"]),
        ({"TRAITS": "positiveness conciseness:20"}, ["TRAITS=", "positiveness is not"]),
        ({"ENGINES": "0"}, ["ENGINES=0"]),
        ({"NPROC": "3"}, ["RM_BATCH_SIZE=8", "NPROC=3"]),
        ({"GPUS": "4", "PROFILE": "gpu", "ENGINES": "3"}, ["NPROC=1 and ENGINES=3", "there are 3"]),
        ({"SHARE_PROMPTS": "yes"}, ["SHARE_PROMPTS=yes"]),
        ({"PUSH_TO_HUB": "me"}, ["PUSH_TO_HUB=me", "OWNER/PREFIX"]),
        ({"PUSH_TO_HUB": "me/a b"}, ["PUSH_TO_HUB=me/a b"]),
        ({"PUSH_TO_HUB": "me/../x"}, ["PUSH_TO_HUB=me/../x"]),
    ],
    "jigsaw_rectify": [
        ({"MODE": "least"}, ["MODE=least", "most sample all"]),
        ({"SHOW": "yes"}, ["SHOW=yes"]),
        ({"EPSILONS": "0.1 high"}, ["EPSILONS", "high is not"]),
        ({"EPSILONS": "1.5"}, ["EPSILONS", "1.5 is not"]),
        ({"EPSILONS": " "}, ["EPSILONS names at least one value"]),
        ({"NUM_RETURNS": "0"}, ["NUM_RETURNS=0"]),
        ({"PROMPT_DROP_RATE": "2"}, ["PROMPT_DROP_RATE=2"]),
        ({"NUM_EVAL": "40"}, ["NUM_EVAL=40", "NUM_PROMPTS=40"]),
        ({"EXAMPLES": "-1"}, ["EXAMPLES=-1"]),
        ({"CLASSIFIER": "a:b", "CLASSIFIER_ARGS": "--x"}, ["CLASSIFIER_ARGS"]),
        ({"NPROC": "3"}, ["NPROC=3"]),
        ({"Q_ARGS": "'open"}, ["Q_ARGS", "open quote"]),
        ({"EPSILONS": "-0.1"}, ["EPSILONS", "-0.1 is not"]),
        ({"COMMENT_DROP_RATE": "half"}, ["COMMENT_DROP_RATE=half"]),
        ({"CLASSIFIER_BATCH": "5", "NPROC": "2"}, ["CLASSIFIER_BATCH=5", "NPROC=2"]),
        ({"NUM_COMMENTS": "0"}, ["NUM_COMMENTS=0"]),
        ({"PROMPT_TOKENS": "x"}, ["PROMPT_TOKENS=x"]),
    ],
    "ncp_vrcli": [
        ({"SYSTEM": "off"}, ["SYSTEM=off", "keep drop merge"]),
        ({"SAMPLES": "1"}, ["SAMPLES=1", "at least 2"]),
        ({"TRAIN_PROMPTS": "many"}, ["TRAIN_PROMPTS=many"]),
        ({"CONTEXT_WORDS": "0"}, ["CONTEXT_WORDS=0"]),
        ({"MAX_NEW_TOKENS": "1400"}, ["MAX_NEW_TOKENS=1400", "MAX_LEN=1400"]),
        ({"ROLLOUT_BATCH": "3"}, ["ROLLOUT_BATCH=3", "SAMPLES=4", "BATCH_SIZE=16"]),
        ({"NPROC": "3"}, ["BATCH_SIZE=16", "3 training processes"]),
        ({"PROFILE": "gpu", "TP": "0"}, ["TP=0"]),
        ({"NUM_NODES": "2", "BATCH_SIZE": "32"}, ["NUM_NODES=2", "RAY_ADDRESS"]),
        ({"RL_ARGS": "--logger.wandb.project 'half a quote"}, ["RL_ARGS"]),
        ({"EVAL_STEPS": "0"}, ["EVAL_STEPS=0"]),
        ({"NUM_NODES": "x"}, ["NUM_NODES=x"]),
        ({"RAY_ADDRESS": "auto", "NUM_NODES": "3"}, ["BATCH_SIZE=16", "NUM_NODES=3"]),
        ({"GPUS": "2", "PROFILE": "gpu", "ENGINES": "2", "TP": "2"}, ["ENGINES=2 x TP=2", "there are 2"]),
        ({"REWARD_ARGS": "'open"}, ["REWARD_ARGS", "open quote"]),
        ({"PUSH_TO_HUB": "me/ncp"}, ["PUSH_TO_HUB has no effect on ncp_vrcli"]),
    ],
}
#: recipe, variables, words of the command line, and what the sentence has of them
WRONG_WORDS: list[tuple[str, dict[str, str], list[str], list[str]]] = [
    (BTRM, {"WITH_PROMPT": "yes"}, [], ["WITH_PROMPT=yes", "0 1"]),
    (BTRM, {"NEW": "2"}, [], ["NEW=2"]),
    (BTRM, {"LEARNING_RATE": "fast"}, [], ["LEARNING_RATE=fast"]),
    (BTRM, {"TARGET_BATCH_SIZE": "0"}, [], ["TARGET_BATCH_SIZE=0"]),
    (BTRM, {}, ["--epochs", "many"], ["EPOCHS=many"]),
    (BTRM, {}, ["--epochs"], ["--epochs: expected one argument"]),
    (BTRM, {}, ["--use_cot"], ["--use_cot has no effect on a Bradley-Terry model; leave it out"]),
    (BTRM, {}, ["--batch", "3"], ["--batch is not known", "--learning_rate"]),
    (BTRM, {"OUT": "/a", "OUTPUT_DIR": "/b"}, [], ["OUTPUT_DIR=/b", "OUT=/a"]),
    (BTRM, {"TRAIN_ARGS": "'open"}, [], ["TRAIN_ARGS", "open quote"]),
    (GENRM, {"STYLE": "plain"}, [], ["STYLE=plain", "marker chat"]),
    (GENRM, {"USE_COT": "true"}, [], ["USE_COT=true"]),
    (BTRM, {"LEARNING_RATE": "..."}, [], ["LEARNING_RATE=..."]),
    (BTRM, {"LEARNING_RATE": "0.0"}, [], ["LEARNING_RATE=0.0"]),
    (BTRM, {"LEARNING_RATE": "1e"}, [], ["LEARNING_RATE=1e"]),
    (BTRM, {"SAVE_STEPS": "0"}, [], ["SAVE_STEPS=0"]),
    (BTRM, {}, ["--max_length=long"], ["MAX_LEN=long"]),
    (GENRM, {}, ["--learning_rate", "-1"], ["LEARNING_RATE=-1"]),
    (GENRM, {}, ["8"], ["8 is not known"]),
    (GENRM, {"ALLOW_TRAIN_HOLDOUT": "maybe"}, [], ["ALLOW_TRAIN_HOLDOUT=maybe"]),
    ("hh_exo", {}, ["--dry-run"], ["--dry-run is not known", "--help"]),
    ("hh_groups", {}, ["K=2"], ["K=2 is not known", "NAME=VALUE"]),
    ("ncp_vrcli", {}, [""], ["is not known"]),
    ("jigsaw_rectify", {"PROFILE": "tpu"}, ["smoke"], ["smoke is not known"]),
]


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of the variables that a user may have set for a run."""
    for name in variable_names():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ORLHF_EXT_PYTHON", sys.executable)


def sentence(told: list[str]) -> str:
    """One sentence, and above it comments alone."""
    return r"(?m)\A(?:# .*\n)*recipe: error: " + "".join(f"(?=.*{re.escape(word)})" for word in told) + r".*\n\Z"


def refused(fault, recipe: str, variables: dict[str, str], words: list[str], told: list[str]) -> None:
    """The recipe ends with one sentence that has all of ``told``, and leaves no file."""
    command = ["bash", str(ROOT / "recipes" / f"{recipe}.sh"), *words]
    fault.run(command, says=sentence(told), **{"PROFILE": "smoke", "DRY_RUN": "1", **variables})


def refused_here(fault, recipe: str, variables: dict[str, str], words: list[str], told: list[str]) -> None:
    """The same, from what the recipe asks of settings.py: a tenth of the time."""
    variables = {"PROFILE": "smoke", "DRY_RUN": "1", **variables}
    given = asked(recipe, words=words, **variables)
    with called(**variables):
        fault.main(load("settings").main, *given, says=sentence(told))


@pytest.mark.parametrize("recipe", WRONG)
def test_a_wrong_variable_ends_the_whole_recipe(fault, recipe: str) -> None:
    refused(fault, recipe, WRONG[recipe][0][0], [], WRONG[recipe][0][1])


@pytest.mark.parametrize(
    ("recipe", "variables", "told"), [(recipe, *case) for recipe, cases in WRONG.items() for case in cases]
)
def test_a_wrong_variable(fault, recipe: str, variables: dict[str, str], told: list[str]) -> None:
    refused_here(fault, recipe, variables, [], told)


@pytest.mark.parametrize("recipe", [BTRM, GENRM])
def test_a_wrong_word_ends_the_whole_recipe(fault, recipe: str) -> None:
    refused(fault, recipe, {}, ["--batch", "3"], ["--batch is not known"])


@pytest.mark.parametrize(("recipe", "variables", "words", "told"), WRONG_WORDS)
def test_a_wrong_word(fault, recipe: str, variables: dict[str, str], words: list[str], told: list[str]) -> None:
    refused_here(fault, recipe, variables, words, told)


def test_a_file_without_groups(fault) -> None:
    variables = {"GROUPS_FILE": "recipes/README.md", "PRESET": "paper"}
    refused(fault, "hh_groups", variables, [], ["GROUPS_FILE=recipes/README.md has no groups"])


def test_fewer_rows_than_a_step_has(fault) -> None:
    """What is known when the data are there; a dry run takes the size of the paper's."""
    command = ["bash", str(ROOT / "recipes" / f"{GENRM}.sh")]
    variables = {"PROFILE": "smoke", "DRY_RUN": "1", "TARGET_BATCH_SIZE": "50000"}
    fault.run(command, says=r"(?m)^recipe: error: .*fewer than the 50000 of one step.*\n\Z", **variables)


@pytest.mark.launcher
def test_what_only_a_real_run_finds(fault, tmp_path: Path) -> None:
    """A model that is not there is found before the trainings that come first; so is a folder that cannot be made."""
    gone = str(tmp_path / "gone")
    out = str(tmp_path / "out")
    for recipe, name in (("hh_exo", "SFT_MODEL"), ("hh_exo", "ALIGN_DATA"), ("hh_groups", "RM_MODEL")):
        refused(fault, recipe, {"DRY_RUN": "0", "OUT": out, name: gone}, [], [f"{name}={gone} does not exist"])
    (tmp_path / "file").write_text("mine")
    refused(fault, "hh_exo", {"DRY_RUN": "0", "OUT": str(tmp_path / "file")}, [], ["file cannot be made"])
    hub = {"PUSH_TO_HUB": "me/x", "HF_HOME": str(tmp_path / "hub"), "HF_TOKEN": ""}
    refused(fault, "hh_groups", {"DRY_RUN": "0", "OUT": out, **hub}, [], ["needs a token of the hub", "HF_TOKEN"])
