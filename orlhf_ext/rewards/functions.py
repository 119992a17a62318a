"""A reward function of OpenRLHF's own kind, as ``--reward.remote_url FILE.py`` takes it, as a reward::

    def reward_func(queries, prompts, labels):
        return {"rewards": ..., "scores": ..., "extra_logs": {"name": ...}}

OpenRLHF 0.11.2 calls it once for each sample, with lists of length one. A function that raises, or gives nothing, is
one line in a log there, and an error about a missing reward model later; here each mistake names function and sample.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from ..cli.errors import UserError
from .base import Reward, RewardBatch, RewardContext, RewardResult, Rollout

_PARAMETERS = ("queries", "prompts", "labels")


class FunctionReward(Reward):
    """A reward of a function; `as_reward` makes a subclass for each."""

    function: ClassVar[Callable[..., Any]]

    def setup(self, context: RewardContext) -> None:
        """Keep the tokenizer, which writes out what the policy read and wrote."""
        self._tokenizer = context.tokenizer

    def score(self, batch: RewardBatch) -> RewardResult:
        """Call the function once for each rollout."""
        parts = [self._one(rollout) for rollout in batch]
        names = list(dict.fromkeys(name for _, _, logs in parts for name in logs))
        for rollout, (_, _, logs) in zip(batch, parts, strict=True):
            if missing := next((name for name in names if name not in logs), None):
                raise UserError(f"extra_logs lacks {missing!r} for sample {rollout.id!r}; give it for every sample")
        metrics = {name: [logs[name] for _, _, logs in parts] for name in names}
        return RewardResult([part[0] for part in parts], metrics, [part[1] for part in parts])

    def _one(self, rollout: Rollout) -> tuple[float, float, dict[str, float]]:
        query = rollout.prompt + rollout.response
        if self._tokenizer is not None:
            query = str(self._tokenizer.decode(list(rollout.token_ids), skip_special_tokens=False))
        found = type(self).function([query], [rollout.prompt], [rollout.label])
        where = f"for sample {rollout.id!r}"
        if inspect.isawaitable(found):
            if inspect.iscoroutine(found):
                found.close()
            raise UserError(f"it is an async function, which OpenRLHF does not await either, {where}; write `def`")
        if found is None:
            raise UserError(f"it returned nothing {where}; return {{'rewards': [0.5]}}")
        if not isinstance(found, Mapping):
            found = {"rewards": found}
        if found.get("rewards") is None:
            raise UserError(f"it gave no 'rewards' {where}; return {{'rewards': [0.5]}}")
        reward = _number(found["rewards"], "rewards", where)
        scores = found.get("scores")
        logs = {str(key): _number(value, str(key), where) for key, value in (found.get("extra_logs") or {}).items()}
        return reward, reward if scores is None else _number(scores, "scores", where), logs


def _number(value: Any, what: str, where: str) -> float:
    """A number, or the only one of a list or tensor of any shape."""
    while isinstance(value, list | tuple) or hasattr(value, "tolist"):
        if hasattr(value, "tolist"):
            value = value.tolist()
        elif len(value) == 1:
            value = value[0]
        else:
            raise UserError(f"it gave {len(value)} values as {what} {where}; give one, as it gets one sample at a time")
    if not isinstance(value, int | float):
        raise UserError(f"it gave {type(value).__name__} as {what} {where}; give a number")
    return float(value)


def as_reward(function: Callable[..., Any], path: Path) -> type[Reward]:
    """A reward's class for a function, named after it, or after its file if it is called ``reward_func``.

    Raises:
        UserError: the function does not take ``queries, prompts, labels``.
    """
    parameters = list(inspect.signature(function).parameters.values())
    positional = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    required = [one.name for one in positional if one.default is one.empty]
    name = getattr(function, "__name__", "function")
    if tuple(one.name for one in positional[:3]) != _PARAMETERS or len(required) > len(_PARAMETERS):
        raise UserError(
            f"{path}: {name}{inspect.signature(function)} is no reward function of OpenRLHF, which is "
            f"{name}({', '.join(_PARAMETERS)}); rename its parameters, or write a subclass of orlhf_ext.rewards.Reward"
        )
    word = re.sub(r"\W", "_", path.stem if name == "reward_func" else name)
    members = {"name": word, "function": staticmethod(function), "__doc__": function.__doc__, "__module__": str(path)}
    return type(name, (FunctionReward,), members)
