"""Work on records, in this process or by several workers: Ray actors, on this machine or on the Ray of RAY_ADDRESS.

A command cuts its work into units that follow from its input alone, each with a key, and names a function that loads
what does them. Workers are given a few units at a time, as many as they have room for; results come back to the
command, which alone keeps them. What a lost worker had in hand goes to the others. With one worker, Ray is not
imported.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

from .. import backends
from ..cli.errors import UserError, brief
from . import ray_workers

_SLICE = 1.0  # seconds that a worker goes on before it reports: what is lost with it, at most, beside a unit
_TICK = 5.0  # seconds between two looks at workers that do not report
_PATIENCE = 1800.0  # seconds without a report until a worker counts as hung: loading, or one unit, may take that long
_LIVES = 3  # deaths in a row that end a worker's place, or the run if a unit was in hand each time
_KEPT = "finished records are kept"

Unit = tuple[str, Any]
"""A key and what goes to the worker; a key and what comes back."""


class Work(Protocol):
    """What a worker has loaded."""

    @property
    def room(self) -> int:
        """How many units it wants to have in hand."""
        ...

    def add(self, key: str, payload: Any) -> None:
        """Take a unit in hand."""
        ...

    def step(self) -> list[Unit]:
        """Go on a little; the units that are finished, with their results.

        Raises:
            Failed: a unit, or what does the work.
        """
        ...


class Failed(Exception):
    """Work failed; args: the key of the unit ("" if it is the worker that broke down), and what happened."""


class Calls:
    """Units that are one call of a function each."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function
        self._waiting: deque[Unit] = deque()
        self._pace = _SLICE  # seconds that a call takes

    @property
    def room(self) -> int:
        """As many as fill a slice."""
        return 1 + int(_SLICE / self._pace)

    def add(self, key: str, payload: Any) -> None:
        """As `Work.add`."""
        self._waiting.append((key, payload))

    def step(self) -> list[Unit]:
        """As `Work.step`."""
        key, payload = self._waiting.popleft()
        start = time.monotonic()
        try:
            found = self._function(payload)
        except (UserError, OSError):
            raise
        except Exception as error:
            raise Failed(key, f"{type(error).__name__}: {brief(error)}") from error
        self._pace = max(1e-3, (self._pace + time.monotonic() - start) / 2)
        return [(key, found)]


class Pool:
    """Workers, from the first work that there is for them until the block ends.

    Args:
        workers: how many; one works in this process.
        gpus: of each worker, where there are GPUs.
    """

    def __init__(self, workers: int = 1, gpus: int = 1) -> None:
        self.workers, self._gpus = workers, gpus
        self._loads: dict[Callable[[], Any], int] = {}  # what was loaded, by number
        self._here = _Worker()
        self._ray: Any = None
        self._places: list[_Place] = []

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        if self._ray is not None:
            for place in self._places:
                if place.actor is not None:
                    self._ray.kill(place.actor)
            self._ray.shutdown()

    def run(
        self,
        load: Callable[[], Any],
        units: Iterable[Unit],
        name: Callable[[str], str] = str,
        total: int | None = None,
    ) -> Iterator[Unit]:
        """Do every unit; results come in the order in which they are finished.

        Args:
            load: loads what does them, a `Work` or a function of a payload, once in each worker; with several, a
                function of a module, or a `partial` of one, with arguments that can be sent.
            units: that are left to do, taken from when workers have room.
            name: what a unit is called in messages.
            total: how many units there are, so that none of the workers takes more of the last ones than its share.

        Raises:
            UserError: as ``load`` and the work; a unit fails, or takes workers down; no worker is left; Ray cannot be
                used (see `ray_workers.connect`).
        """
        units = iter(units)
        if (first := next(units, None)) is None:
            return
        number = self._loads.setdefault(load, len(self._loads))
        if self.workers == 1:
            self._here.start(number, load)
            yield from self._here.work(first, units, name)
            return
        if self._ray is None:
            make = ray_workers.connect(self.workers, self._gpus, _Worker)
            import ray  # it is there

            self._ray, self._places = ray, [_Place(number, make) for number in range(self.workers)]
        yield from _Run(self._ray, self._places, number, load, name, total).results(first, units)


