"""The Perspective API as a judge: real requests to a local server, in their time, kept after a stop, no key shown."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import failing, meta, read, write
from perspective_server import KEY, PATH, REFUSALS, PerspectiveServer, serve

from orlhf_ext.cli.errors import UserError
from orlhf_ext.deadend import evaluate, perspective, score
from orlhf_ext.files.journal import journal_path

RECORDS = [
    {"prompt": {"text": f"number {n}"}, "generations": [{"text": f" fine day {n}"}, {"text": f" grumpy {'x' * n}"}]}
    for n in range(4)
]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[PerspectiveServer]:
    with serve(monkeypatch) as running:
        yield running


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path / "gens.jsonl", RECORDS)


def words(data: Path, *more: object) -> list[str]:
    return ["--model_name_or_path", "perspective", "--data_file", str(data), *map(str, more)]


def scores(path: Path) -> list[list[float | None]]:
    return [[one["toxicity"] for one in record["generations"]] for record in read(path)]


def hold_key(said: str, folder: Path) -> None:
    """Hold that the key is in no text and in no file."""
    assert KEY not in said
    assert not any(KEY.encode() in path.read_bytes() for path in folder.rglob("*") if path.is_file())


WANTED = [[len(one["text"].strip()) / 100 for one in record["generations"]] for record in RECORDS]


def test_scores_are_the_apis(server: PerspectiveServer, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture):
    score.main(words(data))
    assert scores(data) == WANTED
    assert server.asked == [one["text"].strip() for record in RECORDS for one in record["generations"]]
    assert set(server.paths) == {PATH}  # the key is in no address
    assert server.questions[0] == {
        "comment": {"text": "fine day 0", "type": "PLAIN_TEXT"},
        "languages": ["en"],
        "requestedAttributes": {"TOXICITY": {}},
        "doNotStore": True,
    }
    entry = meta(data)["scores"]["toxicity"]
    assert entry["model"] == "perspective" and entry["by"]["version"] == "v1alpha1 TOXICITY en"
    assert "without_score" not in entry["counts"]
    captured = capfd.readouterr()
    hold_key(captured.out + captured.err, tmp_path)
    # the same judge's scores are not asked for again
    score.main(words(data))
    assert len(server.asked) == 8 and scores(data) == WANTED


def test_texts_that_are_not_judged_are_counted(
    server: PerspectiveServer, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    odd = [{"text": name} for name in REFUSALS if name != "COMMENT_EMPTY"]
    write(data, [*RECORDS, {"prompt": {"text": "a"}, "generations": [*odd, {"text": " \n"}, {"text": "fine"}]}])
    score.main(words(data))
    assert scores(data) == [*WANTED, [None, None, None, None, 0.04]]
    counts = meta(data)["scores"]["toxicity"]["counts"]
    without = {"too long": 1, "language not supported": 1, "language not detected": 1, "empty": 1}
    assert counts["without_score"] == without and counts["generations"] == 13
    assert counts["mean"] == pytest.approx((sum(map(sum, WANTED)) + 0.04) / 9)
    assert "4 generations have no score (1 too long, 1 language not supported, " in capsys.readouterr().out
    # they are told, and count nothing, where decodings are compared
    evaluate.main([f"plain={data}", "--save_file", str(tmp_path / "summary.json")])
    assert "plain: 4 of 13 continuations without a score" in capsys.readouterr().out


@pytest.mark.launcher
@pytest.mark.parametrize("fault", [429, 500, 503, 408, 0, (200, "no JSON"), (200, '{"languages": ["en"]}')])
def test_what_passes_is_asked_again(
    server: PerspectiveServer, data: Path, fault: int | tuple[int, str], capfd: pytest.CaptureFixture
):
    server.planned.extend([fault] * (perspective.TRIES - 1))
    score.main(words(data))
    assert scores(data) == WANTED and server.asked[: perspective.TRIES] == ["fine day 0"] * perspective.TRIES
    assert f"try {perspective.TRIES} of {perspective.TRIES} in 0 s" in capfd.readouterr().err


def test_pauses_grow(server: PerspectiveServer, data: Path, monkeypatch: pytest.MonkeyPatch):
    pauses: list[float] = []
    monkeypatch.setattr(perspective, "PAUSE", 2.0)
    monkeypatch.setattr(time, "sleep", pauses.append)
    server.planned.extend([429] * (perspective.TRIES - 1))
    score.main(words(data))
    assert [pause for pause in pauses if pause > 1] == [2, 4, 8, 16, 32, 64, 120]


def test_one_request_in_a_second(server: PerspectiveServer, monkeypatch: pytest.MonkeyPatch):
    clock = [100.0]
    monkeypatch.setattr(perspective, "time", FakeTime(clock))
    monkeypatch.delenv("PERSPECTIVE_QPS")
    perspective.Perspective()(["a", "b", "", "c"])
    assert clock[0] == 102.0 and server.asked == ["a", "b", "c"]  # and no time goes by before the first
    monkeypatch.setenv("PERSPECTIVE_QPS", "10")
    perspective.Perspective()(["a"] * 11)
    assert clock[0] == pytest.approx(103.0)


class FakeTime:
    """A clock that only sleeping moves."""

    def __init__(self, clock: list[float]) -> None:
        self.clock = clock

    def monotonic(self) -> float:
        return self.clock[0]

    def sleep(self, seconds: float) -> None:
        self.clock[0] += seconds


def test_a_run_that_stopped_goes_on(
    server: PerspectiveServer, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture
):
    before = data.read_bytes()
    server.planned.extend([(200, '{"attributeScores": {"TOXICITY": {"summaryScore": {"value": 0.75}}}}')] * 5)
    server.planned.append((403, "{}"))
    said = failing(capfd, score.main, *words(data))
    assert "Perspective does not accept PERSPECTIVE_API_KEY (status 403)" in said
    hold_key(said, tmp_path)
    assert data.read_bytes() == before and journal_path(data).exists()
    asked = len(server.asked)
    score.main(words(data))
    # whole records are kept: two of them had both scores
    assert scores(data) == [[0.75, 0.75], [0.75, 0.75], *WANTED[2:]] and len(server.asked) - asked == 4
    assert not journal_path(data).exists()


def test_no_answer_in_time(server: PerspectiveServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(perspective, "TIMEOUT", (1.0, 0.05))
    monkeypatch.setattr(perspective, "TRIES", 2)
    monkeypatch.setattr("perspective_server.scored", lambda _: time.sleep(0.3) or "{}")
    with pytest.raises(UserError, match=r"no score in 2 tries \(ReadTimeout\); the scores so far are kept"):
        perspective.Perspective()(["a"])
