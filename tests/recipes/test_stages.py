"""The stage tool of the recipes: what is skipped, what is redone, and what a kill leaves."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from recipe_runs import load, run_stage

TOOL = Path(__file__).resolve().parents[2] / "recipes" / "stage.py"
PYTHON = [sys.executable, "-S", "-c"]  # without the packages it starts in a third of the time
APPEND = "import sys; open(sys.argv[2], 'a').write(open(sys.argv[1]).read())"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.txt").write_text("a")
    return tmp_path


def stage(*words: str) -> subprocess.CompletedProcess[str]:
    """The tool in this process; kills need one of its own (`start_sleeper`)."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    status = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            run_stage([*words])
        except SystemExit as end:
            status = int(end.code or 0)
    printed = [stream.buffer.getvalue().decode() for stream in (out, err)]
    return subprocess.CompletedProcess(words, status, *printed)


def copy(name: str = "copy", out: str = "o/out.txt", extra: tuple[str, ...] = ()):
    """A stage that appends to its output: how often it ran can be seen in the file."""
    os.makedirs("o", exist_ok=True)
    return stage(
        "run", name, "--base", "o", "--in", "in.txt", "--out", out, "--", *PYTHON, APPEND, "in.txt", out,
        *extra,
    )  # fmt: skip


def test_a_finished_stage_is_skipped_and_keeps_its_seconds(folder: Path):
    first = copy()
    assert first.returncode == 0 and "copy: done in" in first.stdout
    stage("begin", "--base", "o", "recipe=x", "seed=3")
    again = copy()
    assert again.returncode == 0 and "already done" in again.stdout
    assert Path("o/out.txt").read_text() == "a"
    run = json.loads(Path("o/run.json").read_text())
    stamp = json.loads(Path("o/out.txt.stage.json").read_text())
    assert run["seconds"] == {"copy": stamp["seconds"]} and stamp["seconds"] > 0
    assert (run["recipe"], run["seed"]) == ("x", 3) and run["versions"]["torch"]


def test_another_command_other_inputs_or_other_versions_redo_it_from_nothing(folder: Path):
    copy()
    assert "done in" in copy(extra=("more",)).stdout
    assert Path("o/out.txt").read_text() == "a"  # the old output went first
    Path("in.txt").write_text("b")
    assert "done in" in copy(extra=("more",)).stdout
    assert Path("o/out.txt").read_text() == "b"
    stamp = json.loads(Path("o/out.txt.stage.json").read_text())
    stamp["versions"]["torch"] = "1.0"
    Path("o/out.txt.stage.json").write_text(json.dumps(stamp))
    assert "done in" in copy(extra=("more",)).stdout


def test_equal_contents_count_even_when_the_file_is_new(folder: Path):
    copy()
    time.sleep(0.01)
    Path("in.txt").unlink()
    Path("in.txt").write_text("a")
    assert "already done" in copy().stdout


def test_a_missing_output_redoes_the_stage(folder: Path):
    copy()
    Path("o/out.txt").unlink()
    assert "done in" in copy().stdout and Path("o/out.txt").exists()


@pytest.mark.launcher
def test_a_change_reaches_what_depends_on_it(folder: Path):
    def second():
        return stage(
            "run", "second", "--base", "o", "--in", "o/out.txt", "--out", "o/second.txt", "--",
            *PYTHON, APPEND, "o/out.txt", "o/second.txt",
        )  # fmt: skip

    copy()
    second()
    copy(extra=("another command, the same result",))
    assert "already done" in second().stdout
    Path("in.txt").write_text("b")
    copy(extra=("another command, the same result",))
    assert "done in" in second().stdout and Path("o/second.txt").read_text() == "b"


