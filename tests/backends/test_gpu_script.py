"""``tests/gpu/run.sh``: the steps that need no GPU, on a machine without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT


def run(tmp_path: Path, *words: str, status: int = 0) -> dict[str, Any]:
    out = tmp_path / "gpu.json"
    line = ["bash", "tests/gpu/run.sh", "--out", str(out), "--device", "cpu", "--size", "tiny", *words]
    done = subprocess.run(
        line, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "ORLHF_EXT_PYTHON": sys.executable}
    )
    assert done.returncode == status, done.stdout + done.stderr
    return json.loads(out.read_text())


@pytest.mark.slow
@pytest.mark.launcher
def test_every_step_that_a_cpu_can_do(tmp_path: Path) -> None:
    pytest.importorskip("openrlhf")
    steps = ("machine", "losses", "models", "shared", "exo", "exo_cached", "group_rm", "dead_end", "commands")
    found = run(tmp_path, "--only", *steps)
    assert [found[step]["status"] for step in steps] == ["passed"] * len(steps), found
    assert found["exo"]["losses"][0] == pytest.approx(found["exo_cached"]["losses"][0], abs=1e-4)
    assert all(found[step]["tokens_per_s"] > 0 for step in ("exo", "group_rm", "dead_end"))
    assert set(found["commands"]) >= {"logprobs_s", "generate_s", "score_s", "decode_s"}


@pytest.mark.launcher
def test_a_step_that_takes_too_long_is_told(tmp_path: Path) -> None:
    found = run(tmp_path, "--only", "losses", "--limit", "0.2", status=1)
    assert found["losses"]["status"] == "failed" and "longer than 0.2 s" in found["losses"]["why"]
