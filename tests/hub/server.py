"""The HTTP side: requests come in, a route answers, everything is logged."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub import reading, writing
from tests.hub.faults import Fault
from tests.hub.routes import Call, Reply
from tests.hub.state import Answer, Hub, Request

BLOCK = 64 * 1024


class Dropped(Exception):
    """The connection ends here, without an answer."""


class Handler(BaseHTTPRequestHandler):
    """Reads a request whole, asks the routes, writes the answer."""

    protocol_version = "HTTP/1.1"
    hub: Hub
    received: int

    def log_message(self, *_: Any) -> None:
        """Keep the test output clean."""

    def serve(self) -> None:
        """Answer any method; the body of HEAD is dropped in `send`."""
        path = unquote(urlsplit(self.path).path)
        self.received = 0
        fault = self.struck(path)
        try:
            if fault and fault.kind == "reset":
                self.read_body(stop=fault.after)
                raise Dropped
            body = self.read_body()
            if fault and fault.kind == "hang":
                time.sleep(fault.seconds)
                raise Dropped
            if fault and fault.kind == "call":
                fault.action()
            status, headers, content = self.answer(path, body, fault)
            if fault and fault.kind == "lost":
                raise Dropped
            self.send(path, status, headers, content, short=bool(fault and fault.kind == "short"))
        except (Dropped, BrokenPipeError, ConnectionResetError):
            self.note(path, 0, 0)
            self.drop()

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve

    def struck(self, path: str) -> Fault | None:
        """The fault that hits this request."""
        with self.hub.lock:
            found = (fault for fault in self.hub.faults if fault.strikes(self.command, path))
            return next(found, None)

    def read_body(self, stop: int | None = None) -> bytes:
        """Return the request's body, or what arrives until `stop` bytes are there."""
        body = bytearray()
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            left = int(self.headers.get("Content-Length") or 0)
            while left and (stop is None or len(body) < stop):
                block = self.rfile.read(min(left, BLOCK))
                if not block:
                    break
                body += block
                left -= len(block)
                self.received = len(body)
            if left and stop is None:
                raise Dropped
        self.received = len(body)
        return bytes(body)

    def answer(self, path: str, body: bytes, fault: Fault | None) -> Reply:
        """Return status, headers and body for a request."""
        query = {key: found[0] for key, found in parse_qs(urlsplit(self.path).query).items()}
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        wanted = self.headers.get("Range")
        call = Call(self.hub, self.command, path, query, token, wanted, body)
        try:
            if fault and fault.kind == "status":
                raise Answer(fault.status, "Failure")
            if self.hub.failure is not None:
                raise Answer(self.hub.failure, "Failure")
            if token and self.hub.users and token not in self.hub.users:
                raise Answer(401, message="Invalid credentials in Authorization header")
            with self.hub.lock:
                for routes in (reading.ROUTES, writing.ROUTES):
                    found = routes.answer(call)
                    if found is not None:
                        return found
            raise Answer(404, "NotFound")
        except Answer as error:
            return error.status, error.headers, b"{}"

    def send(
        self, path: str, status: int, headers: dict[str, str], body: bytes, *, short: bool
    ) -> None:
        """Write the answer and log what was really sent."""
        content = b"" if self.command == "HEAD" else body[: len(body) // 2] if short else body
        self.note(path, status, len(content))
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(content)
        if short:
            self.wfile.flush()
            self.drop()

    def note(self, path: str, status: int, sent: int) -> None:
        """Log a request; status 0 for one without an answer."""
        item = Request(self.command, path, self.headers.get("Range"), status, sent, self.received)
        self.hub.log.append(item)

    def drop(self) -> None:
        """Reset the connection."""
        self.close_connection = True
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


class Server(ThreadingHTTPServer):
    """Threads that never keep a test from ending, and silence about clients that leave."""

    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_: Any) -> None:
        """A client that was killed is no error of the server's."""


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Serve a Hub on a free port until the block ends; clients get its `url` as HF_ENDPOINT."""
    hub = Hub()
    handler = type("BoundHandler", (Handler,), {"hub": hub})
    server = Server(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
