"""Put replacements where OpenRLHF looks for its own classes, lazily and loudly.

A replacement is set at the origin module, directly after that module has been executed and before any other module can
import the name from it, so that every ``from module import Name`` in OpenRLHF sees it. Nothing is imported earlier
than OpenRLHF does: registering costs microseconds, which is what a hook that runs in every Ray worker must cost.
"""

from __future__ import annotations

import functools
import importlib
import importlib.abc
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from ..cli.errors import UserError
from . import Extension, load
from .ray_classes import is_actor_class, rewrap

ENVIRONMENT = "ORLHF_EXT_SWAPS"
"""Environment variable that carries the swaps to other processes of a run, as JSON."""


@dataclass(frozen=True)
class Swap:
    """One replacement: the seam, what is put there, and the extension that asked for it."""

    seam: str
    by: str
    owner: str


_live: dict[str, Any] = {}  # seam -> the object that was replaced
_deferred: list[tuple[Swap, ModuleType]] = []
_callbacks: dict[str, list[Callable[[ModuleType], None]]] = {}
_surroundings: dict[str, list[Callable[[], AbstractContextManager]]] = {}


class _Loader(importlib.abc.Loader):
    """Executes a module inside its surroundings, then runs its callbacks."""

    def __init__(self, inner: Any, name: str) -> None:
        self._inner, self._name = inner, name

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        with ExitStack() as stack:
            for surrounding in _surroundings.pop(self._name, ()):
                stack.enter_context(surrounding())
            self._inner.exec_module(module)
        for callback in _callbacks.pop(self._name, ()):
            callback(module)

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._inner, attribute)


class _Finder(importlib.abc.MetaPathFinder):
    """Wraps the loader of the modules that somebody waits for; finds nothing by itself."""

    _busy: set[str] = set()  # noqa: RUF012 - one finder a process

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name in self._busy or not (name in _callbacks or name in _surroundings):
            return None
        self._busy.add(name)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._busy.discard(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, name)
        return spec


def on_import(name: str, callback: Callable[[ModuleType], None]) -> None:
    """Call ``callback(module)`` once, directly after ``name`` has been imported; now, if it already is."""
    module = sys.modules.get(name)
    if module is not None and not getattr(module.__spec__, "_initializing", False):
        callback(module)
        return
    _callbacks.setdefault(name, []).append(callback)
    _watch()


def during_import(name: str, surrounding: Callable[[], AbstractContextManager]) -> None:
    """Hold the context manager ``surrounding()`` open while ``name`` is being imported."""
    if name not in sys.modules:
        _surroundings.setdefault(name, []).append(surrounding)
        _watch()


def _watch() -> None:
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def plan(extensions: Iterable[Extension]) -> list[Swap]:
    """The swaps of all extensions.
    Raises UserError if two extensions claim one seam, or one extension is named twice."""
    claimed: dict[str, Swap] = {}
    for extension in extensions:
        for seam, by in extension.replacements.items():
            swap = Swap(seam, by, extension.name)
            other = claimed.setdefault(seam, swap)
            if other is not swap:
                raise UserError(
                    f"the extensions {other.owner!r} and {swap.owner!r} both replace {seam} "
                    f"({other.by} and {swap.by}); leave one --ext.use out"
                )
    return list(claimed.values())


def install(swaps: Iterable[Swap]) -> None:
    """Register the swaps; each takes effect when OpenRLHF imports the seam's module, and then says so in one line."""
    for swap in swaps:
        on_import(swap.seam.partition(":")[0], functools.partial(_swap, swap))
        on_import(swap.by.partition(":")[0], _swap_deferred)


def _swap(swap: Swap, module: ModuleType) -> None:
    attribute = swap.seam.partition(":")[2]
    if not hasattr(module, attribute):
        raise UserError(
            f"extension {swap.owner!r} replaces {swap.seam}, which this OpenRLHF does not have; run `orlhf-ext doctor`"
        )
    if _importing(swap.by.partition(":")[0]):
        # The replacement's module is being imported, and its own imports led here; the swap follows at its end. Until
        # then OpenRLHF may take the old name from here: see `_swap_deferred`.
        _deferred.append((swap, module))
    else:
        _put(swap, module)


