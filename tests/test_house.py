"""The layout: imports go one way, no circles, nobody imports a command, tests are where the code is."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

from helpers import ROOT

#: the rooms of ``orlhf_ext``, each of which imports only those before it
ROOMS = [
    "cli",
    "files",
    "extensions",
    "backends",
    "models",
    "reports",
    "openrlhf_fixes",
    "rewards",
    "exo",
    "groups",
    "vrcli",
    "deadend",
    "litbench",
    "judge",
    "launch",
    "commands",
    "build_data",
    "__main__",
]
MAX_LINES = 420  # of a module


@functools.cache
def _modules() -> dict[str, Path]:
    paths = [path for package in ("orlhf_ext", "data_builders") for path in (ROOT / package).rglob("*.py")]
    names = (".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths)
    return {name.removesuffix(".__init__"): path for name, path in zip(names, paths, strict=True)}


def _imports(name: str, path: Path, modules: dict[str, Path]) -> Iterator[str]:
    """Modules of ours that a module imports, also inside of functions."""
    package = name.split(".") if path.stem == "__init__" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{origin}.{alias.name}"
                if inner in modules or origin in modules:
                    yield inner if inner in modules else origin


@functools.cache
def _graph() -> dict[str, set[str]]:
    modules = _modules()
    return {name: set(_imports(name, path, modules)) - {name} for name, path in modules.items()}


def _circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import one another in a circle, if there are any."""
    done: set[str] = set()

    def follow(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for other in graph[name]:
            if found := follow(other, [*path, name]):
                return found
        done.add(name)
        return []

    return next((found for name in graph if (found := follow(name, []))), [])


def _room(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


def test_the_finder_of_circles_finds_one() -> None:
    assert _circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert _circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_files_import_one_another_in_no_circle() -> None:
    assert _circle(_graph()) == []


def test_rooms_import_those_below_them_only() -> None:
    graph = _graph()
    assert {_room(name) for name in graph if name.startswith("orlhf_ext.")} == set(ROOMS)
    wrong = [
        f"{name} imports {other}"
        for name, others in graph.items()
        for other in others
        if name.startswith("orlhf_ext.") and other.startswith("orlhf_ext.")
        if ROOMS.index(_room(other)) > ROOMS.index(_room(name))
    ]
    assert wrong == []


def test_methods_do_not_import_one_another() -> None:
    methods = {"exo", "groups", "vrcli", "deadend", "litbench"}
    wrong = [
        f"{name} imports {other}"
        for name, others in _graph().items()
        for other in others
        if _room(name) in methods and _room(other) in methods - {_room(name)}
    ]
    assert wrong == []


def test_the_library_does_not_use_the_builders() -> None:
    wrong = [
        f"{name} imports {other}"
        for name, others in _graph().items()
        for other in others
        if name.startswith("orlhf_ext") and other.startswith("data_builders")
    ]
    assert wrong == []


def test_nobody_imports_a_command() -> None:
    modules = _modules()
    commands = {name for name, path in modules.items() if "\ndef main(" in path.read_text(encoding="utf-8")}
    wrong = [
        f"{name} imports {other}"
        for name, others in _graph().items()
        for other in others & commands
        if not name.endswith("__main__")
    ]
    assert wrong == []


def test_tests_are_in_rooms_of_the_same_names() -> None:
    folders = {path.parent.relative_to(ROOT / "tests").as_posix() for path in (ROOT / "tests").rglob("test_*.py")}
    # beside the rooms: the builders, the recipes, the documentation, and what a user may do wrong anywhere
    assert folders <= {*ROOMS, "data_builders", "docs", "faults", "recipes", "."}
    assert [path.name for path in (ROOT / "tests").glob("test_*.py")] == ["test_house.py"]


def test_no_module_is_too_long() -> None:
    lengths = {name: path.read_text(encoding="utf-8").count("\n") for name, path in _modules().items()}
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}
