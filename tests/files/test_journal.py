"""Progress that outlives a kill, and batches that do not depend on it."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlhf_ext.cli.errors import UserError
from orlhf_ext.files.journal import Journal, journal_path
from orlhf_ext.files.records import read_records
from orlhf_ext.files.sidecars import sidecar_path
from orlhf_ext.models.batches import check_files, cut_batches

MARK = {"model": "m", "arguments": {"seed": 0}}


def test_pieces_survive_and_the_output_replaces_the_journal(tmp_path: Path) -> None:
    out = tmp_path / "x.jsonl"
    with Journal(out, MARK) as journal:
        journal.add("a", {"text": "ä\n"})
        assert '{"key": "a", "value": {"text": "ä\\n"}}\n' in journal_path(out).read_text(encoding="utf-8")
    with Journal(out, MARK) as journal:
        journal.add("b", 2.5)
        assert journal.done == {"a": {"text": "ä\n"}, "b": 2.5}
        assert not out.exists()
        journal.finish(out, [{"id": "a"}], {"n": 1})
    assert not journal_path(out).exists()
    assert [line.record for line in read_records(out)] == [{"id": "a"}]
    assert json.loads(sidecar_path(out).read_text()) == {"n": 1}
    assert sidecar_path(out) == tmp_path / "x.meta.json"


@pytest.mark.parametrize(
    "torn", [b'{"key": "c", "va', b'{"key": "c", "value": 1}', b"\0\0\0\n", b"\0\0\0", b"[" * 100_000]
)
def test_a_torn_end_is_cut_off(tmp_path: Path, torn: bytes) -> None:
    out = tmp_path / "x.jsonl"
    with Journal(out, MARK) as journal:
        journal.add("a", 1)
        journal.add("b", 2)
    whole = journal_path(out).read_bytes()
    journal_path(out).write_bytes(whole + torn)
    with Journal(out, MARK) as journal:
        assert journal.done == {"a": 1, "b": 2}
        assert journal_path(out).read_bytes() == whole
        journal.add("c", 3)
    with Journal(out, MARK) as journal:
        assert journal.done == {"a": 1, "b": 2, "c": 3}


def test_another_run_discards_it_and_says_what_differs(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "x.jsonl"
    with Journal(out, MARK) as journal:
        journal.add("a", 1)
    with Journal(out, {**MARK, "arguments": {"seed": 1}}) as journal:
        assert journal.done == {}
        journal.add("b", 1)
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "another arguments is discarded" in said
    with Journal(out, MARK) as journal:
        assert journal.done == {}


def test_one_process_at_a_time(tmp_path: Path) -> None:
    out = tmp_path / "x.jsonl"
    with Journal(out, MARK) as journal:
        journal.add("a", 1)
        with pytest.raises(UserError, match="another process"):
            Journal(out, MARK)
    with Journal(out, MARK) as journal:
        assert journal.done == {"a": 1}


def test_a_full_disk_names_the_journal_and_keeps_what_is_there(tmp_path: Path) -> None:
    """A real file system of 64 KiB, in a mount namespace of its own."""
    script = f"""
import errno
from orlhf_ext.files.journal import Journal, journal_path
out = "{tmp_path}/disk/x.jsonl"
count = 0
try:
    with Journal(out, {MARK!r}) as journal:
        while True:
            journal.add(str(count), "x" * 1000)
            count += 1
except OSError as error:
    assert error.errno == errno.ENOSPC and error.filename.endswith(".x.jsonl.part"), error
assert journal_path(out).read_bytes().count(b"\\n") - 1 == count > 10
print("full after", count)
"""
    (tmp_path / "disk").mkdir()
    inner = 'mount -t tmpfs -o size=64k none "$1" && exec "$2" -c "$3"'
    line = ["unshare", "--map-root-user", "--mount", "sh", "-c", inner, "sh", str(tmp_path / "disk"), sys.executable]
    try:
        done = subprocess.run([*line, script], capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("no unshare here")
    if "full after" not in done.stdout and ("mount:" in done.stderr or "unshare:" in done.stderr):
        pytest.skip("no mount namespaces here")
    assert "full after" in done.stdout, done.stderr


def test_the_command_says_that_the_disk_is_full(capsys: pytest.CaptureFixture) -> None:
    from orlhf_ext.cli.errors import command

    @command
    def main() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", ".x.jsonl.part")

    with pytest.raises(SystemExit):
        main()
    assert "the disk is full while writing .x.jsonl.part" in capsys.readouterr().err


@given(st.lists(st.integers(1, 60), max_size=50), st.integers(1, 200))
def test_batches_hold_every_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = cut_batches(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[i] for i in batch)
        assert len(batch) == 1 or longest * len(batch) <= budget
        assert [lengths[i] for i in batch] == sorted((lengths[i] for i in batch), reverse=True)


def test_outputs_must_fit_inputs() -> None:
    assert check_files(["a.jsonl"], ["b.jsonl"]) == [(Path("a.jsonl"), Path("b.jsonl"))]
    for data, out in (
        (["a.jsonl"], ["b.jsonl", "c.jsonl"]),
        (["a.jsonl"], ["a.jsonl"]),
        (["a.jsonl", "c.jsonl"], ["b.jsonl", "./b.jsonl"]),
        (["a.jsonl"], ["b.json"]),
    ):
        with pytest.raises(UserError, match="--out"):
            check_files(data, out)
