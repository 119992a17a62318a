"""JSON files load with the types that all their records have, and with the values that stand in them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from helpers import write
from hypothesis import given
from hypothesis import strategies as st

from orlhf_ext.cli.errors import UserError
from orlhf_ext.files import columns
from orlhf_ext.files.columns import MIXED, join, kind_of

STRATEGY = SimpleNamespace(print=print, is_rank_0=lambda: False, args=SimpleNamespace(use_ms=False))


@pytest.fixture
def blend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """OpenRLHF's `blending_datasets` as a run has it."""
    utils = pytest.importorskip("openrlhf.datasets.utils")

    module = ModuleType("utils")
    names = {"load_dataset": utils.load_dataset, "exist_and_not_none": utils.exist_and_not_none}
    monkeypatch.setattr(utils, "load_dataset", names["load_dataset"])
    module.load_dataset, module.blending_datasets = utils.load_dataset, utils.blending_datasets  # type: ignore[attr-defined]
    columns.use(module)
    monkeypatch.setattr(utils, "load_dataset", module.load_dataset)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    yield lambda *words: module.blending_datasets(*words, strategy=STRATEGY)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=8,
)


def holds(kind: columns.Kind, value: Any) -> bool:
    """Whether a column of this kind gives the value back."""
    if kind == MIXED or value is None:
        return True
    if isinstance(kind, tuple) and kind[0] == "list":
        return isinstance(value, list) and all(holds(kind[1], one) for one in value)
    if isinstance(kind, tuple):
        inner = dict(kind[1])
        return (
            isinstance(value, dict) and value.keys() == inner.keys() and all(holds(inner[k], value[k]) for k in value)
        )
    if kind == "float":
        return isinstance(value, float) or (type(value) is int and float(value) == value)
    wanted = {"bool": bool, "small": int, "int": int, "str": str, "null": type(None)}[kind]
    return type(value) is wanted and (kind != "small" or abs(value) <= 2**53)


@pytest.mark.launcher
@given(st.lists(JSON, max_size=6))
def test_a_type_holds_all_that_it_was_made_of(values: list[Any]) -> None:
    kind: columns.Kind = "null"
    for value in values:
        assert holds(kind_of(value), value)
        kind = join(kind, kind_of(value))
        assert join(kind, kind_of(value)) == kind
    assert all(holds(kind, value) for value in values)


ROWS = [
    {"id": 1, "text": "a", "rewards": [1, 0], "chat": [{"role": "user", "content": "x"}], "date": "2020-01-01"},
    {"id": 2, "text": "b", "rewards": [0.5, 1], "chat": [{"role": "user", "content": "x", "name": "n"}], "group": 5},
    {"id": 3, "text": "c", "rewards": [], "group": "w", "at": {"b": 1, "a": [None, 2.5]}, "large": 2**60, "date": None},
]


@pytest.mark.launcher
@pytest.mark.parametrize("name", ["x.jsonl", "x.json"])
def test_values_come_back_as_they_stand(blend: Any, tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, ROWS)
    if name == "x.json":
        path.write_text(json.dumps(ROWS, indent=1))
    names = {key for row in ROWS for key in row}
    assert list(blend(str(path))) == [{key: row.get(key) for key in names} for row in ROWS]
    other = write(tmp_path / "other.jsonl", [{"id": 1.5, "group": "v", "more": True}])
    joined = list(blend(f"{path},{other}"))
    assert (
        [row["id"] for row in joined] == [1.0, 2.0, 3.0, 1.5]
        and joined[3]["group"] == "v"
        and joined[0]["more"] is None
    )
    path.write_text(path.read_text().replace('"text": "a"', '"text": "z"'))
    assert blend(str(path))[0]["text"] == "z"


@pytest.mark.launcher
@pytest.mark.parametrize(
    "early, late",
    [
        ({"rewards": [1.0, 0.0]}, {"rewards": [1.0, 0.0], "finish_reasons": ["stop", "length"]}),
        ({"finish_reasons": None}, {"finish_reasons": ["stop", "length"]}),
        ({"rewards": [1, 0]}, {"rewards": [0.5, 0.25]}),
        ({"label": "text"}, {"label": 5}),
        ({"meta": {"a": 1}}, {"meta": {"b": 1}}),
    ],
    ids=["missing", "null", "ints", "text", "objects"],
)
def test_a_column_that_changes_behind_ten_megabytes(blend: Any, tmp_path: Path, early: dict, late: dict) -> None:
    rows = [{"prompt": f"{i} {'word ' * 500}", **(early if i < 4390 else late)} for i in range(4400)]
    path = write(tmp_path / "x.jsonl", rows)
    assert path.stat().st_size > 10 << 20
    found = blend(str(path))
    assert {key: found[0][key] for key in early} == early and {key: found[-1][key] for key in late} == late


def test_what_cannot_be_loaded(blend: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "x.jsonl", [{"a": 1}, {"a": 2**63}])
    with pytest.raises(UserError, match=r"x.jsonl line 2 has a whole number of more than 64 bits in its column 'a'"):
        blend(str(path))
    mixed = write(tmp_path / "mixed.jsonl", [{"a": 1}, {"a": 1}, {"a": "x"}])
    monkeypatch.delattr("datasets.Json")
    with pytest.raises(UserError, match=r"mixed.jsonl line 3: the column 'a' is of another type"):
        blend(str(mixed))
    (tmp_path / "x.csv").write_bytes(b"a,b\n1,2\n3,4,5\n")
    with pytest.raises(UserError, match=r"the data set .*x.csv cannot be loaded \(ParserError"):
        blend(str(tmp_path / "x.csv"))
