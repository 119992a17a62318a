"""Computations on a GPU that is none: see ``tests/support/tagged.py``."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from helpers import ROOT


@pytest.mark.launcher
def test_no_operator_mixes_devices() -> None:
    """In a process of its own: from then on torch takes that GPU for real."""
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/gpu/devices.py"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and re.search(r"^\d\d passed", done.stdout, re.MULTILINE), done.stdout[-3000:]
