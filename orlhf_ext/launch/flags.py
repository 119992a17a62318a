"""Our flags of a launcher: ``--ext.use`` and ``--ext.reward``, and those of the extensions that they switch on."""

from __future__ import annotations

import argparse
from typing import Any

from ..cli.errors import UserError, suggest
from ..cli.flags import Parser
from ..cli.user_code import user_code
from ..extensions import EXTENSIONS, Extension, extension, names
from ..rewards.extension import Rewards
from ..rewards.selection import choose


def make_parser(extensions: list[Extension]) -> argparse.ArgumentParser:
    """Our flags: ``--ext.use``, and those of the extensions that are switched on."""
    parser = Parser(
        prog="python -m orlhf_ext.launch LAUNCHER", add_help=False, allow_abbrev=False, argument_default=None
    )
    group = parser.add_argument_group("orlhf-ext")
    group.add_argument(
        "--config",
        metavar="FILE",
        default=argparse.SUPPRESS,
        help="flags in a YAML file; those of the command line replace them",
    )
    group.add_argument(
        "--ext.use",
        action="append",
        default=[],
        metavar="NAME",
        help="switch an extension on, by name or as my_pkg.my_module:MyExtension; repeatable",
    )
    group.add_argument(
        "--ext.reward",
        action="append",
        default=[],
        metavar="SPEC[=WEIGHT]",
        help="train_ppo_ray: a reward, by name or as my_pkg.my_module:MyReward; repeatable",
    )
    for item in extensions:
        before = set(parser._option_string_actions)
        section = parser.add_argument_group(f"extension {item.name} (with {', '.join(item.launchers)})")
        parser_like: Any = section
        with user_code(f"extension {item.name!r} cannot add its flags:"):
            try:
                item.add_flags(parser_like)
            except argparse.ArgumentError as error:
                raise UserError(f"extension {item.name!r} has a flag that another one has too: {error}") from error
        for flag in sorted(set(parser._option_string_actions) - before):
            if flag[2:].partition(".")[0] not in item.prefixes:
                known = " or ".join(f"--{prefix}." for prefix in item.prefixes)
                raise UserError(f"extension {item.name!r} adds the flag {flag}; its flags begin with {known}")
    return parser


def choices() -> argparse.ArgumentParser:
    """The flags that switch extensions on."""
    finder = Parser(add_help=False, allow_abbrev=False)
    for flag in ("--ext.use", "--ext.reward"):
        finder.add_argument(flag, action="append", default=[])
    return finder


def switched_on(rest: list[str]) -> list[Extension]:
    """The extensions of every ``--ext.use`` in a command line, and the one that ``--ext.reward`` switches on."""
    found = vars(choices().parse_known_args(rest)[0])
    uses, rewards = found["ext.use"], found["ext.reward"]
    if duplicate := next((name for name in uses if uses.count(name) > 1), None):
        raise UserError(f"--ext.use {duplicate} is given twice; once is enough")
    extensions = [extension(name) for name in uses]
    return [*extensions, Rewards(choose(rewards))] if rewards else extensions


def with_needed(extensions: list[Extension], own: dict[str, Any]) -> list[Extension]:
    """The extensions, and those that the run's rewards need.

    Args:
        extensions: from `switched_on`.
        own: the values of their flags.

    Raises:
        UserError: a reward refuses its arguments.
    """
    needed = [extension(name) for item in extensions if isinstance(item, Rewards) for name in item.needed(own)]
    on = {type(item) for item in extensions}
    return extensions + [item for item in needed if type(item) not in on]


def refuse_strays(rest: list[str], parser: argparse.ArgumentParser, extensions: list[Extension]) -> None:
    """Flags of ours that nobody took: a typo, or an extension that was not switched on."""
    on = {prefix for item in extensions for prefix in item.prefixes}
    known = {prefix: name for name, item in _loadable_extensions()[0].items() for prefix in item.prefixes}
    for word in rest:
        flag = word.partition("=")[0]
        prefix = flag[2:].partition(".")[0] if flag.startswith("--") and "." in flag else ""
        if prefix == "ext" and "ext" not in on and flag in _reward_flags():
            raise UserError(f"{flag} has no effect without a reward; add --ext.reward NAME")
        if prefix == "ext" or prefix in on:
            raise UserError(f"unknown flag {flag}{suggest(flag, list(parser._option_string_actions))}")
        if prefix in known:
            raise UserError(f"{flag} belongs to the extension {known[prefix]!r}; add --ext.use {known[prefix]}")


def _reward_flags() -> list[str]:
    parser = Parser(add_help=False)
    Rewards().add_flags(parser)
    return list(parser._option_string_actions)


def _loadable_extensions() -> tuple[dict[str, Extension], list[str]]:
    """All extensions by name, and what is wrong with those of other packages that cannot be loaded."""
    found: dict[str, Extension] = {}
    broken = []
    for name in sorted(names(EXTENSIONS)):
        try:
            found[name] = extension(name)
        except UserError as error:
            broken.append(str(error))
    return found, broken


def flags_help(extensions: list[Extension]) -> str:
    """The help of our flags: those of the extensions that are switched on, or else of all."""
    found, broken = _loadable_extensions()
    parser = make_parser(extensions or [*found.values(), Rewards()])
    with user_code("the help of a flag cannot be written:"):
        text = parser.format_help().partition("\n\n")[2]
    return "\n".join([text, *(f"left out: {reason}" for reason in broken if not extensions)])
