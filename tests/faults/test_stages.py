"""Stages whose command, inputs, outputs or records are not what they should be."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest
from helpers import ROOT
from recipe_runs import run_stage

TOOL = str(ROOT / "recipes" / "stage.py")
PYTHON = [sys.executable, "-S", "-c"]  # without the packages it starts in a third of the time
#: what stage.py itself may write
OWN = ("*.log", "*.stage.json", "run.json")


def says(text: str) -> str:
    """The last line is the recipe's sentence, with this text."""
    return rf"(?m)^recipe: error: .*{re.escape(text)}.*\n\Z"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(fault, *words: str, code: str = "", text: str, rc: int = 2, makes: tuple[str, ...] = OWN) -> None:
    """A stage with base ``b`` that runs a line of Python."""
    command = ["run", "s", "--base", "b", *words, "--", *PYTHON, code]
    fault.main(run_stage, *command, says=says(text), rc=rc, makes=makes)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--in", "gone"], "stage s needs gone, which does not exist"),
        (["--in", "org/model"], "stage s needs org/model, which does not exist"),
        (["--source", "./gone"], "stage s needs ./gone"),
        (["--source", "/gone/model"], "stage s needs /gone/model"),
        (["--source", "a/b/c"], "stage s needs a/b/c"),
        (["--source", "dir/../x"], "stage s needs dir/../x"),
        (["--source", ""], "stage s needs , which does not exist"),
    ],
)
def test_an_input_that_is_not_there(fault, words: list[str], text: str) -> None:
    run(fault, *words, "--out", "o", text=text)


@pytest.mark.parametrize(
    ("code", "text", "rc"),
    [
        ("raise SystemExit(7)", "stage s failed with exit code 7; its log is b/logs/s.log", 7),
        ("import os; os.kill(os.getpid(), 9)", "was killed (SIGKILL; out of memory?)", 137),
        ("import os; os.kill(os.getpid(), 15)", "was killed (SIGTERM)", 143),
        ("import os; os.abort()", "was killed (SIGABRT)", 134),
        ("pass", "ended without writing o; its log is b/logs/s.log", 1),
        ("open('o.tmp', 'w')", "ended without writing o", 1),
        ("print('No space left on device'); raise SystemExit(1)", "because the disk is full", 1),
    ],
)
def test_a_command_that_ends_badly(fault, code: str, text: str, rc: int) -> None:
    run(fault, "--out", "o", code=code, text=text, rc=rc, makes=(*OWN, "o.tmp"))


@pytest.mark.parametrize("program", ["no-such-program", "./text", "./folder"])
def test_a_command_that_is_no_program(fault, tmp_path: Path, program: str) -> None:
    command = ["run", "s", "--base", "b", "--out", "o", "--"]
    (tmp_path / "text").write_text("no program")
    (tmp_path / "folder").mkdir()
    fault.main(run_stage, *command, program, says=says("stage s failed with exit code 127"), rc=127, makes=OWN)
    fault.main(run_stage, *command[:-1], says=says("stage s has no command; write it after --"))
    fault.main(run_stage, *command, says=says("stage s has no command"))


def test_an_output_of_the_users_is_never_overwritten(fault, tmp_path: Path) -> None:
    """Neither one that was there before, nor because a stamp that cannot be trusted claims it."""
    (tmp_path / "o").write_text("mine")
    run(fault, "--out", "o", code="open('o', 'w')", text="which exists and which no recipe made")
    for stamp in ("", "[]", "{", '{"outputs": "o"}', '{"outputs": [1]}', '{"outputs": ["o"], "state": "done"}'):
        (tmp_path / "o.stage.json").write_text(stamp)
        run(fault, "--out", "o", code="open('o', 'w')", text="which exists and which no recipe made")
    assert (tmp_path / "o").read_text() == "mine"


def test_a_folder_or_file_that_is_in_the_way(fault, tmp_path: Path) -> None:
    (tmp_path / "b").write_text("a file")
    run(fault, "--out", "o", code="open('o', 'w')", text="fix that and run the same command again", rc=1)
    (tmp_path / "b").unlink()
    (tmp_path / "b" / "logs" / "s.log").mkdir(parents=True)
    run(fault, "--out", "o", code="open('o', 'w')", text="Is a directory (b/logs/s.log)", rc=1)


