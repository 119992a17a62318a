"""HH dialogues: folders and lengths that cannot be what was meant."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import write

ROW = {"chosen": "\n\nHuman: q\n\nAssistant: good", "rejected": "\n\nHuman: q\n\nAssistant: bad"}
LONG = {"chosen": "\n\nHuman: q\n\nAssistant: " + "a " * 99, "rejected": "\n\nHuman: q\n\nAssistant: " + "a " * 98}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two folders with both splits, and one with something else."""
    for folder in ("a", "b"):
        write(tmp_path / "in" / folder / "train.jsonl", [ROW, LONG])
        write(tmp_path / "in" / folder / "test.jsonl", [{key: text.replace("q", "r") for key, text in ROW.items()}])
    write(tmp_path / "in" / "other" / "attempts.jsonl", [{}])
    return tmp_path / "in"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--cut"], "--cut cuts prompts to --max_prompt_tokens N"),
        (["--cut", "--tokenizer", "T", "--max_tokens", "9"], "--cut cuts prompts to --max_prompt_tokens N"),
        (["--cut", "--max_prompt_tokens", "9"], "add --tokenizer"),
        (
            ["--cut", "--tokenizer", "T", "--max_prompt_tokens", "9", "--max_tokens", "11"],
            "leaves no room for a response",
        ),
        (
            ["--cut", "--tokenizer", "T", "--max_prompt_tokens", "9", "--max_tokens", "8"],
            "leaves no room for a response",
        ),
        (["--cut", "--from_pairs", "x"], "--cut has no effect with --from_pairs"),
        (["--data_dir", "c"], "--data_dir: there is no folder .*in/c"),
        (["--data_dir", "other"], "has no train.jsonl and test.jsonl"),
        ([], r"has several data sets \(a, b\); choose one with --data_dir"),
    ],
)
def test_options(fault, source: Path, tmp_path: Path, words: list[str], says: str) -> None:
    given = [] if "--from_pairs" in words else [source]
    fault("build_data", "hh", *given, "--out", tmp_path / "out", *words, says=says)


@pytest.mark.parametrize("folder", ["other", "empty"])
def test_no_folder_of_all_has_data(fault, source: Path, tmp_path: Path, folder: str) -> None:
    (source / "empty").mkdir()
    fault(
        "build_data", "hh", source / folder, "--data_dir", "all", "--out", tmp_path / "out", says="has no train.jsonl"
    )


def test_one_folder_of_all_lacks_a_split(fault, source: Path, tmp_path: Path) -> None:
    (source / "b" / "test.jsonl").unlink()
    fault(
        "build_data", "hh", source, "--data_dir", "all", "--out", tmp_path / "out", says="b has train.jsonl but no test"
    )


def test_a_file_has_no_folders(fault, source: Path, tmp_path: Path) -> None:
    file = source / "a" / "train.jsonl"
    fault(
        "build_data",
        "hh",
        file,
        "--data_dir",
        "all",
        "--out",
        tmp_path / "out",
        says="train.jsonl is a file; leave it out",
    )


def test_an_output_that_is_one_of_the_sources(fault, source: Path) -> None:
    fault("build_data", "hh", source, "--data_dir", "all", "--out", source / "b", says="is the source itself")


def test_test_rows_of_all_folders_that_are_training_rows(fault, source: Path, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write(source / folder / "test.jsonl", [ROW])
    says = r"none of the 2 rows of \S+/in can be kept for test.jsonl \(2 of them: prompt also in the training rows\)"
    made = ("train.jsonl", "train.meta.json")
    fault("build_data", "hh", source, "--data_dir", "all", "--out", tmp_path / "out", says=says, makes=made)


def test_answers_that_are_equal_when_cut_are_counted(fault, source: Path, tmp_path: Path, tiny_model: Path) -> None:
    lengths = ["--tokenizer", tiny_model, "--max_prompt_tokens", 40, "--max_tokens", 60]
    says = r"chosen and rejected do not differ when they are cut\s+2"
    fault(
        "build_data", "hh", source, "--data_dir", "all", "--out", tmp_path / "out", "--cut", *lengths, says=says, rc=0,
        makes=("*.jsonl", "*.meta.json"),
    )  # fmt: skip
