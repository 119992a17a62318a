"""Accuracies with their intervals, what length has to do with them, and the command that writes them."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import failing, read, write
from hypothesis import given
from hypothesis import strategies as st

from orlhf_ext.litbench import evaluate
from orlhf_ext.litbench.accuracy import BUCKETS, length_controlled, length_ratio, measure, measure_orders
from orlhf_ext.reports.statistics import wilson

#: scores of chosen and rejected stories: right, wrong, a tie, right
GOLDEN = [(1.5, 0.5), (-0.25, 0.75), (0.0, 0.0), (3.0, -1.0)]
WORDS = [(5, 4), (8, 2), (3, 3), (4, 10)]


def of(margins: list[float], words: list[tuple[int, int]]) -> dict[str, Any]:
    return measure(np.array(margins, dtype=np.float64), np.array(words, dtype=np.float64))


def test_both_conventions_for_ties() -> None:
    found = of([a - b for a, b in GOLDEN], WORDS)
    assert (found["pairs"], found["correct"], found["ties"]) == (4, 2, 1)
    assert found["accuracy"] == 0.5 and found["accuracy_without_ties"] == 2 / 3


def test_lengths_by_hand() -> None:
    # 5 to 4 and 8 to 2 are much longer, 11 to 10 longer, 9 to 10 shorter, 4 to 5 and 1 to 3 much shorter
    words = [(5, 4), (8, 2), (5, 5), (11, 10), (9, 10), (4, 5), (1, 3)]
    found = of([1, -1, 1, 2, 3, -1, 0], words)
    assert [found[f"pairs_{name}"] for name in (*BUCKETS, "equal")] == [2, 1, 1, 2, 1]
    assert [found[f"accuracy_{name}"] for name in BUCKETS] == [0, 1, 1, 0.5]
    assert (found["accuracy_much_longer_low"], found["accuracy_much_longer_high"]) == wilson(1, 2)
    # longer: 5-4 right, 8-2 wrong, 11-10 right; shorter: 9-10 right, 4-5 wrong, 1-3 tie
    assert found["length_controlled"] == pytest.approx((2 / 3 + 1 / 3) / 2)
    longer, shorter = wilson(2, 3), wilson(1, 3)
    above = math.hypot(longer.high - 2 / 3, shorter.high - 1 / 3) / 2
    below = math.hypot(2 / 3 - longer.low, 1 / 3 - shorter.low) / 2
    assert found["length_controlled_high"] == pytest.approx(1 / 2 + above)
    assert found["length_controlled_low"] == pytest.approx(1 / 2 - below)
    # decisions on unequal lengths: 5-4 and 11-10 and 4-5 for the longer, 8-2 and 9-10 for the shorter
    assert found["picks_longer"] == 3 / 5
    none = of([1, 1], [(3, 2), (9, 1)])
    assert (
        none["length_controlled"] is None and none["accuracy_much_shorter"] is None and none["pairs_much_shorter"] == 0
    )


def test_the_interval_covers() -> None:
    """Of 95 % intervals of the length-controlled accuracy, about 95 % hold the true value."""
    rng = np.random.default_rng(0)
    ratios = np.array([0.5] * 60 + [-0.5] * 40)
    truth = np.where(ratios > 0, 0.9, 0.5)
    inside = 0
    for _ in range(400):
        found = length_controlled(np.where(rng.random(100) < truth, 1.0, -1.0), ratios)
        inside += found["length_controlled_low"] <= 0.7 <= found["length_controlled_high"]
    assert 0.92 <= inside / 400 <= 0.98


def test_length_explains_what_it_explains() -> None:
    rng = np.random.default_rng(1)
    words = rng.integers(50, 900, (300, 2)).astype(np.float64)
    ratios = length_ratio(words)
    by_length = measure(ratios, words)
    assert by_length["length_controlled"] == 0.5 and by_length["picks_longer"] == 1
    assert by_length["length_correlation"] == pytest.approx(1)
    blind = measure(rng.normal(size=300), words)
    assert abs(blind["length_correlation"]) < 0.15
    shorter = measure(-ratios, words)
    assert shorter["length_correlation"] == pytest.approx(-1) and shorter["picks_longer"] == 0
    assert measure(np.zeros(300), words)["length_correlation"] is None


margins = st.lists(st.integers(-3, 3).map(lambda n: n / 2), min_size=1, max_size=30)
judged = margins.flatmap(
    lambda m: st.tuples(st.just(m), st.lists(st.tuples(*[st.integers(1, 9)] * 2), min_size=len(m), max_size=len(m)))
)


@given(judged)
def test_chosen_and_rejected_exchanged(pair: tuple[list[float], list[tuple[int, int]]]) -> None:
    values, words = pair
    found = of(values, words)
    swapped = of([-value for value in values], [(b, a) for a, b in words])
    ties = found["ties"] / len(values)
    assert swapped["accuracy"] == pytest.approx(1 - found["accuracy"] - ties)
    if found["accuracy_without_ties"] is not None:
        assert swapped["accuracy_without_ties"] == pytest.approx(1 - found["accuracy_without_ties"])
    assert swapped["picks_longer"] == found["picks_longer"]  # which was chosen says nothing about it
    assert swapped["length_correlation"] == pytest.approx(found["length_correlation"], nan_ok=True)
    assert [swapped[f"pairs_{name}"] for name in BUCKETS[::-1]] == [found[f"pairs_{name}"] for name in BUCKETS]
    baseline = of(length_ratio(np.array(words, dtype=np.float64)).tolist(), words)
    assert baseline["length_controlled"] in (None, 0.5)
    for row in (found, swapped, baseline):
        for key in ("accuracy", "accuracy_without_ties", "length_controlled", "picks_longer"):
            if row[key] is not None:
                assert -1e-12 <= row[f"{key}_low"] <= row[key] + 1e-12 <= row[f"{key}_high"] + 2e-12 <= 1 + 1e-11
        assert sum(row[f"pairs_{name}"] for name in (*BUCKETS, "equal")) == len(values)


@given(judged, st.randoms(use_true_random=False))
def test_the_order_of_pairs_does_not_matter(pair: tuple[list[float], list[tuple[int, int]]], random: Any) -> None:
    values, words = pair
    order = list(range(len(values)))
    random.shuffle(order)
    found, other = of(values, words), of([values[i] for i in order], [words[i] for i in order])
    assert found.keys() == other.keys()
    for key, value in found.items():
        assert other[key] == pytest.approx(value, abs=1e-12)


def test_both_orders_by_hand() -> None:
    first, second = np.array([1, 1, -1, 0, 2]), np.array([1, -1, -1, 1, -0.5])
    found = measure_orders(first, second, 0)
    assert found["both_orders"] == pytest.approx((1 + 0.5 + 0 + 0.5 + 0.5) / 5)
    assert found["consistency"] == 2 / 5 and found["joined"] == 3 / 5
    always_a = measure_orders(np.array([1.0, -1.0, 1.0]), np.array([-1.0, 1.0, -1.0]), 0)
    assert (always_a["both_orders"], always_a["consistency"]) == (0.5, 0)
    assert (always_a["both_orders_low"], always_a["both_orders_high"]) == (0.5, 0.5)


def pairs_file(folder: Path) -> Path:
    """Pairs as ``score`` writes them."""
    rows = [
        {"id": f"p{i}", "prompt": "", "completions": ["w " * n for n in words], "rewards": list(scores)}
        for i, (scores, words) in enumerate(zip(GOLDEN, WORDS, strict=True))
    ]
    return write(folder / "scored.jsonl", rows)


def test_the_command_for_a_bradley_terry_model(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    pairs = pairs_file(tmp_path)
    data = tmp_path / "data" / "pairs_test.jsonl"
    write(data, [])
    data.with_suffix(".meta.json").write_text(json.dumps({"builder": "litbench", "test_source": "held | out"}))
    pairs.with_suffix(".meta.json").write_text(json.dumps({"command": "score", "data": {"path": str(data)}}))
    (tmp_path / "run.json").write_text('{"seconds": {"train": 1.5}}')
    evaluate.main(["--pairs", str(pairs), "--out", f"{tmp_path}/s.json", "--run", f"{tmp_path}/run.json"])
    summary = json.loads((tmp_path / "s.json").read_text())
    metrics = summary["metrics"]
    assert summary["seconds"] == {"train": 1.5}
    assert list(metrics) == ["pairs", "test_source", "reward_model", "longer_story"]
    assert (metrics["pairs"], metrics["test_source"]) == (4, "held | out")
    assert metrics["reward_model"] == of([1, -1, 0, 4], WORDS)
    assert metrics["longer_story"]["accuracy"] == 0.5 and metrics["longer_story"]["ties"] == 1
    assert "picks_longer" not in metrics["longer_story"]
    rows = read(tmp_path / "s.records.jsonl")
    story = " ".join(["w"] * 10)
    assert rows[3]["answers"].pop("rejected") == {"text": story, "scores": {"reward": -1.0}}
    chosen = {"chosen": {"text": "w w w w", "scores": {"reward": 3.0}}}
    assert rows[3] == {"id": "p3", "prompt": "", "margin": 4.0, "words": [4, 10], "answers": chosen}
    table = (tmp_path / "s.md").read_text()
    assert table.startswith(
        "4 test pairs (held | out); in %, [95 % interval]\n\n|  | reward model | longer story wins |\n"
    )
    assert "| accuracy | 50.0 [15.0, 85.0] | 50.0 [15.0, 85.0] |\n" in table
    assert "| much longer (2) | 50.0 [" in table and "verdict" not in table.replace("no verdict", "")
    with (tmp_path / "s.csv").open() as stream:
        numbers = list(csv.DictReader(stream))
    for row in numbers:
        wanted = metrics[row.pop("judge")]
        assert {key: value for key, value in row.items() if value} == {
            key: str(value) for key, value in wanted.items() if value is not None
        }
    out = capsys.readouterr().out
    assert "50.0 [15.0, 85.0]" in out and "held | out" in out and max(map(len, out.splitlines())) <= 80


#: pair, label in the primary order, words of A and B there, verdicts (primary, other), log p(A) - log p(B)
JUDGED = [
    ("x", "A", (30, 20), ("Preferred: A", "Preferred: B"), (1.5, -0.5)),  # right twice
    ("y", "B", (10, 40), ("Preferred: A", "Preferred: A"), (0.25, 1.0)),  # always A
    ("z", "A", (20, 20), ("I like both.", "**Preferred: B**"), (0.0, 0.5)),  # no verdict; a tie
    ("w", "B", (15, 10), ("Reasoning: x\nPreferred: A.", "Preferred: B"), (2.0, -3.0)),  # wrong twice
]


def judged_files(folder: Path, orders: int = 2) -> list[str]:
    data, verdicts, logps = [], [], []
    for pair, label, words, texts, leans in JUDGED:
        for i in range(orders):
            row = {"id": f"{pair}/{'AB'[i]}", "pair": pair, "prompt": f"{pair}?", "primary": i == 0}
            row |= {"label": label if i == 0 else {"A": "B", "B": "A"}[label], "words": list(words[:: 1 - 2 * i])}
            row["completions"] = ["Preferred: A", "Preferred: B"]
            data.append(row)
            verdicts.append({"id": row["id"], "prompt": row["prompt"], "completions": [texts[i]]})
            logps.append({**row, "logprobs": [-5 + leans[i], -5.0]})
    write(folder / "data.jsonl", data[::-1])
    write(folder / "verdicts.jsonl", verdicts)
    write(folder / "logps.jsonl", logps)
    words = f"--data {folder}/data.jsonl --verdicts {folder}/verdicts.jsonl --logprobs {folder}/logps.jsonl"
    return [*words.split(), "--out", f"{folder}/s.json"]


def test_the_command_for_a_generative_model(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    evaluate.main(judged_files(tmp_path))
    metrics = json.loads((tmp_path / "s.json").read_text())["metrics"]
    assert list(metrics) == ["pairs", "test_source", "verdict", "logprob", "longer_story"]
    verdict, logprob = metrics["verdict"], metrics["logprob"]
    assert (verdict["correct"], verdict["ties"], verdict["accuracy"]) == (1, 1, 0.25)
    assert verdict["accuracy_without_ties"] == 1 / 3 and verdict["parse_rate"] == 0.75
    assert verdict["share_a"] == 1.0 and verdict["gold_share_a"] == 0.5 and verdict["share_a_both_orders"] == 4 / 7
    assert verdict["both_orders"] == pytest.approx((1 + 0.5 + 0.5 + 0) / 4) and verdict["consistency"] == 0.5
    assert (logprob["accuracy"], logprob["ties"], logprob["accuracy_without_ties"]) == (0.25, 1, 1 / 3)
    assert logprob["both_orders"] == 0.375 and logprob["consistency"] == 0.5 and "parse_rate" not in logprob
    # A minus B, in terms of chosen minus rejected: x 1.5 + 0.5, y -0.25 + 1, z 0 - 0.5, w -2 - 3
    assert logprob["joined"] == 0.5
    # chosen and rejected words: x 30 20, y 40 10, z 20 20, w 10 15
    assert metrics["longer_story"]["correct"] == 2 and metrics["longer_story"]["ties"] == 1
    rows = {row["id"]: row for row in read(tmp_path / "s.records.jsonl")}
    assert rows["z"] == {
        "id": "z",
        "prompt": "z?",
        "label": "A",
        "words": [20, 20],
        "verdict": None,
        "verdict_swapped": "B",
        "logprob_a_minus_b": 0.0,
        "logprob_a_minus_b_swapped": 0.5,
        "margin": 0.0,
        "answers": {"judge": {"text": "I like both.", "scores": {"verdict": 0.0, "log-prob": 0.0}}},
    }
    assert rows["y"]["words"] == [40, 10] and rows["y"]["verdict_swapped"] == "A"
    out = capsys.readouterr().out
    assert "of unknown origin" in out and max(map(len, out.splitlines())) <= 80
    for title in ("verdicts parsed", "both orders", "consistent", "A preferred", "longer story wins"):
        assert title in out and title in (tmp_path / "s.md").read_text()
    # the order of rows does not matter
    before = metrics
    for name in ("data", "verdicts", "logps"):
        write(tmp_path / f"{name}.jsonl", sorted(read(tmp_path / f"{name}.jsonl"), key=lambda row: str(row)[::-1]))
    evaluate.main(f"--data {tmp_path}/data.jsonl --verdicts {tmp_path}/verdicts.jsonl --out {tmp_path}/t.json".split())
    after = json.loads((tmp_path / "t.json").read_text())["metrics"]
    assert after["verdict"] == before["verdict"] and "logprob" not in after


def test_the_primary_orders_are_enough(tmp_path: Path) -> None:
    evaluate.main(judged_files(tmp_path, orders=1))
    metrics = json.loads((tmp_path / "s.json").read_text())["metrics"]
    assert metrics["verdict"]["accuracy"] == 0.25 and "both_orders" not in metrics["verdict"]
    assert "both orders" not in (tmp_path / "s.md").read_text()


def edit(path: Path, number: int, **changes: object) -> None:
    rows = read(path)
    rows[number].update(changes)
    write(path, rows)


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("data", {"label": None}, "data.jsonl line 3 has no label that says"),
        ("data", {"label": "C"}, "line 3 has no label that says"),
        ("data", {"pair": None}, "line 3 has no pair that says"),
        ("data", {"primary": 1}, "line 3 has no primary that says"),
        ("data", {"words": [3]}, "line 3 has no words that says"),
        ("data", {"id": "w/A"}, "line 3 has the id 'w/A' of"),
        ("data", {"label": "A"}, "does not fit to the other order of the pair 'z'"),
        ("data", {"primary": True}, "does not fit to the other order of the pair 'z'"),
        ("verdicts", {"id": "other"}, "verdicts.jsonl lacks the id 'y/A', which --data has"),
        ("verdicts", {"completions": ["Preferred: A"] * 2}, "verdicts.jsonl line 3 (id 'y/A') has 2 answers"),
        ("logps", {"logprobs": None}, "logps.jsonl line 3 (id 'y/A') has no logprobs; run"),
        ("logps", {"logprobs": [1]}, "has 1 logprobs for 2 completions"),
        ("logps", {"logprobs": [float("nan"), 1]}, "has nan among its logprobs"),
        ("logps", {"completions": ["Preferred: B", "Preferred: A"]}, "other completions than the verdicts A and B"),
    ],
)
def test_bad_answers_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture, file: str, change: dict, said: str
) -> None:
    words = judged_files(tmp_path)
    edit(tmp_path / f"{file}.jsonl", 2, **change)
    error = failing(capsys, evaluate.main, *words)
    assert said in error and error.count("\n") == 1 and not (tmp_path / "s.json").exists()


def test_a_stray_answer(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = judged_files(tmp_path)
    path = tmp_path / "verdicts.jsonl"
    write(path, [*read(path), {"id": "more", "prompt": "?", "completions": ["Preferred: A"]}])
    assert "(id 'more') is not in --data" in failing(capsys, evaluate.main, *words)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rewards": None}, "line 2 (id 'p1') has no rewards"),
        ({"rewards": [1.0]}, "has 1 rewards for 2 completions"),
        ({"rewards": [1.0, float("inf")]}, "has inf among its rewards"),
        ({"rewards": [1.0] * 3, "completions": ["a"] * 3}, "has 3 rewards, and a pair has two"),
    ],
)
def test_bad_pairs_are_named(tmp_path: Path, capsys: pytest.CaptureFixture, change: dict, said: str) -> None:
    path = pairs_file(tmp_path)
    edit(path, 1, **change)
    assert said in failing(capsys, evaluate.main, "--pairs", path, "--out", tmp_path / "s.json")


def test_bad_command_lines(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    for line, said in (
        ("--out s.json", "--pairs FILE alone"),
        ("--pairs a --verdicts b --data c --out s.json", "--pairs FILE alone"),
        ("--pairs a --data c --out s.json", "--pairs FILE alone"),
        ("--verdicts b --out s.json", "--pairs FILE alone"),
        ("--data b --out s.json", "--pairs FILE alone"),
        ("--pairs a --out s.csv", "must end in .json"),
        ("--pairs lost.jsonl --out s.json", "lost.jsonl does not exist"),
        (f"--pairs {tmp_path}/empty.jsonl --out s.json", "has no record"),
        (f"--data {tmp_path}/empty.jsonl --verdicts x.jsonl --out s.json", "has no record"),
    ):
        assert said in failing(capsys, evaluate.main, *line.split())
