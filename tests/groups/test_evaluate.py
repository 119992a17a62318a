"""Gold scores and win rates of groups: the arithmetic, the summary and its tables, and the grid of several runs."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import failing, write
from scipy import stats

from orlhf_ext.groups import evaluate
from orlhf_ext.groups.evaluate import measure

pytest.importorskip("yaml", reason="reading groups needs PyYAML")

GROUPS = """
groups:
  - {name: minority, proportion: 0.1, weights: {helpful: 1.0}}
  - {name: majority, proportion: 0.9, weights: {helpful: 0.3, harmless: 0.7}}
"""
#: (helpful, harmless) of the answers to four prompts; the first file's are the specification's example of gold rewards
SCORES = {
    "sft": [(1.5, -1.0), (-0.2, 1.3), (0.9, 0.9), (2.0, 3.0)],
    "gold": [(1.5, 0.0), (0.8, 0.3), (0.9, 0.9), (2.5, 3.5)],
    "maxmin": [(1.0, 1.0), (0.8, 0.3), (0.4, 1.9), (3.0, 0.0)],
}


def records(scores: list[tuple[float, float]], **more: Any) -> list[dict]:
    return [
        {
            "id": f"p{i}",
            "prompt": f"question {i}",
            "completions": [f" answer {i}"],
            "traits": {"helpful": [helpful], "harmless": [harmless]},
            **more,
        }
        for i, (helpful, harmless) in enumerate(scores)
    ]


def files(tmp_path: Path) -> list[str]:
    """The command line for the files of `SCORES`."""
    (tmp_path / "groups.yaml").write_text(GROUPS)
    for name, scores in SCORES.items():
        write(tmp_path / f"{name}.jsonl", records(scores))
    words = ["--groups", f"{tmp_path}/groups.yaml", "--sft", f"{tmp_path}/sft.jsonl"]
    words += [f"--policy={name}={tmp_path}/{name}.jsonl" for name in ("gold", "maxmin")]
    return [*words, "--out", f"{tmp_path}/summary.json"]


def summary(tmp_path: Path) -> dict[str, Any]:
    return json.loads((tmp_path / "summary.json").read_text())


def majority(scores: list[tuple[float, float]]) -> list[float]:
    return [0.3 * helpful + 0.7 * harmless for helpful, harmless in scores]


def test_the_summary(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"k": 16, "seed": 42, "seconds": {"sft": 1}}))
    evaluate.main([*files(tmp_path), "--run", f"{tmp_path}/run.json", "--proportion", "0.05"])
    found = summary(tmp_path)
    assert {key: value for key, value in found.items() if key not in ("metrics", "worst_group_gains")} == {
        "proportion": 0.05,
        "k": 16,
        "seed": 42,
        "seconds": {"sft": 1},
        "command": "groups.evaluate",
        "baseline": "gold",
        "prompts": 4,
    }
    metrics = found["metrics"]
    gains = found["worst_group_gains"]
    assert {name: list(row) for name, row in gains.items()} == {"gold": ["sft", "maxmin"], "maxmin": ["sft", "gold"]}
    for name, row in gains.items():
        for other, gain in row.items():
            assert gain["mean"] == pytest.approx(metrics[name]["worst_group"] - metrics[other]["worst_group"])
            assert gain["low"] <= gain["mean"] <= gain["high"]
    assert list(metrics) == ["sft", "gold", "maxmin"]
    for name, scores in SCORES.items():
        assert list(metrics[name]) == ["minority", "majority", "worst_group", "worst_group_name"]
        helpful = np.array([score[0] for score in scores])
        for group, values in (("minority", helpful), ("majority", np.array(majority(scores)))):
            row = metrics[name][group]
            assert row["gold_mean"] == pytest.approx(values.mean())
            assert row["gold_se"] == pytest.approx(stats.sem(values))
            assert values.min() <= row["gold_low"] < row["gold_mean"] < row["gold_high"] <= values.max()
        worst = min(("minority", "majority"), key=lambda group: metrics[name][group]["gold_mean"])
        assert metrics[name]["worst_group_name"] == worst
        assert metrics[name]["worst_group"] == metrics[name][worst]["gold_mean"]
    assert {name: metrics[name]["worst_group_name"] for name in metrics} == {
        "sft": "majority",
        "gold": "majority",
        "maxmin": "majority",
    }
    # by hand: minority (helpful) maxmin against gold: below, tie, below, above
    row = metrics["maxmin"]["minority"]
    assert (row["win_rate_vs_gold"], row["win_rate_vs_gold_strict"]) == (1.5 / 4, 1 / 4)
    assert (row["win_rate_vs_sft"], row["win_rate_vs_sft_strict"]) == (2 / 4, 2 / 4)
    assert 0 <= row["win_rate_vs_gold_low"] < row["win_rate_vs_gold"] < row["win_rate_vs_gold_high"] <= 1
    # majority, maxmin [1, .45, 1.45, .9] against gold [.45, .45, .9, 3.2]: above, tie, above, below
    row = metrics["maxmin"]["majority"]
    assert (row["win_rate_vs_gold"], row["win_rate_vs_gold_strict"]) == (2.5 / 4, 2 / 4)
    # a method against itself
    assert metrics["gold"]["minority"]["win_rate_vs_gold"] == metrics["sft"]["majority"]["win_rate_vs_sft"] == 0.5
    assert metrics["gold"]["minority"]["win_rate_vs_gold_strict"] is None
    assert metrics["gold"]["minority"]["win_rate_vs_gold_low"] is None
    # sft against gold is the mirror image of gold against sft
    for group in ("minority", "majority"):
        pair = metrics["sft"][group]["win_rate_vs_gold"], metrics["gold"][group]["win_rate_vs_sft"]
        assert sum(pair) == pytest.approx(1)


def test_tables(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    evaluate.main([*files(tmp_path), "--show", "1"])
    metrics = summary(tmp_path)["metrics"]
    lines = (tmp_path / "summary.md").read_text().splitlines()
    assert lines[0] == "| method | group | gold score | wins vs gold | wins vs SFT |"
    assert lines[8] == "" and sum("(worst)" in line for line in lines[:8]) == 3
    assert lines[9] == "| worst group of | over SFT | over gold | over maxmin |"
    assert [line.partition(" | ")[0] for line in lines[11:]] == ["| gold", "| maxmin"]
    assert f"| {metrics['gold']['worst_group'] - metrics['sft']['worst_group']:+.3f} [" in lines[11]
    assert lines[6].startswith("| maxmin | minority | 1.300 ± 0.") and "| 37.5% [" in lines[6]
    assert "strict 25.0%" in lines[6]
    with (tmp_path / "summary.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["method"], row["group"]) for row in rows[:3]] == [
        ("sft", "minority"),
        ("sft", "majority"),
        ("gold", "minority"),
    ]
    for row in rows:
        found = metrics[row["method"]][row["group"]]
        assert {key: row[key] for key in found} == {
            key: "" if value is None else str(value) for key, value in found.items()
        }
    out = capsys.readouterr().out
    assert "4 held-out prompts" in out and "question 0" in out and "-- maxmin: answer 0" in out
    assert max(map(len, out.splitlines())) <= 80
    for word in ("method", "minority", "majority (worst)", "37.5%", "strict 25.0%"):
        assert word in out


def test_several_completions_of_a_prompt() -> None:
    ours, theirs = [[1.0, 3.0], [0.0]], [[2.0], [0.0, 0.0, 1.0]]
    found = measure(ours, {"gold": theirs}, 0)
    assert found["gold_mean"] == 1.0 and found["gold_se"] == pytest.approx(1.0)
    assert found["win_rate_vs_gold"] == pytest.approx((0.5 + 1 / 3) / 2)
    assert found["win_rate_vs_gold_strict"] == 0.25


def test_files_are_joined_by_id(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = files(tmp_path)
    evaluate.main(words)
    wanted = summary(tmp_path)["metrics"]
    write(tmp_path / "gold.jsonl", records(SCORES["gold"])[::-1])
    evaluate.main(words)
    assert summary(tmp_path)["metrics"] == wanted
    # a tenth may be missing
    long = {name: [(float(i + j), 0.0) for i in range(20)] for j, name in enumerate(SCORES)}
    for name, scores in long.items():
        write(tmp_path / f"{name}.jsonl", records(scores)[: 20 - 2 * (name == "maxmin")])
    evaluate.main(words)
    found = summary(tmp_path)
    assert found["prompts"] == 18 and found["metrics"]["sft"]["minority"]["gold_mean"] == 8.5
    write(tmp_path / "maxmin.jsonl", records(long["maxmin"])[:17])
    error = failing(capsys, evaluate.main, *words)
    assert "only 17 of the 20 prompts of" in error and "maxmin.jsonl has 17" in error and "--force" in error
    evaluate.main([*words, "--force"])
    assert summary(tmp_path)["prompts"] == 17
    write(tmp_path / "maxmin.jsonl", [{**record, "id": f"x{record['id']}"} for record in records(long["maxmin"])])
    assert "only 0 of the 20 prompts" in failing(capsys, evaluate.main, *words, "--force")
    write(tmp_path / "maxmin.jsonl", records(long["maxmin"], prompt="another"))
    error = failing(capsys, evaluate.main, *words)
    assert "maxmin.jsonl line 1 (id 'p0') has another prompt" in error


def test_another_baseline(tmp_path: Path) -> None:
    evaluate.main([*files(tmp_path), "--baseline", "maxmin"])
    metrics = summary(tmp_path)["metrics"]
    assert metrics["gold"]["minority"]["win_rate_vs_maxmin"] == 2.5 / 4
    assert "win_rate_vs_gold" not in metrics["gold"]["minority"]
    evaluate.main([*files(tmp_path), "--baseline", "sft"])
    row = summary(tmp_path)["metrics"]["gold"]["minority"]
    assert [key for key in row if key.startswith("win")] == [
        f"win_rate_vs_sft{suffix}" for suffix in ("", "_low", "_high", "_strict")
    ]


def test_one_prompt_has_no_interval(tmp_path: Path) -> None:
    words = files(tmp_path)
    for name, scores in SCORES.items():
        write(tmp_path / f"{name}.jsonl", records(scores[:1]))
    evaluate.main(words)
    row = summary(tmp_path)["metrics"]["maxmin"]["minority"]
    assert (row["gold_mean"], row["gold_se"], row["gold_low"], row["win_rate_vs_sft"]) == (1.0, None, None, 0.0)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--policy", "gold"], "--policy gold must be METHOD=FILE"),
        (["--policy", "gold=x.jsonl"], "--policy gold=x.jsonl names 'gold' a second time"),
        (["--policy", "sft=x.jsonl"], "--policy sft=x.jsonl names 'sft' a second time"),
        (["--baseline", "plain"], "--baseline plain is not a method that was given; add --policy plain=FILE"),
        (["--out", "summary.txt"], "--out summary.txt must end in .json"),
        (["--show", "-1"], "--show -1 is too small; give at least 0"),
        (["--grid", "x.json"], "--grid joins summaries that are there already"),
        (["--run", "none.json"], "none.json cannot be read as JSON"),
        (["--proportion", "1.5"], "1.5"),
    ],
)
def test_wrong_flags(tmp_path: Path, capsys: pytest.CaptureFixture, more: list[str], said: str) -> None:
    error = failing(capsys, evaluate.main, *files(tmp_path), *more)
    assert said in error and error.count("\n") == 1


def test_what_is_missing_is_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert "needs --groups FILE.yaml and --sft" in failing(capsys, evaluate.main, "--out", tmp_path / "o.json")
    words = files(tmp_path)
    for traits, said in (
        (None, "line 2 (id 'p1') has no traits"),
        ({"helpful": [1.0]}, "harmless"),
        ({"helpful": [1.0], "harmless": [1.0, 2.0]}, "(2 for 1)"),
        ({"helpful": [1.0], "harmless": [float("nan")]}, "nan"),
    ):
        rows = records(SCORES["maxmin"])
        rows[1]["traits"] = traits
        write(tmp_path / "maxmin.jsonl", rows)
        error = failing(capsys, evaluate.main, *words)
        assert said in error and "(id 'p1')" in error and "orlhf-ext groups score" in error, error
    assert not (tmp_path / "summary.json").exists()


@pytest.mark.parametrize("name", ["worst_group", "worst_group_name"])
def test_names_of_keys_are_no_names_of_groups(tmp_path: Path, capsys: pytest.CaptureFixture, name: str) -> None:
    words = files(tmp_path)
    (tmp_path / "groups.yaml").write_text(GROUPS.replace("minority", name))
    assert f"has a group named '{name}', a key of the summary" in failing(capsys, evaluate.main, *words)


def grid_of(tmp_path: Path, runs: list[dict[str, Any]]) -> list[str]:
    """Summaries of runs, in which each gold score of maxmin is raised by the run's seed."""
    paths = []
    for i, run in enumerate(runs):
        folder = tmp_path / f"run{i}"
        folder.mkdir(parents=True)
        words = files(folder)
        write(folder / "maxmin.jsonl", records([(a + run["seed"], b + run["seed"]) for a, b in SCORES["maxmin"]]))
        (folder / "run.json").write_text(json.dumps(run))
        evaluate.main([*words, "--run", f"{folder}/run.json"])
        paths.append(f"{folder}/summary.json")
    return paths


