"""An --out that a command did not make: it is named, and left as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import write

from data_builders.common import SAMPLES
from orlhf_ext.files.journal import Journal, journal_path
from orlhf_ext.files.outputs import check_file
from orlhf_ext.files.records import atomic_folder, atomic_write, write_json, write_jsonl
from orlhf_ext.files.sidecars import sidecar_path
from orlhf_ext.models.batches import check_files

PAIRS = [
    {"chosen": f"\n\nHuman: q{i}\n\nAssistant: a", "rejected": f"\n\nHuman: q{i}\n\nAssistant: b"} for i in range(8)
]
MINE = "my own work\n"
THEIRS = "did not make it; give another"


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A file that no command made."""
    path = tmp_path / "out.jsonl"
    path.write_text(MINE)
    return path


def words(name: str, out: Path, data: Path) -> list[object]:
    """A command line whose output is ``out``; models are not reached."""
    lines: dict[str, list[object]] = {
        "generate": ["--model", "M", "--data", data, "--max_new_tokens", 4, "--max_len", 8],
        "score": ["--model", "M", "--data", data, "--max_len", 8],
        "logprobs": ["--model", "M", "--data", data, "--max_len", 8],
        "groups.score": ["--data", data, "--trait", "a=positiveness"],
        "groups.em": ["--model", "M", "--data", data],
        "vrcli.baseline": ["--model", "M", "--data", data],
        "vrcli.score": ["--model", "M", "--data", data, "--samples", data],
        "deadend.continuations": ["--model", "M", "--data", data],
        "deadend.decode": ["--model", "M", "--data", data, "--plain"],
        "deadend.score": ["--model", "M", "--data", data],
        "evaluate": ["--sft", data],
        "vrcli.evaluate": ["--before", data, "--after", data],
        "groups.evaluate": ["--groups", data, "--sft", data],
        "litbench.evaluate": ["--pairs", data],
        "deadend.evaluate": [f"a={data}"],
        "deadend.calibration": ["--q_model", "M", "--data", data],
    }
    return [*lines[name], "--out", out]


JOURNALS = ("generate", "score", "logprobs", "groups.score", "groups.em", "vrcli.baseline", "vrcli.score")
SAMPLERS = ("deadend.continuations", "deadend.decode", "deadend.score")
SUMMARIES = ("evaluate", "vrcli.evaluate", "groups.evaluate", "litbench.evaluate", "deadend.evaluate")


@pytest.mark.parametrize("name", [*JOURNALS, *SAMPLERS])
def test_records(fault, tmp_path: Path, mine: Path, name: str) -> None:
    fault(name, *words(name, mine, write(tmp_path / "in.jsonl", [{"prompt": "a"}])), says=THEIRS)


@pytest.mark.parametrize("name", [*SUMMARIES, "deadend.calibration"])
@pytest.mark.parametrize(
    "text", [MINE, "{}", '{"command": "generate"}', "[" * 1000], ids=["text", "json", "other", "deep"]
)
def test_summaries(fault, tmp_path: Path, name: str, text: str) -> None:
    out = tmp_path / "out.json"
    out.write_text(text)
    fault(name, *words(name, out, write(tmp_path / "in.jsonl", [{"prompt": "a"}])), says=THEIRS)


@pytest.mark.parametrize("name", SUMMARIES)
@pytest.mark.parametrize("suffix", [".md", ".csv"])
def test_tables_beside_a_summary(fault, tmp_path: Path, name: str, suffix: str) -> None:
    (tmp_path / f"out{suffix}").write_text(MINE)
    fault(
        name,
        *words(name, tmp_path / "out.json", write(tmp_path / "in.jsonl", [{"prompt": "a"}])),
        says=rf"out\{suffix} exists, and {name} {THEIRS}",
    )


def test_the_output_of_another_command(fault, tmp_path: Path, mine: Path) -> None:
    write_json(sidecar_path(mine), {"command": "generate"})
    fault("score", *words("score", mine, write(tmp_path / "in.jsonl", [{"prompt": "a"}])), says=THEIRS)


