"""A plain function as a reward, in the form of OpenRLHF, of TRL, of verl, or ours; its parameters say which::

    def reward_func(queries, prompts, labels):                            # OpenRLHF: a dict, one sample at a time
        return {"rewards": ..., "scores": ..., "extra_logs": {"name": ...}}

    def accuracy(prompts, completions, answer, **kwargs):                 # TRL: a list for a whole batch
        return [float(a in c) for c, a in zip(completions, answer)]

    def compute_score(data_source, solution_str, ground_truth, extra_info):   # verl: a float or a dict, one at a time
        return {"score": ..., "name": ...}

    def brevity(batch, words: int = 50):                                  # ours: what `Reward.score` gives
        return [min(1.0, words / max(1, len(text.split()))) for text in batch.responses]

Each may be ``async def``. Typed parameters with a default become flags, but for TRL, whose parameters are columns.
Where the frameworks drop a mistake, here each names function and sample.
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, get_type_hints

from ..cli.errors import UserError
from ..cli.user_code import user_code
from ..extensions.inject import say
from .base import Reward, RewardBatch, RewardContext, RewardResult, Rollout

_FORMS = {
    "OpenRLHF": ("queries", "prompts", "labels"),
    "TRL": ("prompts", "completions"),
    "verl": ("data_source", "solution_str", "ground_truth", "extra_info"),
    "orlhf-ext": ("batch",),
}
_MARKS = {"queries": "OpenRLHF", "completions": "TRL", "solution_str": "verl", "batch": "orlhf-ext"}
#: what TRL's functions call the gold answer, if labels are no JSON objects
_ANSWERS = ("label", "answer", "solution", "ground_truth")


class FunctionReward(Reward):
    """A reward of a function; `as_reward` makes a subclass for each."""

    function: ClassVar[Callable[..., Any]]
    form: ClassVar[str]
    #: names of parameters that are flags
    own: ClassVar[tuple[str, ...]] = ()

    def setup(self, context: RewardContext) -> None:
        """Keep the tokenizer, which writes out what the policy read and wrote; say what form the function has."""
        self._tokenizer = context.tokenizer
        self._dropped: set[str] = set()
        say(f"reward {self.name!r} is a function in {self.form}'s form")

    def _call(self, *args: Any, **words: Any) -> Any:
        return type(self).function(*args, **words, **{name: getattr(self, name) for name in self.own})

    def _drop(self, what: str) -> None:
        if what not in self._dropped:
            self._dropped.add(what)
            say(f"reward {self.name!r}: {what} is not logged, as it is no number")


class Ours(FunctionReward):
    """``function(batch)``."""

    form = "orlhf-ext"

    def score(self, batch: RewardBatch) -> Any:
        """What the function gives for the batch."""
        return self._call(batch)


class OneByOne(FunctionReward):
    """A function that is called once for each sample; coroutines of a batch run together."""

    def score(self, batch: RewardBatch) -> Any:
        """Call it for each rollout."""
        if inspect.iscoroutinefunction(type(self).function):
            return self._score_together(batch)
        return self._joined(batch, [self._ask(rollout) for rollout in batch])

    async def _score_together(self, batch: RewardBatch) -> RewardResult:
        return self._joined(batch, await asyncio.gather(*(self._ask(rollout) for rollout in batch)))

    def _ask(self, rollout: Rollout) -> Any:
        raise NotImplementedError

    def _read(self, found: Any, where: str) -> tuple[float, float, dict[str, float]]:
        """Reward, score and metrics of one sample."""
        raise NotImplementedError

    def _joined(self, batch: RewardBatch, found: Iterable[Any]) -> RewardResult:
        parts = [self._read(one, f"for sample {rollout.id!r}") for rollout, one in zip(batch, found, strict=True)]
        names = list(dict.fromkeys(name for _, _, logs in parts for name in logs))
        for rollout, (_, _, logs) in zip(batch, parts, strict=True):
            if missing := next((name for name in names if name not in logs), None):
                raise UserError(f"it logs no {missing!r} for sample {rollout.id!r}; give it for every sample")
        metrics = {name: [logs[name] for _, _, logs in parts] for name in names}
        return RewardResult([part[0] for part in parts], metrics, [part[1] for part in parts])


class OpenRLHFs(OneByOne):
    """``function([query], [prompt], [label])`` gives a dict of ``rewards``, ``scores`` and ``extra_logs``."""

    form = "OpenRLHF"

    def _ask(self, rollout: Rollout) -> Any:
        query = rollout.prompt + rollout.response
        if self._tokenizer is not None:
            query = str(self._tokenizer.decode(list(rollout.token_ids), skip_special_tokens=False))
        return self._call([query], [rollout.prompt], [rollout.label])

    def _read(self, found: Any, where: str) -> tuple[float, float, dict[str, float]]:
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


class Verls(OneByOne):
    """``function(data_source=, solution_str=, ground_truth=, extra_info=)`` gives a float, or a dict with ``score``."""

    form = "verl"

    def _ask(self, rollout: Rollout) -> Any:
        fields = _fields(rollout.label) or {"ground_truth": rollout.label}
        words = {
            "data_source": fields.get("data_source", "default"),
            "solution_str": rollout.response,
            "ground_truth": fields.get("ground_truth"),
            "extra_info": fields.get("extra_info", {}),
        }
        return self._call(**_named(type(self).function, words))

    def _read(self, found: Any, where: str) -> tuple[float, float, dict[str, float]]:
        if not isinstance(found, Mapping):
            found = {"score": found}
        if found.get("score") is None:
            raise UserError(f"it gave no 'score' {where}; return a number, or {{'score': 0.5}}")
        reward = _number(found["score"], "score", where)
        logs = {}
        for key, value in found.items():
            if key != "score" and isinstance(value, int | float):
                logs[str(key)] = float(value)
            elif key != "score":
                self._drop(repr(key))
        return reward, reward, logs


class TRLs(FunctionReward):
    """``function(prompts=, completions=, COLUMN=, ...)`` gives a number, or None, for each sample of a batch.

    The columns are the fields of labels that are JSON objects, or the label itself.
    """

    form = "TRL"

    def __init__(self, messages: bool = False) -> None:
        self.messages = messages

    def score(self, batch: RewardBatch) -> Any:
        """Call it with the batch's columns."""
        logged: dict[str, list[float]] = {}

        def log_metric(name: str, value: Any) -> None:
            logged[name] = [float(value)] * len(batch)

        def log_extra(name: str, values: Any) -> None:
            self._drop(f"log_extra of {name!r}")

        words = {
            "prompts": _chats(batch.prompts, "user") if self.messages else batch.prompts,
            "completions": _chats(batch.responses, "assistant") if self.messages else batch.responses,
            "completion_ids": [rollout.response_ids for rollout in batch],
            "trainer_state": None,
            "log_extra": log_extra,
            "log_metric": log_metric,
        }
        found = self._call(**_named(type(self).function, {**self._columns(batch), **words}))
        if inspect.isawaitable(found):
            return self._later(found, logged)
        return self._result(found, logged)

    async def _later(self, found: Any, logged: dict[str, list[float]]) -> RewardResult:
        return self._result(await found, logged)

    @staticmethod
    def _result(found: Any, logged: dict[str, list[float]]) -> RewardResult:
        if found is None:
            raise UserError("it returned nothing; return a list of a number for each completion")
        return RewardResult(found, logged)

    def _columns(self, batch: RewardBatch) -> dict[str, list[Any]]:
        known = [_fields(rollout.label) for rollout in batch]
        names = list(dict.fromkeys(name for fields in known for name in fields or ()))
        columns = {name: [(fields or {}).get(name) for fields in known] for name in names}
        if not any(known):
            columns = {name: batch.labels for name in _ANSWERS[:1] + _asked(type(self).function, _ANSWERS[1:])}
        needed = [one.name for one in _parameters(type(self).function) if one.default is one.empty]
        standard = {"prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric"}
        if missing := next((name for name in needed if name not in {*columns, *standard}), None):
            raise UserError(
                f"it takes the column {missing!r}, which the label of sample {batch[0].id!r} does not give; write "
                f'labels as JSON objects with it, {{"{missing}": ...}}'
            )
        return columns


