"""Reading and writing records: every kind of file, broken lines, and nothing half-written."""

from __future__ import annotations

import codecs
import gzip
import json
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlhf_ext.cli.errors import UserError
from orlhf_ext.files.records import (
    BadLine,
    Line,
    atomic_write,
    is_number,
    is_share,
    object_or_empty,
    read_lines,
    read_object,
    read_records,
    sha256_file,
    write_json,
    write_jsonl,
)

ROWS = [{"a": "é\u2028x"}, {"a": "y", "n": 1.5}]
TEXT = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def records(path: Path) -> list[dict]:
    return [line.record for line in read_records(path)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.jsonl", TEXT.encode()),
        ("x.json", TEXT.encode()),
        ("x.jsonl", TEXT.replace("\n", "\r\n\r\n").encode()),
        ("x.jsonl", codecs.BOM_UTF8 + TEXT.encode()),
        ("x.jsonl.gz", gzip.compress(TEXT.encode(), mtime=0)),
        ("x.json", json.dumps(ROWS, indent=4).encode()),
        ("x.json", b"\n" * 100 + json.dumps(ROWS).encode()),
        ("x.json", codecs.BOM_UTF8 + json.dumps(ROWS).encode()),
        ("x.json.gz", gzip.compress(json.dumps(ROWS).encode(), mtime=0)),
    ],
)
def test_every_text_form_gives_the_same_records(tmp_path: Path, name: str, content: bytes):
    (tmp_path / name).write_bytes(content)
    assert records(tmp_path / name) == ROWS


def test_parquet(tmp_path: Path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    path = tmp_path / "x.parquet"
    rows = [{"a": "x", "m": [{"role": "user", "content": "q"}]}, {"a": "y", "m": []}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert list(read_lines(path)) == [Line(f"{path} record {n}", row) for n, row in enumerate(rows, 1)]
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"x\.parquet is not a readable Parquet file"):
        records(path)


def test_values_of_parquet_that_json_lacks_are_written_as_text(tmp_path: Path):
    rows = [
        {"id": "a", "when": datetime(2024, 2, 3, 4, 5), "day": date(2024, 2, 3), "n": Decimal("1.50"), "b": b"\xff"}
    ]
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "d.parquet")
    write_jsonl(tmp_path / "d.jsonl", (line.record for line in read_records(tmp_path / "d.parquet")))
    assert [line.record for line in read_records(tmp_path / "d.jsonl")] == [
        {"id": "a", "when": "2024-02-03 04:05:00", "day": "2024-02-03", "n": "1.50", "b": "/w=="}
    ]
    with pytest.raises(TypeError):
        write_jsonl(tmp_path / "d.jsonl", [{"id": object()}])


@pytest.mark.parametrize("text", [r"\ud800", r"x\uDFFF!", r"\\\ud83d", r"\ude00\ud83d", r"\ud83d\n"])
@pytest.mark.parametrize("before", [0, *range(65520, 65540)])
def test_halves_of_surrogate_pairs_in_an_array_are_refused(tmp_path: Path, text: str, before: int):
    path = tmp_path / "d.json"
    path.write_text('[{"a": "' + "x" * before + text + '"}]')
    with pytest.raises(UserError, match="half of a surrogate pair"):
        list(read_records(path))


@pytest.mark.parametrize("before", [0, *range(65520, 65540)])
def test_pairs_and_escaped_backslashes_in_an_array_are_text(tmp_path: Path, before: int):
    path, text = tmp_path / "d.json", "x" * before + "\U0001f600\\ud800\\\U0001f600"
    path.write_text(json.dumps([{"a": text}]))
    assert [line.record for line in read_records(path)] == [{"a": text}]


