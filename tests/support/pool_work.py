"""Work without a model, for tests of the pool: units that sleep, and whose results follow from what they are given.

A payload may have ``bad`` (it raises), ``kills`` (it ends the worker as a kill does), ``once`` (a file: it ends the
worker unless the file is there, and makes it).
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orlhf_ext.models.pool import Failed


def value(payload: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(payload).encode()).hexdigest()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def load_calls(seconds: float = 0.01) -> Callable[[dict[str, Any]], str]:
    print("loaded with a remark")

    def call(payload: dict[str, Any]) -> str:
        if payload.get("bad"):
            raise ValueError("no such word")
        if payload.get("kills"):
            die()
        if (once := payload.get("once")) and not Path(once).exists():
            Path(once).touch()
            die()
        time.sleep(seconds)
        return value(payload)

    return call


class Engine:
    """Like vLLM: many units at a time, which are finished in another order."""

    room = 24

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._held: dict[str, list[Any]] = {}

    def add(self, key: str, payload: dict[str, Any]) -> None:
        self._held[key] = [payload, random.Random(key).randint(5, 30)]

    def step(self) -> list[tuple[str, str]]:
        time.sleep(self._seconds)
        found = []
        for key in list(self._held)[:16]:
            if self._held[key][0].get("breaks"):
                raise Failed("", "the engine broke down")
            self._held[key][1] -= 1
            if not self._held[key][1]:
                found.append((key, value(self._held.pop(key)[0])))
        return found


def load_engine(seconds: float = 0.002) -> Engine:
    return Engine(seconds)