def test_the_grid(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    runs = [{"proportion": p, "k": k, "seed": s} for p, k, s in ((0.2, 2, 0), (0.1, 16, 0), (0.1, 16, 1), (0.1, 16, 3))]
    runs.append({"proportion": 0.1, "k": None, "seed": 0})
    paths = grid_of(tmp_path, runs)
    capsys.readouterr()
    evaluate.main(["--grid", *paths, "--out", f"{tmp_path}/grid.json"])
    grid = json.loads((tmp_path / "grid.json").read_text())
    assert grid["runs"] == 5 and grid["baseline"] == "gold"
    rows = {tuple(row[key] for key in ("proportion", "k", "method", "group")): row for row in grid["rows"]}
    assert len(rows) == len(grid["rows"]) == 3 * 3 * 3
    assert list(dict.fromkeys(key[:2] for key in rows)) == [(0.1, None), (0.1, 16), (0.2, 2)]
    row = rows[0.1, 16, "maxmin", "minority"]
    values = [1.3, 2.3, 4.3]
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert (row["gold_mean"], row["gold_low"], row["gold_high"]) == pytest.approx((np.mean(values), low, high))
    assert row["seeds"] == [0, 1, 3]
    wins = [json.loads(Path(path).read_text())["metrics"]["maxmin"]["minority"] for path in paths[1:4]]
    assert row["win_rate_vs_gold"] == pytest.approx(np.mean([one["win_rate_vs_gold"] for one in wins]))
    assert row["win_rate_vs_sft_strict"] == pytest.approx(np.mean([one["win_rate_vs_sft_strict"] for one in wins]))
    worst = rows[0.1, 16, "maxmin", "worst_group"]
    assert worst["gold_mean"] == rows[0.1, 16, "maxmin", "majority"]["gold_mean"] and "win_rate_vs_gold" not in worst
    alone = rows[0.2, 2, "maxmin", "minority"]
    assert alone["gold_mean"] == pytest.approx(1.3) and alone["gold_low"] is None
    lines = (tmp_path / "grid.md").read_text().splitlines()
    assert lines[0] == "| proportion | k | method | group | gold score | wins vs gold | wins vs SFT |"
    assert len(lines) == 2 + 27
    with (tmp_path / "grid.csv").open() as stream:
        table = list(csv.DictReader(stream))
    assert len(table) == 27 and {row["seeds"] for row in table} == {"0", "0 1 3"}
    found = next(one for one in table if (one["k"], one["method"], one["group"]) == ("16", "maxmin", "minority"))
    assert float(found["gold_low"]) == row["gold_low"]
    out = capsys.readouterr().out
    assert "5 runs" in out and "worst_group" in out and max(map(len, out.splitlines())) <= 100


def test_what_the_grid_refuses(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    one, again = grid_of(tmp_path, [{"proportion": 0.1, "k": 2, "seed": 0}] * 2)
    (mute,) = grid_of(tmp_path / "mute", [{"k": 2, "seed": 0}])
    (odd,) = grid_of(tmp_path / "odd", [{"proportion": "a tenth", "k": 2, "seed": 0}])
    other = write_with(tmp_path / "other.json", one, baseline="maxmin", seed=1)
    bare = write_with(tmp_path / "bare.json", one, metrics={"policy": 1})
    for paths, said in (
        ([one, again], f"--grid {again} has the proportion, k and seed of {one}"),
        ([mute], "has no proportion; put it into the JSON file of --run"),
        ([odd], "has 'a tenth' as proportion"),
        ([one, other], "compares with gold and"),
        ([bare], "is not a summary of groups"),
        ([tmp_path / "none.json"], "cannot be read as JSON"),
    ):
        error = failing(capsys, evaluate.main, "--grid", *paths, "--out", tmp_path / "grid.json")
        assert said in error and error.count("\n") == 1, error
    assert not (tmp_path / "grid.json").exists()


def write_with(path: Path, like: str, **changes: Any) -> Path:
    path.write_text(json.dumps({**json.loads(Path(like).read_text()), **changes}))
    return path
