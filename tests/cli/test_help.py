"""``--help`` of every command, and ``orlhf-ext list``, load none of the heavy packages."""

from __future__ import annotations

import subprocess
import sys

from orlhf_ext.__main__ import COMMANDS

CODE = """
import contextlib, importlib, io, sys
from orlhf_ext.__main__ import COMMANDS, main

def look(words):
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        main(words)
    heavy = {"torch", "transformers", "ray", "vllm", "deepspeed", "openrlhf", "datasets"} & set(sys.modules)
    print(" ".join(words), len(said.getvalue()) > 80, sorted(heavy))

for group in COMMANDS.values():
    for name in group:
        look([*name.split(), "--help"])
look(["list"])
"""


def test_help_loads_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    names = [name for group in COMMANDS.values() for name in group]
    assert done.stdout.splitlines() == [f"{line} True []" for line in (*(f"{name} --help" for name in names), "list")]
