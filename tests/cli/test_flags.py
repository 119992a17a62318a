"""Every flag that is a number has a range, in all commands, builders, extensions, rewards and launchers."""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
import math
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

import orlhf_ext
from orlhf_ext.cli import flags
from orlhf_ext.cli.errors import UserError
from orlhf_ext.cli.flags import Number, Parser, whole

pytest.importorskip("torch", reason="no torch (the tests of Python 3.12 run without)", exc_type=ImportError)


class _Parsed(Exception):
    """Stops a command when its parser is complete."""


def _commands() -> list[str]:
    """The modules that have a command line."""
    folder = Path(orlhf_ext.__file__).parent
    found = []
    for info in pkgutil.walk_packages([str(folder)], "orlhf_ext."):
        spec = importlib.util.find_spec(info.name)
        assert spec is not None and spec.origin is not None
        text = Path(spec.origin).read_text(encoding="utf-8")
        if info.name.rpartition(".")[2] in ("build_data", "launcher"):
            continue  # their parsers follow from builders and extensions, below
        if "def main(" in text and ("make_parser(" in text or "Parser(" in text):
            found.append(info.name)
    return found


def _numbers(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Its flags that look like numbers: by type, or by a default."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _numbers(inner)
        elif action.type is not None or (
            isinstance(action.default, int | float) and not isinstance(action.default, bool)
        ):
            yield action


@pytest.mark.parametrize("name", _commands())
def test_every_number_of_a_command_has_a_range(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[argparse.ArgumentParser] = []

    def stop(self: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        seen.append(self)
        raise _Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", stop)
    monkeypatch.setattr("sys.argv", [name, "hh"])
    module = importlib.import_module(name)
    try:
        inner = module.main.__wrapped__ if hasattr(module.main, "__wrapped__") else module.main
        words = ["reward", "length"] if name.endswith(".check") else []
        inner(words) if "argv" in inner.__code__.co_varnames or inner.__code__.co_argcount else inner()
    except (_Parsed, SystemExit, TypeError):
        pass
    assert seen
    for parser in seen:
        assert isinstance(parser, Parser), f"{name} reports mistakes in argparse's way"
        for action in _numbers(parser):
            kind = action.type
            assert kind is None or isinstance(kind, Number) or kind not in (int, float), action.option_strings


def test_every_number_of_builders_and_extensions_has_a_range() -> None:
    from orlhf_ext.build_data import make_parser as builder_parser
    from orlhf_ext.extensions import BUILDERS, EXTENSIONS, extension, names, resolve
    from orlhf_ext.launch.flags import make_parser as launch_parser

    parsers = [builder_parser(resolve(BUILDERS, name)(), f"build_data {name}") for name in names(BUILDERS)]
    parsers += [launch_parser([extension(name)]) for name in names(EXTENSIONS)]
    count = 0
    for parser in parsers:
        for action in _numbers(parser):
            count += isinstance(action.type, Number)
            assert action.type not in (int, float, None), action.option_strings
    assert count > 40


def test_every_number_of_a_reward_has_a_range() -> None:
    from orlhf_ext.extensions import REWARDS, names, resolve
    from orlhf_ext.rewards.arguments import arguments

    for name in names(REWARDS):
        for argument in arguments(resolve(REWARDS, name)).values():
            kinds = {argument.type, *get_args(argument.type)}
            if kinds & {int, float}:
                assert argument.range is not None, f"--{name}.{argument.name} has no range"


def test_every_number_of_the_launchers_has_a_range() -> None:
    """OpenRLHF's parsers stand in its main blocks, so that they are read as text."""
    pytest.importorskip("openrlhf")
    from orlhf_ext.extensions.releases import LAUNCHERS
    from orlhf_ext.launch.number_ranges import RANGES

    found: dict[str, type] = {}
    for target in LAUNCHERS.values():
        if target.endswith("lora_combiner"):
            continue
        spec = importlib.util.find_spec(target)
        assert spec is not None and spec.origin is not None
        for node in ast.walk(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument":
                words = {word.arg: word.value for word in node.keywords}
                kind = getattr(words.get("type"), "id", "")
                if kind in ("int", "float"):
                    flag = ast.unparse(node.args[0]).removeprefix("f").strip("'\"").removeprefix("--")
                    for role in ("actor", "critic") if "{" in flag else ("",):
                        found[flag.replace("{prefix}", role)] = {"int": int, "float": float}[kind]
    assert len(found) > 90
    assert sorted(set(found) - set(RANGES)) == []


@given(st.floats(allow_nan=True, allow_infinity=True), st.sampled_from(["COUNT", "SHARE", "PART", "INNER", "POSITIVE"]))
def test_a_number_is_within_its_bounds_or_refused(value: float, name: str) -> None:
    number: Number = getattr(flags, name)
    inside = math.isfinite(value) and number.least <= value <= number.most and number.above < value < number.below
    assert (number.fault(value) is None) == inside


@pytest.mark.parametrize(
    ("number", "text", "said"),
    [
        (whole(1), "0", "--n 0 is too small; give at least 1"),
        (whole(1, also=(-1,)), "0", "--n 0 is too small; give at least 1, or -1"),
        (whole(1), "1.5", "--n 1.5 is not a whole number"),
        (whole(1), "nan", "--n nan is not a whole number"),
        (flags.SEED, "-1", "--n -1 is too small; give at least 0"),
        (flags.SEED, str(2**32), "is too large; give at most 4.29497e+09"),
        (flags.POSITIVE, "nan", "--n nan is not a finite number"),
        (flags.POSITIVE, "inf", "--n inf is not a finite number"),
        (flags.POSITIVE, "0", "--n 0 is too small; give more than 0"),
        (flags.INNER, "1", "--n 1 is too large; give less than 1"),
        (flags.FINITE, "much", "--n much is not a number"),
    ],
)
def test_what_is_said_of_a_number(number: Number, text: str, said: str) -> None:
    parser = Parser()
    parser.add_argument("--n", type=number)
    with pytest.raises(UserError) as told:
        parser.parse_args([f"--n={text}"])
    assert said in str(told.value)


def test_numbers_beside_the_range() -> None:
    parser = Parser()
    parser.add_argument("--n", type=whole(2, also=(0, -1)))
    assert [parser.parse_args([f"--n={text}"]).n for text in ("0", "-1", "2", "30")] == [0, -1, 2, 30]


@pytest.mark.parametrize(
    "word",
    [
        *("--exo.temperature=0", "--exo.temperature=nan", "--exo.beta_pi=-1", "--exo.beta_r=inf"),
        *("--exo.num_contrastive=1", "--exo.max_completion_len=-1", "--groups.k=0", "--groups.centering=-1"),
        *("--deadend.gamma=0", "--deadend.polyak=1.5", "--deadend.q_min=-inf", "--ext.reward_actors=0"),
    ],
)
def test_numbers_of_extensions(word: str) -> None:
    from orlhf_ext.extensions import extension
    from orlhf_ext.launch.flags import make_parser
    from orlhf_ext.rewards.extension import Rewards

    parser = make_parser([*(extension(name) for name in ("exo", "group-rm", "dead-end")), Rewards()])
    with pytest.raises(UserError, match=f"^{word.replace('=', ' ')} "):
        parser.parse_args([word])


@pytest.mark.parametrize(
    ("reward", "argument", "value"),
    [
        *((name, "batch_tokens", "1") for name in ("model", "groups", "deadend")),
        *((name, "gpus", "-0.5") for name in ("model", "groups", "deadend")),
        *((name, "max_len", value) for name in ("model", "groups") for value in ("1", "-1")),
        *(("groups", "tau", value) for value in ("0", "inf")),
        *(("http", name, "0") for name in ("batch_size", "threads", "tries", "timeout")),
        *(("length", name, "0") for name in ("target", "maximum")),
    ],
)
def test_numbers_of_rewards(reward: str, argument: str, value: str) -> None:
    from orlhf_ext.rewards import arguments, selection

    needed: dict[str, Any] = {"groups.kind": "group_rm", "groups.model": "m", "model.path": "m", "deadend.model": "m"}
    needed["http.url"] = ["http://x"]
    values: dict[str, Any] = {**needed, f"{reward}.{argument}": value}
    with pytest.raises(UserError, match=rf"^--{reward}\.{argument} {value} "):
        arguments.make(selection.find(reward), values, {})
