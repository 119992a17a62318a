"""A local server that speaks the part of Reddit's protocol that a look-up by id needs, with faults on demand.

Tokens are given at ``/api/v1/access_token`` to the right client alone; ``/api/info`` answers for at most 100 names with
a listing of those that exist, in the order asked for. What is deleted or removed looks as it does at Reddit.
"""

from __future__ import annotations

import base64
import json
import socket
import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from helpers import serving

CLIENT_ID, CLIENT_SECRET = "planted-client-4711", "planted-secret-0815"
TOKEN = "planted-token-3141"
BASIC = base64.b64encode(f"{CLIENT_ID}:{CLIENT_SECRET}".encode()).decode()
SECRETS = (CLIENT_ID, CLIENT_SECRET, TOKEN, BASIC)

#: runs a command against a server, so many ids at a time, with all waiting 100 times shorter
AT_SERVER = """
import runpy, sys, time
from data_builders.litbench import reddit
url, reddit.BATCH = sys.argv.pop(1), int(sys.argv.pop(1))
reddit.ENDPOINTS.update(reddit_url=url, oauth_url=url)
sleep = time.sleep
time.sleep = lambda seconds: sleep(seconds / 100)
runpy.run_module("orlhf_ext.build_data", run_name="__main__", alter_sys=True)
"""


