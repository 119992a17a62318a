"""A reward's own arguments: the parameters of its class become flags ``--NAME.ARGUMENT``, or keys of a JSON object."""

from __future__ import annotations

import argparse
import inspect
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

from ..cli.errors import UserError, suggest
from ..cli.flags import Number
from ..cli.user_code import user_code
from ..files.records import load_json
from .base import Reward

REQUIRED: Any = inspect.Parameter.empty


class Argument(NamedTuple):
    """One parameter of a reward's class. ``Annotated[int, "what it is", COUNT]`` gives it a help text and a range."""

    name: str
    type: Any
    default: Any
    help: str
    #: the numbers that it takes
    range: Number | None = None

    @property
    def is_list(self) -> bool:
        """Whether its flag takes several words."""
        return get_origin(self.type) in (list, tuple)


def arguments(cls: type[Reward]) -> dict[str, Argument]:
    """The parameters of a reward's class, by name.
    Raises UserError if one has no type, or one that cannot be looked up."""
    found: dict[str, Argument] = {}
    with user_code(f"reward {cls.name!r}: the types of its arguments cannot be looked up:"):
        parameters = inspect.signature(cls).parameters
        if not parameters:
            return found
        hints = get_type_hints(cls.__init__, include_extras=True)
    for name, parameter in parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise UserError(f"reward {cls.name!r} takes {parameter}, which no flag can give; name each argument")
        if name not in hints:
            raise UserError(f"reward {cls.name!r}: its argument {name!r} has no type; write {name}: int, or the like")
        hint, words, numbers = hints[name], "", None
        if get_origin(hint) is Annotated:
            hint, *more = get_args(hint)
            words = next((item for item in more if isinstance(item, str)), "")
            numbers = next((item for item in more if isinstance(item, Number)), None)
        found[name] = Argument(name, hint, parameter.default, words, numbers)
    return found


def add_flags(parser: argparse.ArgumentParser, cls: type[Reward]) -> None:
    """Add ``--NAME.ARGUMENT`` for every argument of a reward's class; a flag that is not given stays None.

    Into the parser itself, or a group of it: a group within a group does not show in the help.
    """
    for argument in arguments(cls).values():
        kind = getattr(argument.type, "__name__", None) if isinstance(argument.type, type) else None
        default = "required" if argument.default is REQUIRED else f"default {argument.default!r}"
        words = [argument.help, "" if argument.default is None else default]
        settings: dict[str, Any] = {"nargs": "+"} if argument.is_list else {}
        if argument.type is bool:
            settings = {"nargs": "?", "const": "true"}
        parser.add_argument(
            f"--{cls.name}.{argument.name}",
            metavar=(kind or argument.name).upper(),
            help="; ".join(filter(None, words)).replace("%", "%%"),
            **settings,
        )


def parse_json(text: str | None, classes: Sequence[type[Reward]]) -> dict[str, dict[str, Any]]:
    """``--ext.reward_args``: reward name -> its arguments.
    Raises UserError if it is not a JSON object of objects, or names a reward that is not used."""
    if text is None:
        return {}
    try:
        found = load_json(text)
    except ValueError as error:
        raise UserError(f'--ext.reward_args is not JSON ({error}); write \'{{"length": {{"target": 50}}}}\'') from error
    if not isinstance(found, dict) or not all(isinstance(values, dict) for values in found.values()):
        raise UserError('--ext.reward_args is not an object of objects; write \'{"length": {"target": 50}}\'')
    names = [cls.name for cls in classes]
    for name in found:
        if name not in names:
            raise UserError(f"--ext.reward_args names {name!r}, which --ext.reward does not{suggest(name, names)}")
    return found


def make(cls: type[Reward], flags: Mapping[str, Any], from_json: Mapping[str, Any]) -> Reward:
    """Make a reward from what the command line says.

    Args:
        cls: its class.
        flags: ``"NAME.ARGUMENT"`` -> the words after the flag, or None; other keys are passed over.
        from_json: its arguments out of ``--ext.reward_args``.

    Raises:
        UserError: an unknown or missing argument, one of a wrong type, one given twice, or the class refuses them.
    """
    known = arguments(cls)
    values: dict[str, Any] = {}
    for name, value in from_json.items():
        if name not in known:
            raise UserError(
                f"--ext.reward_args: reward {cls.name!r} has no argument {name!r}{suggest(name, list(known))}"
            )
        values[name] = _read(known[name], json.dumps(value), f"--ext.reward_args: {name!r} of reward {cls.name!r}")
    for name, argument in known.items():
        flag = f"--{cls.name}.{name}"
        words = flags.get(f"{cls.name}.{name}")
        if words is None:
            if name not in values and argument.default is REQUIRED:
                raise UserError(f"reward {cls.name!r} needs {flag}{': ' if argument.help else ''}{argument.help}")
            continue
        if name in values:
            raise UserError(f"{flag} is in --ext.reward_args, too; give it once")
        values[name] = _read_words(argument, words, flag)
    with user_code(refused := f"reward {cls.name!r} refuses its arguments:"):
        try:
            return cls(**values)
        except ValueError as error:
            raise UserError(f"{refused} {error}") from error


def _read(argument: Argument, text: str, where: str) -> Any:
    """A value out of JSON, with the very type."""
    from pydantic import TypeAdapter, ValidationError

    try:
        value = TypeAdapter(argument.type).validate_json(text, strict=True)
    except ValidationError as error:
        raise UserError(f"{where} is {text}: {_first(error)}") from error
    _check_range(argument, value, where)
    return value


def _check_range(argument: Argument, value: Any, where: str) -> None:
    for one in value if isinstance(value, list | tuple) else (value,):
        if argument.range and one is not None and (fault := argument.range.fault(one)):
            raise UserError(f"{where} {one:g} {fault}")


def _read_words(argument: Argument, words: str | list[str], flag: str) -> Any:
    """A value out of a flag's words."""
    from pydantic import TypeAdapter, ValidationError

    adapter: TypeAdapter = TypeAdapter(argument.type)
    try:
        if isinstance(words, list):
            value = adapter.validate_python(words)
        else:
            try:
                value = adapter.validate_strings(words)
            except ValidationError:
                if words[:1] not in ("[", "{"):  # a nested value, as JSON
                    raise
                value = adapter.validate_json(words, strict=True)
    except ValidationError as error:
        shown = words if isinstance(words, str) else " ".join(words)
        raise UserError(f"{flag} {shown}: {_first(error)}") from error
    _check_range(argument, value, flag)
    return value


def _first(error: Any) -> str:
    message = error.errors()[0]["msg"]
    return message[:1].lower() + message[1:]