def test_broken_lines_are_told_with_their_numbers(tmp_path: Path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(
        b'{"a": 1}\n\n{"a": \n[1]\n"text"\n{"a": "\xe9"}\n{"a": "\\uD800"}\n{"a": "\\ud83d\\ude00"}\n'
        + b"[" * 100_000
        + b"\n"
        + b'{"n": '
        + b"9" * 5000
        + b"}\n"
        + b'{"a": 2}'
    )
    lines = list(read_lines(path))
    assert [(line.where.removeprefix(f"{path} "), line.reason) for line in lines if isinstance(line, BadLine)] == [
        ("line 3", "not JSON (Expecting value)"),
        ("line 4", "not a JSON object"),
        ("line 5", "not a JSON object"),
        ("line 6", "not UTF-8 text"),
        ("line 7", "not UTF-8 text"),
        ("line 9", "not JSON that can be read (nested too deep, or a number too long)"),
        ("line 10", "not JSON that can be read (nested too deep, or a number too long)"),
    ]
    good = [line for line in lines if isinstance(line, Line)]
    assert [(line.number, line.record) for line in good] == [(1, {"a": 1}), (8, {"a": "😀"}), (11, {"a": 2})]
    with pytest.raises(UserError, match=r"x\.jsonl line 3 is not JSON .* fix or remove that line"):
        records(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", b"a,b", r"x\.csv is not a \.jsonl"),
        ("x.jsonl.zst", b"", r"x\.jsonl\.zst is not a \.jsonl"),
        ("x.jsonl", "a".encode("utf-16"), r"x\.jsonl is UTF-16 text; re-encode it"),
        (
            "x.jsonl.gz",
            gzip.compress(TEXT.encode() * 99, mtime=0)[:-12],
            r"x\.jsonl\.gz is a truncated or broken gzip file",
        ),
        ("x.jsonl.gz", TEXT.encode(), r"x\.jsonl\.gz is a truncated or broken"),
        (
            "x.jsonl.gz",
            gzip.compress(b"", mtime=0)[:10] + b"\xff" * 99,
            r"x\.jsonl\.gz is a truncated or broken gzip file",
        ),
        ("x.json", b'[{"a": "secret"}, {"b"', r"x\.json is not a whole JSON array"),
        ("x.json", b'[{"a": "secret \xe9"}]', r"x\.json is not a whole JSON array"),
    ],
)
def test_unreadable_files_give_one_sentence_without_their_text(tmp_path: Path, name: str, content: bytes, message: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        records(tmp_path / name)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"cannot be read as JSON \(No such file or directory\)"),
        (b"", r"cannot be read as JSON \(Expecting value"),
        (b"\xff", r"cannot be read as JSON \('utf-8'"),
        (b'{"a":' * 200, r"cannot be read as JSON \(nested deeper"),
        (b"[1]", "is not a JSON object"),
    ],
)
def test_a_file_without_an_object(tmp_path: Path, content: bytes | None, message: str):
    if content is not None:
        (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"x\.json {message}.*; mend it$"):
        read_object(tmp_path / "x.json", "mend it")
    assert object_or_empty(tmp_path / "x.json") == {}


@pytest.mark.parametrize(
    ("value", "number", "share"),
    [(0, True, True), (0.5, True, True), (-2, True, False), (1e308, True, False)]
    + [(value, False, False) for value in (True, "1", None, float("nan"), float("-inf"), 10**400)],
)
def test_what_is_a_number(value: object, number: bool, share: bool):
    assert (is_number(value), is_share(value)) == (number, share)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"none\.jsonl does not exist"):
        records(tmp_path / "none.jsonl")


@given(st.lists(st.dictionaries(st.text(), st.text() | st.floats(allow_nan=False) | st.integers() | st.none())))
def test_what_is_written_is_read_again(tmp_path_factory: pytest.TempPathFactory, rows: list[dict]):
    path = tmp_path_factory.mktemp("round") / "x.jsonl"
    assert write_jsonl(path, rows) == len(rows)
    assert records(path) == rows


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    path = tmp_path / "x.jsonl"
    write_jsonl(path, ROWS)
    before = sha256_file(path)

    def failing():
        yield {"a": 1}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_jsonl(path, failing())
    assert sha256_file(path) == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.jsonl"]


def test_written_files_follow_the_umask_and_make_their_folder(tmp_path: Path):
    path = tmp_path / "deep" / "er" / "x.json"
    write_json(path, {"é": 1})
    assert path.read_text(encoding="utf-8") == '{\n  "é": 1\n}\n'
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    assert path.stat().st_mode == ordinary.stat().st_mode
    with atomic_write(tmp_path / "x.bin", "wb") as stream:
        stream.write(b"\xff")
    assert (tmp_path / "x.bin").read_bytes() == b"\xff"
