"""The page of `orlhf-ext report`: what is on it for each kind of run, that it loads nothing, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import report_runs
from helpers import failing, write

from orlhf_ext.commands import report
from orlhf_ext.reports.page import curves, page
from orlhf_ext.reports.page.results import frontier
from orlhf_ext.reports.page.runs import read_result
from orlhf_ext.reports.page.sections import _source

pytestmark = pytest.mark.skipif(not report_runs.DRAWS, reason=report_runs.NEEDS)

#: kind of run -> titles of its charts
CHARTS = {
    "hh_exo": [
        "Reward against KL",
        "Reward gained over SFT",
        "Reward of each prompt",
        "Change of each prompt's reward",
    ],
    "hh_groups": [
        "Gold score of each group: runs/prop0.1-seed1-k16",
        "Gold score of the worst group",
        "Score of minority of each prompt: runs/prop0.1-seed2-k16",
    ],
    "jigsaw_rectify": [
        "Expected maximum toxicity against perplexity",
        "Toxicity probability against perplexity",
        "Toxicity against plain decoding",
        "Reliability of Q_D",
        "Max toxicity of each prompt",
    ],
    "ncp_vrcli": ["Improvement by plans", "% improvement of each prompt"],
    "litbench_btrm": ["Accuracy by length ratio", "Reliability", "Reward of each prompt"],
    "litbench_rl": ["After preferred to before", "Points of each prompt"],
}


#: kind of run -> the names of its answers before and after
SIDES = {
    "hh_exo": ("SFT", "step20"),
    "hh_groups": ("sft", "sharedrep"),
    "jigsaw_rectify": ("plain", "eps0.3"),
    "ncp_vrcli": ("before", "after"),
    "litbench_btrm": ("rejected", "chosen"),
    "litbench_rl": ("before", "after"),
}


@pytest.fixture(scope="module", params=list(report_runs.KINDS))
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of each kind, with its report."""
    out = tmp_path_factory.mktemp("runs") / request.param
    report_runs.KINDS[request.param](out)
    report.main([str(out), "--out", str(out / "report.html")])
    return out


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def data(text: str, more: str = "") -> list[Any]:
    """The JSON in the scripts of a page, of those with ``more`` in their tags."""
    found = re.findall(rf'<script type="application/json"{more}>(.*?)</script>', text, re.S)
    return [json.loads(one) for one in found]


def captions(text: str) -> list[str]:
    return [one.replace("&#39;", "'") for one in re.findall(r"<figcaption>(.*?)</figcaption>", text)]


@pytest.mark.launcher
def test_what_each_kind_of_run_shows(run: Path) -> None:
    text = read(run / "report.html")
    titles = captions(text)
    assert {"Time of each stage", *CHARTS[run.name]} <= set(titles), titles
    assert any(title.startswith("train/") for title in titles)
    (specs,) = data(text, ' id="specs"')
    assert len(specs) == len(titles)
    about = dict(re.findall(r'<tr><th scope="row">(.*?)</th><td>(.*?)</td></tr>', text))
    assert about["recipe"] == run.name and about["seed"] == "1234" and about["rows"] == "160 train, 40 test"
    assert about["openrlhf"] == "0.11.2" and about["data"] == "sample"
    # the numbers of the table are those that the command wrote
    tables = [line for path in run.rglob("*.md") for line in read(path).splitlines() if line.startswith("|")]
    cells = [cell.strip() for line in tables if "---" not in line for cell in line.strip("|").split("|")]
    assert len(cells) > 10 and set(cells) <= set(re.findall(r"<t[dh](?: [^>]*)?>(.*?)</t[dh]>", text))


def test_the_page_is_one_small_file_that_loads_nothing(run: Path) -> None:
    text = read(run / "report.html")
    assert len(text.encode()) < 6e6
    page_alone = re.sub(r'<script type="(module|application/json)".*?</script>', "", text, flags=re.S)
    assert not re.search(r"(src|href)\s*=\s*[\"']?[^\"'#\s]", page_alone) and "url(" not in page_alone
    assert "@import" not in page_alone and "default-src 'none'" in page_alone


def test_hostile_text_stays_text(run: Path) -> None:
    text = read(run / "report.html")
    assert text.count("<script") == text.count("</script") and "onerror=alert(1)>" not in text
    rows = [row for browser in data(text) for row in browser["rows"]]
    assert any(report_runs.HOSTILE.replace("\u2028", " ") in row[0] for row in rows)


def test_records_of_each_kind(run: Path) -> None:
    browsers = data(read(run / "report.html"))
    assert len(browsers) == (2 if run.name == "hh_groups" else 1)
    for browser in browsers:
        sides = (browser["before"], browser["after"])
        assert sides == SIDES[run.name]
        assert browser["masked"] == browser["lower"] == (run.name == "jigsaw_rectify")
        assert browser["total"] == len(browser["rows"]) >= 30
        for _, answers in browser["rows"]:
            for side in sides:
                text, scores = answers[side]
                assert text and set(browser["scores"]) <= set(scores)


