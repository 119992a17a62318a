"""Rewards that try to change what they are given, give rewards to the wrong samples, or come from a hostile server."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orlhf_ext.launch.preflight import _check_wandb
from orlhf_ext.rewards import Reward, RewardBatch, RewardContext, Rollout
from orlhf_ext.rewards.combine import RewardSet
from orlhf_ext.rewards.http import HTTP

CHANGES: dict[str, Callable[[Any], object]] = {
    "sort": lambda batch: batch.rollouts.sort(key=lambda rollout: rollout.response),
    "reverse": lambda batch: batch.rollouts.reverse(),
    "pop": lambda batch: batch.rollouts.pop(),
    "item": lambda batch: batch.rollouts.__setitem__(0, batch[1]),
    "rollouts": lambda batch: setattr(batch, "rollouts", ()),
    "response": lambda batch: setattr(batch[0], "response", ""),
    "reward": lambda batch: setattr(batch[0], "reward", 1.0),
    "token_ids": lambda batch: batch[0].token_ids.append(7),
    "token_ids in place": lambda batch: batch.token_ids[0].__setitem__(0, 7),
    "action_mask": lambda batch: batch[0].action_mask.clear(),
}
#: these change a copy, which nobody else sees
HARMLESS: dict[str, Callable[[Any], object]] = {
    "label": lambda batch: batch[0].label.update(gold="x"),
    "nested label": lambda batch: batch[0].label["list"].append(1),
    "labels": lambda batch: batch.labels.clear(),
    "responses": lambda batch: batch.responses.sort(),
    "response_ids": lambda batch: batch[0].response_ids.clear(),
    "image": lambda batch: batch[0].images[0].fill(9),
    "images": lambda batch: batch[0].images.clear(),
}


def batch_of(count: int = 4) -> RewardBatch:
    """Rollouts of two prompts, with all that can be changed in place."""
    return RewardBatch(
        [
            Rollout(
                id=f"{i // 2}/{i % 2}", prompt="ask: ", response="x" * (7 - i), label={"gold": i, "list": []},
                token_ids=[1, 2, 3 + i], action_mask=[0, 0, 1], images=[np.full(2, i)],
            )
            for i in range(count)
        ]
    )  # fmt: skip


def plain(batch: RewardBatch) -> list[Any]:
    return [
        (r.id, r.prompt, r.response, dict(r.label), list(r.label["list"]), [i.tolist() for i in r.images],
         list(r.token_ids), list(r.action_mask))
        for r in batch
    ]  # fmt: skip


class Changing(Reward):
    reads_images = True

    def __init__(self, change: Any = None) -> None:
        self.change, self.seen = change, None

    def score(self, batch: RewardBatch) -> list[float]:
        self.seen = plain(batch)
        if self.change:
            self.change(batch)
        return [float(len(text)) for text in batch.responses]


class Second(Changing):
    pass


@pytest.mark.parametrize("change", CHANGES)
def test_a_batch_that_is_changed(fault, change: str) -> None:
    batch = batch_of()
    before = plain(batch)
    fault.call(RewardSet([Changing(CHANGES[change])]).score, batch, says=r"reward 'changing' raised \w+Error: .* line")
    assert plain(batch) == before


@pytest.mark.parametrize("change", HARMLESS)
def test_a_copy_that_is_changed(change: str) -> None:
    batch, second = batch_of(), Second()
    before = plain(batch)
    combined = RewardSet([Changing(HARMLESS[change]), second]).score(batch)
    assert plain(batch) == before == second.seen and combined.rewards == [14.0, 12.0, 10.0, 8.0]


def test_the_runs_arguments_are_a_rewards_own() -> None:
    from types import SimpleNamespace

    class Setting(Changing):
        def setup(self, context: RewardContext) -> None:
            context.args.train.batch_size = 0

    args = SimpleNamespace(train=SimpleNamespace(batch_size=4))
    RewardSet([Setting()]).setup(RewardContext(args=args))
    assert args.train.batch_size == 4


def test_batches_without_labels_that_can_be_changed_are_not_copied() -> None:
    batch = RewardBatch([Rollout("a", "b", "c", label) for label in ("text", 1, 0.5, None)])
    assert all(ours is theirs for ours, theirs in zip(batch, batch.copy(), strict=True))


# check reward

ORDERED = """
from orlhf_ext.rewards import Reward, RewardResult

class Sorts(Reward):
    def score(self, batch):
        return [float(len(r.response)) for r in sorted(batch, key=lambda r: r.response)]

class First(Reward):
    def score(self, batch):
        return [float(i) for i in range(len(batch))]

class ByPrompt(Reward):
    '''The longest response of its prompt gets 1: whole prompts are shuffled, so that this is right.'''

    def score(self, batch):
        longest = {}
        for r in batch:
            longest[r.prompt] = max(longest.get(r.prompt, 0), len(r.response))
        return [float(len(r.response) == longest[r.prompt]) for r in batch]

class Blurred(Reward):
    '''As a model in bfloat16: another batch, another rounding.'''

    def score(self, batch):
        return [len(r.response) * (1 + 1e-3 * (batch[0].id == r.id)) for r in batch]

