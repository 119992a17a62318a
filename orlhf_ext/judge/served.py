"""A judge behind a URL: any server with OpenAI's chat completions, such as ``vllm serve``."""

from __future__ import annotations

import json
import math
import os
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..cli.errors import UserError
from ..extensions.inject import say
from ..rewards.servers import Client, Refused, shown, side_by_side
from .local import RETRY_TEMPERATURE, Answer, Two
from .template import Template, read_verdict

KEY = "OPENAI_API_KEY"
_CHAT = "/chat/completions"
_TOP = 20  # log-probabilities of a token, the most that OpenAI gives
_MOST = 30.0  # nats: servers give impossible tokens a log-probability of -9999


def endpoint(url: str, path: str = _CHAT) -> str:
    """Where a server's base address (``http://host:8000/v1``) answers."""
    return url.rstrip("/").removesuffix(_CHAT) + path


@dataclass(frozen=True)
class _Said:
    """What a server said of one question."""

    lean: float | None
    text: str
    calls: int
    bounded: bool = False


@dataclass
class Served:
    """A judge that servers hold.

    Args:
        client: of the servers' chat completions.
        model: its name there; where it is empty, the only one that the first server has.
        template: what it is asked.
        logprobs: whether its letter counts by log-probabilities, or as it is written.
        room: tokens of an answer.
        parallel: requests at a time.
        retries: for an answer without a verdict, sampled at another temperature.
        body: more keys of a request; None leaves one out.

    Raises:
        UserError: a server does not answer, or has not one model.
    """

    client: Client
    model: str
    template: Template
    logprobs: bool
    room: int
    parallel: int
    retries: int
    body: Mapping[str, Any]

    def __post_init__(self) -> None:
        self.writes = not self.logprobs
        self._told = False
        if not self.model:
            self.model = self._only_model()

    def compare(self, pairs: Sequence[Two]) -> list[Answer]:
        """The leans of all pairs: in nats, or 1 and -1 of written letters.
        Raises UserError if a server refuses a question or gives none of what is asked for; the pair is named."""
        questions = [
            (two.name, self.template.fill(a, b, two.prompt))
            for two in pairs
            for a, b in ((two.first, two.second), (two.second, two.first))
        ]
        found = side_by_side(self._ask, questions, self.parallel)
        return [
            Answer(
                (one.lean, other.lean), (one.text, other.text), one.calls + other.calls, False,
                one.bounded or other.bounded,
            )
            for one, other in zip(found[::2], found[1::2], strict=True)
        ]  # fmt: skip

    def _ask(self, number: int, question: tuple[str, str], stop: threading.Event) -> _Said:
        name, text = question
        said = _Said(None, "", 0)
        for attempt in range(1 + self.retries):
            request: dict[str, Any] = {
                "model": self.model,
                "messages": [{"role": "user", "content": text}],
                "max_tokens": self.room,
                "temperature": RETRY_TEMPERATURE if attempt else 0,
            }
            if attempt:
                request["seed"] = attempt
            if self.logprobs:
                request |= {"logprobs": True, "top_logprobs": _TOP}
            request = {key: value for key, value in {**request, **self.body}.items() if value is not None}
            try:
                answer, server = self.client.ask(number, request, stop)
            except Refused as error:
                raise UserError(f"{error} ({self._reason(error)}): it is the question about {name}") from error
            said = self._read(answer, server, attempt + 1)
            if said.lean is not None:
                break
        return said

    def _read(self, answer: Any, server: str, calls: int) -> _Said:
        try:
            choice = answer["choices"][0]
            text = choice["message"]["content"] or ""
            model = answer.get("model")
        except (TypeError, KeyError, IndexError, AttributeError) as error:
            raise UserError(
                f"the server {server} answers without choices[0].message.content; it must answer as OpenAI's chat "
                "completions do"
            ) from error
        if not self._told:
            self._told = True
            say(f"judge: the server {server} answers as {model}")
        if not self.logprobs:
            return _Said(read_verdict(text), text, calls)
        tokens = (choice.get("logprobs") or {}).get("content") or []
        if text and not all(token.get("top_logprobs") for token in tokens[:1] or [{}]):
            raise UserError(
                f"the server {server} answers without top_logprobs; give --judge.verdict text, or serve the model with "
                "something that gives them, such as vLLM"
            )
        lean, bounded = lean_of_tokens(tokens)
        return _Said(lean, text, calls, bounded)

    def _only_model(self) -> str:
        url = endpoint(self.client.urls[0], "/models")
        client = replace(self.client, urls=[url])
        try:
            answer, _ = client.ask(0, None, threading.Event())
            names = [model["id"] for model in answer["data"]]
        except Refused as error:
            raise UserError(f"{error} ({self._reason(error)}), or give --judge.model, its name there") from error
        except (TypeError, KeyError) as error:
            raise UserError(f"the server {shown(url)} does not list its models; give --judge.model") from error
        if len(names) != 1:
            raise UserError(f"the server {shown(url)} has {len(names)} models; give --judge.model, its name there")
        return str(names[0])

    def _reason(self, error: Refused) -> str:
        """What a server says of a refusal, without a key that it may repeat."""
        if error.status in (401, 403):
            return f"set {KEY} in the environment"
        text = error.body[:2000].decode(errors="replace")
        try:
            found = json.loads(error.body)
            text = str(found.get("message") or found["error"].get("message") or text)
        except (ValueError, KeyError, TypeError, AttributeError):
            pass
        if key := os.environ.get(KEY):
            text = text.replace(key, "...")
        return " ".join(text.split())[:300]


def lean_of_tokens(tokens: Sequence[Mapping[str, Any]]) -> tuple[float | None, bool]:
    """``log p(A) - log p(B)`` at the place where a verdict's letter was written, in nats, and whether that is a bound;
    None without a verdict.

    Args:
        tokens: of the answer, as ``logprobs.content`` has them: ``token``, ``logprob`` and ``top_logprobs``.
    """
    texts, verdicts = "", []
    for token in tokens:
        texts += token["token"]
        verdicts.append(read_verdict(texts))
    if not verdicts or verdicts[-1] is None:
        return None, False
    # the token from which on the verdict is what it is in the end
    place = max((i + 1 for i, verdict in enumerate(verdicts) if verdict != verdicts[-1]), default=0)
    chosen = tokens[place]
    found = {_letter(chosen["token"]) or ("A" if verdicts[-1] > 0 else "B"): [float(chosen["logprob"])]}
    for other in chosen["top_logprobs"]:
        if other["token"] != chosen["token"] and (letter := _letter(other["token"])):
            found.setdefault(letter, []).append(float(other["logprob"]))
    least = min(float(one["logprob"]) for one in (chosen, *chosen["top_logprobs"]))
    sums = {letter: _log_sum(found.get(letter, [least])) for letter in ("A", "B")}
    return max(-_MOST, min(_MOST, sums["A"] - sums["B"])), len(found) < 2


def _letter(token: str) -> str | None:
    """The letter that a token is, apart from blanks and marks."""
    letter = re.sub(r"[\W_]", "", token).upper()
    return letter if letter in ("A", "B") else None


def _log_sum(values: Sequence[float]) -> float:
    top = max(values)
    return top + math.log(math.fsum(math.exp(value - top) for value in values))
