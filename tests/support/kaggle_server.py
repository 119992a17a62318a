"""A local server that speaks the part of Kaggle's protocol that a competition's download needs.

Log in is by token (looked up at ``IntrospectToken``) or by user name and key; ``DownloadDataFiles`` redirects to a
signed address, from which the zip comes. Errors are JSON with ``code`` and ``message``, as Kaggle's.
"""

from __future__ import annotations

import base64
import io
import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from helpers import serving

USER, KEY, TOKEN, SIGNATURE = "planted-user", "planted-key-4711", "planted-token-0815", "planted-signature-3141"
SECRETS = (KEY, TOKEN, SIGNATURE, base64.b64encode(f"{USER}:{KEY}".encode()).decode())
TOXIC = "jigsaw-toxic-comment-classification-challenge"
UNINTENDED = "jigsaw-unintended-bias-in-toxicity-classification"


class KaggleServer(ThreadingHTTPServer):
    """``files`` are the zips by competition; with ``status`` every download is refused with it."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = files
        self.status = 0
        self.paths: list[str] = []

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: KaggleServer

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def do_POST(self) -> None:
        """An API call."""
        self.server.paths.append(self.path)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        method = self.path.removeprefix("/v1/")
        if method == "security.OAuthService/IntrospectToken":
            good = body["token"] == TOKEN
            self.reply(200, {"active": good, **({"username": USER} if good else {})})
        elif method != "competitions.CompetitionApiService/DownloadDataFiles":
            self.reply(404, {"code": 404, "message": f"no method {method}"})
        elif self.headers["Authorization"] not in (f"Bearer {TOKEN}", f"Basic {SECRETS[3]}"):
            self.reply(401, {"code": 401, "message": "Unauthenticated"})
        elif self.server.status:  # an unkind server quotes what it was sent
            said = f"refused: {self.headers['Authorization']}"
            self.reply(self.server.status, {"code": self.server.status, "message": said})
        elif (name := body["competitionName"]) not in self.server.files:
            self.reply(404, {"code": 404, "message": "Not found"})
        else:
            self.send_response(302)
            self.send_header("Location", f"{self.server.url}/files/{name}.zip?Signature={SIGNATURE}")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def do_GET(self) -> None:
        """The file that an API call redirects to."""
        address = urlsplit(self.path)
        self.server.paths.append(address.path)
        data = self.server.files[address.path.removeprefix("/files/").removesuffix(".zip")]
        self.send_response(200 if SIGNATURE in address.query else 403)
        self.send_header("Content-Type", "application/zip")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Last-Modified", "Tue, 20 Mar 2018 12:00:00 GMT")
        self.send_header("ETag", '"1"')
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        self.wfile.write(data)

    def reply(self, status: int, body: dict) -> None:
        """Send JSON."""
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def serve(files: dict[str, bytes]) -> Iterator[KaggleServer]:
    """A running server."""
    server = KaggleServer(files)
    with serving(server):
        yield server


def zipped(members: dict[str, bytes | str]) -> bytes:
    """A zip with these members."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return data.getvalue()
