"""The HTTP reward against a real server of this process."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orlhf_ext.cli.errors import UserError
from orlhf_ext.models.folder import load_tokenizer
from orlhf_ext.rewards import RewardBatch, RewardContext, Rollout
from orlhf_ext.rewards.combine import Combined, RewardSet
from orlhf_ext.rewards.http import HTTP


def right(request: dict, number: int = 0) -> tuple[int, dict]:
    """As serve_rm: the reward is the query's length."""
    lengths = [float(len(query)) for query in request["query"]]
    return 200, {"rewards": lengths, "scores": lengths, "extra_logs": {"dummy_scores": lengths}}


def batch_of(count: int) -> RewardBatch:
    return RewardBatch([Rollout(f"r{i}", "ask: ", "x" * i, label=f"label {i}") for i in range(count)])


def score(reward: HTTP, count: int = 5) -> Combined:
    rewards = RewardSet([reward])
    rewards.setup(RewardContext())
    return rewards.score(batch_of(count))


def test_a_server_that_fails_twice_and_then_answers(serve: Callable) -> None:
    server = serve(lambda request, number: (503, "busy") if number <= 2 else right(request))
    combined = score(HTTP([server.url], pause=0.01))
    assert combined.rewards == combined.scores == [5.0, 6.0, 7.0, 8.0, 9.0]
    assert combined.columns == {"reward/http": combined.rewards, "http/dummy_scores": combined.rewards}
    assert len(server.asked) == 3 and server.asked[0] == server.asked[2]
    assert server.asked[2] == {
        "query": ["ask: ", "ask: x", "ask: xx", "ask: xxx", "ask: xxxx"],
        "prompts": ["ask: "] * 5,
        "labels": [f"label {i}" for i in range(5)],
        "path": "/get_reward",
    }


def test_pauses_grow(serve: Callable) -> None:
    times: list[float] = []

    def late(request: dict, number: int) -> tuple[int, Any]:
        times.append(time.monotonic())
        return (500, "") if number <= 3 else right(request)

    score(HTTP([serve(late).url], pause=0.05))
    pauses = [b - a for a, b in itertools.pairwise(times)]
    assert len(pauses) == 3 and all(pause >= 0.05 * 2**i for i, pause in enumerate(pauses))


def test_queries_hold_special_tokens_as_openrlhf_sends_them(serve: Callable, tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    prompt, response = tokenizer.encode("hello"), [*tokenizer.encode(" fine"), tokenizer.eos_token_id]
    rollout = Rollout("r", "hello", " fine", "", prompt + response, [0] * len(prompt) + [1] * len(response))
    server = serve(right)
    rewards = RewardSet([HTTP([server.url])])
    rewards.setup(RewardContext(tokenizer=tokenizer))
    rewards.score(RewardBatch([rollout]))
    assert server.asked[0]["query"] == ["hello fine</s>"]


def test_requests_are_cut_shared_out_and_at_a_time(serve: Callable) -> None:
    def slow(request: dict, number: int) -> tuple[int, Any]:
        time.sleep(0.1)
        return right(request)

    servers = [serve(slow), serve(slow)]
    began = time.monotonic()
    combined = score(HTTP([server.url for server in servers], batch_size=2, threads=8), 15)
    assert time.monotonic() - began < 0.6  # one after the other: 0.8
    assert combined.rewards == [5.0 + i for i in range(15)]  # in the batch's order
    assert [len(server.asked) for server in servers] == [4, 4]
    assert sorted(len(request["query"]) for server in servers for request in server.asked) == [1] + [2] * 7
    assert all(server.most_at_a_time > 1 for server in servers)


def test_a_server_that_is_down_is_one_sentence(serve: Callable) -> None:
    server = serve(right)
    server.close()
    url = server.url.replace("http://", "http://me:secret@") + "?key=secret"
    with pytest.raises(UserError) as caught:
        score(HTTP([url], tries=3, pause=0.01))
    said = str(caught.value)
    assert said == (
        f"reward 'http': the server {server.url} gave no answer in 3 tries (ConnectionError); "
        "start it, or give another --http.url"
    )


def test_another_server_takes_its_place(serve: Callable) -> None:
    down, up = serve(right), serve(right)
    down.close()
    assert score(HTTP([down.url, up.url], batch_size=1, pause=0.01), 4).rewards == [5.0, 6.0, 7.0, 8.0]
    assert len(up.asked) == 4


def test_a_server_that_is_too_slow(serve: Callable) -> None:
    def never(request: dict, number: int) -> tuple[int, Any]:
        time.sleep(0.5)
        return right(request)

    with pytest.raises(UserError, match=r"no answer in 2 tries \(ReadTimeout\)"):
        score(HTTP([serve(never).url], timeout=0.05, tries=2, pause=0.01), 1)


def test_after_one_failure_the_others_give_up(serve: Callable) -> None:
    server = serve(lambda request, number: (404, "") if request["query"] == ["ask: "] else (503, ""))
    began = time.monotonic()
    with pytest.raises(UserError, match="HTTP 404"):
        score(HTTP([server.url], batch_size=1, threads=4, pause=5.0), 4)
    while any(thread.name.startswith("reward-http") for thread in threading.enumerate()):
        assert time.monotonic() - began < 4, "a thread sleeps on"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((404, "gone"), "answers HTTP 404; check --http.url"),
        ((200, b"<html>"), "answers no JSON"),
        ((200, [1, 2]), "answers without 'rewards'"),
        ((200, {"rewards": None}), "answers without 'rewards'"),
        ((200, {"rewards": [1.0]}), "answers 1 rewards for 2 queries"),
        ((200, {"rewards": 1.0}), "answers no list of rewards for 2 queries"),
        ((200, {"rewards": [1.0, 2.0], "scores": [1.0]}), "answers 1 scores for 2 queries"),
        ((200, {"rewards": [1.0, 2.0], "extra_logs": {"a": [1]}}), "answers 1 extra_logs.a for 2 queries"),
        ((200, {"rewards": [1.0, 2.0], "extra_logs": [1]}), "'extra_logs' that are not an object"),
        ((200, {"rewards": [1.0, None]}), "None among the rewards, for sample 'r1'"),
        ((200, {"rewards": [float("nan"), 1.0]}), "nan among the rewards, for sample 'r0'"),
    ],
)
def test_answers_that_break_the_contract(serve: Callable, answer: tuple, said: str) -> None:
    server = serve(lambda request, number: answer)
    with pytest.raises(UserError, match=said) as caught:
        score(HTTP([server.url]), 2)
    assert "reward 'http'" in str(caught.value) and len(server.asked) == 1  # it is not asked again


def test_a_single_query_may_get_plain_numbers(serve: Callable) -> None:
    server = serve(lambda request, number: (200, {"rewards": 0.5, "extra_logs": {"a": 2}}))
    combined = score(HTTP([server.url], batch_size=1), 2)
    assert combined.columns == {"reward/http": [0.5, 0.5], "http/a": [2.0, 2.0]}


def test_keys_that_change_between_answers(serve: Callable) -> None:
    def changing(request: dict, number: int) -> tuple[int, Any]:
        status, value = right(request)
        return status, value if number == 1 else {"rewards": value["rewards"]}

    with pytest.raises(UserError, match=r"give extra_logs.dummy_scores, scores with some answers and not with others"):
        score(HTTP([serve(changing).url], batch_size=1), 2)


@pytest.mark.parametrize("url", [[], ["localhost:5000"], ["http://"]])
def test_addresses_that_make_no_sense(url: list[str]) -> None:
    with pytest.raises(ValueError, match=r"--http\.url"):
        HTTP(url)
