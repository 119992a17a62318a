"""``orlhf-ext check reward SPEC --watch``: the check again, in a process of its own, whenever a file changes."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ..cli.errors import UserError
from ..extensions import REWARDS, names

_POLL_SECONDS = 0.3


def watch(argv: Sequence[str]) -> None:
    """Check until Ctrl-C.

    Args:
        argv: the words after ``check reward``, with ``--watch``.

    Raises:
        UserError: there is no file to watch.
    """
    words = [word for word in argv if word != "--watch"]
    folders, files = _watched(words)
    if not (folders or files):
        raise UserError("--watch has no file of yours to look at; give MODULE:MyReward, FILE.py:f or --data FILE")
    shown = ", ".join(map(str, [*(folder / "*.py" for folder in folders), *files]))
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            before = _stamps(folders, files)
            subprocess.run([sys.executable, "-m", "orlhf_ext", "check", "reward", *words], check=False)
            print(f"\nwatching {shown}; Ctrl-C ends it", flush=True)
            while _stamps(folders, files) == before:
                time.sleep(_POLL_SECONDS)
            print("-" * 40, flush=True)


def _watched(words: Sequence[str]) -> tuple[list[Path], list[Path]]:
    """The folder of the reward's file, and the file of samples."""
    spec = words[0] if words and not words[0].startswith("-") else ""
    name = spec.rpartition(":")[0]
    folders: list[Path] = []
    if name.endswith(".py"):
        folders.append(Path(name).absolute().parent)
    elif name and spec not in names(REWARDS):
        sys.path.insert(0, "")
        with contextlib.suppress(Exception):  # the check itself says what is wrong
            found = importlib.util.find_spec(name)
            if found and found.origin:
                folders.append(Path(found.origin).absolute().parent)
    data = next((after for word, after in itertools.pairwise(words) if word == "--data"), None)
    return folders, [Path(data).absolute()] if data else []


def _stamps(folders: Sequence[Path], files: Sequence[Path]) -> dict[Path, tuple[int, int]]:
    found = {}
    for path in [*(path for folder in folders for path in folder.glob("*.py")), *files]:
        with contextlib.suppress(OSError):
            stat = path.stat()
            found[path] = (stat.st_mtime_ns, stat.st_size)
    return found
