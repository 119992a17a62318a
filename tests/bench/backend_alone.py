"""An OpenRLHF launcher with this project's backend, and nothing else of it: the side that injection is held against."""

from __future__ import annotations

import runpy
import sys

from orlhf_ext import backends
from orlhf_ext.launch.launcher import _single_process

if __name__ == "__main__":
    backends.install()
    _single_process()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
