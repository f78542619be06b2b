"""A file server on loopback with range requests, a log of all requests, and faults on demand."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any, Literal

Fault = Literal[
    "500", "503", "403", "404", "truncated", "reset", "slow", "no ranges", "other range", "compressed", "no size"
]


@dataclass
class Request:
    """A request, and what was sent in answer."""

    number: int  # from 0
    path: str
    headers: dict[str, str]  # names in lower case
    status: int = 0
    sent: int = 0  # bytes of the body


@dataclass
class FileServer:
    """Serves the files of a folder. ``fault``: returns what goes wrong with a request, or None."""

    root: Path
    etags: bool = True
    weak: bool = False
    times: bool = True
    fault: Callable[[Request], Fault | None] = lambda _: None
    redirects: dict[str, str] = field(default_factory=dict)  # path to location
    retry_after: str | None = None
    requests: list[Request] = field(default_factory=list)
    port: int = 0
    lock: Lock = field(default_factory=Lock)

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.port}/{name}"

    @property
    def sent(self) -> int:
        """Bytes of all bodies."""
        return sum(request.sent for request in self.requests)

    def ranges(self, name: str) -> list[tuple[int, int]]:
        """Returns the byte ranges that were asked for of a file, from the first byte to the one after the last."""
        found = [re.fullmatch(r"bytes=(\d+)-(\d+)", one.headers.get("range", "")) for one in self.of(name)]
        return [(int(one[1]), int(one[2]) + 1) for one in found if one]

    def of(self, name: str) -> list[Request]:
        return [request for request in self.requests if request.path.partition("?")[0] == f"/{name}"]


@contextmanager
def file_server(root: Path) -> Iterator[FileServer]:
    """Runs a server for the block."""
    found = FileServer(root)

    class Handler(_Handler):
        server_state = found

    server = _Server(("127.0.0.1", 0), Handler)
    found.port = server.server_address[1]
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """Prints nothing: clients close connections when they give up."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: FileServer
    timeout = 10
    disable_nagle_algorithm = True  # it would delay each answer by 40 ms

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        state = self.server_state
        with state.lock:
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = Request(len(state.requests), self.path, headers)
            state.requests.append(request)
        try:
            self._answer(state, request, state.fault(request))
        except ConnectionError:  # the client gave up
            self.close_connection = True

    def _answer(self, state: FileServer, request: Request, fault: Fault | None) -> None:
        path = request.path.partition("?")[0].lstrip("/")
        if location := state.redirects.get(path):
            return self._send(request, 302, {"Location": location})
        if fault in ("500", "503", "403", "404"):
            more = {"Retry-After": state.retry_after} if state.retry_after else {}
            return self._send(request, int(fault), more)
        if fault == "reset":
            self.close_connection = True
            return None
        file = state.root / path
        if not file.is_file():
            return self._send(request, 404, {})
        return self._send_file(state, request, fault, file)

    def _send_file(self, state: FileServer, request: Request, fault: Fault | None, file: Path) -> None:
        content = file.read_bytes()
        etag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        modified = formatdate(file.stat().st_mtime, usegmt=True)
        headers = {"ETag": f"W/{etag}" if state.weak else etag} if state.etags or state.weak else {}
        headers |= {"Last-Modified": modified} if state.times else {}
        if state.etags and request.headers.get("if-match", etag) != etag:
            return self._send(request, 412, {})
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("range", ""))
        if asked is None or fault == "no ranges":
            return self._send(request, 200, headers, content)
        start, stop = int(asked[1]), min(int(asked[2]) + 1, len(content))
        if start >= len(content):
            return self._send(request, 416, {"Content-Range": f"bytes */{len(content)}"})
        first = start + 1 if fault == "other range" else start
        size: object = "*" if fault == "no size" else len(content)
        headers |= {"Content-Range": f"bytes {first}-{stop - 1}/{size}"}
        headers |= {"Content-Encoding": "gzip"} if fault == "compressed" else {}
        return self._send(request, 206, headers, content[first:stop], fault)

    def _send(
        self, request: Request, status: int, headers: dict[str, str], body: bytes = b"", fault: Fault | None = None
    ) -> None:
        request.status = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault == "truncated":
            body, self.close_connection = body[: len(body) // 2], True
        if fault == "slow":
            time.sleep(1)
        request.sent = len(body)
        self.wfile.write(body)