@pytest.mark.parametrize(
    ("form", "file"),
    [
        ("in.txt", "in.txt"), ("in.txt", "in.txt.meta.json"), ("--data=in.txt", "in.txt"), ("name=in.txt", "in.txt"),
        ("other.txt,in.txt", "in.txt"), ("folder", "folder/x"), ("--data=folder", "folder/x"),
        ("mine:Judge", "mine.py"), ("folder.mine:Judge", "folder/mine.py"), ("--x=pack:Judge", "pack/__init__.py"),
        ("mine:Judge=0.5", "mine.py"), ("folder/mine.py:judge", "folder/mine.py"), ("mine.py:judge=0.5", "mine.py"),
    ],
)  # fmt: skip
def test_what_a_command_names_is_its_input(folder: Path, form: str, file: str):
    """Without a word of --in: paths and modules, in each form in which commands take them, and sidecars beside them."""
    for name in ("folder", "pack"):
        Path(name).mkdir()
    for name in ("other.txt", "folder/x", "in.txt.meta.json", "mine.py", "folder/mine.py", "pack/__init__.py"):
        Path(name).write_text("1")

    def run(code: str = "open('o', 'a')") -> str:
        return stage("run", "x", "--base", "b", "--out", "o", "--", *PYTHON, code, form).stdout

    assert "done in" in run() and "already done" in run()
    Path(file).write_text("changed")
    assert "done in" in run() and "already done" in run()


def test_what_a_command_writes_is_not_its_input(folder: Path):
    """Its outputs, also inside of a folder that it reads, its scratch, and caches that a flag names."""
    Path("folder").mkdir()
    Path("folder/x").write_text("1")
    code = """
import sys, time
for name in ("folder/o", "folder/scratch", "cache", "tb"):
    open(name, "a").write(str(time.time()))
"""
    words = ["folder", "folder/o", "--exo.cache_reference", "cache", "--logger.tensorboard_dir=tb"]
    files = ["--out", "folder/o", "--scratch", "folder/scratch"]
    for wanted in ("done in", "already done", "already done"):
        assert wanted in stage("run", "x", "--base", "b", *files, "--", *PYTHON, code, *words).stdout
    Path("folder/x").write_text("2")
    assert "done in" in stage("run", "x", "--base", "b", *files, "--", *PYTHON, code, *words).stdout


def test_folders_are_compared_by_names_and_contents(folder: Path):
    hashes = load("stage").Hashes(folder / "cache.json")
    model = folder / "model"
    (model / "sub").mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "sub" / "x").write_text("1")
    before = hashes.path(model)
    (model / ".cache").write_text("hidden files do not count")
    assert hashes.path(model) == before
    (model / "sub" / "x").write_text("2")
    changed = hashes.path(model)
    (model / "sub" / "x").rename(model / "sub" / "y")
    assert len({before, changed, hashes.path(model)}) == 3


def test_a_large_file_is_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch):
    tool = load("stage")
    first = tool.Hashes(folder / "cache.json")
    digest = first.path(folder / "in.txt")
    first.save()
    monkeypatch.setattr(tool.hashlib, "file_digest", lambda *_: pytest.fail("read again"))
    assert tool.Hashes(folder / "cache.json").path(folder / "in.txt") == digest


def test_a_failing_command_is_one_sentence_and_leaves_no_finished_stamp(folder: Path):
    code = "import sys; print('half'); open('o/out.txt', 'w').write('torn'); print('orlhf-ext: error: no'); sys.exit(7)"
    os.makedirs("o")
    words = ("run", "sft", "--base", "o", "--out", "o/out.txt", "--", *PYTHON, code)
    result = stage(*words)
    assert result.returncode == 7
    assert result.stderr.splitlines() == [
        "# sft: orlhf-ext: error: no",
        "recipe: error: stage sft failed with exit code 7; its log is o/logs/sft.log; "
        "the same command again resumes from there",
    ]
    assert "half" not in result.stdout and "half" in Path("o/logs/sft.log").read_text()
    assert json.loads(Path("o/out.txt.stage.json").read_text())["state"] == "started"
    assert "already done" not in stage(*words).stdout