class _Worker:
    """What holds the work: in a Ray actor, or in the command itself."""

    def __init__(self, folder: str = "", variables: dict[str, str] | None = None) -> None:
        if variables is not None:
            os.environ.update(variables)  # before torch is imported
            if os.path.isdir(folder):
                os.chdir(folder)  # relative paths mean the same as in the command
            backends.install()
            sys.stdout = self._heard = _Heard(sys.stdout)
        self._works: dict[int, Work] = {}
        self._held = 0

    def start(self, number: int, load: Callable[[], Any]) -> tuple[list[Unit], int, list[str]]:
        """Load, unless that was done; what `advance` gives."""
        if number not in self._works:
            found = load()
            self._works[number] = Calls(found) if callable(found) else found
        self._work = self._works[number]
        return [], self._work.room, []

    def advance(self, units: Sequence[Unit]) -> tuple[list[Unit], int, list[str]]:
        """Take units in hand and go on for a while; what is finished, how many more it wants, and what was printed."""
        for unit in units:
            self._work.add(*unit)
        self._held += len(units)
        found: list[Unit] = []
        end = time.monotonic() + _SLICE
        while self._held and time.monotonic() < end:
            some = self._work.step()
            self._held -= len(some)
            found += some
        return found, max(0, self._work.room - self._held), self._heard.take()

    def work(self, first: Unit, units: Iterator[Unit], name: Callable[[str], str]) -> Iterator[Unit]:
        """Do all units, in this process."""
        work = self._work
        work.add(*first)
        held = 1
        while True:
            while held < work.room and (unit := next(units, None)) is not None:
                work.add(*unit)
                held += 1
            if not held:
                return
            try:
                found = work.step()
            except Failed as error:
                raise UserError(_failed(name, *error.args)) from error
            held -= len(found)
            yield from found


class _Heard:
    """A worker's standard output, whose lines are also told to the command."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._text = stream, ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, and remember."""
        self._text += text
        return self._stream.write(text)

    def take(self) -> list[str]:
        """The lines since the last time."""
        *lines, self._text = self._text.split("\n")
        return lines


class _Place:
    """A worker's place: when it dies, another takes it."""

    def __init__(self, number: int, make: Callable[[], Any]) -> None:
        self.number, self.make = number, make
        self.actor: Any = None
        self.call: Any = None  # what it has been asked to do
        self.since = 0.0
        self.loading = False
        self.wants = 0
        self.held: dict[str, Any] = {}
        self.alone = False  # with a unit that may be what kills workers
        self.deaths = 0  # in a row, with nothing finished

    def ask(self, method: str, *words: Any) -> None:
        """Let the worker do something; its answer is what ``call`` gets."""
        if self.actor is None:
            self.actor = self.make()
        self.call, self.since = getattr(self.actor, method).remote(*words), time.monotonic()


