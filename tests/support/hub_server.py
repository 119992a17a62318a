"""A local server that takes folders as the Hugging Face hub does: repositories are made, small files come inside of a
commit, large ones as LFS objects before it. `ONLINE` keeps the hub's client away from Xet."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from helpers import serving

TOKEN = "hf_verysecret"
ONLINE = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}


@dataclass
class Repository:
    """One that was made; ``files`` is its main branch, ``kind`` is ``model`` or ``dataset``."""

    private: bool
    kind: str = "model"
    files: dict[str, bytes] = field(default_factory=dict)


class HubServer(ThreadingHTTPServer):
    """``repositories`` by OWNER/NAME; one that stands there beforehand is kept as it is."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.environment = {**ONLINE, "HF_ENDPOINT": self.url, "HF_TOKEN": TOKEN}


class Handler(BaseHTTPRequestHandler):
    """Answers one request; whoever has no token is told so."""

    server: HubServer

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        """What is known of a repository."""
        asked = re.fullmatch(r"/api/(model|dataset)s/(.+)", self.path)
        found = self.server.repositories.get(asked[2]) if asked else None
        if asked and found and found.kind == asked[1]:
            self.reply(200, {"id": asked[2], "private": found.private, "siblings": []})
        else:
            self.reply(404, {"error": "Repository not found"})

    def do_PUT(self) -> None:
        """An LFS object."""
        content = self.body()
        assert self.path == f"/objects/{hashlib.sha256(content).hexdigest()}"
        self.server.objects[self.path.rpartition("/")[2]] = content
        self.reply(200, {})

    def do_POST(self) -> None:
        """An API call."""
        content = self.body()
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            self.reply(401, {"error": "Invalid username or password."})
        elif self.path == "/api/repos/create":
            self.create(json.loads(content))
        elif self.path == "/api/validate-yaml":
            self.reply(200, {"errors": [], "warnings": []})
        elif self.path.endswith(".git/info/lfs/objects/batch"):
            wanted = json.loads(content)["objects"]
            for one in wanted:
                one["actions"] = {"upload": {"href": f"{self.server.url}/objects/{one['oid']}"}}
            self.reply(200, {"transfer": "basic", "objects": wanted})
        elif found := re.fullmatch(r"/api/(model|dataset)s/(\S+/\S+)/(preupload|commit)/main", self.path):
            assert self.server.repositories[found[2]].kind == found[1]
            lines = [json.loads(line) for line in content.splitlines()]
            {"preupload": self.preupload, "commit": self.commit}[found[3]](found[2], lines)
        else:
            self.reply(404, {"error": f"no {self.path}"})

    def create(self, asked: dict[str, Any]) -> None:
        """Make a repository, unless it is there."""
        name = "/".join(part for part in (asked.get("organization"), asked["name"]) if part)
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        status = 409 if name in self.server.repositories else 200
        self.server.repositories.setdefault(name, Repository(private, asked.get("type") or "model"))
        self.reply(status, {"url": f"{self.server.url}/{name}"})

    def preupload(self, _: str, lines: list[dict]) -> None:
        """Weights are to come as LFS objects."""
        files = [{"path": one["path"], "shouldIgnore": False} for one in lines[0]["files"]]
        for one in files:
            one["uploadMode"] = "lfs" if one["path"].endswith(".safetensors") else "regular"
        self.reply(200, {"files": files})

    def commit(self, name: str, lines: list[dict]) -> None:
        """Put what was sent into the repository."""
        files = self.server.repositories[name].files
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
        self.reply(200, {"commitUrl": f"{self.server.url}/{name}/commit/{'0' * 40}", "commitOid": "0" * 40})

    def body(self) -> bytes:
        """What was sent."""
        return self.rfile.read(int(self.headers["Content-Length"]))

    def reply(self, status: int, value: dict) -> None:
        """Send JSON."""
        text = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder, by their paths in it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def hub() -> Iterator[HubServer]:
    """One that runs until the block ends."""
    server = HubServer()
    with serving(server):
        yield server