def _put(swap: Swap, module: ModuleType) -> None:
    attribute = swap.seam.partition(":")[2]
    original = getattr(module, attribute)
    replacement = load(swap.by)
    if is_actor_class(original) and not is_actor_class(replacement):
        replacement = rewrap(replacement, original)
    setattr(module, attribute, replacement)
    _live[swap.seam] = original
    say(f"{swap.seam} is now {swap.by} (extension {swap.owner})")


def _swap_deferred(replacements: ModuleType) -> None:
    """Put what waited for this module of replacements, whose import has just ended."""
    for swap, module in [item for item in _deferred if item[0].by.partition(":")[0] == replacements.__name__]:
        _deferred.remove((swap, module))
        _put(swap, module)
        for _, space in _openrlhf_namespaces():
            for key in [key for key, value in space.items() if value is _live[swap.seam]]:
                space[key] = getattr(module, swap.seam.partition(":")[2])


def _importing(name: str) -> bool:
    module = sys.modules.get(name)
    return module is not None and getattr(module.__spec__, "_initializing", False)


def _openrlhf_namespaces() -> list[tuple[str, dict[str, Any]]]:
    return [(name, vars(module)) for name, module in sys.modules.items() if name.startswith("openrlhf.")]


def verify(
    swaps: Iterable[Swap],
    namespace: dict[str, Any] | None = None,
    holder: str = "the launcher",
    load_seams: bool = False,
) -> None:
    """Make sure that every swap is live, and that no module of OpenRLHF kept the replaced object.

    Args:
        namespace: global names to look at like those of a module of OpenRLHF.
        holder: who has them.
        load_seams: import the modules of seams that are not imported yet (``train_ppo_ray`` imports its trainer late).

    Raises:
        UserError: a swap is not live, or only half applied; the module that kept the old object is named.
    """
    swaps = list(swaps)
    for swap in swaps:
        if load_seams:
            importlib.import_module(swap.seam.partition(":")[0])
        if swap.seam not in _live:
            raise UserError(
                f"extension {swap.owner!r} replaces {swap.seam}, which {holder} never imported; "
                "use the extension with another launcher or drop that replacement"
            )
    for name, space in [*_openrlhf_namespaces(), (holder, namespace or {})]:
        for swap in swaps:
            if any(value is _live[swap.seam] for value in list(space.values())):
                raise UserError(
                    f"{name} still has OpenRLHF's own {swap.seam}: it was imported before extension {swap.owner!r} "
                    "was installed; import openrlhf only after orlhf_ext.extensions.inject.install"
                )


def verify_loaded(swaps: Iterable[Swap]) -> None:
    """`verify` those swaps whose seam's module this process has imported: a Ray worker imports what it needs.
    Raises UserError as `verify` does."""
    waiting = {swap.seam for swap, _ in _deferred}  # put, and put right everywhere, in a moment
    loaded = [swap for swap in swaps if swap.seam.partition(":")[0] in sys.modules and swap.seam not in waiting]
    verify(loaded, holder=f"worker {os.getpid()}")


def to_environment(swaps: Iterable[Swap]) -> None:
    """Write the swaps into the environment, from where `from_environment` reads them in other processes."""
    os.environ[ENVIRONMENT] = json.dumps([asdict(swap) for swap in swaps])


def from_environment() -> list[Swap]:
    """The swaps that the process which started this one has written with `to_environment`."""
    return [Swap(**swap) for swap in json.loads(os.environ.get(ENVIRONMENT, "[]"))]


def first_process() -> bool:
    """Whether this is the process of a run that checks and prints for all; where it fails, the others are ended."""
    return os.environ.get("RANK", "0") == "0"


def say(message: str) -> None:
    """One log line, from the first process of a run only; a Ray worker has no rank yet when it speaks."""
    if first_process():
        print(f"[orlhf-ext] {message}", flush=True)
