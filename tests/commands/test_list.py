"""``orlhf-ext list``: one short line for each entry."""

from __future__ import annotations

import pytest

from orlhf_ext.commands import list as listing


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("A ``reward``, in short.\nMore.", "A reward, in short"),
        ("pairs (of A) into rows; see B", "pairs into rows"),
        ("orlhf_ext.models in its place: x. y", "orlhf_ext.models in its place: x"),
        ("word " * 30, "word " * 13 + "..."),
    ],
)
def test_the_first_clause(text: str, line: str) -> None:
    assert listing.short(text) == line


def test_a_line_for_each_entry(capsys: pytest.CaptureFixture) -> None:
    listing.main([])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    names = [line.split()[0] for line in lines if line.startswith("  ")]
    assert {"exo", "length", "hh", "recipes/hh_exo.sh"} <= set(names)
    assert not {"recipes/common.sh", "recipes/setup.sh"} & set(names)
    assert all(len(line.split()) > 2 for line in lines if line.startswith("  "))
