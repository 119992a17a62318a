"""What a recipe shows of a stage that runs.

A live line on a terminal, or else a line when it begins and one when it ends. What the stage prints is in its
log; ``VERBOSE=1`` shows that instead.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import time
from pathlib import Path

#: the counter of tqdm, which all stages and vLLM use: done, total, and the time that is left
_COUNTER = re.compile(rb"(\d+)/(\d+) \[[\d:]+<([\d:]+)")
_MAX_TAIL = 4096
_INTERVAL = 0.5  # seconds between two drawings


def verbose() -> bool:
    """Whether everything that a stage prints is to be shown."""
    return os.environ.get("VERBOSE") == "1"


def describe(command: list[str]) -> str:
    """What a stage's command does, in a few words."""
    from orlhf_ext.__main__ import find  # which takes a tenth of a second
    from orlhf_ext.cli.errors import UserError

    words = command[command.index("-m") + 1 :] if "-m" in command else command
    if words[0] == "orlhf_ext.build_data":
        return f"build_data {words[1]}"
    if words[0] == "orlhf_ext.launch":
        uses = [words[i + 1] for i, word in enumerate(words) if word in ("--ext.use", "--ext.reward")]
        return f"OpenRLHF's {words[1]}{' with ' if uses else ''}{' and '.join(uses)}"
    if words[0] == "orlhf_ext":
        with contextlib.suppress(UserError):
            return find(words[1:])[1].help
    return Path(words[-1] if words[0] == "env" else words[0]).name  # another recipe


def last_words(end: bytes) -> str:
    """The line of a log's end that says why a command failed: a sentence of this project, an exception, or the last."""
    lines = [line.strip() for line in re.split(r"[\r\n]+", end.decode(errors="replace"))]
    lines = [line for line in lines if line and not line.startswith("$ ")]
    for pattern in (r"orlhf-ext: ", r"(\w+\.)*\w*(Error|Exception|Interrupt)\b"):
        if found := [line for line in lines if re.match(pattern, line)]:
            return found[-1][:400]
    return lines[-1][:400] if lines else ""


class Live:
    """The line of one stage.

    Args:
        name: of the stage.
        what: what it does.
    """

    def __init__(self, name: str, what: str) -> None:
        self._text = f"{name}: {what}"
        self._tail = b""
        self._start = time.monotonic()
        self._drawn = 0.0
        self._on_terminal = sys.stdout.isatty()
        if not self._on_terminal:
            print(f"# {self._text}", flush=True)

    def feed(self, chunk: bytes) -> None:
        """Look for a counter in what the stage prints."""
        self._tail = (self._tail + chunk)[-_MAX_TAIL:]

    def draw(self) -> None:
        """Draw the line again, if it is time to."""
        now = time.monotonic()
        if not self._on_terminal or now - self._drawn < _INTERVAL:
            return
        self._drawn = now
        counters = _COUNTER.findall(self._tail)
        progress = ""
        if counters:
            done, total, left = (text.decode() for text in counters[-1])
            progress = f"  {done}/{total}, {left} left"
        width = shutil.get_terminal_size((80, 24)).columns - 1
        seconds = f"  {now - self._start:.0f} s"
        room = width - len(progress) - len(seconds)
        print(f"\r\033[K{self._text[:room]}{progress}{seconds}", end="", flush=True)

    def clear(self) -> None:
        """Take the line from the terminal."""
        if self._on_terminal:
            print("\r\033[K", end="", flush=True)