def base36(number: int) -> str:
    """As Reddit writes ids."""
    digits = "0123456789abcdefghijklmnopqrstuvwxyz"
    return (base36(number // 36) if number >= 36 else "") + digits[number % 36]


def write_ids(path: Path, comments: int, shift: int = 1) -> list[tuple[str, str]]:
    """A CSV list of pairs in which each of the world's comments stands once as chosen and once as rejected."""
    names = [f"c{base36(number)}" for number in range(comments)]
    pairs = list(zip(names, names[shift:] + names[:shift], strict=True))
    rows = ["chosen_comment_id,rejected_comment_id", *(f"t1_{chosen},{rejected}" for chosen, rejected in pairs)]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return pairs


def hold_secrets(said: str, *folders: Path) -> None:
    """Hold that no planted credential or token is in a text or in any file."""
    texts = [said.encode(), *(path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file())]
    for secret in SECRETS:
        assert not any(secret.encode() in text for text in texts), "a secret is shown"


def make_world(comments: int, posts: int = 0) -> dict[str, dict[str, Any]]:
    """Comments ``c0``, ``c1``, ... and their posts by full name; every tenth comment is lost in one way or another."""
    posts = posts or comments // 2
    world: dict[str, dict[str, Any]] = {}
    for number in range(posts):
        name = f"p{base36(number)}"
        title = "[deleted by user]" if number % 40 == 7 else f'[WP] Title "{number}", with a comma'
        world[f"t3_{name}"] = {"id": name, "name": f"t3_{name}", "title": title, "author": "poster"}
    for number in range(comments):
        name = f"c{base36(number)}"
        notice = "[ Removed by reddit in response to a copyright notice. ]"
        body = {3: "[deleted]", 13: "[removed]", 23: notice, 33: " "}.get(number % 50)
        if number % 50 == 43:
            continue  # there is no such comment
        world[f"t1_{name}"] = {
            "id": name,
            "name": f"t1_{name}",
            "link_id": f"t3_p{base36(number // 2 % posts)}",
            "author": "[deleted]" if number % 7 == 2 else f"author_{number}",
            "body": body or f'Story {number}, "quoted"\n\nwith & < é \U0001f600 and more.\n' + "word " * (number % 30),
            "score": number * 3 - 5,
            "created_utc": 1672531200.0 + number,
            "subreddit": "WritingPrompts",
            "replies": "",
        }
    return world


class RedditServer(ThreadingHTTPServer):
    """``faults`` befall the next look-ups and ``token_faults`` the next log-ins, one each, as `Handler.fail` has them.

    ``poison`` are names that no look-up survives, ``token_lives`` the look-ups of a token, ``remaining`` the look-ups
    and seconds that the next answer says are left of the rate limit.

    Args:
        world: comments and posts by full name.
    """

    daemon_threads = True

    def __init__(self, world: dict[str, dict[str, Any]]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.world = world
        self.clear()

    def clear(self) -> None:
        """Forget what was asked, and be kind again."""
        self.faults: deque[str | None] = deque()
        self.token_faults: deque[str | None] = deque()
        self.poison: set[str] = set()
        self.token_lives = 0
        self.remaining: tuple[int, int] | None = None
        self.asked: list[list[str]] = []
        self.counts: Counter[str] = Counter()
        self.agents: set[str] = set()
        self.tokens = 0
        self.lives = 0
        self.released = threading.Event()
        self.noticed = threading.Condition()

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_port}"

    def plan(self, faults: Iterable[str | None]) -> None:
        """Add faults for the next look-ups; None stands for a good answer."""
        self.faults.extend(faults)

    def notice(self, names: list[str]) -> None:
        """Take down a look-up."""
        with self.noticed:
            self.asked.append(names)
            self.noticed.notify_all()

    def wait_for(self, number: int, timeout: float) -> bool:
        """Whether that many look-ups have come within ``timeout`` seconds."""
        with self.noticed:
            return self.noticed.wait_for(lambda: len(self.asked) >= number, timeout)

    def handle_error(self, *_: object) -> None:
        """A client that is gone is none of its business."""


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: RedditServer

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def do_POST(self) -> None:
        """A log-in."""
        self.rfile.read(int(self.headers["Content-Length"]))
        fault = self.server.token_faults.popleft() if self.server.token_faults else None
        self.server.counts["log-ins"] += 1
        if fault:
            self.fail(fault, "log-in ")
        elif self.path != "/api/v1/access_token":
            self.reply(404, {"message": "Not Found", "error": 404})
        elif self.headers["Authorization"] != f"Basic {BASIC}":  # an unkind server quotes what it was sent
            self.server.counts["fault: log-in 401"] += 1
            self.reply(401, {"message": f"Unauthorized {self.headers['Authorization']}", "error": 401})
        else:
            self.server.tokens += 1
            self.server.lives = self.server.token_lives
            token = {"access_token": f"{TOKEN}-{self.server.tokens}", "token_type": "bearer", "expires_in": 86400}
            self.reply(200, {**token, "scope": "*"})

    def do_GET(self) -> None:
        """A look-up."""
        server, address = self.server, urlsplit(self.path)
        fields = parse_qs(address.query)
        if address.path.rstrip("/") != "/api/info" or fields.get("raw_json") != ["1"]:
            self.reply(404, {"message": "Not Found", "error": 404})
            return
        names = fields["id"][0].split(",")
        server.agents.add(self.headers["User-Agent"])
        server.counts["look-ups"] += 1
        fault = server.faults.popleft() if server.faults else None
        server.notice(names)
        if server.token_lives:
            server.lives -= 1
        if fault:
            self.fail(fault)
        elif self.headers["Authorization"] != f"bearer {TOKEN}-{server.tokens}" or server.lives < 0:
            self.fail("expired")
        elif server.poison & set(names):
            self.fail("500")
        else:
            found = [server.world[name] for name in names[:100] if name in server.world]
            children = [{"kind": thing["name"][:2], "data": thing} for thing in found]
            self.reply(200, {"kind": "Listing", "data": {"after": None, "dist": len(found), "children": children}})

    def fail(self, fault: str, what: str = "") -> None:
        """Give no answer: ``503`` or any other status, ``429 7`` with Retry-After, or one of those below."""
        self.server.counts[f"fault: {what}{fault}"] += 1
        kind, _, word = fault.partition(" ")
        if fault == "drop":
            self.connection.shutdown(socket.SHUT_RDWR)
        elif fault == "cut":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"kind": "Listing", ')
        elif fault == "hang":
            self.server.released.wait(30)
        elif fault == "no json":
            self.reply(200, b'{"kind": "Listing", "data": {"children": [{"kind": "t1", "da')
        elif fault == "no listing":
            self.reply(200, {"error": 500, "message": "sorry"})
        elif fault == "empty":
            self.reply(200, b"")
        elif fault == "expired":
            headers = {"WWW-Authenticate": 'Bearer realm="reddit", error="invalid_token"'}
            self.reply(401, {"message": "Unauthorized", "error": 401}, headers)
        else:
            said = f"no: {self.headers['Authorization']}"
            headers = {"Retry-After": word} if kind == "429" and word else {}
            self.reply(int(kind), {"message": said, "error": int(kind)}, headers)

    def reply(self, status: int, body: dict | bytes, headers: dict[str, str] | None = None) -> None:
        """Send JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if self.server.remaining and self.command == "GET":
            remaining, reset = self.server.remaining
            self.server.remaining = None
            self.send_header("x-ratelimit-remaining", f"{remaining}.0")
            self.send_header("x-ratelimit-used", "100")
            self.send_header("x-ratelimit-reset", str(reset))
        self.send_header("Content-Type", "application/json; charset=UTF-8")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def serve(world: dict[str, dict[str, Any]]) -> Iterator[RedditServer]:
    """A running server."""
    server = RedditServer(world)
    with serving(server):
        try:
            yield server
        finally:
            server.released.set()