class _Run:
    """One `Pool.run` with several workers."""

    def __init__(
        self,
        ray: Any,
        places: Sequence[_Place],
        number: int,
        load: Callable[[], Any],
        name: Callable[[str], str],
        total: int | None,
    ) -> None:
        self._ray, self._places, self._name = ray, places, name
        self._load = (number, load)
        self._left = sys.maxsize if total is None else total
        self._back: deque[Unit] = deque()  # of lost workers
        self._suspects: deque[Unit] = deque()  # the same, twice
        self._deaths: Counter[str] = Counter()
        self._proved = False  # that the work can be done at all
        self._last = ""  # reason of a loss
        self._told: set[str] = set()

    def results(self, first: Unit, units: Iterator[Unit]) -> Iterator[Unit]:
        self._back.append(first)
        self._units = units
        self._ended = False
        begun, warned = time.monotonic(), False
        for place in self._places:
            place.deaths = 0
            self._begin(place)
        while True:
            for place in self._places:
                if place.actor is not None and place.call is None:
                    self._feed(place)
            if self._ended and not (self._back or self._suspects or any(place.held for place in self._places)):
                return
            calls = {place.call: place for place in self._places if place.call is not None}
            if not calls:
                raise UserError(f"no worker is left ({self._last}); {_KEPT}: mend that and run it again")
            for call in self._ray.wait(list(calls), timeout=_TICK)[0]:
                yield from self._take(calls[call])
            now = time.monotonic()
            for place in self._places:
                if place.call is not None and now - place.since > _PATIENCE:
                    self._lose(place, f"no word from it for {_PATIENCE:.0f} s")
            if not warned and now - begun > 60 and (absent := sum(place.loading for place in self._places)):
                print(f"{absent} of {len(self._places)} workers still load, or wait for room in Ray", flush=True)
                warned = True

    def _begin(self, place: _Place) -> None:
        """Load the work in a worker, a new one if need be."""
        place.held, place.alone, place.wants, place.loading = {}, False, 0, True
        place.ask("start", *self._load)

    def _next(self) -> Unit | None:
        if self._back:
            return self._back.popleft()
        unit = None if self._ended else next(self._units, None)
        self._ended = self._ended or unit is None
        return unit

    def _feed(self, place: _Place) -> None:
        """Let a worker go on, with more units if it wants some; it stays idle where there are none."""
        units: list[Unit] = []
        if self._suspects and not place.held:
            units, place.alone = [self._suspects.popleft()], True
        elif not place.alone:
            share = max(1, -(-self._left // len(self._places))) - len(place.held)
            while len(units) < min(place.wants, share) and (unit := self._next()) is not None:
                units.append(unit)
        place.held |= dict(units)
        if place.held:
            place.ask("advance", units)

    def _take(self, place: _Place) -> Iterator[Unit]:
        """The results of a worker's report."""
        from ray.exceptions import RayError, RayTaskError

        try:
            found, place.wants, lines = self._ray.get(place.call)
        except RayTaskError as error:
            cause: Any = error.cause
            if isinstance(cause, UserError):
                raise UserError(str(cause)) from error
            key, reason = cause.args if isinstance(cause, Failed) else ("", f"{type(cause).__name__}: {brief(cause)}")
            if key or not self._proved:  # it would be the same everywhere
                raise UserError(_failed(self._name, key, reason)) from error
            self._lose(place, reason)
            return
        except RayError as error:  # the worker, its machine, or the way there
            self._lose(place, ray_workers.cause(error))
            return
        place.call, place.loading = None, False
        for line in lines:
            if line not in self._told:
                self._told.add(line)
                print(line, flush=True)
        if found:
            self._proved, place.deaths = True, 0
        for key, value in found:
            del place.held[key]
            self._left -= 1
            yield key, value
        place.alone = place.alone and bool(place.held)

    def _lose(self, place: _Place, reason: str) -> None:
        """Give what a worker had in hand to the others, and its place to a new one.

        Raises:
            UserError: a unit was in hand of three workers that died, the last time alone.
        """
        self._ray.kill(place.actor)  # it may only seem dead
        self._last = reason
        for unit in place.held.items():
            key = unit[0]
            self._deaths[key] += 1
            if place.alone and self._deaths[key] >= _LIVES:
                raise UserError(_failed(self._name, key, f"{self._deaths[key]} workers died of it: {reason}"))
            (self._suspects if self._deaths[key] >= _LIVES - 1 else self._back).append(unit)
        held = f"; its {len(place.held)} unfinished pieces go to others" if place.held else ""
        print(f"worker {place.number} is lost ({reason}){held}", file=sys.stderr, flush=True)
        place.deaths += 1
        place.actor = place.call = None
        place.held, place.loading = {}, False
        if place.deaths < _LIVES:
            self._begin(place)


def some_of(names: Sequence[str]) -> str:
    """The records of a unit in a message: ``x.jsonl line 1 or one of 2 others``."""
    first, *others = dict.fromkeys(names)
    return first + (f" or one of {len(others)} others" if others else "")


def _failed(name: Callable[[str], str], key: str, reason: str) -> str:
    if not key:
        return f"{reason}; {_KEPT}: mend that and run it again"
    return f"{name(key)} cannot be processed ({reason}); {_KEPT}: mend that, or remove it, and run it again"
