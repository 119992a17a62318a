"""``http``: rewards from servers that keep the contract of OpenRLHF's ``serve_rm``.

A request is ``POST {"query": [...], "prompts": [...], "labels": [...]}``, where a query is prompt and response with
their special tokens. The answer is ``{"rewards": [...]}``, with ``"scores": [...]`` and ``"extra_logs": {NAME: [...]}``
if the server has them, each as long as the query (for a single query, plain numbers, too).
"""

from __future__ import annotations

import json
import queue
import socket
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Annotated, Any, ClassVar
from urllib.parse import urlsplit

from ..cli.errors import UserError
from ..cli.flags import COUNT, NOT_NEGATIVE, POSITIVE
from .base import Reward, RewardBatch, RewardContext, RewardResult

_MAX_PAUSE_SECONDS = 30.0
_CONNECT_SECONDS = 5.0
_PORTS = {"http": 80, "https": 443}
_JSON = {"Content-Type": "application/json"}
_BUSY = (408, 425, 429)  # and every 5xx: try again
_MAX_ANSWER_BYTES = 2**26  # unpacked
_CHUNK_BYTES = 2**16
_POLL_SECONDS = 0.2  # between two looks whether another request has failed


class _Unavailable(Exception):
    """The server gave no answer this time."""


@dataclass
class HTTP(Reward):
    """Rewards from OpenRLHF's serve_rm, or any server with its contract.

    A batch is cut into requests, which go to the servers in turn, several at a time. A server that cannot be reached,
    is too slow, or answers 408, 425, 429 or 5xx is tried again after a growing pause, and with several servers the next
    one takes its place; any other answer that is not the contract's, or is larger than 64 MiB, ends the run at once.
    """

    waits: ClassVar[bool] = True

    url: Annotated[list[str], "the servers, http://host:port/get_reward"]
    batch_size: Annotated[int, "rollouts in a request", COUNT] = 16
    threads: Annotated[int, "requests at a time", COUNT] = 8
    tries: Annotated[int, "of one request, before the run is stopped", COUNT] = 5
    timeout: Annotated[float, "seconds that a whole answer may take", POSITIVE] = 180.0
    pause: Annotated[
        float, "seconds before the second try; each further one waits twice as long, 30 at most", NOT_NEGATIVE
    ] = 1.0

    def __post_init__(self) -> None:
        for url in self.url:
            if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
                raise ValueError(f"--http.url {url} is not an http:// or https:// address")
        if not self.url:
            raise ValueError("--http.url is empty; name a server")
        self._decode: Any = None

    def check(self, args: SimpleNamespace) -> None:
        """Refuse a run whose servers are all down. What a cluster reaches is not known here.
        Raises UserError if no server listens."""
        from ..backends.resources import cluster_address

        if cluster_address():
            return
        for url in self.url:
            parts = urlsplit(url)
            try:
                socket.create_connection((parts.hostname, parts.port or _PORTS[parts.scheme]), _CONNECT_SECONDS).close()
                return
            except OSError as error:
                reason = error.strerror or str(error)
        raise UserError(
            f"reward 'http': no server listens at {', '.join(map(_shown, self.url))} ({reason}); start it, or give "
            "another --http.url"
        )

    def setup(self, context: RewardContext) -> None:
        """Keep the policy's tokenizer, which writes the queries."""
        if context.tokenizer is not None:
            self._decode = context.tokenizer.decode

    def score(self, batch: RewardBatch) -> RewardResult:
        """Ask the servers. Raises UserError if no server answered, or one broke the contract; its address is named."""
        parts = [
            batch.take(range(i, min(i + self.batch_size, len(batch)))) for i in range(0, len(batch), self.batch_size)
        ]
        stop = threading.Event()
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="reward-http")
        try:
            answers = list(pool.map(lambda number, part: self._ask(number, part, stop), range(len(parts)), parts))
        finally:
            stop.set()  # after a failure, the other requests need not wait for their next try
            pool.shutdown(wait=False, cancel_futures=True)
        columns: dict[str, list[Any]] = {}
        for answer in answers:
            if set(answer) != set(answers[0]):
                changed = ", ".join(sorted(set(answer) ^ set(answers[0])))
                raise UserError(f"the servers give {changed} with some answers and not with others; fix them")
            for key, values in answer.items():
                columns.setdefault(key, []).extend(values)
        rewards, scores = columns.pop("rewards"), columns.pop("scores", None)
        return RewardResult(
            rewards, {key.removeprefix("extra_logs."): values for key, values in columns.items()}, scores
        )

    def _ask(self, number: int, part: RewardBatch, stop: threading.Event) -> dict[str, list[Any]]:
        """One request, as often as it takes: column name -> a value for each rollout."""
        import tenacity

        queries = [self._query(rollout.prompt, rollout.response, rollout.token_ids) for rollout in part]
        payload = json.dumps({"query": queries, "prompts": part.prompts, "labels": part.labels})
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_Unavailable),
            stop=tenacity.stop_after_attempt(self.tries) | tenacity.stop_when_event_set(stop),
            wait=tenacity.wait_exponential(multiplier=self.pause, max=_MAX_PAUSE_SECONDS),
            sleep=tenacity.sleep_using_event(stop),
            reraise=True,
        )
        url = ""
        try:
            for attempt in retrying:
                with attempt:
                    url = self.url[(number + attempt.retry_state.attempt_number - 1) % len(self.url)]
                    answer = self._post(url, payload, stop)
        except _Unavailable as error:
            raise UserError(
                f"the server {_shown(url)} gave no answer in {self.tries} tries ({error}); "
                "start it, or give another --http.url"
            ) from error
        return _columns(answer, len(part), _shown(url))

    def _query(self, prompt: str, response: str, token_ids: Any) -> str:
        if self._decode is None or not token_ids:
            return prompt + response
        return str(self._decode(list(token_ids), skip_special_tokens=False))

    def _post(self, url: str, payload: str, stop: threading.Event) -> Any:
        """One try. It runs in a thread that is left behind when its time is over: a server can drag out an answer's
        headers, which no time-out of a client ends."""
        end = time.monotonic() + self.timeout
        found: queue.SimpleQueue[tuple[int, bytes] | Exception] = queue.SimpleQueue()
        threading.Thread(target=self._exchange, args=(url, payload, end, stop, found), daemon=True).start()
        while True:
            try:
                answer = found.get(timeout=min(_POLL_SECONDS, max(0.0, end - time.monotonic())))
                break
            except queue.Empty:
                if stop.is_set() or time.monotonic() >= end:
                    raise _Unavailable("ReadTimeout") from None
        if isinstance(answer, Exception):
            raise answer
        status, body = answer
        if status in _BUSY or status >= 500:
            raise _Unavailable(f"HTTP {status}")
        if not 200 <= status < 300:
            raise UserError(f"the server {_shown(url)} answers HTTP {status}; check --http.url")
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            raise UserError(f"the server {_shown(url)} answers no JSON; check --http.url") from error

    def _exchange(self, url: str, payload: str, end: float, stop: threading.Event, found: queue.SimpleQueue) -> None:
        """Puts the answer's status and body, or what went wrong, into ``found``."""
        import requests

        try:
            with requests.Session() as session:
                session.trust_env = False  # as OpenRLHF's client: no proxy of the environment, no credentials of files
                body = bytearray()
                with session.post(url, payload, headers=_JSON, timeout=self.timeout, stream=True) as response:
                    for piece in response.iter_content(_CHUNK_BYTES):
                        body += piece
                        if len(body) > _MAX_ANSWER_BYTES:
                            raise UserError(
                                f"the server {_shown(url)} answers with more than {_MAX_ANSWER_BYTES >> 20} MiB; it "
                                "must give a number for each query, and little else"
                            )
                        if stop.is_set() or time.monotonic() >= end:
                            raise _Unavailable("ReadTimeout")
            found.put((response.status_code, bytes(body)))
        except requests.RequestException as error:
            found.put(_Unavailable(type(error).__name__))
        except Exception as error:
            found.put(error)


def _shown(url: str) -> str:
    """An address without what may be secret in it."""
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname}{port}{parts.path}"


def _columns(answer: Any, count: int, server: str) -> dict[str, list[Any]]:
    """The answer's columns, each of ``count`` values; extra logs as ``extra_logs.NAME``."""
    if not isinstance(answer, Mapping) or answer.get("rewards") is None:
        raise UserError(f"the server {server} answers without 'rewards'; it must answer as serve_rm does")
    found = {"rewards": answer["rewards"]}
    if answer.get("scores") is not None:
        found["scores"] = answer["scores"]
    extra = answer.get("extra_logs") or {}
    if not isinstance(extra, Mapping):
        raise UserError(f"the server {server} answers with 'extra_logs' that are not an object; fix it")
    found |= {f"extra_logs.{key}": values for key, values in extra.items()}
    for key, values in found.items():
        if count == 1 and not isinstance(values, list):
            found[key] = values = [values]
        if not isinstance(values, list) or len(values) != count:
            number = len(values) if isinstance(values, list) else "no list of"
            raise UserError(
                f"the server {server} answers {number} {key} for {count} queries; it must give one for each"
            )
    return found
