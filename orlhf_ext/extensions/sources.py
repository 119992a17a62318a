"""Python sources that are read and not imported: of what is installed here, of a folder, or of a wheel.

So a release of OpenRLHF is compared with our seams in a second, without installing it or what it needs.
"""

from __future__ import annotations

import ast
import zipfile
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path
from typing import NamedTuple, TypeAlias

from ..cli.errors import UserError

Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef
Definition: TypeAlias = ast.ClassDef | Function

_FURTHEST = 8  # imports that are followed from one module to the next


class Found(NamedTuple):
    """A class or function, and the module that defines it."""

    module: str
    node: Definition


class Sources:
    """Modules by name, read and parsed when they are asked for.

    Args:
        place: a folder of packages, or a wheel; None: what this Python would import.

    Raises:
        UserError: the place is neither.
    """

    def __init__(self, place: Path | None = None) -> None:
        self._place = place
        self._wheel: zipfile.ZipFile | None = None
        self._names: dict[str, str] = {}
        self._trees: dict[str, ast.Module | None] = {}
        self._lines: dict[str, list[str]] = {}
        if place is not None and not place.is_dir():
            try:
                self._wheel = zipfile.ZipFile(place)
            except (OSError, zipfile.BadZipFile) as error:
                raise UserError(f"{place} is neither a folder of packages nor a wheel; give one of them") from error
            # a wheel keeps what is pure Python of a package that is not at its top, or under NAME.data/purelib
            self._names = {name.partition(".data/purelib/")[2] or name: name for name in self._wheel.namelist()}

    def has(self, package: str) -> bool:
        """Whether it is among these."""
        return self.text(package) is not None

    def text(self, module: str) -> str | None:
        """The source of a module or package, or None."""
        found = self._read(module)
        return found[0] if found else None

    def _read(self, module: str) -> tuple[str, bool] | None:
        """The source, and whether it is a package's."""
        path = module.replace(".", "/")
        for name, package in ((f"{path}.py", False), (f"{path}/__init__.py", True)):
            if self._wheel is not None:
                if name in self._names:
                    return self._wheel.read(self._names[name]).decode(), package
            elif (file := self._folder(module) / name).is_file():
                return file.read_text(encoding="utf-8"), package
        return None

    def _folder(self, module: str) -> Path:
        if self._place is not None:
            return self._place
        spec = PathFinder.find_spec(module.partition(".")[0])
        return Path(spec.origin).parent.parent if spec and spec.origin else Path()

    def tree(self, module: str) -> ast.Module | None:
        """The parsed source, or None."""
        if module not in self._trees:
            text = self.text(module)
            self._trees[module] = None if text is None else ast.parse(text)
        return self._trees[module]

    def find(self, module: str, attribute: str) -> Found | None:
        """What a name of a module stands for, ``CLASS.METHOD`` included; imports and base classes are followed."""
        first, *rest = attribute.split(".")
        found = self._named(module, first, 0)
        for name in rest:
            found = self.member(found, name) if found else None
        return found

    def _named(self, module: str, name: str, depth: int) -> Found | None:
        tree = self.tree(module)
        if tree is None or depth > _FURTHEST:
            return None
        found = None
        for node in _statements(tree.body):
            if isinstance(node, Definition) and node.name == name:
                found = Found(module, node)
            elif isinstance(node, ast.ImportFrom):
                origin = next((alias.name for alias in node.names if (alias.asname or alias.name) == name), None)
                if origin:
                    found = self._named(self._origin(module, node), origin, depth + 1) or found
        return found

    def _origin(self, module: str, node: ast.ImportFrom) -> str:
        """The module that an import names."""
        if not node.level:
            return node.module or ""
        read = self._read(module)
        parts = module.split(".")
        up = node.level - bool(read and read[1])
        return ".".join([*parts[: len(parts) - up], *([node.module] if node.module else [])])

    def member(self, owner: Found, name: str) -> Found | None:
        """A class's method, its base classes' included."""
        if not isinstance(owner.node, ast.ClassDef):
            return None
        for node in owner.node.body:
            if isinstance(node, Function) and node.name == name:
                return Found(owner.module, node)
        for base in owner.node.bases:
            known = isinstance(base, ast.Name) and self.find(owner.module, base.id)
            if known and (found := self.member(known, name)):
                return found
        return None

    def has_attribute(self, owner: Found, name: str) -> bool:
        """Whether a class, or a base class of it, defines a name, or sets it on itself."""
        if not isinstance(owner.node, ast.ClassDef):
            return False
        if self.member(owner, name) or f"self.{name} =" in self.source(owner):
            return True
        for node in owner.node.body:
            targets = node.targets if isinstance(node, ast.Assign) else []
            targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
            if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                return True
        return False

    def source(self, found: Found) -> str:
        """Its lines, as text."""
        if found.module not in self._lines:
            self._lines[found.module] = (self.text(found.module) or "").split("\n")
        return "\n".join(self._lines[found.module][found.node.lineno - 1 : found.node.end_lineno])


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Of a module, those under ``if`` and ``try`` included."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try):
            yield from _statements([*node.body, *node.orelse])
        if isinstance(node, ast.Try):
            yield from _statements([*node.finalbody, *(line for one in node.handlers for line in one.body)])


def parameters(node: Function) -> dict[str, bool]:
    """Name -> whether it may be left out, in order."""
    given = node.args
    named = [*given.posonlyargs, *given.args]
    least = len(named) - len(given.defaults)
    found = {one.arg: place >= least for place, one in enumerate(named)}
    found |= {one.arg: True for one in (given.vararg,) if one}
    found |= {one.arg: default is not None for one, default in zip(given.kwonlyargs, given.kw_defaults, strict=True)}
    return found | {one.arg: True for one in (given.kwarg,) if one}
