"""A server on this machine that answers JSON as a test says."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

#: what a server answers: a status, a JSON value (or bytes) and, perhaps, headers; from the request, with its path, and
#: its number, counted from 1
Answer = Callable[[dict, int], tuple]


class Server:
    """A server on a free port that keeps what it was asked."""

    def __init__(self, answer: Answer) -> None:
        self.asked: list[dict] = []
        self.headers: list[dict[str, str]] = []
        self.at_a_time = self.most_at_a_time = 0
        lock = threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(handler) -> None:
                handler.do_POST()

            def do_POST(handler) -> None:
                request = json.loads(handler.rfile.read(int(handler.headers.get("Content-Length", 0))) or "{}")
                with lock:
                    self.asked.append({**request, "path": handler.path})
                    self.headers.append(dict(handler.headers))
                    number = len(self.asked)
                    self.at_a_time += 1
                    self.most_at_a_time = max(self.most_at_a_time, self.at_a_time)
                status, value, *more = answer({**request, "path": handler.path}, number)
                body = value if isinstance(value, bytes) else json.dumps(value).encode()
                with lock:
                    self.at_a_time -= 1
                with contextlib.suppress(ConnectionError):  # the client has given up
                    handler.send_response(status)
                    handler.send_header("Content-Length", str(len(body)))
                    for name, text in (more[0] if more else {}).items():
                        handler.send_header(name, text)
                    handler.end_headers()
                    handler.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/get_reward"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