class Writes(Reward):
    def score(self, batch):
        batch.rollouts.sort(key=lambda r: r.response)
        return [1.0] * len(batch)
"""


@pytest.fixture
def ordered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    (tmp_path / "ordered_rewards.py").write_text(ORDERED)
    yield
    sys.modules.pop("ordered_rewards", None)


@pytest.mark.parametrize(
    ("name", "says", "rc"),
    [
        ("Sorts", r"wrong +order +with the batch in another order, sample '\S+' gets \S+ instead of \S+; give one", 1),
        ("First", r"wrong +order +with the batch in another order", 1),
        ("Writes", r"wrong +score +reward 'writes' raised AttributeError: 'tuple' object has no attribute 'sort'", 1),
        ("ByPrompt", r"ok +order +a shuffled batch gets the same", 0),
        ("Blurred", r"ok +order +a shuffled batch gets the same", 0),
    ],
)
def test_check_reward_shuffles(fault, ordered: None, name: str, says: str, rc: int) -> None:
    fault("check", "reward", f"ordered_rewards:{name}", says=says, rc=rc)


# http


@contextlib.contextmanager
def answering(pieces: Callable[[], Iterator[bytes]]) -> Iterator[str]:
    """A server that reads a request and sends these pieces of an answer; its address."""
    ended = threading.Event()

    def serve(listening: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while not ended.is_set():
                there = listening.accept()[0]
                threading.Thread(target=talk, args=(there,), daemon=True).start()

    def talk(there: socket.socket) -> None:
        with contextlib.suppress(OSError), there:
            there.recv(2**16)
            for piece in pieces():
                if ended.is_set():
                    return
                there.sendall(piece)
            # Closed with a part of the request unread, the connection would be reset, and the answer lost.
            there.shutdown(socket.SHUT_WR)
            while there.recv(2**16):
                pass

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=serve, args=(listening,), daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/get_reward"
        ended.set()


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


def slowly(data: bytes) -> Iterator[bytes]:
    for byte in data:
        time.sleep(0.05)
        yield bytes([byte])


def drip_body() -> Iterator[bytes]:
    yield HEAD + b"\r\n"
    yield from slowly(b" " * 60)


def large() -> Iterator[bytes]:
    yield HEAD + b"\r\n" + b'{"rewards": ['
    for _ in range(70):
        yield b"1, " * 2**20


ANSWERS: dict[str, tuple[Callable[[], Iterator[bytes]], str]] = {
    "large": (large, "answers with more than 64 MiB; it must give a number for each query"),
    "drips its body": (drip_body, r"no answer in 1 tries \(ReadTimeout\)"),
    "drips its headers": (lambda: slowly(HEAD * 9), r"no answer in 1 tries \(ReadTimeout\)"),
    "deep": (lambda: iter([HEAD + b"\r\n" + b"[" * 200_000]), "answers no JSON"),
    "cut": (lambda: iter([HEAD + b"Content-Length: 999\r\n\r\n{"]), r"no answer in 1 tries \(ChunkedEncodingError\)"),
    "no HTTP": (lambda: iter([b"SSH-2.0-OpenSSH_9.6\r\n"]), r"no answer in 1 tries \(ConnectionError\)"),
    "huge number": (lambda: iter([HEAD + b'\r\n{"rewards": [' + b"9" * 9000 + b"]}"]), "answers no JSON"),
    "circle": (
        lambda: iter([b"HTTP/1.1 307 Go\r\nLocation: /get_reward\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"]),
        r"\(TooManyRedirects\)",
    ),
}


@pytest.mark.launcher
@pytest.mark.parametrize("name", ANSWERS)
def test_answers_of_a_hostile_server(fault, name: str) -> None:
    pieces, says = ANSWERS[name]
    batch = RewardBatch([Rollout("r", "a", "b")])
    with answering(pieces) as url:
        reward = HTTP([url], tries=1, timeout=0.5 if name.startswith("drips") else 30.0)
        began = time.monotonic()
        fault.call(RewardSet([reward]).score, batch, says=f"reward 'http': the server {url} .*{says}")
        assert time.monotonic() - began < 25  # a dripping server would take longer


# a key of W&B


@pytest.mark.parametrize("key", ["secret", "ENV", " env", "0" * 40])
def test_a_key_on_the_command_line(fault, key: str) -> None:
    said = fault.call(_check_wandb, key, says="--logger.wandb.key takes no key.* as WANDB_API_KEY, and give")
    assert "secret" not in said and "000" not in said


def test_no_key_anywhere(fault, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    _check_wandb(None)
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    _check_wandb("env")
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    fault.call(_check_wandb, "env", says="needs a key: set WANDB_API_KEY in the environment, or run `wandb login`")


def test_the_version(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    from orlhf_ext import __version__
    from orlhf_ext.__main__ import main

    for word in ("--version", "-V"):
        monkeypatch.setattr(sys, "argv", ["orlhf-ext", word])
        main()
        assert capsys.readouterr().out == f"orlhf-ext {__version__}\n"
