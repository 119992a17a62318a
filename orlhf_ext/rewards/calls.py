"""Calls of what users write: coroutines on one event loop, several at a time, and with a limit on their time.

There is one loop in a process, in a thread of its own and to its end, so that a session that ``setup`` has opened
serves every batch.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


class TooLong(Exception):
    """A call was not done in time.

    Args:
        frames: file and line of each call that it was in, outermost first.
    """

    def __init__(self, frames: list[tuple[str, int]]) -> None:
        super().__init__()
        self.frames = frames


_making = threading.Lock()


def _loop() -> asyncio.AbstractEventLoop:
    with _making:
        return _made_loop()


@functools.cache
def _made_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True, name="rewards-loop").start()
    return loop


#: the `Call` that a thread works for
_here = threading.local()


def settle(value: Any) -> Any:
    """The value, or what it comes to on the loop if it must be awaited."""
    if not inspect.isawaitable(value):
        return value

    async def outcome() -> tuple[Any, BaseException | None]:
        try:
            return await value, None
        except (SystemExit, KeyboardInterrupt) as error:  # which would end the loop
            return None, error

    future = asyncio.run_coroutine_threadsafe(outcome(), _loop())
    if owner := getattr(_here, "call", None):
        owner.keep(future)
    try:
        found, error = future.result()
    except BaseException:
        future.cancel()  # Ctrl-C
        raise
    if error is not None:
        raise error
    return found


class Call:
    """A function at work in a thread of its own; what it returns is awaited if it must be.

    Args:
        function: what is called, with ``args``.
        seconds: how long it may take, or None.
    """

    def __init__(self, function: Callable[..., Any], *args: Any, seconds: float | None = None) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds
        self._outcome: Future = Future()
        self._started: list[Future | Call] = []
        self._cancelled = False
        if owner := getattr(_here, "call", None):
            owner.keep(self)
        self._thread = threading.Thread(target=self._run, args=(function, *args), daemon=True, name="reward")
        self._thread.start()

    def _run(self, function: Callable[..., Any], *args: Any) -> None:
        _here.call = self
        try:
            self._outcome.set_result(settle(function(*args)))
        except BaseException as error:
            self._outcome.set_exception(error)

    def result(self) -> Any:
        """What the function returned. Raises what it raised, or `TooLong` if it is not done in time: then a coroutine
        is cancelled, and a function left to itself."""
        done = threading.Event()
        self._outcome.add_done_callback(lambda _: done.set())
        if not done.wait(None if self._end is None else max(0.0, self._end - time.monotonic())):
            frame = sys._current_frames().get(self._thread.ident or 0)
            stack = traceback.extract_stack(frame) if frame else []
            self.cancel()
            raise TooLong([(line.filename, line.lineno or 0) for line in stack])
        return self._outcome.result()

    def keep(self, started: Future | Call) -> None:
        """What is cancelled with it."""
        self._started.append(started)
        if self._cancelled:
            started.cancel()

    def cancel(self) -> None:
        """Cancel coroutines that it waits for."""
        self._cancelled = True
        for started in self._started:
            started.cancel()


def call(function: Callable[..., Any], *args: Any, seconds: float | None = None) -> Any:
    """Call a function and await what it returns, if need be: in this thread, where signals work, unless its time is
    limited. Raises what it raises, or `TooLong`."""
    return settle(function(*args)) if seconds is None else Call(function, *args, seconds=seconds).result()
