"""What programs say with ``--help``, each in a fork of one process that has loaded what launchers load."""

from __future__ import annotations

import functools
import multiprocessing
import os
import runpy
import sys
import tempfile
from multiprocessing.context import ForkServerContext
from pathlib import Path

from helpers import ROOT

#: what takes most of a launcher's start; nothing of ours and of OpenRLHF, whose modules are changed as they are loaded
LOADED = ["torch", "transformers.modeling_utils", "datasets", "peft", "deepspeed", "ray"]


@functools.cache
def help_of(program: tuple[str, ...], folder: Path) -> str:
    """The help of ``python -m PROGRAM`` in a folder."""
    with tempfile.NamedTemporaryFile() as printed:
        process = _forks().Process(target=_show, args=(program, folder, printed.name))
        process.start()
        process.join()
        text = Path(printed.name).read_text(encoding="utf-8")
    assert process.exitcode == 0, f"{program}: {text}"
    return text


@functools.cache
def _forks() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LOADED)
    return context


def _show(program: tuple[str, ...], folder: Path, out: str) -> None:
    os.dup2(os.open(out, os.O_WRONLY), 1)
    os.chdir(folder)
    sys.path[:0] = [str(folder), str(ROOT)]
    sys.argv = ["", *program[1:], "--help"]
    runpy.run_module(program[0], run_name="__main__", alter_sys=True)
