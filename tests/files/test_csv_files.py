"""What the project writes as CSV reads back equal, and what is no table is refused with its line."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from data_builders.litbench.sources import read_csv
from orlhf_ext.cli.errors import UserError
from orlhf_ext.files import csv_files
from orlhf_ext.files.csv_files import format_csv, open_table
from orlhf_ext.files.records import BadLine
from orlhf_ext.reports.tables import Table

#: all that UTF-8 can hold, and what CSV, editors and other programs give a meaning to far more often than by chance
ODD = st.sampled_from(
    ["\r", "\n", "\r\n", '"', '""', ",", "\0", "\x04", "\x1a", "\ufeff", "\u2028", "\x85", "'", "\t", " "]
)
TEXT = st.lists(st.one_of(ODD, st.text(st.characters(codec="utf-8"), max_size=4)), max_size=8).map("".join)
TABLES = st.integers(1, 4).flatmap(lambda width: st.lists(st.tuples(*[TEXT] * width), max_size=5))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("csv") / "x.csv"


@pytest.mark.parametrize("strict", [False, True])
@given(TABLES)
@example([("The lamp went out\rand she left", "One")])
@example([("\r", ""), ("", "\n"), ("\r\n", '"')])
@example([("",)])
def test_texts_read_back_equal(file: Path, strict: bool, rows: list[tuple[str, ...]]):
    names = [f"c{number}" for number in range(len(rows[0]) if rows else 2)]
    file.write_bytes(format_csv([names, *rows]).encode())
    with open_table(file, strict) as table:
        assert table.header == names
        assert list(map(tuple, table.rows())) == rows  # type: ignore[arg-type]
    # and in the same way for Python's own reader, as it is to be used
    assert list(map(tuple, csv.reader(io.StringIO(file.read_bytes().decode(), newline="")))) == [tuple(names), *rows]


@given(TABLES)
def test_tables_of_reports_read_back_equal(file: Path, rows: list[tuple[str, ...]]):
    names = [f"c{number}" for number in range(len(rows[0]) if rows else 0)]
    records = [dict(zip(names, row, strict=True)) for row in rows]
    file.write_bytes(Table([], [], records).csv().encode())
    if records:
        assert [line.record for line in read_csv(file)] == records  # type: ignore[union-attr]


def test_reports_have_a_column_for_each_key_and_all_digits(file: Path):
    table = Table([], [], [{"name": "a", "mean": 1 / 3}, {"name": "b\rc", "se": None, "n": 2}]).csv()
    assert table == 'name,mean,se,n\na,0.3333333333333333,,\n"b\rc",,,2\n'


@given(st.binary(max_size=80))
@example(b'a,b\n1,"2')
@example(b"a,b\n1,\xff\n")
@example(b"a,b\n1,2\r3,4\n")
@example(b'a,b\n"1"2",3\n')
@example(b"a,a\n1,2\n")
def test_any_bytes_give_rows_of_the_headers_width_or_one_sentence(file: Path, data: bytes):
    file.write_bytes(data)
    for strict in (False, True):
        try:
            with open_table(file, strict) as table:
                for row in table.rows():
                    assert isinstance(row, BadLine) or len(row) == len(table.header)
                    assert isinstance(row, BadLine) or not any("\ud800" in field for field in row)
        except UserError as error:
            assert str(error).startswith(str(file))


def test_lines_are_those_of_an_editor(file: Path):
    file.write_bytes(b'\xef\xbb\xbfa,b\r\n1,"x\ny\r\rz"\n\n2\n3,4,5\n6,7\r\n\n8')
    with open_table(file) as table:
        found = [(row.where, row.reason) if isinstance(row, BadLine) else (table.where, row) for row in table.rows()]
    few, many = (f"a row with {how} fields than the header has columns" for how in ("fewer", "more"))
    assert found == [
        (f"{file} line 2", ["1", "x\ny\r\rz"]),
        (f"{file} line 5", few),
        (f"{file} line 6", many),
        (f"{file} line 7", ["6", "7"]),
        (f"{file} line 9", few),
    ]


def test_a_field_may_be_long(file: Path):
    """Python's own bound is 131,072 characters."""
    long = "word \n" * 50_000
    file.write_text(format_csv([["a", "b"], [long, "1"], ["2", "3"]]), newline="")
    with open_table(file, strict=True) as table:
        assert list(table.rows()) == [[long, "1"], ["2", "3"]]
    file.write_text(f'a,b\n1,"{"x" * csv_files.LONGEST_FIELD}"\n2,"{"x" * (csv_files.LONGEST_FIELD + 1)}"\n')
    with open_table(file) as table, pytest.raises(UserError, match=r"from line 3 on \(a field of more than 16777216"):
        list(table.rows())
