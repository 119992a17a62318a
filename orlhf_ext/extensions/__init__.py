"""What an extension is, and the one resolver: a name of an entry-point group, or ``module:attribute``."""

from __future__ import annotations

import argparse
import functools
import importlib.util
import os
import re
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

from ..cli.errors import UserError, suggest
from ..cli.user_code import user_code

EXTENSIONS = "orlhf_ext.extensions"
REWARDS = "orlhf_ext.rewards"
BUILDERS = "orlhf_ext.builders"

#: ready-made, found without an installed entry point
_READY_MADE = {
    EXTENSIONS: {
        "batch-min": "orlhf_ext.groups.batch_min:BatchMin",
        "dead-end": "orlhf_ext.deadend:DeadEnd",
        "exo": "orlhf_ext.exo:EXO",
        "group-reward": "orlhf_ext.groups:GroupReward",
        "group-rm": "orlhf_ext.groups:GroupRM",
        "online-exo": "orlhf_ext.exo.online:OnlineEXO",
    },
    BUILDERS: {
        "hh": "data_builders.hh:Builder",
        "hh-groups": "data_builders.hh.groups:Builder",
        "hh-prompts": "data_builders.hh.prompts:Builder",
        "jigsaw": "data_builders.jigsaw:Builder",
        "litbench": "data_builders.litbench:Builder",
        "story": "data_builders.story:Builder",
    },
    REWARDS: {
        "deadend": "orlhf_ext.deadend.reward:DeadEndValue",
        "format": "orlhf_ext.rewards.format:Format",
        "groups": "orlhf_ext.groups.reward:Groups",
        "http": "orlhf_ext.rewards.http:HTTP",
        "judge": "orlhf_ext.judge.reward:Judge",
        "length": "orlhf_ext.rewards.length:Length",
        "likelihood": "orlhf_ext.rewards.likelihood:Likelihood",
        "model": "orlhf_ext.rewards.model:Model",
        "vrcli": "orlhf_ext.vrcli.reward:VRCLI",
    },
}


class Extension:
    """A named set of replacements for seams of OpenRLHF, with flags of its own.

    Subclass it, set the three class variables, and switch it on with ``--ext.use NAME``, or
    ``--ext.use my_pkg.my_module:MyExtension``. The module of an extension imports nothing heavy: replacements are named
    as ``"module:attribute"`` and imported only when OpenRLHF imports the module that they replace something in.
    """

    #: the name in log lines, and the prefix of its flags: ``--NAME.flag``
    name: ClassVar[str]
    #: the OpenRLHF launchers it works with
    launchers: ClassVar[Sequence[str]]
    #: seam -> replacement, both ``"module:attribute"``
    replacements: ClassVar[Mapping[str, str]]
    #: seams of `seams.SEAMS` that it uses without replacing them
    relies_on: ClassVar[Sequence[str]] = ()

    @property
    def prefixes(self) -> tuple[str, ...]:
        """What its flags begin with: its name."""
        return (self.name,)

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """Add flags named ``--NAME.flag``; they reach every class as ``strategy.args.NAME.flag``."""

    def check(self, args: SimpleNamespace) -> None:
        """Look at the launcher's nested arguments and our own before any model is loaded, and change nothing.

        Raises:
            UserError: the combination makes no sense; one sentence that names the flag and the way out.
        """

    def configure(self, args: SimpleNamespace) -> None:
        """Write into the arguments what its classes need beside its flags, once every extension has checked them.

        Plain values only (numbers, texts, lists, dicts): the arguments travel to every Ray actor and rank. A class
        reads them as ``strategy.args``, or, if OpenRLHF makes it without them, from `orlhf_ext.extensions.run`.
        """

    def gpu_parts(self, args: SimpleNamespace) -> Mapping[str, Sequence[float]]:
        """What it asks Ray for beside the launcher: the part of a GPU of each of its actors, by what they are."""
        return {}


def names(group: str) -> dict[str, str]:
    """Name -> ``"module:attribute"`` of what is ready-made or installed under an entry-point group."""
    found = dict(_READY_MADE.get(group, {}))
    for name, target in _installed(group):
        if found.setdefault(name, target) != target:
            raise UserError(
                f"two packages register {name!r} in {group}: {found[name]} and {target}; "
                "uninstall one, or name the one you mean as module:attribute"
            )
    return found