def test_a_log_on_a_full_disk(fault, tmp_path: Path) -> None:
    (tmp_path / "b" / "logs").mkdir(parents=True)
    os.symlink("/dev/full", tmp_path / "b" / "logs" / "s.log")
    run(fault, "--out", "o", code="open('o', 'w')", text="No space left on device", rc=1)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', "\x00", '{"seconds": []}', '{"seconds": 3}'])
def test_a_broken_record_of_the_run(fault, tmp_path: Path, text: str) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "run.json").write_text(text)
    (tmp_path / "summary.json").write_text("{}")
    broken = r"(?m)^recipe: error: b/run.json (cannot be read as JSON|is not a JSON object|has no seconds).*; remove it"
    fault.main(run_stage, "finish", "--base", "b", "summary.json", says=broken)
    run(fault, "--out", "o", code="open('o', 'w')", text="remove it, if it is there, and run", makes=(*OWN, "o"))
    if "seconds" not in text:
        fault.main(run_stage, "cell", "--base", "b", "cell.json", "k=1", says=broken)


def test_a_record_or_sidecar_that_is_not_there(fault, tmp_path: Path) -> None:
    fault.main(run_stage, "cell", "--base", "b", "cell.json", "k=1", says=says("b/run.json cannot be read"))
    fault.main(run_stage, "finish", "--base", "b", "summary.json", says=says("summary.json cannot be read"))
    fault.main(run_stage, "data", "--base", "b", "data", says=says("data/train.meta.json cannot be read"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.meta.json").write_text("{")
    fault.main(run_stage, "data", "--base", "b", "data", says=says("data/train.meta.json cannot be read"))


@pytest.mark.parametrize("words", [["seed"], ["=3"], ["recipe=x", ""]])
def test_a_word_that_is_no_key_and_value(fault, words: list[str]) -> None:
    fault.main(run_stage, "begin", "--base", "b", *words, says=says("is not KEY=VALUE"))


@pytest.mark.parametrize("words", [[], ["fly"], ["begin"], ["run"], ["run", "s"], ["finish", "--base", "b"]])
def test_words_that_stage_does_not_know(fault, words: list[str]) -> None:
    fault.main(run_stage, *words, says=r"error: ")


def test_the_program_itself(fault) -> None:
    """In a process of its own: its exit code, and its sentence behind what the command printed."""
    command = [sys.executable, TOOL, "run", "s", "--base", "b", "--out", "o", "--", *PYTHON]
    code = "import os; print('half', flush=True); os.kill(os.getpid(), 15)"
    fault.run([*command, code], says=r"(?m)^# s: half\nrecipe: error: .*\(SIGTERM\).*\n\Z", rc=143, makes=OWN)


def test_a_finished_stage_whose_input_or_record_changes_is_redone(fault, tmp_path: Path) -> None:
    """The stage runs again, and its command's failure is told."""
    (tmp_path / "in").write_text("1")
    code = "import os, sys; open('o', 'w'); sys.exit(open(sys.argv[1]).read() == '2')"
    command = ["run", "s", "--base", "b", "--out", "o", "--", *PYTHON, code, "in"]
    fault.main(run_stage, *command, says="s: done in", rc=0, makes=(*OWN, "o"))
    stamp = tmp_path / "o.stage.json"
    value = json.loads(stamp.read_text())
    stamp.write_text(json.dumps({**value, "seconds": "no number", "outputs": ["o"]}))
    fault.main(run_stage, *command, says=says("which no recipe made"))
    stamp.write_text(json.dumps(value))
    fault.main(run_stage, *command, says="already done", rc=0)
    (tmp_path / "in").write_text("2")
    stamp.write_text(json.dumps({**value, "outputs": []}))  # and its output is not to be taken for another's
    fault.main(run_stage, *command, says=says("which no recipe made"))