@pytest.mark.parametrize("name", ["held_out", "prompts"])
def test_held_out_prompts(fault, tmp_path: Path, name: str) -> None:
    data = write(tmp_path / "in.jsonl", [{"prompt": f"p{i}"} for i in range(4)])
    (tmp_path / "split").mkdir()
    (tmp_path / "split" / f"{name}.jsonl").write_text(MINE)
    fault(
        "deadend.hold_out", "--data_file", data, "--num", 1, "--save_dir", tmp_path / "split", says=f"{name}.*{THEIRS}"
    )


@pytest.mark.parametrize("name", ["train.jsonl", "test.jsonl", "train.meta.json"])
def test_built_data(fault, tmp_path: Path, name: str) -> None:
    source = tmp_path / "source"
    write(source / "train.jsonl", PAIRS[:6])
    write(source / "test.jsonl", PAIRS[6:])
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text(MINE)
    fault(
        "build_data", "hh", source, "--out", out, says=f"{name} exists, and the builder hh", makes=("*.jsonl", "*.json")
    )


@pytest.mark.parametrize("name", ["rm_train.json", "rm_valid.json"])
def test_built_toxicity_data(fault, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(MINE)
    fault(
        "build_data",
        "jigsaw",
        "reward",
        "-f",
        SAMPLES / "jigsaw" / "toxic_comment_train.csv",
        "--out",
        tmp_path,
        says=f"{name} exists, and the builder jigsaw",
    )


def test_what_is_ours_is_replaced(tmp_path: Path, mine: Path) -> None:
    """By the same command, by any with --overwrite, and where a killed run has left its journal."""
    check_file(mine, command="score", overwrite=True)
    write_json(sidecar_path(mine), {"command": "score"})
    check_file(mine, command="score")
    assert check_files(["a"], [str(mine)], "score") == [(Path("a"), mine)]
    sidecar_path(mine).unlink()
    with Journal(mine, {}):
        pass
    check_file(mine, command="score")
    journal_path(mine).unlink()
    summary = tmp_path / "s.json"
    write_json(summary, {"command": "evaluate"})
    (tmp_path / "s.md").write_text("table")
    check_file(summary, command="evaluate", beside=(".md",))


def test_a_builder_replaces_what_it_made(tmp_path: Path) -> None:
    """With its sidecar, and where it was killed before it wrote that."""
    from orlhf_ext.build_data import main

    source = tmp_path / "source"
    write(source / "train.jsonl", PAIRS[:6])
    write(source / "test.jsonl", PAIRS[6:])
    line = ["hh", str(source), "--out", str(tmp_path / "out")]
    main(line)
    made = (tmp_path / "out" / "train.jsonl").read_bytes()
    (tmp_path / "out" / "train.meta.json").unlink()
    main(line)
    (tmp_path / "out" / ".built.json").unlink()
    main(line)
    (tmp_path / "out" / ".built.json").unlink()
    (tmp_path / "out" / "train.jsonl").write_text(MINE)
    (tmp_path / "out" / "train.meta.json").unlink()
    main([*line, "--overwrite"])
    assert (tmp_path / "out" / "train.jsonl").read_bytes() == made
    assert "overwrite" not in json.loads((tmp_path / "out" / "train.meta.json").read_text())["arguments"]


def test_what_killed_writers_leave(tmp_path: Path) -> None:
    """The next one to write the same path removes it; not another's, nor that of one that lives."""
    left = tmp_path / ".x.jsonl.abcd1234.tmp"
    folder = tmp_path / ".model.abcd1234.tmp"
    other = tmp_path / ".y.jsonl.abcd1234.tmp"
    folder.mkdir()
    for path in (left, other, folder / "weights"):
        path.write_text("half")
    with atomic_write(tmp_path / "x.jsonl") as stream:
        stream.write("1")
        write_jsonl(tmp_path / "x.jsonl", [{"a": 1}])  # while the first one is open
    assert (tmp_path / "x.jsonl").read_text() == "1"
    with atomic_folder(tmp_path / "model") as inner:
        (inner / "weights").write_text("whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".y.jsonl.abcd1234.tmp", "model", "x.jsonl"]