def test_a_full_disk_is_told(folder: Path):
    code = "f = open('/dev/full', 'w'); f.write('x'); f.flush()"
    result = stage("run", "sft", "--base", "o", "--out", "o/x", "--", *PYTHON, code)
    assert result.returncode == 1
    assert "stage sft failed with exit code 1 because the disk is full; its log is" in result.stderr


RESUMES = """
import os, sys, time
if os.path.exists("o/half"):
    open("o/out.txt", "w").write("resumed")
else:
    open("o/half", "w").write(str(os.getpid()))
    time.sleep(60)
"""


def start_sleeper(*extra: str) -> tuple[subprocess.Popen[str], int]:
    """A stage that sleeps on its first run; its process and that of its command."""
    os.makedirs("o", exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, str(TOOL), "run", "train", "--base", "o", "--out", "o/out.txt", "--scratch", "o/half", "--",
         *PYTHON, RESUMES, *extra],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 20
    while not (os.path.exists("o/half") and Path("o/half").read_text()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    return process, int(Path("o/half").read_text())


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_killed_stage_leaves_no_process_and_resumes(folder: Path, number: signal.Signals):
    process, command = start_sleeper()
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode != 0 and gone(command)
    if number != signal.SIGKILL:
        assert "stage train was killed" in errors and process.returncode == 128 + number
    assert json.loads(Path("o/out.txt.stage.json").read_text())["state"] == "started"
    again = stage("run", "train", "--base", "o", "--out", "o/out.txt", "--scratch", "o/half", "--", *PYTHON, RESUMES)
    assert again.returncode == 0, again.stderr
    assert Path("o/out.txt").read_text() == "resumed"
    assert not os.path.exists("o/half")  # scratch goes when the stage is done


@pytest.mark.parametrize("name", ["INT", "TERM", "HUP"])
def test_a_signal_at_the_very_start_of_a_command_is_handed_on(folder: Path, name: str):
    words = [
        sys.executable,
        str(TOOL),
        "run",
        "train",
        "--base",
        "o",
        "--",
        "sh",
        "-c",
        f"kill -{name} $PPID; sleep 60",
    ]
    for _ in range(5):
        ended = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
        assert ended.returncode == 128 + signal.Signals[f"SIG{name}"], ended.stderr
        assert f"stage train was killed (SIG{name})" in ended.stderr and "Traceback" not in ended.stderr


def test_signals_are_the_callers_again_after_a_stage(folder: Path):
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    assert copy().returncode == 0
    assert [signal.getsignal(number) for number in numbers] == before
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & set(numbers)


def test_a_killed_stage_with_another_command_starts_from_nothing(folder: Path):
    process, command = start_sleeper()
    process.kill()
    process.wait()
    assert gone(command)
    second, command = start_sleeper("--lr 2")  # sleeps again: the half-done work of the other command is gone
    second.kill()
    second.wait()
    assert gone(command)


def test_a_kill_of_the_command_alone_is_told(folder: Path):
    process, command = start_sleeper()
    os.kill(command, signal.SIGKILL)
    _, errors = process.communicate(timeout=30)
    assert "stage train was killed (SIGKILL; out of memory?)" in errors and process.returncode == 128 + 9


def test_what_a_user_put_there_is_never_removed(folder: Path):
    Path("o").mkdir()
    Path("o/out.txt").write_text("mine")
    result = copy()
    assert result.returncode == 2 and "no recipe made" in result.stderr
    assert Path("o/out.txt").read_text() == "mine"
    kept = stage("run", "m", "--base", "o", "--keeps-outputs", "--out", "o/out.txt", "--", "true")
    assert kept.returncode == 0 and Path("o/out.txt").read_text() == "mine"


def test_a_hub_name_is_no_missing_input(folder: Path):
    code = "open('o/x', 'w')"
    words = ("run", "sft", "--base", "o", "--source", "org/model", "--out", "o/x", "--", *PYTHON, code)
    assert stage(*words).returncode == 0


def test_a_stage_without_output_always_runs(folder: Path):
    code = "import sys; print('table'); print('a warning', file=sys.stderr)"
    words = ("run", "evaluate", "--show", "--base", "o", "--", *PYTHON, code)
    for _ in range(2):
        done = stage(*words)
        assert "\ntable\n" in done.stdout and "a warning" not in done.stdout + done.stderr
    assert "a warning" in Path("o/logs/evaluate.log").read_text()
    assert "evaluate" in json.loads(Path("o/run.json").read_text())["seconds"]


def test_the_counts_of_all_splits_are_entered(folder: Path):
    os.makedirs("data")
    for split, kept in (("train", 9), ("test", 3)):
        counts = {"read": kept + 1, "kept": kept, "dropped": {"too long": 1}}
        Path(f"data/{split}.meta.json").write_text(json.dumps({"source": "books", "counts": counts}))

    def entered() -> dict:
        assert stage("data", "--base", "o", "data").returncode == 0
        return json.loads(Path("o/run.json").read_text())["data"]

    dropped = {"too long": 1}
    assert entered() == {"source": "books", "train": 9, "test": 3, "dropped": {"train": dropped, "test": dropped}}
    Path("data/val.meta.json").write_text(json.dumps({"counts": {"kept": 2, "dropped": {}}}))
    found = entered()
    assert list(found) == ["source", "train", "val", "test", "dropped"] and found["val"] == 2
    assert found["dropped"] == {"train": dropped, "val": {}, "test": dropped}
    counts = {"kept": 9, "dropped": {}, "cut": {"prompts": 2}}
    Path("data/train.meta.json").write_text(json.dumps({"source": "books", "counts": counts}))
    assert entered()["cut"] == {"train": {"prompts": 2}}


def test_what_is_shown_without_a_terminal(folder: Path, monkeypatch: pytest.MonkeyPatch):
    words = ("run", "sft", "--base", "o", "--", *PYTHON, "print('step 1')")
    quiet = stage(*words).stdout.splitlines()
    assert len(quiet) == 2 and quiet[0].startswith("# sft: ") and quiet[1].startswith("# sft: done in ")
    monkeypatch.setenv("VERBOSE", "1")
    assert {"# --- sft", "step 1"} <= set(stage(*words).stdout.splitlines())


@pytest.mark.launcher
@pytest.mark.parametrize("counter", ["", "Train step:  40%|####  | 4/10 [00:12<00:18,  3.0s/it]"])
def test_the_live_line_on_a_terminal(folder: Path, counter: str):
    code = f"import sys, time; print({counter!r}, flush=True); time.sleep(1.5)"
    us, theirs = pty.openpty()
    words = [sys.executable, str(TOOL), "run", "sft", "--base", "o", "--", *PYTHON, code]
    process = subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # the end of a terminal
        while chunk := os.read(us, 4096):
            shown += chunk
    assert process.wait() == 0
    lines = shown.decode().split("\r\x1b[K")
    assert any(line.startswith("sft: ") for line in lines) and lines[-1].startswith("# sft: done in ")
    assert any("4/10, 00:18 left" in line for line in lines) == bool(counter)
    assert "Train step" not in shown.decode()


@pytest.mark.parametrize(
    "command, what",
    [
        ("python -m orlhf_ext generate --model m", "sample completions with vLLM"),
        ("python -m orlhf_ext groups score --data d", "score completions with gold traits"),
        ("torchrun -m orlhf_ext.launch train_dpo --ext.use exo", "OpenRLHF's train_dpo with exo"),
        ("python -m orlhf_ext.build_data hh sample", "build_data hh"),
        ("hf upload me/x", "hf"),
    ],
)
def test_what_a_stage_does(command: str, what: str):
    assert load("live").describe(command.split()) == what


def test_a_module_is_no_input(folder: Path):
    Path("orlhf_ext").mkdir()
    Path("orlhf_ext/new.py").write_text("")
    command = ["python", "-m", "orlhf_ext", "score", "--data", "in.txt"]
    assert load("stage").paths_read(command, []) == {"in.txt"}