def test_scores_of_records_have_the_means_of_the_summary(run: Path) -> None:
    """Whatever the page draws from records agrees with the table above it."""
    for browser in data(read(run / "report.html")):
        summary = json.loads(read(run / "summary.json"))["metrics"]
        means = {
            name: {key: sum(row[1][name][1][key] for row in browser["rows"]) / browser["total"] for key in scores}
            for name, (_, scores) in browser["rows"][0][1].items()
        }
        if run.name == "hh_exo":
            assert means["SFT"]["reward"] == pytest.approx(summary["sft"]["reward_mean"], abs=1e-3)
            assert means["step20"]["tokens"] == pytest.approx(summary["policy"]["length_mean"], abs=1e-3)
            assert means["chosen"]["reward"] == pytest.approx(summary["chosen"]["reward_mean"], abs=1e-3)
        elif run.name == "jigsaw_rectify":
            wanted = summary["eps0.3"]["expected_max_toxicity"]
            assert means["eps0.3"]["max toxicity"] == pytest.approx(wanted, abs=1e-3)
        elif run.name == "litbench_rl":
            assert means["after"]["points"] == pytest.approx(summary["judge"]["mean_points"], abs=1e-3)
        elif run.name == "ncp_vrcli":
            wanted = summary["after"]["pct_improvement_mean"]
            assert means["after"]["pct_improvement"] == pytest.approx(wanted, abs=1e-3)


@pytest.mark.launcher
def test_a_second_report_replaces_the_first_and_nothing_else(run: Path, capsys: pytest.CaptureFixture) -> None:
    before = read(run / "report.html")
    report.main([str(run), "--out", str(run / "report.html")])
    assert read(run / "report.html") == before
    mine = run / "mine.html"
    mine.write_text("<html>mine</html>")
    assert "report did not make it" in failing(capsys, report.main, run, "--out", mine)
    assert read(mine) == "<html>mine</html>"


@pytest.mark.launcher
def test_two_runs_side_by_side(tmp_path: Path) -> None:
    one, two = (report_runs.exo(tmp_path / name / "out", seed) for name, seed in (("first", 0), ("second", 1)))
    report.main([str(one), str(two), "--out", str(tmp_path / "both.html"), "--title", "EXO <twice>"])
    text = read(tmp_path / "both.html")
    assert "<h1>EXO &lt;twice&gt;</h1>" in text and len(data(text)) == 2
    assert '<th scope="col">first/out</th><th scope="col">second/out</th>' in text
    (specs,) = data(text, ' id="specs"')
    curve = next(spec for title, spec in zip(captions(text), specs, strict=True) if title == "train/loss_mean")
    rows = curve["data"]["values"]
    assert {row["series"] for row in rows} == {"first/out", "second/out"} and len(rows) == 40


@pytest.mark.launcher
def test_figures_by_themselves(run: Path, tmp_path: Path) -> None:
    """Every chart of the results, with its title, in colours that need no style sheet."""
    report.main([str(run), "--out", str(tmp_path / "r.html"), "--figures", str(tmp_path / "figures")])
    drawn = {path.stem: read(path) for path in (tmp_path / "figures").glob("*.svg")}
    titles = [title for title in CHARTS[run.name] if title in captions(read(tmp_path / "r.html"))]
    assert titles and len(drawn) >= len(titles)
    for title in titles:
        text = drawn[re.sub(r"\W+", "-", title.lower()).strip("-")]
        assert text.startswith("<svg") and "var(--" not in text and "#5c6670" in text
        assert title.split("'")[0][:20] in text


