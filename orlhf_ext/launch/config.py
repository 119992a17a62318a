"""``--config run.yaml``: a launcher's flags in a file, and the flags of a run written to one.

A flag ``--actor.adam.lr 1e-6`` is ``actor: {adam: {lr: 1e-6}}``, or ``actor.adam.lr: 1e-6``; a switch is ``true`` or
``false``; a flag with several words, or one that can be repeated, is a list; ``null`` is as if it were not there. A
flag on the command line replaces the one in the file.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ..cli.errors import UserError, suggest
from ..cli.flags import Parser
from ..files.records import atomic_write

_FLAG = "--config"
_MAX_DEPTH = 10


class _Setting(NamedTuple):
    value: Any
    #: file and line, for errors
    where: str


class Config:
    """The flags of a file, until the parsers that know them take them.

    Args:
        words: a command line, perhaps with ``--config FILE``.

    Attributes:
        rest: the command line without it; `words` puts the file's flags before it.
        own: the flags of extensions and rewards, for `write`.

    Raises:
        UserError: more than one file is given, or it cannot be read as YAML, or sets a flag twice.
    """

    def __init__(self, words: list[str]) -> None:
        finder = Parser(add_help=False, allow_abbrev=False)
        finder.add_argument(_FLAG, action="append", default=[])
        try:
            found, self.rest = finder.parse_known_args(words)
        except UserError:
            raise UserError("--config needs a file; write --config run.yaml") from None
        if len(found.config) > 1:
            raise UserError(f"--config is given {len(found.config)} times; write one file")
        self.path = found.config[0] if found.config else ""
        self._settings = dict(_read(self.path)) if self.path else {}
        self.own: dict[str, Any] = {}
        self._known: list[str] = []

    def words(self, parser: argparse.ArgumentParser) -> list[str]:
        """The command line, and before it what the file says of a parser's flags that the command line does not set.

        Raises:
            UserError: a value does not fit its flag.
        """
        actions = parser._option_string_actions
        self._known += actions
        given = {actions[flag].dest for word in self.rest if (flag := word.partition("=")[0]) in actions}
        found: list[str] = []
        for name in [name for name in self._settings if f"--{name}" in actions]:
            setting, action = self._settings.pop(name), actions[f"--{name}"]
            if action.dest not in given and setting.value is not None:
                found += _words(f"--{name}", setting, action, actions)
        self.rest = [*found, *self.rest]
        return self.rest

    def gives(self, flag: str) -> bool:
        """Whether the command line or the file sets a flag."""
        words = [word.partition("=")[0] for word in self.rest]
        return flag in words or getattr(self._settings.get(flag.removeprefix("--")), "value", None) is not None

    @contextlib.contextmanager
    def for_launcher(self) -> Iterator[None]:
        """In the block, the launcher's own parser reads the file, too, when it reads the command line.

        Raises:
            UserError: as `words` and `refuse_unknown`.
        """
        original = argparse.ArgumentParser.parse_args

        def parse_args(parser: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> Any:
            argparse.ArgumentParser.parse_args = original  # type: ignore[method-assign]
            if args is None:
                args = self.words(parser)
                self.refuse_unknown()
            return original(parser, args, namespace)

        argparse.ArgumentParser.parse_args = parse_args  # type: ignore[assignment,method-assign]
        try:
            yield
        finally:
            argparse.ArgumentParser.parse_args = original  # type: ignore[method-assign]

    def refuse_unknown(self) -> None:
        """Check that each flag of the file was known to a parser.

        Raises:
            UserError: one was not; the nearest flag is suggested.
        """
        for name, setting in self._settings.items():
            near = suggest(name, [flag.removeprefix("--") for flag in self._known]).replace("; known:", "; flags:")
            raise UserError(f"{setting.where}: unknown flag {name}{near}")


def _read(path: str) -> Iterator[tuple[str, _Setting]]:
    """Flag (without dashes) and value of each line of a file."""
    loader = None
    try:
        with open(path, encoding="utf-8") as stream:
            loader = yaml.SafeLoader(stream)
            root = loader.get_single_node()
            if root is None:
                return
            if not isinstance(root, yaml.MappingNode):
                raise UserError(f"--config {path} is not a mapping of flags; write `train: {{batch_size: 8}}`, say")
            seen: dict[str, str] = {}
            for name, setting in _flat(loader, path, root, "", 0):
                if name in seen:
                    raise UserError(f"{setting.where}: {name} is set already in line {seen[name].rpartition(' ')[2]}")
                seen[name] = setting.where
                yield name, setting
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"--config {path} cannot be read as YAML ({' '.join(str(error).split())[:200]})") from error
    finally:
        if loader is not None:
            loader.dispose()


def _flat(
    loader: yaml.SafeLoader, path: str, node: yaml.MappingNode, prefix: str, depth: int
) -> Iterator[tuple[str, _Setting]]:
    for key, value in node.value:
        where = f"{path} line {key.start_mark.line + 1}"
        if not isinstance(key, yaml.ScalarNode) or depth > _MAX_DEPTH:
            raise UserError(f"{where} does not name a flag; write its words as nested keys")
        name = f"{prefix}{key.value.removeprefix('--')}"
        if isinstance(value, yaml.MappingNode):
            yield from _flat(loader, path, value, f"{name}.", depth + 1)
        else:
            yield name, _Setting(loader.construct_object(value, deep=True), where)


def _words(flag: str, setting: _Setting, action: argparse.Action, actions: Mapping[str, argparse.Action]) -> list[str]:
    """The words of a command line that set a flag."""
    value, where = setting
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise UserError(f"{where}: {flag} is a switch and not {value!r}; write true or false")
        if isinstance(action, argparse.BooleanOptionalAction):
            return [next(name for name in action.option_strings if name.startswith("--no-") != value)]
        if action.const == value:
            return [flag]
        opposite = [name for name, other in actions.items() if other.dest == action.dest and other.const == value]
        return opposite[:1]
    many = action.nargs is not None and action.nargs != "?"
    repeated = isinstance(action, argparse._AppendAction)
    if isinstance(value, list) and not (many or repeated):
        raise UserError(f"{where}: {flag} takes one value and not a list; write {flag.removeprefix('--')}: VALUE")
    values = value if isinstance(value, list) else [value]
    if wrong := next((one for one in values if isinstance(one, list | dict)), None):
        raise UserError(f"{where}: {wrong!r} is no value of {flag}; write a number or a text")
    texts = [str(one).lower() if isinstance(one, bool) else str(one) for one in values]
    return [flag, *texts] if many else [f"{flag}={text}" for text in texts]


def given(parser: argparse.ArgumentParser, words: list[str]) -> dict[str, Any]:
    """What a command line says of a parser's flags, as texts, and the plain defaults of the others.

    The parser cannot be used afterwards.
    """
    plain: dict[str, Any] = {}
    for action in parser._actions:
        if isinstance(action.default, bool | int | float | str) and action.default != argparse.SUPPRESS:
            plain[action.dest] = action.default
        action.type, action.choices, action.default = None, None, argparse.SUPPRESS
    return plain | vars(parser.parse_known_args(words)[0])


def write(output: str, flags: Mapping[str, Any]) -> None:
    """Write flags, ``"actor.adam.lr"`` -> value, to ``OUTPUT.config.yaml``, which ``--config`` reads."""
    nested: dict[str, Any] = {}
    for name, value in flags.items():
        if value is None:
            continue
        *parts, last = name.split(".")
        place = nested
        for part in parts:
            place = place.setdefault(part, {})
        place[last] = list(value) if isinstance(value, tuple) else value
    path = Path(f"{os.path.normpath(output)}.config.yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as stream:
        stream.write("# The flags of this run; `orlhf-ext LAUNCHER --config FILE` runs it again.\n")
        yaml.safe_dump(nested, stream, sort_keys=True, allow_unicode=True)
