# SPDX-License-Identifier: Apache-2.0
"""A file server on 127.0.0.1 that misbehaves on demand."""

import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from mindformers.checkpoint.download import fetch
from mindformers.checkpoint.transfer import Patience

FAST = Patience(connect=5, silence=0.4, tries=3, first_wait=0.01, longest_wait=0.05)
Behaviour = Callable[["Handler"], None]


def get(kind: str = "tokenizer") -> Path:
    """The file of a name, without much patience."""
    return fetch("llama2_7b", kind, patience=FAST)


def names(folder: Path) -> set[str]:
    """What a folder holds."""
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def sha256(data: bytes) -> str:
    """Checksum as the table writes it."""
    return hashlib.sha256(data).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """One request; what happens is up to the server's ``behaviours``."""

    protocol_version = "HTTP/1.1"
    server: "FileServer"

    def do_GET(self) -> None:
        with self.server.lock:
            number = len(self.server.requests)
            self.server.requests.append({key.lower(): value for key, value in self.headers.items()})
            self.server.paths.append(self.path)
        behaviours = self.server.behaviours
        behaviours[min(number, len(behaviours) - 1)](self)
        self.close_connection = True

    def log_message(self, *args: Any) -> None:
        """Quiet."""

    def start(self) -> int:
        """First byte that is asked for, as a server that knows If-Range understands it."""
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        condition = self.headers.get("If-Range", "")
        return int(match[1]) if match and condition in ("", self.server.etag) else 0

    def head(self, code: int, headers: dict[str, Any]) -> None:
        """Status line and headers, without those that are None."""
        self.send_response(code)
        self.send_header("Connection", "close")
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, str(value))
        self.end_headers()

    def file(self, *, body: bytes | None = None, ranges: bool = True, stop: int | None = None, **changed: Any) -> None:
        """Send the file as a good server does, except for what the arguments change.

        Args:
            body: its content; None is the server's.
            ranges: honour Range.
            stop: end the connection after this many bytes.
            changed: headers that replace the true ones, with _ for -; None leaves one out.
        """
        body = self.server.body if body is None else body
        start = self.start() if ranges else 0
        if start >= len(body):
            self.head(416, {"Content-Range": f"bytes */{len(body)}", "Content-Length": 0})
            return
        headers = {"Content-Length": len(body) - start, "ETag": self.server.etag, "Content-Type": "binary/octet-stream"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        headers |= {name.replace("_", "-"): value for name, value in changed.items()}
        self.head(206 if start else 200, headers)
        self.wfile.write(body[start:][:stop])
        self.wfile.flush()


class FileServer(ThreadingHTTPServer):
    """Serves ``body`` under every path; request number n is answered by behaviour n, later ones by the last."""

    daemon_threads = True

    def __init__(self, body: bytes):
        super().__init__(("127.0.0.1", 0), Handler)
        self.body = body
        self.etag: str | None = '"one"'
        self.behaviours: list[Behaviour] = [Handler.file]
        self.requests: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.lock = threading.Lock()
        self.release = threading.Event()  # behaviours that hang wait for it

    def url(self, path: str = "/file", scheme: str = "http") -> str:
        """Address of a path."""
        return f"{scheme}://localhost:{self.server_port}{path}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is what some tests are about."""


@contextmanager
def serving(body: bytes, context: Any = None) -> Iterator[FileServer]:
    """A running server; with an SSL context it speaks https."""
    server = FileServer(body)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.release.set()
        server.shutdown()
        server.server_close()
