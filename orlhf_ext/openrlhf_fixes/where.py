"""A fix applies where its bug is: to releases that were tested, and to others whose source still has it."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

from ..extensions.fit import unfit
from ..extensions.inject import on_import, say


def when_there(name: str, fix: Callable[[ModuleType], None]) -> None:
    """Call ``fix(module)`` after ``name`` has been imported, unless the bug is gone, which a line says."""

    def apply(module: ModuleType) -> None:
        if why := unfit(name):
            say(f"a fix of {name} is left out: {why}")
        else:
            fix(module)

    on_import(name, apply)
