"""The table of plans before and after training."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import failing
from scipy import stats

from orlhf_ext.files.records import read_records, write_jsonl
from orlhf_ext.vrcli import evaluate


def result(name: str, gain: float, sample: int = 0, **more: Any) -> dict:
    row = {"id": name, "sample": sample, "plan": f"plan of {name}", "reward": float(gain > 0), "pct_improvement": gain}
    return {**row, "nll": 2.0, "base_nll": 2.5, "plan_tokens": 10, "marker": True, "empty": False, **more}


BEFORE = [result("a", -1.0, marker=False), result("b", 0.5), result("c", 0.0, plan="", empty=True, plan_tokens=0)]
AFTER = [result("c", 2.0), result("a", 3.0), result("b", 4.0), result("b", 2.0, sample=1, plan_tokens=30)]


def test_before_and_after(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_jsonl(tmp_path / "b.jsonl", BEFORE)
    write_jsonl(tmp_path / "a.jsonl", AFTER)
    (tmp_path / "run.json").write_text('{"seconds": {"train": 1.5}}')
    write_jsonl(tmp_path / "d.jsonl", [{"id": "a", "prompt": [{"role": "user", "content": "of a"}]}])
    words = f"--data {tmp_path}/d.jsonl --before {tmp_path}/b.jsonl --after {tmp_path}/a.jsonl"
    evaluate.main([*words.split(), *f"--out {tmp_path}/s.json --run {tmp_path}/run.json".split()])
    summary = json.loads((tmp_path / "s.json").read_text())
    metrics = summary["metrics"]
    assert summary["seconds"] == {"train": 1.5} and metrics["records"] == 3
    for when, gains in (("before", [-1.0, 0.5, 0.0]), ("after", [3.0, 3.0, 2.0])):
        found = metrics[when]
        test = stats.ttest_1samp(gains, 0).confidence_interval(0.95)
        assert found["pct_improvement_mean"] == pytest.approx(np.mean(gains))
        assert found["pct_improvement_se"] == pytest.approx(stats.sem(gains))
        assert (found["pct_improvement_low"], found["pct_improvement_high"]) == pytest.approx((test.low, test.high))
        assert found["pct_improvement_median"] == np.median(gains)
    before, after = metrics["before"], metrics["after"]
    assert (before["reward_mean"], after["reward_mean"]) == (pytest.approx(1 / 3), 1.0)
    assert (before["marker_share"], before["empty_share"], before["improved_share"]) == pytest.approx(
        (2 / 3, 1 / 3, 1 / 3)
    )
    assert (before["samples"], after["samples"]) == (3, 4)
    assert (before["plan_tokens_mean"], after["plan_tokens_mean"]) == (pytest.approx(20 / 3), pytest.approx(40 / 3))
    paired = stats.ttest_rel([3.0, 3.0, 2.0], [-1.0, 0.5, 0.0]).confidence_interval(0.95)
    change = metrics["change"]["pct_improvement"]
    assert (change["low"], change["mean"], change["high"]) == pytest.approx((paired.low, 17 / 6, paired.high))
    assert metrics["after_above_before"] is (after["pct_improvement_low"] > before["pct_improvement_high"])
    rows = [line.record for line in read_records(tmp_path / "s.records.jsonl")]
    assert [row["id"] for row in rows] == ["a", "b", "c"]
    gains = [[row["answers"][when]["scores"]["pct_improvement"] for when in ("before", "after")] for row in rows]
    assert gains == [[-1, 3], [0.5, 3], [0, 2]]
    assert [row["answers"]["after"]["text"] for row in rows] == ["plan of a", "plan of b", "plan of c"]
    assert [row["prompt"] for row in rows] == ["of a", "", ""]
    assert (tmp_path / "s.md").read_text().splitlines()[3].startswith("| after | +2.667 [")
    table = list(csv.DictReader((tmp_path / "s.csv").open()))
    assert [float(row["pct_improvement_mean"]) for row in table] == [
        before["pct_improvement_mean"],
        after["pct_improvement_mean"],
    ]
    said = capsys.readouterr().out
    assert "plan of a" in said and "(no plan)" in said and "paired over records: +2.833 points" in said
    assert f"training {'lies' if metrics['after_above_before'] else 'does not lie'} above" in said


def test_plans_of_others_and_length(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    def gains(shift: float, per_token: float, longer: int) -> list[dict]:
        return [
            result(f"r{i}", i + shift + per_token * tokens, sample, plan_tokens=tokens)
            for i in range(8)
            for sample, tokens in enumerate((10 + longer, 14 + longer + i % 3))
        ]

    files = {"b": gains(0, 0.5, 0), "a": gains(2, 0.5, 10), "o": gains(-1, 0.5, 10)}
    for name, rows in files.items():
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    words = f"--before {tmp_path}/b.jsonl --after {tmp_path}/a.jsonl --out {tmp_path}/s.json".split()
    evaluate.main([*words, "--others", f"{tmp_path}/o.jsonl"])
    found = json.loads((tmp_path / "s.json").read_text())["metrics"]
    assert found["change"]["pct_improvement"]["mean"] == pytest.approx(7)  # of which ten tokens bring 5
    assert found["change"]["at_equal_length"]["mean"] == pytest.approx(2)
    assert found["change"]["own_minus_others"]["mean"] == pytest.approx(3)
    assert found["others"]["pct_improvement_mean"] == pytest.approx(found["after"]["pct_improvement_mean"] - 3)
    said = " ".join(capsys.readouterr().out.split())
    assert "of others" in said and "at equal plan length: +2.000 points" in said
    assert "that by plans of others, paired: +3.000 points" in said
    write_jsonl(tmp_path / "o.jsonl", files["o"][:-2])
    assert "o.jsonl lacks the record with id 'r7'" in failing(
        capsys, evaluate.main, *words, "--others", f"{tmp_path}/o.jsonl", "--overwrite"
    )


def test_an_interval_that_lies_above() -> None:
    def many(shift: float) -> dict[str, list]:
        return {f"r{i}": [result(f"r{i}", shift + 0.1 * (i % 5))] for i in range(20)}

    assert evaluate.compare(many(0), many(1))["after_above_before"] is True
    assert evaluate.compare(many(0), many(0.01))["after_above_before"] is False
    one = {"r0": many(0)["r0"]}
    alone = evaluate.compare(one, one)
    assert alone["after_above_before"] is None and alone["before"]["pct_improvement_se"] is None
    evaluate.print_table(alone)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (AFTER[1:], "a.jsonl lacks the record with id 'c'"),
        ([*AFTER, result("d", 1.0)], "b.jsonl lacks the record with id 'd'"),
        ([*AFTER[1:], result("c", 1.0, base_nll=2.4)], "have the record with id 'c' with different baselines"),
        ([*AFTER, result("c", math.nan)], "a.jsonl line 5 is not a scored plan (no number pct_improvement)"),
        ([{"id": "c", "completions": []}], "a.jsonl line 1 is not a scored plan (no number"),
        ([], "a.jsonl has no record"),
    ],
)
def test_results_that_cannot_be_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture, rows: list[dict], said: str
) -> None:
    write_jsonl(tmp_path / "b.jsonl", BEFORE)
    write_jsonl(tmp_path / "a.jsonl", rows)
    words = f"--before {tmp_path}/b.jsonl --after {tmp_path}/a.jsonl --out {tmp_path}/s.json"
    assert said in failing(capsys, evaluate.main, *words.split())
    assert not (tmp_path / "s.json").exists()
