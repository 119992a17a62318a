"""One description of a table, three forms of it."""

from __future__ import annotations

import pytest

from orlhf_ext.reports.examples import spread
from orlhf_ext.reports.tables import Column, Table

ROWS = [
    {"run": "a", "group": "x|y", "mean": 0.5, "mean_se": 0.25, "mean_low": 0.0, "mean_high": 1.0, "seeds": [0, 1]},
    {"run": "a", "group": "z", "mean": -0.0001, "mean_se": None, "mean_low": None, "mean_high": None},
    {"run": "b", "group": None, "mean": None, "share": None},
]
TABLE = Table(
    [Column("run", ""), Column("group", "group")],
    [Column("mean", "mean", "{:z.2f}", error="mean_se"), Column("share", "share", "{:.1%}")],
    ROWS,
)


def test_markdown_leaves_out_what_no_row_has() -> None:
    assert TABLE.markdown().splitlines() == [
        "|  | group | mean |",
        "| --- | --- | ---: |",
        r"| a | x\|y | 0.50 ± 0.25 [0.00, 1.00] |",
        "| a | z | 0.00 |",
        "| b |  |  |",
    ]


def test_csv_has_every_number() -> None:
    lines = TABLE.csv().splitlines()
    assert lines[0] == "run,group,mean,mean_se,mean_low,mean_high,seeds,share"
    assert lines[1] == "a,x|y,0.5,0.25,0.0,1.0,0 1," and lines[3].startswith("b,,,")


def test_across_and_more() -> None:
    column = Column("n", "numbers", str, more=lambda row, gap: f"{gap}of {row['all']}")
    table = Table([Column("name", "name", str.upper)], [column], [{"name": "a", "n": 1, "all": 2}, {"name": "b"}])
    assert table.markdown(across=True) == "|  | A | B |\n| --- | ---: | ---: |\n| numbers | 1 of 2 |  |\n"


def test_names_are_not_repeated_on_the_terminal(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    TABLE.show("a title", ["[b]a note[/b]"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines[0] == ["a", "title"] and lines[-1] == ["[b]a", "note[/b]"]
    assert ["a", "x|y", "0.50", "±", "0.25"] in lines and ["[0.00,", "1.00]"] in lines and ["z", "0.00"] in lines


def test_items_are_spread_evenly() -> None:
    assert list(spread(range(10), 3)) == [0, 3, 6] and list(spread("ab", 5)) == ["a", "b"]
    assert list(spread("ab", 0)) == []
