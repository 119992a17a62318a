"""Several rewards over one batch: their weighted sum or their minimum, or each normalised apart (`gdpo`); each is
checked, and kept apart for the log."""

from __future__ import annotations

import copy
import inspect
import math
import re
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any, Literal, NoReturn

from ..cli.errors import UserError, suggest
from ..cli.user_code import describe, place, shown, user_code
from ..extensions.inject import say
from . import gdpo
from .base import Reward, RewardBatch, RewardContext, RewardResult
from .calls import Call, TooLong, call, settle

How = Literal["sum", "min", "gdpo"]
HOW: tuple[How, ...] = ("sum", "min", "gdpo")

_FLOAT32_MAX = 3.4028234663852886e38  # OpenRLHF keeps rewards as float32
_SEARCH_SECONDS = 30.0


@dataclass(frozen=True)
class Checked:
    """A reward's result as plain floats, a list of ``len(batch)`` for everything.

    NaN among the rewards: it does not apply to the rollout, which ``gdpo`` alone allows."""

    rewards: list[float]
    metrics: dict[str, list[float]]
    scores: list[float] | None
    #: what ``gdpo`` normalises in place of the rewards, if not empty
    apart: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Combined:
    """What all rewards give together, a list of ``len(batch)`` for everything."""

    rewards: list[float]
    #: what dynamic filtering looks at: the rewards, unless a reward gave scores of its own
    scores: list[float]
    #: to log: ``reward/NAME`` for each reward, before weighting, and ``NAME/METRIC`` for each of its metrics; NaN where
    #: a reward does not apply
    columns: dict[str, list[float]]
    #: with ``gdpo``, the sums of normalised rewards, which training goes by; NaN where no reward applies
    normalised: list[float] | None = None