def test_curves_in_trackio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """The real thing, where it is installed; a second report replaces the first one's runs."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = pytest.importorskip("trackio")
    out = report_runs.exo(tmp_path / "out")
    for _ in range(2):
        report.main([str(out), "--out", str(tmp_path / "r.html"), "--overwrite", "--trackio", "mine"])
    assert "trainings are in Trackio: trackio show --project mine" in capsys.readouterr().out
    names = [run.name for run in trackio.Api().runs("mine")]
    assert len(names) == len(set(names)) == len(curves.read_curves(out / "tb")) and "out/rm" in names


def test_trackio_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    out = report_runs.exo(tmp_path / "out")
    said = failing(capsys, report.main, out, "--out", tmp_path / "r.html", "--trackio", "mine")
    assert "--trackio needs the package trackio; pip install trackio" in said


def test_a_run_that_has_not_finished(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "out"
    report_runs.begin(out, "hh_exo", {"data": 1.0, "sft": 2.0})
    report.main([str(out), "--out", str(tmp_path / "r.html")])
    said = capsys.readouterr().out
    assert "out has not finished (its last finished stage is sft); run its recipe again" in said
    text = read(tmp_path / "r.html")
    assert '<p class="notice">out has no result yet' in text and "Time of each stage" in captions(text)


def test_a_result_without_records(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = report_runs.exo(tmp_path / "out")
    next(out.rglob("summary.records.jsonl")).unlink()
    shutil.rmtree(out / "tb")
    capsys.readouterr()
    report.main([str(out), "--out", str(tmp_path / "r.html")])
    assert "the result align_exo-rw_nc2 has no records of its prompts; evaluate it again" in capsys.readouterr().out
    assert data(read(tmp_path / "r.html")) == []


def test_a_summary_alone_is_enough(tmp_path: Path) -> None:
    out = report_runs.exo(tmp_path / "out")
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(out / "summary.json", alone)
    report.main([str(alone), "--out", str(tmp_path / "r.html")])
    assert "Reward against KL" in captions(read(tmp_path / "r.html"))


def test_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    def said(*runs: object) -> str:
        return failing(capsys, report.main, *runs, "--out", tmp_path / "r.html")

    (tmp_path / "empty").mkdir()
    (tmp_path / "file.json").write_text("{}")
    assert "empty is not a run: it has no run.json and no summary" in said(tmp_path / "empty")
    assert "absent does not exist; give the output folder of a recipe" in said(tmp_path / "absent")
    assert "file.json is a file; give the output folder" in said(tmp_path / "file.json")
    out = tmp_path / "out"
    report_runs.begin(out, "hh_exo", {})
    assert "out is given twice; name each run once" in said(out, tmp_path / "." / "out")
    assert "must end in .html" in failing(capsys, report.main, out, "--out", tmp_path / "r.htm")
    for name, text, words in (
        ("run.json", '{"recipe": ', "run.json cannot be read as JSON ("),
        ("run.json", "[1]", "run.json is not a JSON object; remove it"),
        ("run.json", "[" * 5000, "run.json cannot be read as JSON (nested deeper"),
    ):
        (out / name).write_text(text)
        assert words in said(out)
    assert not (tmp_path / "r.html").exists()


def test_broken_records(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = report_runs.exo(tmp_path / "out")
    records = next(out.rglob("summary.records.jsonl"))
    for text, words in (("{\n", "summary.records.jsonl line 1 is"), ('{"id": "a"}\n', "has a record without answers")):
        records.write_text(text)
        assert words in failing(capsys, report.main, out, "--out", tmp_path / "r.html")


@pytest.mark.launcher
def test_a_page_holds_no_more_than_it_can(tmp_path: Path) -> None:
    """Of many long records some are kept, evenly spread, and the middle of long texts is left out."""
    out = report_runs.exo(tmp_path / "out", count=400)
    records = next(out.rglob("summary.records.jsonl"))
    rows = [json.loads(line) for line in records.read_bytes().splitlines()]
    for row in rows:
        row["prompt"] = "beginning " + "é" * 9000 + " end"
        row["answers"]["SFT"]["text"] = "x" * 9000
    write(records, rows * 5)
    report.main([str(out), "--out", str(tmp_path / "r.html")])
    text = read(tmp_path / "r.html")
    (browser,) = data(text)
    assert browser["total"] == 2000 and 100 < len(browser["rows"]) < 1000 and len(text) < 6e6
    assert re.fullmatch(r"beginning é+ \[…\] é+ end", browser["rows"][-1][0])


def test_tables_from_markdown() -> None:
    text = "a caption\n\n| a | b |\n| --- | ---: |\n| x \\| y\u2028z | 1 |\n\nnote\n"
    table = {"head": ["a", "b"], "rows": [["x | y\u2028z", "1"]], "names": 1}
    assert page.tables_of(text) == [{"text": "a caption"}, table, {"text": "note"}]


def test_long_curves_are_means_over_pieces() -> None:
    points = [(float(x), float(x % 2)) for x in range(10_000)]
    thin = curves.thin(points)
    assert len(thin) <= curves.MAX_POINTS and all(y == pytest.approx(0.5, abs=0.02) for _, y in thin)
    assert curves.thin(points[:300]) == points[:300]
    assert [tag for tag in ("train/lr", "train/kl", "eval/eval_loss", "train/grad_norm") if curves.is_main(tag)] == [
        "train/kl",
        "eval/eval_loss",
    ]


def test_controls_are_a_series_of_their_own(tmp_path: Path) -> None:
    report_runs.KINDS["jigsaw_rectify"](tmp_path)
    results = [("run", read_result(tmp_path / "evaluation" / "summary.json", tmp_path))]
    figure, _ = frontier(results)
    points = {row["name"]: row["series"] for row in figure.spec["data"]["values"]}
    assert points == {"plain": "run", "shuffled0.3": "run, control", "eps0.1": "run", "eps0.3": "run"}


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("sample", "sample"),
        ([{"file": "/x/y/value/scored.jsonl", "sha256": "5"}, "b"], "value/scored.jsonl, b"),
        ({"path": "/x/data.csv"}, "x/data.csv"),
        ({"name": "a/b", "revision": "1"}, "a/b"),
        (None, ""),
    ],
)
def test_where_data_came_from(source: Any, shown: str) -> None:
    assert _source(source) == shown
