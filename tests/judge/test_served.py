"""A judge behind a URL, against a real server of this process that answers as OpenAI's chat completions do."""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from orlhf_ext.cli.errors import UserError
from orlhf_ext.judge.reward import Judge
from orlhf_ext.judge.served import endpoint, lean_of_tokens
from orlhf_ext.rewards import RewardBatch, RewardContext, Rollout
from orlhf_ext.rewards.combine import Combined, RewardSet

KEY = "sk-a-secret-key"


def letter_of(request: Mapping[str, Any]) -> str:
    """The longer text wins; a tie is A's."""
    question = request["messages"][0]["content"]
    a, b = re.search(r"Response A:\n(.*?)\n\nResponse B:\n(.*?)\n\nAnswer", question, re.DOTALL).groups()  # type: ignore[union-attr]
    return "A" if len(a) >= len(b) else "B"


def token(text: str, logprob: float, *others: tuple[str, float]) -> dict[str, Any]:
    top = [{"token": text, "logprob": logprob}, *({"token": t, "logprob": p} for t, p in others)]
    return {"token": text, "logprob": logprob, "top_logprobs": top}


def answer(
    request: Mapping[str, Any], text: str | None = None, logprobs: Sequence[dict] | None = None
) -> tuple[int, Any]:
    """What a server with log-probabilities answers: the letter with 3 to 1."""
    if request["path"] == "/v1/models":
        return 200, {"data": [{"id": "the-only-one"}]}
    letter = letter_of(request)
    text = f"Preferred: {letter}" if text is None else text
    if logprobs is None:
        other = {"A": "B", "B": "A"}[letter]
        logprobs = [
            token("Preferred", -0.1),
            token(":", -0.1),
            token(f" {letter}", math.log(0.6), (f" {other}", math.log(0.2))),
        ]
    choice: dict[str, Any] = {"message": {"role": "assistant", "content": text}}
    if request.get("logprobs"):
        choice["logprobs"] = {"content": logprobs}
    return 200, {"model": "judge-2026", "choices": [choice]}


def batch_of(*texts: str) -> RewardBatch:
    return RewardBatch([Rollout(f"r{i}", "ask", text, group=1) for i, text in enumerate(texts)])


def judged(server: Any, *texts: str, **how: Any) -> Combined:
    rewards = RewardSet([Judge(url=[base(server)], pause=0.01, **how)])
    rewards.setup(RewardContext())
    return rewards.score(batch_of(*(texts or ("a", "bb", "ccc"))))


def base(server: Any) -> str:
    return str(server.url.replace("/get_reward", "/v1"))


def chats(server: Any) -> list[dict]:
    """What was asked of the run, without the six questions of the probe."""
    return [one for one in server.asked if one["path"] == "/v1/chat/completions"][6:]