class RewardSet:
    """Rewards that are scored and combined.

    Args:
        rewards: with names that differ.
        weights: as many, unless it is ``min``; None weighs each 1. A weight of 0 logs a reward without training on it.
        how: one of `HOW`.
        seconds: that each may take for a batch, or None.

    Raises:
        UserError: no reward, one name twice, a name that is none, weights with ``min`` or of the wrong number.
    """

    def __init__(
        self,
        rewards: Sequence[Reward],
        weights: Sequence[float] | None = None,
        how: str = "sum",
        seconds: float | None = None,
    ) -> None:
        if not rewards:
            raise UserError("no reward is given; add --ext.reward NAME or --ext.reward my_pkg.my_module:MyReward")
        if how not in HOW:
            raise UserError(f"--ext.reward_combine {how} is unknown{suggest(how, list(HOW))}")
        if how == "min" and weights is not None:
            raise UserError("--ext.reward_combine min takes the least reward, unweighted; leave the weights out")
        if weights is not None and len(weights) != len(rewards):
            raise UserError(f"{len(weights)} weights are given for {len(rewards)} rewards; give each reward one")
        check_names([reward.name for reward in rewards])
        self.rewards = list(rewards)
        self.weights = [1.0] * len(rewards) if weights is None else [float(weight) for weight in weights]
        self.how, self.seconds = how, seconds
        self._keys: dict[str, set[str]] = {}
        self._faint: set[str] = set()

    def setup(self, context: RewardContext) -> None:
        """Set all of them up. Raises UserError if one fails, or needs the reference model where there is none."""
        for reward in self.rewards:
            if reward.needs_reference and context.score_reference is None:
                raise UserError(
                    f"reward {reward.name!r} needs the reference model, and this run has none that it may use; "
                    "give --algo.kl.init_coef more than 0, and train without --train.async_enable"
                )
            if reward.needs_policy and context.score_policy is None:
                raise UserError(
                    f"reward {reward.name!r} needs the policy, and this run has none that it may use; train without "
                    "--train.async_enable"
                )
            with user_code(f"reward {reward.name!r} cannot be set up:", refusals=True):
                settle(reward.setup(replace(context, args=copy.deepcopy(context.args))))

    def score(self, batch: RewardBatch) -> Combined:
        """Score a batch with every reward: those that wait side by side in threads, the others in this one.

        Raises:
            UserError: a reward raised, gave something else than a finite float for each rollout, or other metrics than
                in the batch before; reward and sample are named, and ``__cause__`` is what it raised.
        """
        parts = self._score_all(batch)
        columns: dict[str, list[float]] = {}
        for name, part in parts.items():
            columns[f"reward/{name}"] = part.rewards
            columns.update({f"{name}/{key}": values for key, values in part.metrics.items()})
        rewards = self._combine([part.rewards for part in parts.values()], batch)
        scores = rewards
        if any(part.scores is not None for part in parts.values()):
            scores = self._combine(
                [part.rewards if part.scores is None else part.scores for part in parts.values()], batch
            )
        if self.how != "gdpo":
            return Combined(rewards, scores, columns)
        normalised, conflicts = self._normalise(parts, batch)
        columns |= {"gdpo/sum": rewards, "gdpo/z": normalised, "gdpo/conflict": conflicts}
        return Combined(rewards, scores, columns, normalised)

    def teardown(self) -> None:
        """Tear all of them down, also where one fails. Raises UserError if one failed."""
        failed: list[UserError] = []
        for reward in self.rewards:
            try:
                with user_code(f"reward {reward.name!r} cannot be torn down:", refusals=True):
                    settle(reward.teardown())
            except UserError as error:
                failed.append(error)
        if failed:
            raise failed[0]

    def _score_all(self, batch: RewardBatch) -> dict[str, Checked]:
        """The result of each. Of several that fail, the first in order is told, whichever fails first."""
        waiting = [reward for reward in self.rewards if len(self.rewards) > 1 and _waits(reward)]
        calls = {reward.name: Call(self._score, reward, batch) for reward in waiting}
        found: dict[str, Checked] = {}
        failed: dict[str, UserError] = {}
        try:
            for reward in self.rewards:
                if reward.name not in calls and not failed:
                    try:
                        found[reward.name] = self._score(reward, batch)
                    except UserError as error:
                        failed[reward.name] = error
            for name in (reward.name for reward in self.rewards):
                if name in failed:
                    raise failed[name]
                if name in calls:
                    found[name] = calls[name].result()
        finally:
            for call in calls.values():
                call.cancel()
        return {reward.name: found[reward.name] for reward in self.rewards}

    def _score(self, reward: Reward, batch: RewardBatch) -> Checked:
        if not len(batch):
            return Checked([], {key: [] for key in sorted(self._keys.get(reward.name, ()))}, None)
        seconds = None if reward.keeps_time else self.seconds
        result = score_one(reward, batch, self.how == "gdpo", seconds)
        keys = self._keys.setdefault(reward.name, set(result.metrics))
        if keys != set(result.metrics):
            changed = sorted(keys ^ set(result.metrics))
            raise UserError(
                f"reward {reward.name!r} gives {', '.join(map(repr, changed))} in some batches and not in others; "
                "give the same metrics for every batch"
            )
        return result

    def _combine(self, parts: Sequence[Sequence[float]], batch: RewardBatch) -> list[float]:
        rows = zip(*parts, strict=True)
        if self.how == "min":
            return [min(row) for row in rows]
        sums = [
            math.fsum(w * value for w, value in zip(self.weights, row, strict=True) if not math.isnan(value))
            for row in rows
        ]
        for rollout, value in zip(batch, sums, strict=True):
            if not abs(value) <= _FLOAT32_MAX:
                raise UserError(f"the weighted sum of rewards is {value} for sample {rollout.id!r}; lower the weights")
        return sums

    def _normalise(self, parts: Mapping[str, Checked], batch: RewardBatch) -> tuple[list[float], list[float]]:
        """The sums of normalised rewards, and 1 for each sample of a prompt whose rewards cancel."""
        named: dict[str, list[float]] = {}
        weights: list[float] = []
        for (name, part), weight in zip(parts.items(), self.weights, strict=True):
            columns = {f"{name} of {key}": values for key, values in part.apart.items()} or {name: part.rewards}
            named |= columns
            weights += [weight] * len(columns)
        groups, table = batch.groups(), list(named.values())
        for name, column in named.items():
            if name not in self._faint and gdpo.is_faint(column, groups):
                self._faint.add(name)
                say(
                    f"reward {name!r} varies by less than {10 * gdpo.EPSILON:g} for every prompt of a batch, which "
                    f"gdpo shrinks, as it adds {gdpo.EPSILON:g} to each deviation; give it in larger units"
                )
        sums = gdpo.sums_of_z(table, weights, groups)
        used = [column for column, weight in zip(table, weights, strict=True) if weight]
        return sums, gdpo.conflicts(used, sums, groups)


def check_names(names: Sequence[str]) -> None:
    """Names of rewards are prefixes of flags and columns, so each is a word of its own.
    Raises UserError if one is not a word, or is there twice."""
    for name in names:
        if not (isinstance(name, str) and re.fullmatch(r"[A-Za-z]\w*", name)):
            raise UserError(f"a reward is named {name!r}; use letters, digits and _, and begin with a letter")
        if names.count(name) > 1:
            raise UserError(f"two rewards are named {name!r}; make a subclass of one, which then has a name of its own")


