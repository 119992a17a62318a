"""recipes/hh_groups.sh: what it prints, what it refuses, a whole run at smoke size, a grid, and upstream's settings."""

from __future__ import annotations

import csv
import functools
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import recipe_runs
from hub_server import TOKEN, contents, hub
from recipe_runs import check_flags, check_pages, commands, following, read, redone, skipped, weights

from orlhf_ext.extensions.releases import OPENRLHF_VERSION

finished = functools.partial(recipe_runs.finished, "hh_groups")
dry = functools.partial(recipe_runs.dry, "hh_groups")

RUN = "prop0.1-seed42-k16"
POLICIES = ["gold-seed42", "maxmin-prop0.1-seed42", "sharedrep-prop0.1-seed42-k16"]
SINGLE = "single-prop0.1-seed42"


def test_the_gpu_profile_has_the_papers_settings():
    """Those of PRESET=paper; equal differs where the two methods would not get the same chance."""
    found = dry(PROFILE="gpu", PRESET="paper", NPROC="1")
    policy = found["policy/sharedrep-prop0.1-seed42-k16"]
    wanted = {
        "--rollout.n_samples_per_prompt": "2", "--rollout.batch_size": "4", "--train.batch_size": "8",
        "--train.num_episodes": "2", "--rollout.max_new_tokens": "256", "--data.max_len": "768",
        "--actor.adam.lr": "1e-5", "--actor.lr_scheduler": "linear", "--actor.lr_warmup_ratio": "0",
        "--algo.kl.init_coef": "0.05", "--algo.kl.estimator": "k3", "--algo.advantage.estimator": "group_norm",
        "--groups.kind": "group_rm", "--groups.aggregate": "min",
    }  # fmt: skip
    assert {flag: following(policy, flag) for flag in wanted} == wanted and "--algo.kl.use_loss" in policy
    shared = found["rm/sharedrep-prop0.1-seed42-k16"]
    assert [following(shared, f"--{flag}") for flag in ("adam.lr", "train.max_epochs", "groups.squash")] == [
        "5e-4", "3", "tanh",
    ]  # fmt: skip
    assert following(shared, "--model.model_name_or_path") == "gpt2-large"
    twice = [found[f"rm/maxmin-prop0.1-seed42-minority{part}"] for part in ("-first", "")]
    for command in twice:
        assert [following(command, f"--{flag}") for flag in ("adam.lr", "groups.only", "groups.squash")] == [
            "5e-5", "minority", "identity",
        ]  # fmt: skip
    assert following(twice[1], "--model.model_name_or_path") == following(twice[0], "--ckpt.output_dir")
    assert "merge" in found["rm/maxmin-prop0.1-seed42"]
    assert {following(found[f"rm/{name}"], "--groups.eos") for name in POLICIES[2:]} == {"none"}

    equal = dry(PROFILE="gpu")
    pair = [equal[f"rm/{name}"] for name in POLICIES[1:]]
    same = ("--adam.lr", "--train.max_epochs", "--groups.squash", "--train.batch_size", "--lr_scheduler")
    assert [following(pair[0], flag) for flag in same] == [following(pair[1], flag) for flag in same]
    assert [following(command, "--groups.head") for command in pair] == ["independent", "shared"]


def test_a_grid_shares_what_it_can():
    found = dry(PROFILE="smoke", PROPORTIONS="0.05 .2", KS="2 16", SEEDS="1 2")
    count = {kind: sum(stage.startswith(kind) for stage in found) for kind in ("sft", "sample/pairs", "pairs/", "grid")}
    assert count == {"sft": 1, "sample/pairs": 1, "pairs/": 4, "grid": 1}
    for prefix, wanted in {
        "rm/single": 4,
        "rm/maxmin": 4,
        "rm/sharedrep": 8,
        "policy/gold": 2,
        "policy/": 18,
        "evaluate/": 8,
    }.items():
        assert sum(stage.startswith(prefix) for stage in found) == wanted, prefix
    assert following(found["pairs/prop.2-seed2"], "--proportion") == ".2"
    assert len([word for word in found["grid"] if word.endswith("summary.json")]) == 8


