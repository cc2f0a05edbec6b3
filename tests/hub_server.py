"""A small Hub on localhost: real huggingface_hub clients read models from it.

Read-only so far: model info, tree, resolve with ranges. State is in memory; every request is logged
with the bytes its body sent. Uploads are further branches in `Handler.answer`.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Repository:
    """One model repository with one commit; `gated` and `private` answer as the Hub does."""

    files: dict[str, bytes]
    gated: bool = False
    token: str | None = None

    @property
    def commit(self) -> str:
        """A commit id that follows from the content."""
        digest = hashlib.sha1()
        for name, data in sorted(self.files.items()):
            digest.update(name.encode() + b"\0" + hashlib.sha256(data).digest())
        return digest.hexdigest()


@dataclass(frozen=True)
class Request:
    """A request that was answered: `sent` counts the bytes of the body only."""

    method: str
    path: str
    range: str | None
    status: int
    sent: int


@dataclass
class Hub:
    """Repositories by id, the request log, and switches for misbehaviour."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    log: list[Request] = field(default_factory=list)
    ignore_ranges: bool = False
    failure: int | None = None
    url: str = ""

    def add(self, repo_id: str, files: dict[str, bytes], **options: Any) -> Repository:
        """Store a repository."""
        self.repositories[repo_id] = Repository(files, **options)
        return self.repositories[repo_id]

    def sent(self, suffix: str = "") -> int:
        """Body bytes sent for all paths that end with `suffix`."""
        return sum(item.sent for item in self.log if item.path.endswith(suffix))


class Answer(Exception):
    """Ends a request early with an error the Hub client understands."""

    def __init__(self, status: int, code: str, commit: str = "") -> None:
        super().__init__(code)
        headers = {"X-Error-Code": code, "X-Error-Message": code}
        self.status, self.headers = status, headers | ({"X-Repo-Commit": commit} if commit else {})


def describe(name: str, data: bytes) -> dict[str, Any]:
    """The listing entry of a file."""
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    entry: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": blob}
    if name.endswith(".safetensors"):
        digest = hashlib.sha256(data).hexdigest()
        entry["lfs"] = {"oid": digest, "sha256": digest, "size": len(data), "pointerSize": 130}
    return entry


class Handler(BaseHTTPRequestHandler):
    """Speaks as much of the Hub's protocol as reading a model needs."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        """Keep the test output clean."""

    def do_GET(self) -> None:
        """Answer GET and HEAD; the body of HEAD is dropped in `send`."""
        path = unquote(urlsplit(self.path).path)
        try:
            if self.hub.failure is not None:
                raise Answer(self.hub.failure, "Failure")
            status, headers, body = self.answer(path)
        except Answer as error:
            status, headers, body = error.status, error.headers, b"{}"
        self.send(path, status, headers, body)

    do_HEAD = do_GET

    def send(self, path: str, status: int, headers: dict[str, str], body: bytes) -> None:
        """Write the answer and log what was really sent."""
        sent = 0 if self.command == "HEAD" else len(body)
        entry = Request(self.command, path, self.headers.get("Range"), status, sent)
        self.hub.log.append(entry)
        try:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if sent:
                self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body for a path."""
        info = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path)
        if info and "/tree" not in path:
            repository = self.open(info[1], info[2])
            return self.as_json(self.model_info(info[1], repository))
        tree = re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path)
        if tree:
            files = self.open(tree[1], tree[2]).files
            return self.as_json([describe(name, data) for name, data in sorted(files.items())])
        resolve = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if resolve:
            return self.file(self.open(resolve[1], resolve[2]), resolve[3])
        raise Answer(404, "NotFound")

    def open(self, repo_id: str, revision: str | None) -> Repository:
        """Return a repository the caller may read."""
        repository = self.hub.repositories.get(repo_id)
        caller = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if repository is None or (repository.token and repository.token != caller):
            raise Answer(404 if caller else 401, "RepoNotFound")
        if revision not in (None, "main", repository.commit):
            raise Answer(404, "RevisionNotFound")
        if repository.gated and "/resolve/" in self.path:
            raise Answer(403, "GatedRepo")
        return repository

    def model_info(self, repo_id: str, repository: Repository) -> dict[str, Any]:
        """The model info document, sizes included."""
        siblings = []
        for name, data in sorted(repository.files.items()):
            entry = describe(name, data)
            siblings.append({"rfilename": name, "size": len(data), "blobId": entry["oid"]})
            if "lfs" in entry:
                siblings[-1]["lfs"] = entry["lfs"]
        return {"id": repo_id, "sha": repository.commit, "siblings": siblings, "tags": []}

    def as_json(self, value: Any) -> tuple[int, dict[str, str], bytes]:
        """A JSON answer."""
        return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()

    def file(self, repository: Repository, name: str) -> tuple[int, dict[str, str], bytes]:
        """A file, whole or the range asked for."""
        if name not in repository.files:
            raise Answer(404, "EntryNotFound", repository.commit)
        data = repository.files[name]
        entry = describe(name, data)
        etag = entry.get("lfs", entry)["oid"]
        headers = {"X-Repo-Commit": repository.commit, "ETag": f'"{etag}"'}
        headers["Accept-Ranges"] = "bytes"
        if "lfs" in entry:
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(data))}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted is None or self.hub.ignore_ranges:
            return 200, headers, data
        start = int(wanted[1])
        end = min(int(wanted[2] or len(data) - 1), len(data) - 1)
        if start > end:
            return 416, headers, b""
        headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
        return 206, headers, data[start : end + 1]


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Serve a Hub on a free port until the block ends; clients get its `url` as HF_ENDPOINT."""
    hub = Hub()
    handler = type("BoundHandler", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