_CLASSES: dict[str, type[FunctionReward]] = {cls.form: cls for cls in (OpenRLHFs, TRLs, Verls, Ours)}


def _fields(label: Any) -> dict[str, Any] | None:
    """The fields of a label that is a JSON object."""
    if isinstance(label, str) and label.lstrip().startswith("{"):
        try:
            label = json.loads(label)
        except ValueError:
            return None
    return label if isinstance(label, dict) else None


def _chats(texts: Iterable[str], role: str) -> list[list[dict[str, str]]]:
    return [[{"role": role, "content": text}] for text in texts]


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    every = inspect.signature(function).parameters.values()
    return [one for one in every if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]


def _asked(function: Callable[..., Any], names: Sequence[str]) -> tuple[str, ...]:
    """Those that a function names."""
    own = {one.name for one in _parameters(function)}
    return tuple(name for name in names if name in own)


def _named(function: Callable[..., Any], words: Mapping[str, Any]) -> dict[str, Any]:
    """What a function takes of it: all, if it has ``**kwargs``."""
    if any(one.kind is one.VAR_KEYWORD for one in inspect.signature(function).parameters.values()):
        return dict(words)
    return {name: words[name] for name in _asked(function, list(words))}


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
    """A reward's class for a function, named after it, or after its file if it is called ``reward_func`` or
    ``compute_score``.

    Raises:
        UserError: its parameters are those of no form.
    """
    name = getattr(function, "__name__", "function")
    parameters = _parameters(function)
    form = next((_MARKS[one.name] for one in parameters if one.name in _MARKS), None)
    if form is None or not _fits(form, parameters):
        forms = "; ".join(f"{name}({', '.join(words)}) of {form}" for form, words in _FORMS.items())
        raise UserError(
            f"{path}: {name}{inspect.signature(function)} has the parameters of no reward function that is known; make "
            f"it one of {forms}"
        )
    word = re.sub(r"\W", "_", path.stem if name in ("reward_func", "compute_score") else name)
    members = {"name": word, "function": staticmethod(function), "__doc__": function.__doc__}
    members["waits"] = inspect.iscoroutinefunction(function)
    own = [] if form == "TRL" else _flags(function, parameters, form)
    members |= {"own": tuple(field[0] for field in own), "__module__": str(path)}
    base = _CLASSES[form]
    if not own:
        return type(name, (base,), members)
    return dataclasses.make_dataclass(name, own, bases=(base,), namespace=members)


def _fits(form: str, parameters: Sequence[inspect.Parameter]) -> bool:
    """Whether a function can be called in a form: nothing else is required, and what is given by place is in order."""
    words = _FORMS[form]
    names = tuple(one.name for one in parameters)
    required = [one.name for one in parameters if one.default is one.empty]
    if form == "TRL":
        return all(one.kind is not one.POSITIONAL_ONLY for one in parameters)
    if form == "verl":
        return set(required) <= set(words)
    return names[: len(words)] == words and len(required) <= len(words)


def _flags(
    function: Callable[..., Any], parameters: Sequence[inspect.Parameter], form: str
) -> list[tuple[str, Any, Any]]:
    """Name, type and default of each parameter that becomes a flag."""
    with user_code(f"reward {getattr(function, '__name__', 'function')!r}: its types cannot be looked up:"):
        hints = get_type_hints(function, include_extras=True)
    found = []
    for one in parameters:
        if one.name in hints and one.default is not one.empty and one.name not in _FORMS[form]:
            default = one.default
            if isinstance(default, list | dict | set):
                default = dataclasses.field(default_factory=lambda value=default: value.copy())  # type: ignore[misc]
            found.append((one.name, hints[one.name], default))
    return found
