"""The Perspective API, its key and its answers: whatever is wrong with them is one sentence, and no score is lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import write
from perspective_server import PerspectiveServer, refusal, scored, serve

from orlhf_ext.deadend import perspective, score

RECORDS = [{"prompt": {"text": f"number {n}"}, "generations": [{"text": f" fine day {n}"}]} for n in range(3)]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[PerspectiveServer]:
    with serve(monkeypatch) as running:
        yield running


@pytest.fixture
def words(tmp_path: Path) -> list[object]:
    return ["--model_name_or_path", "perspective", "--data_file", write(tmp_path / "gens.jsonl", RECORDS)]


KEY_FAULTS = {
    "none": ("PERSPECTIVE_API_KEY", "", "set PERSPECTIVE_API_KEY in the environment"),
    "blank": ("PERSPECTIVE_API_KEY", " \n", "set PERSPECTIVE_API_KEY in the environment"),
    "space": ("PERSPECTIVE_API_KEY", "planted key", "PERSPECTIVE_API_KEY has characters that no key has"),
    "new_line": ("PERSPECTIVE_API_KEY", "planted\r\nX-Other: 1", "PERSPECTIVE_API_KEY has characters that no key has"),
    "not_ascii": ("PERSPECTIVE_API_KEY", "plánted", "PERSPECTIVE_API_KEY has characters that no key has"),
    "another": ("PERSPECTIVE_API_KEY", "planted-other-key", r"does not accept PERSPECTIVE_API_KEY \(status 400\)"),
    "rate_zero": ("PERSPECTIVE_QPS", "0", "PERSPECTIVE_QPS=0 is not a number of requests in a second"),
    "rate_nan": ("PERSPECTIVE_QPS", "nan", "PERSPECTIVE_QPS=nan is not a number"),
    "rate_word": ("PERSPECTIVE_QPS", "fast", "PERSPECTIVE_QPS=fast is not a number"),
    "rate_huge": ("PERSPECTIVE_QPS", "1e9", "PERSPECTIVE_QPS=1e9 is not a number"),
}


@pytest.mark.parametrize("name", KEY_FAULTS)
def test_keys_and_rates(fault, server: PerspectiveServer, words: list[object], monkeypatch, name: str):
    variable, value, says = KEY_FAULTS[name]
    monkeypatch.setenv(variable, value)
    said = fault("deadend.score", *words, says=says)
    assert "planted" not in said and "plánted" not in said
    assert len(server.asked) == (name == "another")


ANSWERS: dict[str, tuple[int | tuple[int, str], int, str]] = {
    "no_key": (
        refusal(400, "INVALID_ARGUMENT", "API key not valid."),
        1,
        r"does not accept PERSPECTIVE_API_KEY \(status 400",
    ),
    "expired": (
        refusal(400, "INVALID_ARGUMENT", "x", reason="API_KEY_INVALID"),
        1,
        "does not accept PERSPECTIVE_API_KEY",
    ),
    "unauthorized": ((401, ""), 1, r"does not accept PERSPECTIVE_API_KEY \(status 401"),
    "not_enabled": (
        refusal(403, "PERMISSION_DENIED", "x", reason="SERVICE_DISABLED"),
        1,
        "enable the Perspective Comment",
    ),
    "ended": ((404, "<html>gone</html>"), 1, r"refuses a request \(status 404\).*another judge"),
    "gone": ((410, "{}"), 1, r"refuses a request \(status 410\)"),
    "moved": ((301, ""), 1, r"refuses a request \(status 301\)"),  # and the key does not go along
    "another_400": (
        refusal(400, "INVALID_ARGUMENT", "Unknown requested attribute"),
        1,
        r"refuses a request \(status 400\)",
    ),
    "list_for_an_error": ((400, "[1]"), 1, r"refuses a request \(status 400\)"),
    "odd_error": ((400, '{"error": {"details": 3, "message": null}}'), 1, r"refuses a request \(status 400\)"),
    "quota": ((429, ""), 8, r"no score in 8 tries \(status 429\); the scores so far are kept.*lower PERSPECTIVE_QPS"),
    "broken": ((500, "x"), 8, r"no score in 8 tries \(status 500\)"),
    "overloaded": ((503, ""), 8, r"no score in 8 tries \(status 503\)"),
    "hangs_up": (0, 8, r"no score in 8 tries \(ConnectionError\)"),
    "no_json": ((200, "<html>"), 8, r"no score in 8 tries \(an answer without a TOXICITY between 0 and 1\)"),
    "other_attribute": ((200, '{"attributeScores": {"INSULT": {}}}'), 8, "an answer without a TOXICITY"),
    "too_large": ((200, scored(1.5)), 8, "an answer without a TOXICITY between 0 and 1"),
    "not_a_number": ((200, scored(float("nan"))), 8, "an answer without a TOXICITY between 0 and 1"),
    "text": ((200, scored("0.5")), 8, "an answer without a TOXICITY between 0 and 1"),
    "true": ((200, scored(True)), 8, "an answer without a TOXICITY between 0 and 1"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_answers(fault, server: PerspectiveServer, words: list[object], name: str):
    answer, tries, says = ANSWERS[name]
    server.planned.extend([(200, scored(0.25)), *[answer] * tries])
    fault("deadend.score", *words, says=says)
    assert server.asked[1:] == ["fine day 1"] * tries
    # what was scored is kept
    asked = len(server.asked)
    score.main([str(word) for word in words])
    assert server.asked[asked:] == ["fine day 1", "fine day 2"]


def test_nobody_listens(fault, server: PerspectiveServer, words: list[object], monkeypatch):
    monkeypatch.setattr(perspective, "ADDRESS", "http://127.0.0.1:9/")
    fault("deadend.score", *words, says=r"no score in 8 tries \(ConnectionError\)")


@pytest.mark.parametrize("more", [("--label", "toxic"), ("--max_length", "9")])
def test_flags_of_models(fault, server: PerspectiveServer, words: list[object], more: tuple[str, str]):
    fault("deadend.score", *words, *more, says="perspective.* has no --label and no --max_length; leave them out")