def score_one(reward: Reward, batch: RewardBatch, holes: bool = False, seconds: float | None = None) -> Checked:
    """Score a batch (of one rollout or more) with one reward, and check what it gives.

    Args:
        reward: what scores.
        batch: what it scores.
        holes: whether None or NaN may stand for "does not apply".
        seconds: that it may take, or None.

    Raises:
        UserError: as `RewardSet.score`, without the comparison with other batches.
    """
    if not reward.reads_images:
        for rollout in batch:
            if rollout.images:
                raise UserError(
                    f"reward {reward.name!r} reads text only, and the prompt of sample {rollout.id!r} has images; "
                    "set reads_images = True in its class if it may pass over them"
                )
    try:
        result = call(reward.score, batch.copy(), seconds=seconds)
    except UserError as error:
        raise UserError(f"reward {reward.name!r}: {error}") from error
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except TooLong as error:
        whom = _culprit(reward, batch, error, seconds)
        raise UserError(
            f"reward {reward.name!r} takes more than --ext.reward_timeout {seconds:g} seconds on {whom}"
            f"{shown(error.frames)}; give it more, or make it faster"
        ) from error
    except BaseException as error:
        whom = _culprit(reward, batch, error, seconds)
        raise UserError(f"reward {reward.name!r} raised {describe(error)} on {whom}{place(error)}") from error
    with user_code(f"reward {reward.name!r} gives what cannot be read:"):
        return check_result(reward.name, result, batch, holes)


def check_result(name: str, result: Any, batch: RewardBatch, holes: bool = False) -> Checked:
    """What a reward gave, as plain floats.
    Raises UserError if it is not one finite float for each rollout, or its metrics are not; with ``holes``, a reward
    may be None or NaN."""
    if not isinstance(result, RewardResult):
        result = RewardResult(result)
    rewards = _floats(name, "rewards", result.rewards, batch, holes)
    metrics = _columns(name, "metric", result.metrics, batch)
    scores = None if result.scores is None else _floats(name, "scores", result.scores, batch)
    return Checked(rewards, metrics, scores, _columns(name, "part", result.apart, batch))


def _columns(name: str, what: str, given: Any, batch: RewardBatch) -> dict[str, list[float]]:
    if not isinstance(given, Mapping):
        _wrong(name, f"gives {what}s as {_kind(given)}; give a dict of a name and a float for each sample")
    for key in given:
        if not isinstance(key, str) or not key:
            _wrong(name, f"names a {what} {key!r}; give each a name that is text")
    return {key: _floats(name, f"values of {what} {key!r}", values, batch) for key, values in given.items()}


def _floats(name: str, what: str, values: Any, batch: RewardBatch, holes: bool = False) -> list[float]:
    shape = getattr(values, "shape", None)
    if shape is not None:
        if tuple(shape) != (len(batch),):
            _wrong(name, f"gives {what} of shape {tuple(shape)} for {len(batch)} samples; the shape is ({len(batch)},)")
        values = values.tolist()
    if isinstance(values, str | bytes) or not isinstance(values, Sequence):
        _wrong(name, f"gives {_kind(values)} as {what}; give a list of one float for each of the {len(batch)} samples")
    if len(values) != len(batch):
        _wrong(name, f"gives {len(values)} {what} for {len(batch)} samples; give one for each")
    return [_float(name, what, value, rollout.id, holes) for value, rollout in zip(values, batch, strict=True)]


def _float(name: str, what: str, value: Any, sample: str, holes: bool) -> float:
    if getattr(value, "shape", None) == ():  # a number out of a tensor or an array
        value = value.item()
    if holes and (value is None or value != value):
        return math.nan
    if not isinstance(value, Real):
        _wrong(name, f"has {_kind(value)} among the {what}, for sample {sample!r}; give a float")
    if not abs(value) <= _FLOAT32_MAX:  # type: ignore[operator]  # NaN, too
        _wrong(name, f"has {value} among the {what}, for sample {sample!r}; give a finite float32")
    return float(value)


def _wrong(name: str, what: str) -> NoReturn:
    raise UserError(f"reward {name!r} {what}")


def _kind(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def _culprit(reward: Reward, batch: RewardBatch, error: BaseException, seconds: float | None) -> str:
    """The first sample that does the same alone. The run is lost anyway, so half a minute of search costs nothing."""
    if len(batch) == 1:
        return f"sample {batch[0].id!r}"
    end = time.monotonic() + _SEARCH_SECONDS
    for rollout in batch:
        if time.monotonic() > end or isinstance(error, CancelledError):
            break
        try:
            call(reward.score, RewardBatch([rollout.copy()]), seconds=seconds)
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as again:
            if (type(again), str(again)) == (type(error), str(error)):
                return f"sample {rollout.id!r}"
    return f"a batch of {len(batch)} samples, {batch[0].id!r} to {batch[-1].id!r} (none was found that does so alone)"


def _waits(reward: Reward) -> bool:
    return reward.waits or inspect.iscoroutinefunction(reward.score)
