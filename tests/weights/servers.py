"""A web server on this machine that behaves as badly as it is told to."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import http.server
import re
import threading
from collections.abc import Iterator, Mapping


@dataclasses.dataclass(frozen=True)
class Reply:
    """How one request is answered; what is not said is honest.

    Attributes:
        status: In place of 200 or 206.
        body: In place of the file.
        cut: Bytes of the body after which the connection is closed.
        stall: Bytes of the body after which nothing more comes until the server ends.
        length: Content-Length, whatever the body has; -1 sends none.
        chunked: Whether the body comes in chunks.
        ranges: Whether Range is obeyed.
        careless: Whether Range is obeyed although the file is not the one that If-Range asks for.
        headers: More headers.
        etag: In place of the body's; ``""`` sends none.
    """

    status: int | None = None
    body: bytes | None = None
    cut: int | None = None
    stall: int | None = None
    length: int | None = None
    chunked: bool = False
    ranges: bool = True
    careless: bool = False
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    etag: str | None = None


class Site(http.server.ThreadingHTTPServer):
    """Serves ``files``; the first replies of ``script`` to a path go before.

    Attributes:
        files: Path -> content.
        headers: Path -> headers that every answer to it has.
        script: Path -> replies, used up one a request.
        requests: ``(path, headers)`` of each.
        sent: Bytes of bodies that were sent.
        ended: Set when the server ends; what stalls waits for it.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, port: int = 0, handler: type[http.server.BaseHTTPRequestHandler] | None = None) -> None:
        super().__init__(("127.0.0.1", port), handler or _Handler)
        self.files: dict[str, bytes] = {}
        self.headers: dict[str, dict[str, str]] = {}
        self.script: dict[str, list[Reply]] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.sent = 0
        self.ended = threading.Event()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def ranges(self) -> list[str | None]:
        """Returns what each request asked for."""
        return [headers.get("range") for _, headers in self.requests]

    def handle_error(self, request, client_address) -> None:
        """Clients that go away are no news."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Site

    def do_GET(self) -> None:
        site = self.server
        with site.lock:
            site.requests.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
            path = self.path.partition("?")[0]
            script = site.script.get(path, [])
            reply = script.pop(0) if script else Reply()
        body = reply.body if reply.body is not None else site.files.get(self.path, site.files.get(path))
        if body is None and reply.status is None:
            reply, body = Reply(status=404), b"none"
        if reply.status is not None and reply.body is None:
            body = b""
        self._answer(reply, body or b"")

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, reply: Reply, body: bytes) -> None:
        etag = f'"{hashlib.md5(body).hexdigest()}"' if reply.etag is None else reply.etag
        status = reply.status or 200
        headers = {**self.server.headers.get(self.path.partition("?")[0], {}), **reply.headers}
        if etag and status == 200:
            headers["ETag"] = etag
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        same = self.headers.get("If-Range", etag) == etag or reply.careless
        if found and reply.ranges and reply.status is None and same:
            start = int(found[1])
            if start >= len(body):
                status, headers, body = 416, {"Content-Range": f"bytes */{len(body)}"}, b""
            else:
                status, headers["Content-Range"] = 206, f"bytes {start}-{len(body) - 1}/{len(body)}"
                body = body[start:]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if reply.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        elif reply.length != -1:
            self.send_header("Content-Length", str(len(body) if reply.length is None else reply.length))
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        if self.command == "HEAD":
            return
        stop = next((end for end in (reply.cut, reply.stall) if end is not None), None)
        for start in range(0, len(body[:stop]), 1 << 16):
            piece = body[:stop][start : start + (1 << 16)]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if reply.chunked else piece)
            with self.server.lock:
                self.server.sent += len(piece)
        if reply.chunked and stop is None:
            self.wfile.write(b"0\r\n\r\n")
        self.wfile.flush()
        if reply.stall is not None:
            self.server.ended.wait(60)


@contextlib.contextmanager
def running(site: Site | None = None) -> Iterator[Site]:
    """Yields a site that serves until the end of the ``with`` block."""
    site = site or Site()
    thread = threading.Thread(target=site.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        site.ended.set()
        site.shutdown()
        site.server_close()
        thread.join()
