"""``orlhf-ext judge compare``: two policies' completions, by a judge, by rewards and by length."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orlhf_ext.cli.errors import UserError
from orlhf_ext.files.records import read_records, write_jsonl
from orlhf_ext.judge import compare
from orlhf_ext.judge.tournament import Game


def samples(path: Path, texts: list[list[str]], rewards: list[list[float]] | None = None) -> str:
    rows: list[dict[str, Any]] = [
        {"id": f"p{i}", "prompt": f"prompt {i}", "completions": row} for i, row in enumerate(texts)
    ]
    for i, values in enumerate(rewards or ()):
        rows[i]["rewards"] = values
    write_jsonl(path, rows)
    return str(path)


BEFORE = [["a b c", "a b"], ["a", "b"], ["x y", "z"]]
AFTER = [["d e", "d e f"], ["c d", "b"], ["", "z z"]]


def test_the_numbers_of_a_judge(tmp_path: Path) -> None:
    pairs = compare.read_pairs(
        samples(tmp_path / "b.jsonl", BEFORE, [[1, 2], [3, 4], [5, 6]]),
        samples(tmp_path / "a.jsonl", AFTER, [[2, 1], [4, 4], [0, 7]]),
    )
    # a win, a loss; a win in one order alone, a tie without a call; a walkover, a win
    games = [
        [Game(0, 1, (1.0, -1.0)), Game(0, 1, (-1.0, 1.0))],
        [Game(0, 1, (1.0, 1.0)), Game(0, 1, points=0.5)],
        [Game(0, 1, points=0.0), Game(0, 1, (1.0, None))],
    ]
    found = compare.compare(pairs, games, True, 0)
    assert (found["records"], found["comparisons"]) == (3, 6)
    assert found["words_before"] == pytest.approx(10 / 6) and found["words_after"] == pytest.approx(10 / 6)
    judge = found["judge"]
    assert judge["win_rate"] == pytest.approx(0.5) and judge["ties"] == pytest.approx(1 / 3)
    assert judge["mean_points"] == pytest.approx((0.5 + 0.5 + 0.375) / 3)
    assert judge["consistency"] == pytest.approx(2 / 3) and judge["share_a"] == pytest.approx(5 / 7)
    assert judge["unreadable"] == pytest.approx(1 / 8) and judge["skipped"] == pytest.approx(1 / 3)
    assert "bias" not in judge
    # by rewards: a win, a loss; a win, a tie; a loss, a win
    rewards = found["rewards"]
    assert rewards["win_rate_low"] < rewards["win_rate"] < rewards["win_rate_high"]
    assert rewards["win_rate"] == pytest.approx((0.5 + 0.75 + 0.5) / 3)
    assert (rewards["mean_before"], rewards["mean_after"]) == (3.5, 3.0)
    assert rewards["agreement"] == 1.0  # the four that both decide
    # by length: a loss, a win; a win, a tie; a loss, a win
    longer = found["longer_text"]
    assert longer["win_rate"] == pytest.approx((0.5 + 0.75 + 0.5) / 3) and longer["agreement"] == pytest.approx(0.5)
    assert not any(key.startswith("picks_longer") for key in longer)
    assert judge["picks_longer"] == pytest.approx(2 / 4)


def test_a_judge_of_length_alone_is_shown_as_one() -> None:
    rng = np.random.default_rng(0)
    words = rng.integers(1, 50, (200, 2)).astype(float)
    rates = [[float(a > b) + 0.5 * (a == b)] for a, b in words]
    found = compare.measure(rates, words, 0)
    assert found["picks_longer"] == 1 and found["length_controlled"] == 0.5 and found["length_correlation"] > 0.8


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (AFTER[:2], r"a.jsonl lacks the id 'p2', which the other file has; sample the same prompts"),
        ([*AFTER, ["more", "of"]], r"b.jsonl lacks the id 'p3'"),
        ([*AFTER[:2], ["one"]], r"a.jsonl line 3 \(id 'p2'\) has 1 completions, and .*b.jsonl line 3 has 2"),
    ],
)
def test_files_that_do_not_fit(after: list[list[str]], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        compare.read_pairs(samples(tmp_path / "b.jsonl", BEFORE), samples(tmp_path / "a.jsonl", after))


def test_the_command(long_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = f"--before {samples(tmp_path / 'b.jsonl', BEFORE)} --after {samples(tmp_path / 'a.jsonl', AFTER)}"
    out = tmp_path / "o.json"
    compare.main(f"{words} --out {out} --judge.model {long_model} --judge.dtype float32 --show 1".split())
    metrics = json.loads(out.read_text())["metrics"]
    assert set(metrics) >= {"judge", "longer_text"} and "rewards" not in metrics
    assert metrics["judge"]["unreadable"] == 0 and metrics["judge"]["margin"] > 0
    rows = [line.record for line in read_records(tmp_path / "o.records.jsonl")]
    assert [row["id"] for row in rows] == ["p0", "p1", "p2"] and rows[2]["leans"][0] == [None, None]
    assert rows[0]["answers"]["after"]["text"] == "d e"
    printed = capsys.readouterr().out
    assert (
        "after against before, 3 prompts" in printed and "longer text wins" in printed and "-- after (points" in printed
    )
    # the same two files, the other way round
    turned = f"--before {tmp_path}/a.jsonl --after {tmp_path}/b.jsonl --out {tmp_path}/t.json"
    compare.main(f"{turned} --judge.model {long_model} --judge.dtype float32".split())
    other = json.loads((tmp_path / "t.json").read_text())["metrics"]
    assert other["judge"]["win_rate"] == pytest.approx(1 - metrics["judge"]["win_rate"], abs=1e-5)
    assert other["judge"]["share_a"] == pytest.approx(metrics["judge"]["share_a"])


def test_flags_without_effect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = f"--before b --after a --out {tmp_path}/o.json --judge.model m --judge.pairs pivot"
    with pytest.raises(SystemExit):
        compare.main(words.split())
    assert "--judge.pairs has no effect here" in capsys.readouterr().err
