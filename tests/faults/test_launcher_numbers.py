"""Numbers of OpenRLHF's own flags that make no sense, and outputs and data that are of another kind."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orlhf_ext.launch.number_ranges import check_numbers


def nested(flag: str, value: object) -> SimpleNamespace:
    """Arguments with one flag."""
    found: object = value
    for part in reversed(flag.split(".")):
        found = SimpleNamespace(**{part: found})
    assert isinstance(found, SimpleNamespace)
    return found


@pytest.mark.parametrize(
    ("flag", "value", "says"),
    [
        ("train.batch_size", 0, "0 is too small; give at least 1"),
        ("train.micro_batch_size", -2, "-2 is too small; give at least 1"),
        ("train.max_epochs", 0, "0 is too small"),
        ("train.seed", -1, "-1 is too small; give at least 0"),
        ("train.num_episodes", 0, "0 is too small"),
        ("data.max_len", 1, "1 is too small; give at least 2"),
        ("data.max_samples", 0, "0 is too small"),
        ("adam.lr", float("nan"), "nan is not a finite number"),
        ("adam.lr", -1e-5, "-1e-05 is too small"),
        ("adam.betas", [0.9, 1.0], "1 is too large; give less than 1"),
        ("actor.adam.lr", float("inf"), "inf is not a finite number"),
        ("lr_warmup_ratio", 3.0, "3 is too large; give at most 1"),
        ("max_norm", float("nan"), "nan is not a finite number"),
        ("model.beta", 0.0, "0 is too small; give more than 0"),
        ("model.label_smoothing", 0.7, "0.7 is too large; give less than 0.5"),
        ("rollout.temperature", float("nan"), "nan is not a finite number"),
        ("rollout.top_p", 0.0, "0 is too small; give more than 0"),
        ("rollout.n_samples_per_prompt", 0, "0 is too small"),
        ("algo.kl.init_coef", float("nan"), "nan is not a finite number"),
        ("vllm.gpu_memory_utilization", 1.5, "1.5 is too large; give at most 1"),
        ("vllm.num_engines", 0, "0 is too small"),
        ("ckpt.save_steps", 0, "0 is too small; give at least 1, or -1"),
        ("eval.steps", -3, "-3 is too small; give at least 1, or -1"),
        ("ds.zero_stage", 4, "4 is too large; give at most 3"),
        ("ds.lora.rank", -1, "-1 is too small; give at least 0"),
        ("ds.lora.dropout", 1.0, "1 is too large; give less than 1"),
        ("reward.clip_range", (-10.0, float("nan")), "nan is not a finite number"),
        ("port", 70000, "70000 is too large; give at most 65535"),
    ],
)
def test_numbers(fault: Any, flag: str, value: object, says: str) -> None:
    fault.call(check_numbers, nested(flag, value), says=rf"^--{flag} {says}")


def test_numbers_that_mean_never() -> None:
    for flag, value in (
        ("ckpt.save_steps", -1),
        ("eval.steps", -1),
        ("ckpt.max_mem", float("inf")),
        ("local_rank", -1),
    ):
        check_numbers(nested(flag, value))


def test_a_folder_without_data(fault: Any, tmp_path: Path) -> None:
    from orlhf_ext.files.sources import count_rows

    (tmp_path / "empty").mkdir()
    fault.call(count_rows, "--data.dataset", str(tmp_path / "empty"), says="is a folder without a data set; name a")


@pytest.mark.parametrize(
    "name", ["data/x/y/train.jsonl", "train.tsv", "train.txt"], ids=lambda name: name.replace("/", "_")
)
def test_folders_that_datasets_reads(tmp_path: Path, name: str) -> None:
    from orlhf_ext.files.sources import count_rows

    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
    assert count_rows("--data.dataset", str(tmp_path)) is None


@pytest.mark.parametrize("launcher", ["train_sft", "train_rm", "train_dpo", "train_ppo_ray"])
@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_the_split_of_a_file(fault: Any, tmp_path: Path, launcher: str, suffix: str) -> None:
    from orlhf_ext.launch.preflight import check_arguments

    (tmp_path / f"x.{suffix}").touch()
    args = nested("eval.split", "test")
    args.eval.dataset = str(tmp_path / f"x.{suffix}")
    args.actor = args.model = SimpleNamespace(model_name_or_path="org/model")
    says = rf"^--eval.split test: --eval.dataset \S+x.{suffix} is a file, .*; add --eval.split train$"
    fault.call(check_arguments, launcher, args, says=says)
