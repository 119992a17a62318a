"""The fault suite: a fault is planted, the command that meets it is run, and its verdict is counted.

A fault is *silent* if the command goes on as though nothing were wrong, *lost* if a file that was there changes or a
new one appears under its final name, and a *traceback* if anything but one sentence ends the command. The summary
line of a run, "N faults, 0 silent, 0 lost, 0 tracebacks", counts all of them.

A test plants a fault with the fixture `fault`::

    def test_no_model(fault, tmp_path):
        # orlhf-ext score
        fault("score", "--model", tmp_path / "gone", ..., says="gone is neither a folder nor a model")
        # counted and reported, and the command goes on
        fault("build_data", "hh", source, "--out", out, says="1 row", rc=0, makes=("*.jsonl", "*.json"))
        # another program's main
        fault.main(load("settings").main, "values", ..., says="SEED=x")
        # a function that raises UserError
        fault.call(read_prompts, path, says="line 2 is not JSON")
        # a process of its own
        fault.run([sys.executable, "-m", "orlhf_ext.launch", ...], says="unknown launcher")
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import os
import re
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT

from orlhf_ext.__main__ import find
from orlhf_ext.cli.errors import UserError


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of this folder is the marker ``fault``."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker("fault")


class Fault:
    """Runs what meets a planted fault; the calls return all that was printed."""

    def __init__(self, folder: Path, record: Callable[[str, object], None]) -> None:
        self.folder = folder
        self.record = record

    def __call__(self, name: str, *words: object, says: str, rc: int = 2, makes: Sequence[str] = ()) -> str:
        """Run a command in this process.

        Args:
            name: of the command; "vrcli.baseline" is ``orlhf-ext vrcli baseline``.
            words: its arguments.
            says: a regular expression that its output must match.
            rc: its exit code; 0 for a fault that is counted and reported.
            makes: patterns of file names that it may leave in the test's folder.
        """
        module = find(name.replace(".", " ").split())[1].module
        return self.main(importlib.import_module(f"orlhf_ext.{module}").main, *words, says=says, rc=rc, makes=makes)

    def main(
        self, main: Callable[[list[str]], None], *words: object, says: str, rc: int = 2, makes: Sequence[str] = ()
    ) -> str:
        """Run a program's ``main`` in this process."""
        before = _files(self.folder)
        printed = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace", write_through=True)
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            status = _status(lambda: main([str(word) for word in words]))
        return self._judge(printed.buffer.getvalue().decode(), status, says, rc, before, makes)

    def call(self, function: Callable[..., Any], *args: Any, says: str, **named: Any) -> str:
        """Call a function that must raise a `UserError`."""
        before = _files(self.folder)
        try:
            result = function(*args, **named)
            if isinstance(result, Iterator):
                for _ in result:
                    pass
        except UserError as error:
            return self._judge(str(error), 2, says, 2, before, ())
        except BaseException:
            return self._judge(traceback.format_exc(), 1, says, 2, before, ())
        return self._judge("", 0, says, 2, before, ())

    def run(
        self,
        command: Sequence[object],
        says: str,
        rc: int = 2,
        makes: Sequence[str] = (),
        timeout: float = 120,
        **environment: str,
    ) -> str:
        """Run a process of its own in the test's folder, with the project on its path."""
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        before = _files(self.folder)
        done = subprocess.run(
            [str(word) for word in command],
            env={**os.environ, "COLUMNS": "200", "PYTHONPATH": path, **environment},
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        return self._judge(done.stdout, done.returncode, says, rc, before, makes)

    def _judge(
        self, printed: str, status: int, says: str, rc: int, before: dict[Path, str], makes: Sequence[str]
    ) -> str:
        after = _files(self.folder)
        lost = [path for path, digest in before.items() if after.get(path) != digest]
        kept = (*makes, "*.config.yaml")  # the flags of a run are written before it trains
        lost += [path for path in after if path not in before and not any(fnmatch(path.name, one) for one in kept)]
        if "Traceback (most recent call last)" in printed:
            verdict = "traceback"
        elif status != rc or not re.search(says, printed):
            verdict = "silent"
        else:
            verdict = "lost" if lost else "told"
        self.record("fault", verdict)
        shown = ", ".join(str(path) for path in lost)
        assert verdict == "told", f"{verdict}: rc {status} (not {rc}?), /{says}/, files {shown}\n{printed[-3000:]}"
        return printed


def _status(run: Callable[[], None]) -> int:
    """The exit code of a command; what would be a traceback is printed as one."""
    try:
        run()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc(file=sys.stderr)
        return 1
    return 0


def _files(folder: Path) -> dict[Path, str]:
    """Digests of the files below a folder, but for Python's caches and names with a leading dot, which are ours."""
    return {
        path: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith((".", "__pycache__")) for part in path.relative_to(folder).parts)
    }


@pytest.fixture
def fault(tmp_path: Path, record_property: Callable[[str, object], None]) -> Fault:
    """Plants faults; files outside of ``tmp_path`` are not watched."""
    return Fault(tmp_path, record_property)
