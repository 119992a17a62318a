"""From ``--ext.reward SPEC[=WEIGHT]`` to rewards: what a launcher extension and ``check reward`` call, in this order::

chosen = choose(["length=1.0", "my_rewards:Brevity=0.2"])    # the classes
add_flags(parser, chosen)                                    # --length.target, --brevity.words, ...
rewards = build(chosen, vars(namespace), "sum", json_text)   # a combine.RewardSet
"""

from __future__ import annotations

import argparse
import inspect
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from ..cli.errors import UserError
from ..extensions import REWARDS, load_file, resolve
from . import arguments
from .base import Reward
from .combine import RewardSet, check_names
from .functions import as_reward

#: what ``train_ppo_ray`` calls its groups of flags (and we ours), which no reward may be named like
FLAG_GROUPS = frozenset(
    "actor algo ckpt critic data ds eval ext logger ref reward rollout train vllm".split()  # noqa: SIM905
)


class NoReward(UserError):
    """What was named is not a class that can be used as a reward."""


class Chosen(NamedTuple):
    """One ``--ext.reward``."""

    spec: str
    cls: type[Reward]
    #: None where none is given
    weight: float | None


def find(spec: str) -> type[Reward]:
    """The class that a name, ``module:attribute``, or ``FILE.py:attribute`` refers to.

    Raises:
        UserError: there is none, or its module cannot be imported.
        NoReward: it is no `Reward`, has no `score`, or is named like a flag of OpenRLHF.
    """
    if re.search(r"\.py:\w+$", spec):
        found = load_file(spec)
        if inspect.isroutine(found):
            found = as_reward(found, Path(spec.rpartition(":")[0]).absolute())
    else:
        found = resolve(REWARDS, spec)
    if not (isinstance(found, type) and issubclass(found, Reward)):
        raise NoReward(f"reward {spec} is {found!r}, no subclass of orlhf_ext.rewards.Reward; make it one")
    if inspect.isabstract(found):
        missing = ", ".join(sorted(found.__abstractmethods__))
        raise NoReward(f"reward {spec} has no {missing}(self, batch); write it")
    if found.name in FLAG_GROUPS:
        raise NoReward(
            f'reward {spec} is named {found.name!r}, like flags of OpenRLHF; set name = "my_{found.name}" in its class'
        )
    return found


def choose(specs: Sequence[str]) -> list[Chosen]:
    """Read ``SPEC[=WEIGHT]`` words and find their classes.
    Raises UserError as `find` does, or if a weight is not a finite number, or if two rewards have one name."""
    chosen = []
    for text in specs:
        spec, equals, weight = text.partition("=")
        chosen.append(Chosen(spec, find(spec), _weight(text, weight) if equals else None))
    check_names([item.cls.name for item in chosen])
    return chosen


def _weight(text: str, weight: str) -> float:
    try:
        value = float(weight)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(
            f"--ext.reward {text}: the weight {weight!r} is not a finite number; write NAME=0.5, or NAME alone"
        )
    return value


def add_flags(parser: argparse.ArgumentParser, chosen: Sequence[Chosen]) -> None:
    """Add the flags of every chosen reward."""
    for item in chosen:
        arguments.add_flags(parser, item.cls)


def build(
    chosen: Sequence[Chosen],
    flags: Mapping[str, Any],
    how: str = "sum",
    reward_args: str | None = None,
    seconds: float | None = None,
) -> RewardSet:
    """Make the rewards and what combines them.

    Args:
        chosen: from `choose`.
        flags: the parsed namespace of a parser that `add_flags` was called on, as a dict.
        how: ``--ext.reward_combine``.
        reward_args: ``--ext.reward_args``, JSON text.
        seconds: ``--ext.reward_timeout``.

    Raises:
        UserError: an argument is missing, unknown or of a wrong type; weights with ``min``; names that clash.
    """
    from_json = arguments.parse_json(reward_args, [item.cls for item in chosen])
    weights = None
    if any(item.weight is not None for item in chosen):
        weights = [1.0 if item.weight is None else item.weight for item in chosen]
    made = [arguments.make(item.cls, flags, from_json.get(item.cls.name, {})) for item in chosen]
    return RewardSet(made, weights, how, seconds)


def from_args(args: SimpleNamespace) -> RewardSet:
    """The rewards of a run, from the launcher's nested arguments, in the driver or in a worker.
    Raises UserError as `choose` and `build` do."""
    chosen = choose(args.ext.reward)
    flags: dict[str, Any] = {}
    for item in chosen:
        own = vars(getattr(args, item.cls.name, SimpleNamespace()))
        flags |= {f"{item.cls.name}.{name}": value for name, value in own.items()}
    return build(chosen, flags, args.ext.reward_combine, args.ext.reward_args, args.ext.reward_timeout)