def test_the_control_knows_no_groups():
    """One score for all pairs: the same pairs, training and RL as maxmin's, and no file of groups to agree with."""
    found = dry(PROFILE="smoke")
    single, maxmin = found[f"rm/{SINGLE}"], found[f"rm/{POLICIES[1]}"]
    assert (following(single, "--groups.head"), following(maxmin, "--groups.head")) == ("single", "independent")
    renamed = [word.replace("single", "maxmin") for word in single]
    assert [word.replace("independent", "maxmin") for word in maxmin] == renamed
    assert "--groups.config" in found[f"policy/{POLICIES[1]}"] and "--groups.config" not in found[f"policy/{SINGLE}"]
    assert {stage for stage in dry(PROFILE="smoke", METHOD="single") if stage.startswith("policy/")} == {
        f"policy/{POLICIES[0]}", f"policy/{SINGLE}",
    }  # fmt: skip


def test_one_method_also_trains_gold():
    found = dry(PROFILE="smoke", METHOD="maxmin")
    assert {stage for stage in found if stage.startswith("policy/")} == {f"policy/{name}" for name in POLICIES[:2]}
    assert "evaluate/prop0.1-seed42" in found
    gold = dry(PROFILE="smoke", METHOD="gold")
    assert not any(stage.startswith(("rm/", "pairs/")) for stage in gold)
    least = dry(PROFILE="smoke", METHOD="gold", AGGREGATE="batch-min")["policy/gold-seed42"]
    assert following(least, "--ext.use") == following(least, "--groups.aggregate") == "batch-min"


def test_styles_and_extra_words():
    for style, format in {"hh": "hh", "chat": "template", "legacy": "legacy"}.items():
        found = dry(PROFILE="smoke", STYLE=style, RM_ARGS="--groups.weighting balanced", TRAIT_ARGS="--eos append")
        assert following(found["data"], "--format") == format
        assert following(found["pairs/prop0.1-seed42"], "--style") == style
        assert found[f"rm/{POLICIES[1]}"][-2:] == ["--groups.weighting", "balanced"]
        assert found["score/pairs"][-2:] == ["--eos", "append"]


def test_a_dry_run_shows_what_would_go_to_the_hub():
    """The models that are to be used, and the data; not the heads that are merged, nor a model that was given."""
    found = dry(PROFILE="smoke", PRESET="paper", METHOD="maxmin", PUSH_TO_HUB="me/hh", OUT="/x")
    pushed = {name.removeprefix("push/"): command for name, command in found.items() if name.startswith("push/")}
    assert set(pushed) == {
        "sft", "raw", "pairs/prop0.1-seed42", "rm/maxmin-prop0.1-seed42", "policy/gold-seed42",
        "policy/maxmin-prop0.1-seed42", "eval/sft", "eval/gold-seed42", "eval/maxmin-prop0.1-seed42",
    }  # fmt: skip
    for name, command in pushed.items():
        assert command[:3] == ["hf", "upload", f"me/hh-{name.replace('/', '-')}"] and "--private" in command
        assert command[3].startswith("/x/") and "*" not in command[3]
    assert pushed["rm/maxmin-prop0.1-seed42"][3] == "/x/rm/maxmin-prop0.1-seed42"
    assert pushed["raw"][3:] == [
        "/x/samples", ".", "--include", "pairs_scored.jsonl", "--include", "pairs_scored.meta.json", "--repo-type",
        "dataset", "--private",
    ]  # fmt: skip
    assert "push/sft" not in dry(PROFILE="smoke", SFT_MODEL="my/sft", PUSH_TO_HUB="me/hh")


