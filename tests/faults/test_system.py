"""What the operating system refuses: outputs that cannot be, told before the computing; and disks that fail in it."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import write

from data_builders.common import SAMPLES
from orlhf_ext.cli.errors import UserError, as_os_error, os_sentence
from orlhf_ext.files.outputs import check_file, check_folder
from orlhf_ext.files.records import atomic_folder, atomic_write, read_records

#: a command line that is right but for OUT, and the name of what it would write there
FILES = {
    "score --model m --data d.jsonl --max_len 9 --out OUT": "o.jsonl",
    "logprobs --model m --data d.jsonl --key k --max_len 9 --out OUT": "o.jsonl",
    "generate --model m --data d.jsonl --max_new_tokens 2 --max_len 9 --out OUT": "o.jsonl",
    "evaluate --sft d.jsonl --out OUT": "o.json",
    "vrcli.baseline --model m --data d.jsonl --out OUT": "o.jsonl",
    "vrcli.score --model m --data d.jsonl --samples s.jsonl --out OUT": "o.jsonl",
    "vrcli.evaluate --before d.jsonl --after d.jsonl --out OUT": "o.json",
    "groups.score --data d.jsonl --trait short=conciseness --out OUT": "o.jsonl",
    "groups.em --model m --data d.jsonl --out OUT": "o.jsonl",
    "groups.evaluate --groups g.yaml --sft d.jsonl --out OUT": "o.json",
    "litbench.evaluate --pairs d.jsonl --out OUT": "o.json",
    "deadend.score --model_name_or_path m --data_file d.jsonl --save_file OUT": "o.jsonl",
    "deadend.decode --model_name_or_path m --data_file d.jsonl --max_new_tokens 20 --plain --save_file OUT": "o.jsonl",
    "deadend.continuations --model_name_or_path m --data_file d.jsonl --save_file OUT": "o.jsonl",
    "deadend.calibration --q_model_name_or_path m --data_file d.jsonl --save_file OUT": "o.json",
    "deadend.evaluate plain=d.jsonl --save_file OUT": "o.json",
}
FOLDERS = {
    "deadend.hold_out --data_file d.jsonl --num 1 --save_dir OUT": "o",
    "deadend.classifier --model_name_or_path m --train_file d.jsonl --output_dir OUT": "o",
    "export ckpt --model m --out OUT": "o",
    "small_models tiny --out OUT": "o",
    "groups.merge --models a=m b=m --out OUT": "o",
    f"build_data hh {SAMPLES / 'hh'} --out OUT": "o",
    f"build_data hh-prompts {SAMPLES / 'hh'} --style hh --out OUT": "o",
    "build_data litbench pairs sample --out OUT": "o",
    "build_data litbench rationales sample --out OUT": "o",
    f"build_data story --source {SAMPLES / 'stories'} --out OUT": "o",
    f"build_data jigsaw --raw_dir {SAMPLES / 'jigsaw'} --out OUT": "o",
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a data file and with a file that stands in the way."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "d.jsonl", [{"prompt": {"text": "a"}, "generations": [{"text": "b"}], "rewards": [1.0]}])
    (tmp_path / "taken").write_text("mine")
    return tmp_path


def put(line: str, out: str) -> list[str]:
    return [word.replace("OUT", out) for word in line.split()]


@pytest.mark.parametrize("line", FILES)
@pytest.mark.parametrize(
    ("out", "says"),
    [
        ("NAME/", "is a folder; name a file"),
        ("taken/NAME", r"cannot be written \(Not a directory\); give another one"),
        ("LONG", r"(cannot be written|has a name that is too long).*\(File name too long\)"),
        ("/sys/NAME", r"cannot be written \((Permission denied|Operation not permitted|Read-only file system)\)"),
    ],
)
def test_files_that_cannot_be_written(fault, here: Path, line: str, out: str, says: str) -> None:
    name = FILES[line]
    if out.endswith("/"):
        (here / name).mkdir()
    fault(*put(line, out.replace("LONG", "x" * 300 + name).replace("NAME", name).rstrip("/")), says=f"error: .*{says}")


@pytest.mark.parametrize("line", FOLDERS)
@pytest.mark.parametrize(
    ("out", "says"),
    [
        ("taken", "is a file, where a folder is expected|exists already, as something else|exists; |"
         "has a file among its folders"),
        ("taken/o", "cannot be written|has a file among its folders"),
        ("x" * 300, "cannot be written|has a name that is too long"),
        ("/sys/o", r"cannot be written|may not be (changed|read or written)|is on a file system that can only be read"),
    ],
    ids=["file", "under a file", "long", "not writable"],
)  # fmt: skip
def test_folders_that_cannot_be_written(fault, here: Path, line: str, out: str, says: str) -> None:
    fault(*put(line, out), says=f"error: .*({says})")


@contextlib.contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def small_disk(here: Path) -> Iterator[Path]:
    """A disk of 64 KiB; only root may mount one."""
    disk = here / ".disk"
    disk.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


#: a command line that writes more than it may, and what is said of the file
LARGE = {
    f"build_data hh {SAMPLES / 'hh'} --out OUT": "o/train.jsonl",
    f"build_data story --source {SAMPLES / 'stories'} --out OUT": r"o/\w+\.jsonl?",
    "build_data litbench pairs sample --out OUT": r"o/\w+\.jsonl?",
    f"build_data jigsaw --raw_dir {SAMPLES / 'jigsaw'} --out OUT": r"o/\w+\.jsonl?",
    "deadend.hold_out --data_file many.jsonl --num 900 --save_dir OUT": "o/held_out.jsonl",
    "deadend.score --model_name_or_path json:_judge --data_file many.jsonl --save_file OUT/b.jsonl": ".*b.jsonl.*",
    "small_models tiny --out OUT": ".*o",
}


@pytest.fixture
def many(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import json

    monkeypatch.setattr(json, "_judge", lambda texts: [0.123456789] * len(texts), raising=False)
    rows = [{"prompt": {"text": f"a {i}"}, "generations": [{"text": f"{i}" * 9}] * 2} for i in range(2000)]
    write(here / "many.jsonl", rows)


@pytest.mark.parametrize("line", LARGE)
def test_files_that_grow_too_large(fault, here: Path, many: None, line: str) -> None:
    if line.startswith("small_models"):
        pytest.importorskip("torch")
    with no_file_larger_than(9000):
        says = rf"error: {LARGE[line]} would be larger than a file may be here; raise the limit \(ulimit -f\)"
        fault(
            *put(line, "o"), says=says, makes=("*.jsonl", "*.meta.json") if "build_data" in line else ("*.meta.json",)
        )
    assert not [path for path in here.rglob("*") if path.name.endswith(".tmp")]


@pytest.mark.parametrize("line", LARGE)
def test_disks_that_run_full(fault, here: Path, small_disk: Path, many: None, line: str) -> None:
    if line.startswith("small_models"):
        pytest.importorskip("torch")
    (small_disk / "ballast").write_bytes(b"x" * 50_000)
    out = str(small_disk / "o")
    says = rf"error: the disk is full while writing .*{LARGE[line]}; free some space and run the same"
    fault(*put(line, out), says=says)
    left = [path.name for path in small_disk.rglob("*") if path.is_file() and path.name != "ballast"]
    assert not [name for name in left if name.endswith(".tmp")], left
    assert all(name.startswith(".") or name.endswith((".jsonl", ".json")) for name in left)


# reading


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("evaluate --sft . --out o.json", r"error: \. is a folder; give a \.jsonl"),
        ("evaluate --sft loop.jsonl --out o.json", "loop.jsonl (does not exist|is a link that leads back)"),
        ("evaluate --sft taken/x.jsonl --out o.json", "taken/x.jsonl does not exist"),
        ("evaluate --sft XXX.jsonl --out o.json", "has a name that is too long for the file system"),
        ("deadend.evaluate plain=d.jsonl --run . --save_file o.json", r"error: \. cannot be read as JSON"),
        ("litbench.evaluate --pairs . --out o.json", r"error: \. is a folder; give a \.jsonl"),
        ("deadend.hold_out --data_file . --num 1 --save_dir o", r"error: \. is a folder"),
        ("score --model . --data . --out o.jsonl --max_len 9", r"error: \. is a folder"),
        (
            "groups.evaluate --groups . --sft d.jsonl --policy gold=d.jsonl --out o.json",
            r"error: .*(is a folder|Is a directory)",
        ),
        ("build_data story --source /proc/self/mem --out o", "error: /proc/self/mem"),
        ("build_data hh /proc/self/mem --out o", "error: /proc/self/mem"),
        ("build_data hh gone --out o", "error: .*gone"),
        ("check reward length --length.target 5 --data .", r"error: \. is a folder; give a \.jsonl"),
    ],
)
def test_files_that_cannot_be_read(fault, here: Path, line: str, says: str) -> None:
    (here / "loop.jsonl").symlink_to("loop.jsonl")
    fault(*line.replace("XXX", "x" * 300).split(), says=says)


# sentences


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.EACCES, "a/b may not be read or written by this user; change its permissions"),
        (errno.EPERM, "a/b may not be changed"),
        (errno.EROFS, "a/b is on a file system that can only be read"),
        (errno.EISDIR, "a/b is a folder, where a file is expected"),
        (errno.ENOTDIR, "a/b has a file among its folders"),
        (errno.ENOENT, "a/b does not exist"),
        (errno.EEXIST, "a/b exists already"),
        (errno.ENOTEMPTY, "a/b is a folder that is not empty"),
        (errno.ENAMETOOLONG, "a/b has a name that is too long"),
        (errno.ELOOP, "a/b is a link that leads back to itself"),
        (errno.EFBIG, "a/b would be larger than a file may be here"),
        (errno.EMFILE, "a/b is one file too many"),
        (errno.EIO, "a/b cannot be read or written: the disk"),
        (errno.ESTALE, "a/b is gone from its network drive"),
        (errno.ENOSPC, "the disk is full while writing a/b; free some space"),
        (errno.EDQUOT, "the disk is full while writing a/b"),
        (errno.ECONNREFUSED, "a/b: Connection refused"),
    ],
    ids=lambda value: errno.errorcode.get(value, ""),
)
def test_each_refusal_has_its_sentence(number: int, says: str) -> None:
    error = OSError(number, os.strerror(number), "a/b")
    assert os_sentence(error).startswith(says) and as_os_error(error) is error
    assert os_sentence(OSError(number, os.strerror(number), ".b.x.tmp", None, "a/b")).startswith(says)
    told_by_rust = as_os_error(ValueError(f"Error while serializing: I/O error: oh (os error {number})"))
    assert told_by_rust is not None and told_by_rust.errno == number
    assert as_os_error(UserError(f"(os error {number})")) is None and as_os_error(ValueError("oh")) is None


def test_a_checkpoint_that_pytorch_cannot_write(here: Path) -> None:
    torch = pytest.importorskip("torch")
    with no_file_larger_than(9000), pytest.raises(RuntimeError) as caught:
        torch.save({"a": torch.zeros(30_000)}, here / "x.pt")
    found = as_os_error(caught.value)
    assert found is not None and "PyTorch could not write a file" in os_sentence(found)


def test_outputs_that_can_be_written_are_left_as_they_are(here: Path) -> None:
    for path in ("new.jsonl", "a/b/new.jsonl", "taken"):
        check_file(path)
    for path in ("new", "a/b/new", "."):
        check_folder(path)
    check_folder("new", new=True)
    assert sorted(path.name for path in here.iterdir()) == ["d.jsonl", "taken"]
    assert (here / "taken").read_text() == "mine"


@pytest.mark.parametrize("writer", [atomic_write, atomic_folder])
def test_what_is_half_written_is_not_there(fault, here: Path, writer: Callable) -> None:
    def write_some() -> None:
        with no_file_larger_than(1000), writer("out") as made:
            target = made if hasattr(made, "write") else open(made / "x", "w")  # noqa: SIM115
            with contextlib.closing(target):
                target.write("y" * 5000)

    with pytest.raises(OSError, match="File too large") as caught:
        write_some()
    assert str(caught.value.filename) == "out" and not (here / "out").exists()
    assert sorted(path.name for path in here.iterdir()) == ["d.jsonl", "taken"]


def test_a_folder_in_the_place_of_a_file_is_known_before_anything_is_written(here: Path) -> None:
    (here / "o.jsonl").mkdir()
    with pytest.raises(IsADirectoryError), atomic_write("o.jsonl"):
        raise AssertionError
    with pytest.raises(UserError, match=r"o\.jsonl is a folder; give a"):
        list(read_records("o.jsonl"))