@functools.cache
def _installed(group: str) -> list[tuple[str, str]]:
    """Name and ``"module:attribute"`` of each entry point; once, as every installed package is looked through."""
    return [(point.name, point.value) for point in metadata.entry_points(group=group)]


def resolve(group: str, spec: str) -> Any:
    """Import what a name of ``group``, or ``module:attribute``, refers to. The working directory is importable.

    Raises:
        UserError: nothing of that name; the nearest known one is suggested.
    """
    known = names(group)
    target = known.get(spec, spec)
    if ":" not in target:
        kind = group.rsplit(".", 1)[-1]
        raise UserError(f"{spec!r} is none of the {kind} (a name, or module:attribute){suggest(spec, list(known))}")
    return load(target)


def load(target: str) -> Any:
    """Import ``module:attribute``.
    Raises UserError if the module or the attribute does not exist, or importing it fails."""
    module_name, _, attribute = target.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    with user_code(f"{target!r} cannot be imported:"):
        try:
            found: Any = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name and (module_name + ".").startswith(error.name + "."):
                raise UserError(
                    f"there is no module {error.name!r} for {target!r}; install it, or run from its folder"
                ) from error
            raise
        return _attribute(found, attribute, f"module {module_name!r}")


def load_file(target: str) -> Any:
    """Import ``FILE.py:attribute``; what is beside the file is importable.
    Raises UserError if the file or the attribute does not exist, or importing it fails."""
    name, _, attribute = target.rpartition(":")
    path = Path(name).absolute()
    if not path.is_file():
        raise UserError(f"{target}: there is no file {path}; correct the path")
    module_name = f"orlhf_ext_file_{re.sub(r'[^0-9a-zA-Z]', '_', str(path))}"
    with user_code(f"{path} cannot be imported:"):
        if module_name not in sys.modules:
            if str(path.parent) not in sys.path:
                sys.path.insert(0, str(path.parent))
            described: Any = importlib.util.spec_from_file_location(module_name, path)
            module = importlib.util.module_from_spec(described)
            sys.modules[module_name] = module  # for dataclasses and pickle
            try:
                described.loader.exec_module(module)
            except BaseException:
                del sys.modules[module_name]
                raise
        return _attribute(sys.modules[module_name], attribute, str(path))


def _attribute(found: Any, attribute: str, whose: str) -> Any:
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            public = [name for name in dir(found) if not name.startswith("_")]
            raise UserError(f"{whose} has no {attribute!r}{suggest(part, public)}") from error
    return found


def extension(spec: str) -> Extension:
    """Make the extension that ``--ext.use SPEC`` names.

    Raises:
        UserError: unknown, or no subclass of `Extension`, or one of its class variables is missing.
    """
    found = resolve(EXTENSIONS, spec)
    if not (isinstance(found, type) and issubclass(found, Extension)):
        raise UserError(f"--ext.use {spec}: {found!r} is not a subclass of orlhf_ext.extensions.Extension")
    for attribute in ("name", "launchers", "replacements"):
        if not hasattr(found, attribute):
            raise UserError(f"--ext.use {spec}: {found.__name__} lacks the class variable {attribute!r}")
    with user_code(f"--ext.use {spec} cannot be made:"):
        made = found()
        _check_variables(spec, made)
    return made


def _check_variables(spec: str, made: Extension) -> None:
    if not isinstance(made.name, str):
        raise UserError(f"--ext.use {spec} is named {made.name!r}; give it a name that is text")
    for attribute, values in (("launchers", made.launchers), ("prefixes", made.prefixes)):
        if isinstance(values, str) or not all(isinstance(value, str) for value in values):
            raise UserError(f"--ext.use {spec} has {values!r} as {attribute}; give a tuple of names")
    swaps = made.replacements
    words = [*swaps, *swaps.values()] if isinstance(swaps, Mapping) else [None]
    if not all(isinstance(word, str) and all(word.partition(":")) for word in words):
        raise UserError(
            f'--ext.use {spec} has {swaps!r} as replacements; give a dict of "module:attribute" by "module:attribute"'
        )
