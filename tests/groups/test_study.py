"""The controlled study of opposed groups, for one seed: what must hold whatever method is better."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from helpers import ROOT


@pytest.mark.slow
@pytest.mark.launcher
def test_opposed_groups_with_a_shared_trait(tmp_path: Path) -> None:
    """Both groups' heads have learnt their group; a plain model has not learnt the minority; the true reward selects
    best for whom it is worst."""
    import subprocess

    words = [sys.executable, str(ROOT / "tests/bench/group_study.py"), "--seeds", "1"]
    words += ["--out", str(tmp_path / "table.md"), "--json", str(tmp_path / "study.json")]
    done = subprocess.run(
        words, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=500, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:]
    found = json.loads((tmp_path / "study.json").read_text())["seeds"]["0"]
    for method in ("maxmin", "sharedrep"):
        assert found[method]["minority_acc"] > 0.6 and found[method]["majority_acc"] > 0.9, method
        assert found[method]["minority_acc_opposed"] > 0.6, method
    plain = found["plain"]
    assert plain["majority_acc"] > 0.9 and plain["minority_acc_opposed"] < 0.4
    worst = {name: values["worst_gold"] for name, values in found.items()}
    # 200 selections of a score whose deviation is about 1: two standard errors
    assert all(worst["gold"] > value - 0.15 for value in worst.values()), worst
    assert worst["gold"] > worst["plain"] + 0.15 and worst["plain"] > worst["no selection"]
    assert f"| gold |  |  |  |  | {found['gold']['minority_gold']:.3f} ± nan" in (tmp_path / "table.md").read_text()
