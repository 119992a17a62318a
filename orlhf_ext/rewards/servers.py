"""Asking HTTP servers for JSON: several requests at a time, tries, pauses and limits."""

from __future__ import annotations

import json
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

from ..cli.errors import UserError

T = TypeVar("T")
U = TypeVar("U")

_MAX_PAUSE_SECONDS = 30.0
_MAX_ASKED_PAUSE_SECONDS = 300.0  # that a server may ask for
_CONNECT_SECONDS = 5.0
_PORTS = {"http": 80, "https": 443}
_BUSY = (408, 425, 429)  # and every 5xx: try again
_MAX_ANSWER_BYTES = 2**26  # unpacked
_CHUNK_BYTES = 2**16
_POLL_SECONDS = 0.2  # between two looks whether another request has failed


class _Unavailable(Exception):
    """The server gave no answer this time; it may say how many seconds to wait."""

    seconds: float = 0.0


class Refused(UserError):
    """The server answers with a status that no second try would change.

    Args:
        message: the sentence.
        status: of HTTP.
        body: what came with it.
    """

    def __init__(self, message: str, status: int, body: bytes) -> None:
        super().__init__(message)
        self.status, self.body = status, body


def check_urls(urls: Sequence[str], flag: str) -> None:
    """Raises ValueError if there is none, or one is no address."""
    for url in urls:
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise ValueError(f"{flag} {url} is not an http:// or https:// address")
    if not urls:
        raise ValueError(f"{flag} is empty; name a server")


def check_listening(urls: Sequence[str], reward: str) -> None:
    """Refuse a run with a reward whose servers are all down. What a cluster reaches is not known here.
    Raises UserError if no server listens."""
    from ..backends.resources import cluster_address

    if cluster_address():
        return
    for url in urls:
        parts = urlsplit(url)
        try:
            socket.create_connection((parts.hostname, parts.port or _PORTS[parts.scheme]), _CONNECT_SECONDS).close()
            return
        except OSError as error:
            reason = error.strerror or str(error)
    raise UserError(
        f"reward {reward!r}: no server listens at {', '.join(map(shown, urls))} ({reason}); start it, or give another "
        f"--{reward}.url"
    )


def shown(url: str) -> str:
    """An address without what may be secret in it."""
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname}{port}{parts.path}"


def side_by_side(function: Callable[[int, T, threading.Event], U], items: Iterable[T], threads: int) -> list[U]:
    """``function(number, item, stop)`` of each item, so many at a time, in their order. After a failure, ``stop`` is
    set, so that the others need not wait for their next try."""
    stop = threading.Event()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="reward-http")
    try:
        things = list(items)
        return list(pool.map(lambda number, item: function(number, item, stop), range(len(things)), things))
    finally:
        stop.set()
        pool.shutdown(wait=False, cancel_futures=True)


@dataclass
class Client:
    """Asks servers in turn, in JSON.

    A server that cannot be reached, is too slow, or answers 408, 425, 429 or 5xx is tried again after a growing pause
    (or the one that it asks for), and with several servers the next one takes its place.

    Args:
        urls: the servers.
        tries: of a request, before the run is stopped.
        timeout: seconds that a whole answer may take.
        pause: seconds before the second try; each further one waits twice as long, 30 at most.
        flag: what the user's flags begin with, for messages.
        headers: of each request.
    """

    urls: Sequence[str]
    tries: int
    timeout: float
    pause: float
    flag: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def ask(self, number: int, payload: Any, stop: threading.Event) -> tuple[Any, str]:
        """One request, as often as it takes: the answer's JSON, and who gave it.

        Args:
            number: of the request; the first try goes to the server of that number.
            payload: a JSON value, or None for a GET.
            stop: set when the answer is no longer wanted.

        Raises:
            Refused: a server refuses the request.
            UserError: none answered, or one broke its contract; its address is named.
        """
        import tenacity

        wait = tenacity.wait_exponential(multiplier=self.pause, max=_MAX_PAUSE_SECONDS)

        def pause(state: tenacity.RetryCallState) -> float:
            error = state.outcome and state.outcome.exception()
            return max(wait(state), error.seconds if isinstance(error, _Unavailable) else 0.0)

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_Unavailable),
            stop=tenacity.stop_after_attempt(self.tries) | tenacity.stop_when_event_set(stop),
            wait=pause,
            sleep=tenacity.sleep_using_event(stop),
            reraise=True,
        )
        body, url = None if payload is None else json.dumps(payload), ""
        try:
            for attempt in retrying:
                with attempt:
                    url = self.urls[(number + attempt.retry_state.attempt_number - 1) % len(self.urls)]
                    answer = self._try(url, body, stop)
        except _Unavailable as error:
            raise UserError(
                f"the server {shown(url)} gave no answer in {self.tries} tries ({error}); "
                f"start it, or give another {self.flag}url"
            ) from error
        return answer, shown(url)

    def _try(self, url: str, payload: str | None, stop: threading.Event) -> Any:
        """One try. It runs in a thread that is left behind when its time is over: a server can drag out an answer's
        headers, which no time-out of a client ends."""
        end = time.monotonic() + self.timeout
        found: queue.SimpleQueue[tuple[int, bytes, str] | Exception] = queue.SimpleQueue()
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
        status, body, later = answer
        if status in _BUSY or status >= 500:
            busy = _Unavailable(f"HTTP {status}")
            busy.seconds = min(_MAX_ASKED_PAUSE_SECONDS, float(later)) if later.isdecimal() else 0.0
            raise busy
        if not 200 <= status < 300:
            raise Refused(f"the server {shown(url)} answers HTTP {status}; check {self.flag}url", status, body)
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            raise UserError(f"the server {shown(url)} answers no JSON; check {self.flag}url") from error

    def _exchange(
        self, url: str, payload: str | None, end: float, stop: threading.Event, found: queue.SimpleQueue
    ) -> None:
        """Puts the answer's status, body and Retry-After, or what went wrong, into ``found``."""
        import requests

        try:
            with requests.Session() as session:
                session.trust_env = False  # as OpenRLHF's client: no proxy of the environment, no credentials of files
                body = bytearray()
                method = "GET" if payload is None else "POST"
                session.headers.update({"Content-Type": "application/json", **self.headers})
                with session.request(method, url, data=payload, timeout=self.timeout, stream=True) as response:
                    for piece in response.iter_content(_CHUNK_BYTES):
                        body += piece
                        if len(body) > _MAX_ANSWER_BYTES:
                            raise UserError(
                                f"the server {shown(url)} answers with more than {_MAX_ANSWER_BYTES >> 20} MiB; it "
                                "must give a number for each query, and little else"
                            )
                        if stop.is_set() or time.monotonic() >= end:
                            raise _Unavailable("ReadTimeout")
            found.put((response.status_code, bytes(body), response.headers.get("Retry-After", "")))
        except requests.RequestException as error:
            found.put(_Unavailable(type(error).__name__))
        except Exception as error:
            found.put(error)
