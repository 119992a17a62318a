"""Files of any size: worked on in parts, kept part by part, and written as one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import meta, read, write
from hypothesis import given
from hypothesis import strategies as st

from orlhf_ext.cli.errors import UserError
from orlhf_ext.commands import score
from orlhf_ext.files.journal import Journal, journal_path
from orlhf_ext.files.records import Record
from orlhf_ext.models.large import Part, Source, Tally, run_parts
from orlhf_ext.models.texts import as_prompt

MARK = {"model": "m"}


def records(count: int) -> list[dict[str, Any]]:
    return [{"id": f"q{i}", "prompt": f"number {i}"} for i in range(count)]


def shout(part: Part, journal: Journal) -> tuple[list[Record], Tally]:
    """Work of a piece for each record, which the journal keeps."""
    for sample in part.samples:
        if sample.id not in journal.done:
            journal.add(sample.id, str(sample.prompt).upper())
    out = [{"id": sample.id, "said": journal.done[sample.id]} for sample in part.samples]
    return out, {"records": len(out), "half": len(out) / 2}


def run(data: Path, out: Path, size: int, work: Any = shout) -> Tally:
    source = Source(data, as_prompt, size)
    with Journal(out, MARK) as journal:
        return run_parts(source, out, journal, {"command": "shout"}, work, dict)


@given(count=st.integers(1, 40), size=st.integers(1, 45), limit=st.none() | st.integers(1, 45))
def test_parts_are_the_file(tmp_path_factory: pytest.TempPathFactory, count: int, size: int, limit: int | None) -> None:
    data = write(tmp_path_factory.mktemp("data") / "x.jsonl", records(count))
    source = Source(data, as_prompt, size, limit)
    parts = list(source)
    assert len(parts) == source.parts and all(0 < len(part.samples) <= size for part in parts)
    found = [sample.id for part in parts for sample in part.samples]
    assert found == [f"q{i}" for i in range(count)][:limit] and len(found) == source.count
    if len(parts) > 1:
        assert parts[1].name == f"{data} (records {size + 1} to {size + len(parts[1].samples)})"


@pytest.mark.parametrize("size", [3, 7, 100])
def test_a_file_is_written_as_one(tmp_path: Path, size: int, capsys: pytest.CaptureFixture) -> None:
    data, out = write(tmp_path / "x.jsonl", records(20)), tmp_path / "out.jsonl"
    assert run(data, out, size) == {"records": 20, "half": 10.0}
    assert read(out) == [{"id": f"q{i}", "said": f"NUMBER {i}"} for i in range(20)]
    assert meta(out) == {"command": "shout", "records": 20, "half": 10.0}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "out.meta.json", "x.jsonl"]
    told = capsys.readouterr().out.splitlines()
    assert len(told) == (-(-20 // size) if size < 20 else 0)
    assert not told or (f"part 1 of {len(told)}, {size} of 20 records, " in told[0] and "0:00:00 left" in told[-1])


def test_a_run_that_was_cut_short_goes_on_with_what_is_not_done(tmp_path: Path) -> None:
    data, out, asked = write(tmp_path / "x.jsonl", records(20)), tmp_path / "out.jsonl", list[str]()

    def watched(part: Part, journal: Journal) -> tuple[list[Record], Tally]:
        for sample in part.samples:
            if len(asked) == 11:
                raise KeyboardInterrupt
            if sample.id not in journal.done:
                asked.append(sample.id)
                journal.add(sample.id, str(sample.prompt).upper())
        return shout(part, journal)

    with pytest.raises(KeyboardInterrupt):
        run(data, out, 6, watched)
    assert not out.exists() and journal_path(out).exists()
    folder = tmp_path / ".out.jsonl.parts"
    assert len(read(folder / "000001.jsonl")) == 6 and not (folder / "000002.jsonl").exists()
    asked.append("")
    run(data, out, 6, watched)
    assert sorted(filter(None, asked), key=lambda one: int(one[1:])) == [f"q{i}" for i in range(20)]
    whole = tmp_path / "whole.jsonl"
    run(data, whole, 6)
    assert out.read_bytes() == whole.read_bytes() and meta(out) == meta(whole) and not folder.exists()


def test_parts_of_another_size_are_not_taken(tmp_path: Path) -> None:
    data, out = write(tmp_path / "x.jsonl", records(9)), tmp_path / "out.jsonl"

    def stop(part: Part, journal: Journal) -> tuple[list[Record], Tally]:
        if part.samples[0].id != "q0":
            raise KeyboardInterrupt
        return shout(part, journal)

    with pytest.raises(KeyboardInterrupt):
        run(data, out, 4, stop)
    run(data, out, 3)
    assert [row["id"] for row in read(out)] == [f"q{i}" for i in range(9)]


def test_an_id_that_is_there_twice_is_named(tmp_path: Path) -> None:
    rows = records(9)
    rows[7]["id"] = "q2"
    data = write(tmp_path / "x.jsonl", rows)
    for size in (2, 100):
        with pytest.raises(UserError, match=r"x.jsonl line 8 has the id 'q2' of .*x.jsonl line 3; give each its own"):
            Source(data, as_prompt, size)
    with pytest.raises(UserError, match="has no record"):
        Source(write(tmp_path / "empty.jsonl", []), as_prompt, 2)


def test_scores_in_parts(reward_model: Path, tmp_path: Path) -> None:
    rows = [{**one, "completions": [" fine" * (i % 5 + 1), " x"]} for i, one in enumerate(records(20))]
    data, found = write(tmp_path / "x.jsonl", rows), []
    for size in ("6", "50"):
        out = tmp_path / f"{size}.jsonl"
        line = f"--model {reward_model} --data {data} --out {out} --max_len 64 --batch_tokens 200"
        score.main([*line.split(), "--part_records", size])
        found.append((read(out), json.loads(out.with_suffix(".meta.json").read_text())))
    (parts, in_parts), (whole, as_whole) = found
    assert [row["id"] for row in parts] == [row["id"] for row in whole]
    for one, other in zip(parts, whole, strict=True):
        assert one["rewards"] == pytest.approx(other["rewards"], abs=0.05)  # other batches, in bf16
    assert in_parts["counts"] == as_whole["counts"] and in_parts["arguments"] == as_whole["arguments"]
