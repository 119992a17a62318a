"""Damaged sources, for every builder: a broken row is counted with its line, or stops a strict run; a broken file stops
any run, and nothing is written."""

from __future__ import annotations

import codecs
import gzip
from collections.abc import Callable
from pathlib import Path

import pytest
from small_sources import (
    Source,
    csv_ids,
    csv_pairs,
    csv_prompts,
    csv_reward,
    csv_test_pairs,
    hh,
    hh_groups,
    hh_pairs,
    hh_prompts,
    jigsaw_value,
    litbench_ids,
    litbench_pairs,
    litbench_rationales,
    story,
)

MADE = ("*.jsonl", "*.json", "*.csv")
#: the line that is damaged
LINE = 3

BUILDERS = [hh, hh_pairs, hh_prompts, hh_groups, jigsaw_value, litbench_pairs, litbench_rationales, litbench_ids, story]
each_builder = pytest.mark.parametrize("make", BUILDERS, ids=lambda make: make.__name__)

BROKEN_LINES: dict[str, tuple[bytes, str]] = {
    "cut_off": (b'{"prompt": "what', r"not JSON"),
    "list": (b"[1, 2]", "not a JSON object"),
    "latin_1": (b'{"prompt": "caf\xe9"}', "not UTF-8 text"),
    "half_a_pair": (b'{"prompt": "\\ud83d"}', "not UTF-8 text"),
    "deep": (b"[" * 5000, "nested too deep"),
    "long_number": (b'{"prompt": ' + b"9" * 5000 + b"}", "a number too long"),
    "empty_object": (b"{}", f"line {LINE}"),
    "wrong_types": (
        b'{"prompt": 3, "chosen": 4, "messages": "x", "generations": 5, "completions": {}}',
        f"line {LINE}",
    ),
}


def damage(path: Path, line: bytes) -> None:
    lines = path.read_bytes().split(b"\n")
    lines[LINE - 1] = line
    path.write_bytes(b"\n".join(lines))


@each_builder
@pytest.mark.parametrize("name", BROKEN_LINES)
def test_a_broken_line_is_counted(fault, tmp_path: Path, make: Callable[[Path], Source], name: str):
    words, path = make(tmp_path / "in")
    line, reason = BROKEN_LINES[name]
    if make is hh_groups and reason.startswith("line"):
        # whose group is not known, nobody can draw for
        damage(path, line)
        fault(
            "build_data", *words, "--out", tmp_path / "out", says=rf"scored.jsonl line {LINE} \(id .*give all records"
        )
        return
    damage(path, line)
    said = fault("build_data", *words, "--out", tmp_path / "out", says=reason, rc=0, makes=MADE)
    assert f"{path.name} line {LINE}: " in said.replace("\n", " ")


@each_builder
@pytest.mark.parametrize("name", ["cut_off", "wrong_types"])
def test_a_strict_run_stops_at_a_broken_line(fault, tmp_path: Path, make: Callable[[Path], Source], name: str):
    words, path = make(tmp_path / "in")
    damage(path, BROKEN_LINES[name][0])
    fault("build_data", *words, "--strict", "--out", tmp_path / "out", says=f"error: .*{path.name} line {LINE}")


def cut_gzip(path: Path) -> None:
    path.write_bytes(gzip.compress(path.read_bytes())[:-12])


def truncated_array(path: Path) -> None:
    path.write_bytes(b"[" + path.read_bytes().rstrip().replace(b"\n", b",")[:-5])


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


BROKEN_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.write_bytes(b""), r"{0} has|from {0}"),
    "blank_lines": (lambda path: path.write_bytes(b"\n\n \n"), r"{0} has"),
    "utf_16": (
        lambda path: path.write_bytes(codecs.BOM_UTF16_LE + path.read_text().encode("utf-16-le")),
        "{0} is UTF-16",
    ),
    "array_cut_off": (truncated_array, "{0} is not a whole JSON array"),
    "all_lines_broken": (lambda path: path.write_bytes(b"{\n" * 8), "none of the|{0} has"),
    "gone": (lambda path: path.unlink(), "(does not exist|has .*no|has no|no such)"),
}


@each_builder
@pytest.mark.parametrize("name", BROKEN_FILES)
def test_a_broken_file_stops_the_run(fault, tmp_path: Path, make: Callable[[Path], Source], name: str):
    words, path = make(tmp_path / "in")
    break_it, says = BROKEN_FILES[name]
    break_it(path)
    fault("build_data", *words, "--out", tmp_path / "out", says=says.format(path.name.replace(".", r"\.")))


# --- CSV -------------------------------------------------------------------------------------------------------------


each_csv = pytest.mark.parametrize(
    "make", [csv_reward, csv_prompts, csv_pairs, csv_test_pairs, csv_ids], ids=lambda make: make.__name__
)


@each_csv
@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"one field", "fewer fields than the header"),
        (b"a,b,c,d,e,f,g", "more fields than the header"),
        (b"  ", "fewer fields than the header"),
        (b'"a\nb, c"', "fewer fields than the header"),
    ],
    ids=["short", "long", "spaces", "short_over_two_lines"],
)
def test_a_row_of_another_width_is_counted(
    fault, tmp_path: Path, make: Callable[[Path], Source], line: bytes, reason: str
):
    words, path = make(tmp_path / "in")
    damage(path, line)
    out = ("--out", tmp_path / "out")
    said = fault("build_data", *words, *out, says=reason, rc=0, makes=MADE)
    assert f"a.csv line {LINE}: " in said.replace("\n", " ")


@each_csv
def test_a_strict_run_stops_at_a_row_of_another_width(fault, tmp_path: Path, make: Callable[[Path], Source]):
    words, path = make(tmp_path / "in")
    damage(path, b"one field")
    fault(
        "build_data",
        *words,
        "--strict",
        "--out",
        tmp_path / "out",
        says=rf"a\.csv line {LINE}: a row with fewer fields",
    )


BROKEN_CSV: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "bare_carriage_return": (
        lambda data: data.replace(b"\n", b"\r\n", 2).replace(b" ", b"\r").replace(b",a", b"\ra"),
        "carriage return",
    ),
    "open_quote": (lambda data: data + b'"x', "ends inside quotes"),
    "header_alone": (lambda data: data.partition(b"\n")[0] + b"\n", "has no|no row"),
    "empty": (lambda _: b"", r"a\.csv is empty"),
    "column_twice": (
        lambda data: b",".join([data.partition(b"\n")[0]] * 2) + b"\n" + data,
        r"names the column \w+ twice",
    ),
    "no_such_column": (lambda data: data.replace(b"e", b"x", 99).replace(b"t", b"y", 99), "has no column"),
    "utf_16": (lambda data: data.decode().encode("utf-16"), "is UTF-16 text"),
    "gzip": (gzip.compress, "is a gzip file, not a CSV file"),
    "zip": (lambda data: b"PK\x03\x04" + data, "is a zip, not a CSV file"),
    "binary": (lambda _: bytes(range(256)) * 8, r"a\.csv"),
}


@each_csv
@pytest.mark.parametrize("name", BROKEN_CSV)
def test_a_broken_csv_file_stops_the_run(fault, tmp_path: Path, make: Callable[[Path], Source], name: str):
    words, path = make(tmp_path / "in")
    change, says = BROKEN_CSV[name]
    path.write_bytes(change(path.read_bytes()))
    fault("build_data", *words, "--out", tmp_path / "out", says=says)
