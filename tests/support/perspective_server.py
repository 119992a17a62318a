"""A local server that answers as the Perspective API does, with faults on demand.

Replies are taken from ``planned`` as long as there are some: a status, or a status and a body. Then a text's score is
its length in hundredths, and what the API judges not is refused in the API's words.
"""

from __future__ import annotations

import json
import socket
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from helpers import serving

from orlhf_ext.deadend import perspective

KEY = "planted-key-2718"
PATH = "/v1alpha1/comments:analyze"
#: the API's words for texts that it does not judge
REFUSALS = {
    "COMMENT_TOO_LONG": "Comment text was too many bytes. Value (23368) exceeded limit (20480).",
    "COMMENT_EMPTY": "Comment must be non-empty.",
    "LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE": "Attribute TOXICITY does not support request languages: it",
    "LANGUAGE_DETECTION_FAILED": "Unable to detect language. Please try again.",
}


def refusal(code: int, status: str, message: str, **detail: str) -> tuple[int, str]:
    """An answer that is no score."""
    error = {"code": code, "message": message, "status": status, "details": [detail] if detail else []}
    return code, json.dumps({"error": error})


def scored(value: Any) -> str:
    """An answer with a score."""
    summary = {"summaryScore": {"value": value, "type": "PROBABILITY"}}
    return json.dumps({"attributeScores": {"TOXICITY": summary}, "languages": ["en"]})


class PerspectiveServer(ThreadingHTTPServer):
    """``asked`` holds the texts in order, ``times`` when, ``paths`` where."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}{PATH}"
        self.planned: deque[int | tuple[int, str]] = deque()
        self.asked: list[str] = []
        self.questions: list[dict[str, Any]] = []
        self.paths: list[str] = []


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: PerspectiveServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def do_POST(self) -> None:
        """A score, or what is planned."""
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = question["comment"]["text"]
        self.server.asked.append(text)
        self.server.questions.append(question)
        self.server.paths.append(self.path)
        if self.server.planned:
            planned = self.server.planned.popleft()
            self.reply(*(planned if isinstance(planned, tuple) else (planned, "")))
        elif self.headers["X-Goog-Api-Key"] != KEY:
            message = "API key not valid. Please pass a valid API key."
            self.reply(*refusal(400, "INVALID_ARGUMENT", message, reason="API_KEY_INVALID"))
        elif name := next((name for name in REFUSALS if name in text), ""):
            self.reply(*refusal(400, "INVALID_ARGUMENT", REFUSALS[name], errorType=name))
        else:
            self.reply(200, scored(len(text) / 100))

    do_GET = do_POST

    def reply(self, status: int, body: str) -> None:
        """Send it; status 0 closes the connection without a word."""
        if not status:
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        self.send_response(status)
        if 300 <= status < 400:
            self.send_header("Location", self.server.url)
        self.send_header("Content-Length", str(len(body.encode())))
        self.end_headers()
        self.wfile.write(body.encode())


@contextmanager
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[PerspectiveServer]:
    """A running server, which is asked in place of the API and without waiting."""
    server = PerspectiveServer()
    monkeypatch.setattr(perspective, "ADDRESS", server.url)
    monkeypatch.setattr(perspective, "PAUSE", 0.0)
    for name, value in {"PERSPECTIVE_API_KEY": KEY, "PERSPECTIVE_QPS": "1000", "NO_PROXY": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    with serving(server):
        yield server