def test_log_probabilities(
    serve: Callable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = serve(lambda request, number: answer(request))
    found = judged(server)
    assert found.rewards == pytest.approx([0.25, 0.5, 0.75])  # 3 to 1, both orders alike
    assert found.columns["judge/margin"] == pytest.approx([math.log(3)] * 3)
    assert found.columns["judge/bounded"] == [0, 0, 0] and sum(found.columns["judge/calls"]) == 6
    asked = chats(server)
    assert len(asked) == 6 and {one["path"] for one in server.asked} == {"/v1/models", "/v1/chat/completions"}
    assert {key: asked[0][key] for key in ("model", "max_tokens", "temperature", "logprobs", "top_logprobs")} == {
        "model": "the-only-one", "max_tokens": 16, "temperature": 0, "logprobs": True, "top_logprobs": 20,
    }  # fmt: skip
    assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    printed = capsys.readouterr().out
    assert printed.count("answers as judge-2026") == 1 and KEY not in printed


def test_written_letters_and_more_keys(serve: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    server = serve(lambda request, number: answer(request))
    body = {"max_tokens": None, "max_completion_tokens": 99}
    found = judged(server, verdict="text", model="mine", body=body, form="bradley_terry")
    assert found.rewards == sorted(found.rewards) and len(set(found.rewards)) == 3
    asked = chats(server)
    assert len(asked) == 6 and all(one["model"] == "mine" and one["max_completion_tokens"] == 99 for one in asked)
    assert not {"max_tokens", "logprobs", "top_logprobs"} & set(asked[0])
    assert all("Authorization" not in headers for headers in server.headers)


def test_an_answer_without_a_verdict_is_asked_for_again(serve: Callable) -> None:
    def hesitant(request: dict, number: int) -> tuple[int, Any]:
        return answer(request, None if request.get("seed") == 2 else "Both are fine.")

    server = serve(hesitant)
    found = judged(server, verdict="text", model="m", retries=2)
    assert found.rewards == [0.0, 0.5, 1.0] and sum(found.columns["judge/calls"]) == 18
    assert found.columns["judge/unreadable"] == [0, 0, 0]
    asked = server.asked[18:]  # three tries for each of the probe's questions
    assert sorted(one["temperature"] for one in asked) == [0] * 6 + [0.7] * 12
    with pytest.raises(UserError, match=r"never answers: .* and writes 'Both are fine.', say; show it how to answer"):
        judged(server, verdict="text", model="m", retries=1)


def test_log_probabilities_of_an_answer_without_a_verdict(serve: Callable) -> None:
    """It is asked for again, and counts as a tie."""

    def hesitant(request: dict, number: int) -> tuple[int, Any]:
        silent = request["path"] != "/v1/models" and "ccc" in request["messages"][0]["content"]
        return answer(request, "Both.", [token("Both", -0.1), token(".", -0.1)]) if silent else answer(request)

    found = judged(serve(hesitant), model="m", retries=1)
    assert found.rewards == pytest.approx([(0.25 + 0.5) / 2, (0.75 + 0.5) / 2, 0.5])
    assert sum(found.columns["judge/calls"]) == 2 + 2 * 4 and found.columns["judge/unreadable"] == [0.5, 0.5, 1.0]


@pytest.mark.launcher
@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again(serve: Callable, status: int) -> None:
    times: list[float] = []

    def busy(request: dict, number: int) -> tuple:
        times.append(time.monotonic())
        return (status, "", {"Retry-After": "1"}) if number == 1 else answer(request)

    assert judged(serve(busy), model="m", parallel=1).rewards == pytest.approx([0.25, 0.5, 0.75])
    assert times[1] - times[0] >= 1  # as it asked for, and not 0.01


def test_a_question_that_is_refused_names_its_samples(serve: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def short(request: dict, number: int) -> tuple[int, Any]:
        if "long" in request["messages"][0]["content"]:
            return 400, {"error": {"message": f"maximum context length is 9, {KEY}"}}
        return answer(request)

    with pytest.raises(UserError) as caught:
        judged(serve(short), "a", "bb", "long", model="m", parallel=1)
    said = str(caught.value)
    assert said.startswith("reward 'judge': the server http://127.0.0.1:") and "answers HTTP 400" in said
    assert "(maximum context length is 9, ...): it is the question about the samples 'r0' and 'r2'" in said


def test_a_wrong_key(serve: Callable) -> None:
    server = serve(lambda request, number: (401, {"error": {"message": "no"}}))
    with pytest.raises(UserError, match=r"answers HTTP 401.* \(set OPENAI_API_KEY in the environment\)"):
        judged(server, model="m")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"choices": []}, r"without choices\[0\].message.content"),
        ([], r"without choices\[0\].message.content"),
        (b"<html>", "answers no JSON"),
    ],
)
def test_answers_that_are_none(serve: Callable, value: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        judged(serve(lambda request, number: (200, value)), model="m")


def test_a_server_without_log_probabilities(serve: Callable) -> None:
    def plain(request: dict, number: int) -> tuple[int, Any]:
        return answer({**request, "logprobs": False})

    with pytest.raises(UserError, match=r"answers without top_logprobs; give --judge.verdict text, or serve the model"):
        judged(serve(plain), model="m")
    with pytest.raises(UserError, match="answers without top_logprobs"):
        judged(serve(lambda request, number: answer(request, logprobs=[{"token": "A", "logprob": 0.0}])), model="m")


def test_a_server_that_hangs(serve: Callable) -> None:
    gone = threading.Event()

    def hangs(request: dict, number: int) -> tuple[int, Any]:
        gone.wait(5)
        return answer(request)

    began = time.monotonic()
    with pytest.raises(UserError, match=r"gave no answer in 2 tries \(ReadTimeout\); .* another --judge.url"):
        judged(serve(hangs), model="m", timeout=0.1, tries=2)
    gone.set()
    assert time.monotonic() - began < 2


def test_no_more_requests_at_a_time_than_allowed(serve: Callable) -> None:
    def slow(request: dict, number: int) -> tuple[int, Any]:
        time.sleep(0.02)
        return answer(request)

    server = serve(slow)
    judged(server, *(f"{'x' * i}." for i in range(5)), model="m", parallel=3)
    assert server.most_at_a_time == 3


@pytest.mark.parametrize(("names", "said"), [([], "has 0 models"), (["a", "b"], "has 2 models; give --judge.model")])
def test_a_server_with_several_models(serve: Callable, names: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        judged(serve(lambda request, number: (200, {"data": [{"id": name} for name in names]})))
    with pytest.raises(UserError, match="does not list its models"):
        judged(serve(lambda request, number: (200, [])))


def test_addresses() -> None:
    for url in ("http://h:1/v1", "http://h:1/v1/", "http://h:1/v1/chat/completions"):
        assert endpoint(url) == "http://h:1/v1/chat/completions" and endpoint(url, "/models") == "http://h:1/v1/models"


# reading log-probabilities


@pytest.mark.parametrize(
    ("tokens", "lean", "bounded"),
    [
        ([token(" A", -0.5, (" B", -1.5), (" The", -3.0))], 1.0, False),
        ([token("Preferred", 0.0), token(":", 0.0), token(" B", -0.25, (" A", -2.25))], -2.0, False),
        ([token("Preferred: ", 0.0), token("**", 0.0), token("A", -0.5, ("B", -1.0)), token("**", 0.0)], 0.5, False),
        # the same letter in several spellings
        ([token("A", -2.0, (" A", -2.0), ("B", -3.0), ("b", -3.0))], 1.0, False),
        # the last verdict counts
        ([token("Preferred: A", -9.0), token("?\nPreferred:", 0.0), token(" B", -1.0, (" A", -3.0))], -2.0, False),
        # the other letter is not listed
        ([token("A", -0.01, (" the", -4.0), ("I", -6.0))], 5.99, True),
        ([token("A", 0.0, ("B", -9999.0))], 30.0, False),
        ([token("Both", -0.1)], None, False),
        ([], None, False),
    ],
)  # fmt: skip
def test_a_letters_margin(tokens: list[dict], lean: float | None, bounded: bool) -> None:
    assert lean_of_tokens(json.loads(json.dumps(tokens))) == (pytest.approx(lean) if lean else lean, bounded)