@pytest.mark.launcher
def test_what_is_pushed_arrives(tmp_path: Path):
    """The commands that a dry run prints, typed in; of a folder with other files, the data and their sidecars alone."""
    out = tmp_path / "out"
    found = dry(PROFILE="smoke", METHOD="maxmin", PUSH_TO_HUB="me/hh", OUT=str(out))
    files = {
        "sft/config.json", "sft/model.safetensors", "samples/pairs_scored.jsonl", "samples/pairs_scored.meta.json",
        "samples/pairs.jsonl", "pairs/prop0.1-seed42/train.jsonl", "pairs/prop0.1-seed42/train.meta.json",
        "pairs/prop0.1-seed42/test.jsonl", "samples/pairs_scored.jsonl.stage.json",
    }  # fmt: skip
    for name in files:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(name)
    with hub() as server:
        for name in ("sft", "raw", "pairs/prop0.1-seed42"):
            environment = {**os.environ, **server.environment}
            done = subprocess.run(found[f"push/{name}"], env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
    arrived = {name: (one.kind, one.private, set(one.files)) for name, one in server.repositories.items()}
    assert arrived == {
        "me/hh-sft": ("model", True, {"config.json", "model.safetensors"}),
        "me/hh-raw": ("dataset", True, {"pairs_scored.jsonl", "pairs_scored.meta.json"}),
        "me/hh-pairs-prop0.1-seed42": ("dataset", True, {"train.jsonl", "train.meta.json", "test.jsonl"}),
    }


def test_all_of_the_hubs_folders_are_the_papers_data():
    assert following(dry(GPUS="2")["data"], "--data_dir") == "all"
    assert following(dry(GPUS="2", HH_FOLDER="harmless-base")["data"], "--data_dir") == "harmless-base"
    own = dry(GPUS="2", HH_DATA="/my/hh")["data"]
    assert "--data_dir" not in own and "--cut" in own and "--cut" not in dry(GPUS="2", LONG_ROWS="drop")["data"]
    assert not {"--cut", "--data_dir"} & set(dry(PROFILE="cpu")["data"])


def test_its_page_has_every_variable_and_stage():
    check_pages("hh_groups", ["model", "data", "prompts", "sft", "sample/pairs", "score/pairs", "grid"])


@pytest.mark.launcher
def test_every_flag_of_every_command_exists():
    variables = (
        {"PROFILE": "smoke"},
        {"PROFILE": "gpu", "PRESET": "paper", "RAY_ADDRESS": "auto"},
        {"AGGREGATE": "batch-min"},
    )
    found = [c for extra in variables for c in dry(**extra, PROPORTIONS="0.1 0.2", WANDB_API_KEY="x").values()]
    assert check_flags(found) >= 11


def check_summary(summary: dict[str, Any], stages: dict[str, list[str]], method: str, *trained: str) -> None:
    assert (summary["recipe"], summary["profile"], summary["seed"]) == ("hh_groups", "smoke", 42)
    assert (summary["proportion"], summary["method"]) == (0.1, method)
    assert set(summary["metrics"]) == {"sft", "gold", *trained}
    for method, metrics in summary["metrics"].items():
        for group in ("minority", "majority"):
            found = metrics[group]
            assert {"gold_mean", "gold_se", "win_rate_vs_gold", "win_rate_vs_sft"} <= set(found)
            assert 0 <= found["win_rate_vs_gold"] <= 1 and found["gold_se"] >= 0
            if method in ("gold", "sft"):
                assert found[f"win_rate_vs_{method}"] == 0.5
        assert metrics["worst_group"] == min(metrics[group]["gold_mean"] for group in ("minority", "majority"))
    assert set(summary["seconds"]) == set(stages) and summary["prompts"] == 8
    assert summary["versions"]["openrlhf"] == OPENRLHF_VERSION


@pytest.mark.recipe
def test_one_method_from_prompts_to_the_table(tmp_path: Path):
    from orlhf_ext.models.head_settings import read_settings

    out = tmp_path / "out"
    output = finished(PROFILE="smoke", OUT=str(out), METHOD="maxmin")
    check_summary(read(out / "summary.json"), commands(output), "maxmin", "maxmin")
    settings = read_settings(out / "rm" / POLICIES[1], "--model")
    assert (settings.head, settings.names) == ("independent", ["minority", "majority"])
    assert len({weights(out / "policy" / name) for name in POLICIES[:2]} | {weights(out / "sft")}) == 3


@pytest.mark.slow
@pytest.mark.recipe
def test_all_methods_from_prompts_to_the_table(tmp_path: Path):
    from orlhf_ext.models.head_settings import read_settings

    out = tmp_path / "out"
    output = finished(PROFILE="smoke", OUT=str(out))
    stages = commands(output)
    check_summary(read(out / "summary.json"), stages, "all", "single", "maxmin", "sharedrep")
    assert read(out / "summary.json")["k"] == 16
    assert read(out / "runs" / RUN / "summary.json") == read(out / "summary.json")
    rows = list(csv.DictReader((out / "runs" / RUN / "summary.csv").open()))
    methods = ("sft", "gold", "single", "maxmin", "sharedrep")
    assert [row["method"] for row in rows] == [method for method in methods for _ in range(2)]
    assert set(read(out / "summary.json")["worst_group_gains"]["maxmin"]) == set(methods) - {"maxmin"}
    assert read_settings(out / "rm" / SINGLE, "--model").names == ["all"]
    settings = {name: read_settings(out / "rm" / name, "--model") for name in POLICIES[1:]}
    assert [one.head for one in settings.values()] == ["independent", "shared"]
    assert all(one.style == "hh" and one.names == ["minority", "majority"] for one in settings.values())
    assert len({weights(out / "policy" / name) for name in (*POLICIES, SINGLE)} | {weights(out / "sft")}) == 5
    # the second reward model finds all of its texts' hidden states
    log = (out / "logs" / "rm_sharedrep-prop0.1-seed42-k16.log").read_text()
    assert " 0 computed" in log

    with hub() as server:
        again = finished(PROFILE="smoke", OUT=str(out), PUSH_TO_HUB="me/hh", **server.environment)
    folders = {f"{path.parent.name}-{path.name}": path for kind in ("rm", "policy") for path in (out / kind).glob("*/")}
    assert len(folders) == 7
    folders["sft"] = out / "sft"
    sets = {"raw": ["samples/pairs_scored"], f"pairs-{POLICIES[1].removeprefix('maxmin-')}": []}
    sets[f"pairs-{POLICIES[1].removeprefix('maxmin-')}"] = [
        f"pairs/prop0.1-seed42/{split}" for split in ("train", "test")
    ]
    sets |= {f"eval-{name}": [f"samples/test/{name}_scored"] for name in ("sft", SINGLE, *POLICIES)}
    assert set(server.repositories) == {f"me/hh-{name}" for name in (*folders, *sets)}
    assert all(repository.private for repository in server.repositories.values())
    for name, folder in folders.items():
        found = server.repositories[f"me/hh-{name}"]
        assert found.kind == "model" and found.files == contents(folder), name
    for name, stems in sets.items():
        found = server.repositories[f"me/hh-{name}"]
        files = [out / f"{stem}{suffix}" for stem in stems for suffix in (".jsonl", ".meta.json")]
        assert found.kind == "dataset" and found.files == {file.name: file.read_bytes() for file in files}, name
    pushed = {f"push/{name.replace('-', '/', 1)}" for name in (*folders, *sets)}
    assert redone(again) == {f"evaluate/{RUN}"} | pushed and TOKEN not in again
    assert skipped(again) == set(stages) - {f"evaluate/{RUN}"}


@pytest.mark.slow
@pytest.mark.recipe
def test_a_grid_and_upstreams_settings(tmp_path: Path):
    """A grid of two seeds ends in one table, PRESET=paper merges the heads of two groups; batch-min, another style."""
    out = tmp_path / "out"
    output = finished(
        PROFILE="smoke", OUT=str(out), METHOD="maxmin", SEEDS="42 7", PRESET="paper", NUM_PROMPTS="40", PROPORTION="0.4"
    )
    grid = read(out / "grid.json")
    assert grid["runs"] == 2 and {row["method"] for row in grid["rows"]} == {"sft", "gold", "maxmin"}
    assert all(row["seeds"] == [42, 7] and row["k"] is None for row in grid["rows"])
    assert "the grid:" in output
    heads = [weights(out / "rm" / f"maxmin-prop0.4-seed42{part}") for part in ("", "-minority", "-majority")]
    assert len(set(heads)) == 3

    chat = finished(
        PROFILE="smoke", OUT=str(tmp_path / "chat"), METHOD="sharedrep", STYLE="chat", AGGREGATE="batch-min",
        GROUPS_FILE="recipes/groups/words.yaml", SHARE_PROMPTS="1",
    )  # fmt: skip
    assert "RemoteExperienceMaker is now orlhf_ext.groups.experience:WorstGroup" in chat
    summary = read(tmp_path / "chat" / "summary.json")
    assert set(summary["metrics"]) == {"sft", "gold", "sharedrep"} and summary["style"] == "chat"
