"""An HTTP server on loopback that serves one file and misbehaves as told."""

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Behaviour:
    """What the server does. ``drops`` are how many bytes each of the next answers ends after."""

    content: bytes
    drops: list[int] = field(default_factory=list)
    ranges: bool = True
    etag: str | None = '"one"'
    status: int = 200
    content_type: str = "application/octet-stream"
    chunked: bool = False
    length: int | None = None
    wrong_range: bool = False
    redirect: str | None = None
    extra: dict[str, bytes] = field(default_factory=dict)
    # What was asked, as (path, Range header).
    requests: list[tuple[str, str | None]] = field(default_factory=list)


@contextmanager
def serving(behaviour: Behaviour) -> Iterator[str]:
    """The server's base URL, while it runs."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            behaviour.requests.append((self.path, self.headers.get("Range")))
            if self.path in behaviour.extra:
                self._whole(behaviour.extra[self.path], "text/plain")
            elif behaviour.redirect is not None:
                self.send_response(302)
                self.send_header("Location", behaviour.redirect)
                self.send_header("Content-Length", "0")
                self.end_headers()
            elif behaviour.status != 200:
                self.send_response(behaviour.status)
                self.send_header("Content-Length", "0")
                self.end_headers()
            else:
                self._file()

        def _whole(self, data: bytes, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _file(self) -> None:
            start = self._start()
            if start >= len(behaviour.content) > 0:
                self.send_response(416)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            body = behaviour.content[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Type", behaviour.content_type)
            if behaviour.etag:
                self.send_header("ETag", behaviour.etag)
            if start:
                shown = start + 7 if behaviour.wrong_range else start
                size = len(behaviour.content)
                self.send_header("Content-Range", f"bytes {shown}-{size - 1}/{size}")
            if behaviour.chunked:
                self.send_header("Transfer-Encoding", "chunked")
            else:
                self.send_header("Content-Length", str(len(body) if behaviour.length is None else behaviour.length))
            self.end_headers()
            self._send(body)

        def _start(self) -> int:
            match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
            if not match or not behaviour.ranges or self.headers.get("If-Range") != behaviour.etag:
                return 0
            return int(match[1])

        def _send(self, body: bytes) -> None:
            cut = behaviour.drops.pop(0) if behaviour.drops else None
            part = body[:cut]
            if behaviour.chunked:
                for at in range(0, len(part), 10000):
                    piece = part[at : at + 10000]
                    self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
                if cut is None:
                    self.wfile.write(b"0\r\n\r\n")
            else:
                self.wfile.write(part)
            if cut is not None or behaviour.length is not None:
                self.wfile.flush()
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
