"""The columns of JSON files as OpenRLHF's launchers load them: typed by every record, not by the first ten megabytes.

`datasets` takes the types of a JSON file from its beginning, and fails where a column is another one's later. Here each
column has a type that all its values have; one that has no such type (text and numbers, say, or objects with other
keys) is kept as JSON and comes out as it is in the file. Columns of several files that are joined agree.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from ..cli.errors import UserError
from .records import Line, Record, read_records

#: a scalar's name, ``("list", kind)``, or ``("object", ((key, kind), ...))``
Kind = str | tuple[str, Any]

MIXED = "mixed"
_NAMES = {"null": "null", "bool": "bool", "small": "int64", "int": "int64", "float": "float64", "str": "string"}
_MAX_EXACT = 2**53  # whole numbers up to it are floats without loss
_JSON = (".json", ".jsonl")


def kind_of(value: Any) -> Kind:
    """The narrowest type of a value of a JSON file. Raises OverflowError if a whole number needs more than 64 bits."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise OverflowError
        return "small" if abs(value) <= _MAX_EXACT else "int"
    if isinstance(value, float):
        return "float"
    if isinstance(value, str):
        return "str"
    if isinstance(value, list):
        types = set(map(type, value))
        if types == {str}:  # the usual lists, without a look at each value
            return ("list", "str")
        if types == {int}:
            return _list(join(kind_of(min(value)), kind_of(max(value))))
        return _list(functools.reduce(join, map(kind_of, value), kind_of(None)))
    kinds = {key: kind_of(inner) for key, inner in value.items()}
    return MIXED if MIXED in kinds.values() or not kinds else ("object", tuple(kinds.items()))


def _list(inner: Kind) -> Kind:
    return MIXED if inner == MIXED else ("list", inner)


def join(one: Kind, other: Kind) -> Kind:
    """The narrowest type that takes the values of both, or `MIXED`."""
    if one == other or other == "null":
        return one
    if one == "null":
        return other
    pair = {one, other}
    if pair == {"small", "int"}:
        return "int"
    if pair == {"small", "float"}:
        return "float"
    if isinstance(one, tuple) and isinstance(other, tuple) and one[0] == other[0]:
        if one[0] == "list":
            return _list(join(one[1], other[1]))
        theirs = dict(other[1])
        if theirs.keys() == dict(one[1]).keys():
            kinds = {key: join(kind, theirs[key]) for key, kind in one[1]}
            return MIXED if MIXED in kinds.values() else ("object", tuple(kinds.items()))
    return MIXED


class Columns:
    """The types of the columns of the records seen so far."""

    def __init__(self) -> None:
        self.kinds: dict[str, Kind] = {}
        #: where each column without a type was found to have none
        self.mixed: dict[str, str] = {}

    def see(self, line: Line) -> None:
        """Take one more record in.
        Raises UserError if a number is too large to be loaded; its line and column are named."""
        for name, value in line.record.items():
            try:
                self.kinds[name] = join(self.kinds.get(name, "null"), kind_of(value))
            except OverflowError as error:
                raise UserError(
                    f"{line.where} has a whole number of more than 64 bits in its column {name!r}; write it as text"
                ) from error
            if self.kinds[name] == MIXED:
                self.mixed.setdefault(name, line.where)


_known: dict[tuple[str, int, int], Columns] = {}


def _key(path: str | os.PathLike) -> tuple[str, int, int]:
    status = os.stat(path)
    return str(path), status.st_size, status.st_mtime_ns


def read(path: str | os.PathLike) -> Iterator[Line]:
    """`read_records`, after which `read_columns` need not read the file again."""
    columns = Columns()
    for line in read_records(path):
        columns.see(line)
        yield line
    _known[_key(path)] = columns


def read_columns(path: str | os.PathLike) -> Columns:
    """The columns of a file, which is read once as long as it does not change.
    Raises UserError as `read_records` does."""
    if (key := _key(path)) not in _known:
        for _ in read(path):
            pass
    return _known[key]


def features(sources: Iterable[Columns]) -> Any:
    """`datasets.Features` of the columns of all files.

    Raises:
        UserError: a column has no type, and this version of `datasets` cannot keep it as JSON; its line is named.
    """
    import datasets

    kinds: dict[str, Kind] = {}
    found: dict[str, Any] = {}
    places: dict[str, str] = {}
    for columns in sources:
        for name, kind in columns.kinds.items():
            kinds[name] = join(kinds.get(name, "null"), kind)
        places |= columns.mixed
    for name, kind in kinds.items():
        if kind != MIXED:
            found[name] = _feature(kind)
        elif hasattr(datasets, "Json"):
            found[name] = datasets.Json()
        else:
            raise UserError(
                f"{places.get(name, 'a file')}: the column {name!r} is of another type than in earlier records; give "
                "it one type, or update datasets"
            )
    return datasets.Features(found)


def _feature(kind: Kind) -> Any:
    import datasets

    if isinstance(kind, str):
        return datasets.Value(_NAMES[kind])
    if kind[0] == "list":
        return [_feature(kind[1])] if not hasattr(datasets, "List") else datasets.List(_feature(kind[1]))
    return {key: _feature(inner) for key, inner in kind[1]}


def _rows(path: str, names: tuple[str, ...], stamp: tuple[int, int]) -> Iterator[Record]:
    """The records of a file, each with all columns; ``stamp`` tells one state of it from another."""
    for line in read_records(path):
        yield {name: line.record.get(name) for name in names}


def load(path: str, wanted: Any) -> Any:
    """A JSON file as a `datasets.DatasetDict` with the split ``train``, on disk as `datasets.load_dataset` has it.

    Args:
        path: the file.
        wanted: its `datasets.Features`.
    """
    import datasets

    arguments = {"path": path, "names": tuple(wanted), "stamp": _key(path)[1:]}
    return datasets.DatasetDict(train=datasets.Dataset.from_generator(_rows, features=wanted, gen_kwargs=arguments))


def is_json(source: str) -> bool:
    """Whether a source of ``--data.dataset`` is a JSON file of this machine."""
    return Path(source).suffix in _JSON and Path(source).is_file()


def use(module: ModuleType) -> None:
    """Let ``openrlhf.datasets.utils`` load JSON files this way, and say in one sentence what cannot be loaded."""
    stock, blend = module.load_dataset, module.blending_datasets
    shared: list[Any] = []

    def load_dataset(kind: str, *words: Any, **named: Any) -> Any:
        path = named.get("data_files", kind)
        try:
            if kind == "json" and isinstance(path, str) and is_json(path):
                return load(path, shared[-1] if shared else features([read_columns(path)]))
            return stock(kind, *words, **named)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"the data set {path} cannot be loaded ({_reason(error)}); fix or convert it") from error

    @functools.wraps(blend)
    def blending_datasets(names: str, *words: Any, **named: Any) -> Any:
        paths = [path for path in (name.partition("@")[0].strip() for name in names.split(",")) if is_json(path)]
        shared.append(features(map(read_columns, paths)))
        try:
            return blend(names, *words, **named)
        except ValueError as error:
            if "aligned" not in str(error):
                raise
            raise UserError(
                f"the data sets {names} cannot be joined ({_reason(error)}); give their columns the same types"
            ) from error
        finally:
            shared.pop()

    module.load_dataset, module.blending_datasets = load_dataset, blending_datasets  # type: ignore[attr-defined]


def _reason(error: BaseException) -> str:
    """The first line of the innermost cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
