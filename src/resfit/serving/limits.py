"""What is refused before anything is done, and what every answer says: one layer around the application.

Bodies are read here, counted byte by byte whatever ``Content-Length`` says, within a time. A client that leaves ends
its request. Every request gets an id, a line in the log, and its place in the metrics.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any

from resfit.serving import logs, wire
from resfit.serving.context import BODY, SCOPE, Context
from resfit.serving.packed import CODINGS, unpack
from resfit.serving.pages import FILES
from resfit.serving.problems import Problem, busy
from resfit.serving.settings import is_loopback

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

#: Paths that need no token: the page holds no data, and a load balancer knows no secrets.
OPEN_PATHS = frozenset(
    (*(path for path, _, _ in FILES), "/openapi.json", "/report", "/v2/health/live", "/v2/health/ready")
)
#: Headers of every answer that does not set them itself.
SECURITY_HEADERS = {
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    b"permissions-policy": b"camera=(self), microphone=(), geolocation=()",
    b"cache-control": b"no-store",
}
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_CLIENT_LEFT = 499  # as nginx logs it; nobody receives it
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class Limits:
    """An ASGI application that lets another one see only what is within bounds.

    Args:
        app: The other one.
        context: The server's parts.
    """

    def __init__(self, app: Application, context: Context):
        self._app, self._context = app, context
        self._buffered = 0

    @property
    def buffered(self) -> int:
        """Bytes of bodies that are in memory."""
        return self._buffered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, send, self._context)
        try:
            coding = self._check_head(exchange)
            body = bytearray()
            async with asyncio.timeout(self._context.settings.body_timeout):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        exchange.status = _CLIENT_LEFT
                        return
                    piece = message.get("body", b"")
                    self._hold(exchange, len(piece))
                    body += piece
                    more = message.get("more_body", False)
            self._context.metrics.stage("read", time.monotonic() - exchange.begin)
            if coding:
                most = self._context.settings.max_body
                packed, body = body, bytearray()
                body = await self._context.pipeline.aside(lambda: unpack(packed, coding, most))
                self._hold(exchange, len(body))
            await self._run(exchange, body, receive)
        except TimeoutError:
            seconds = self._context.settings.body_timeout
            await exchange.refuse(Problem(408, f"the request must arrive within {seconds:g} s."))
        except Problem as problem:
            await exchange.refuse(problem)
        finally:
            self._buffered -= exchange.held
            exchange.end()

    async def _run(self, exchange: _Exchange, body: bytes | bytearray, receive: Receive) -> None:
        """Runs the application; if the client leaves meanwhile, it is cancelled."""
        exchange.scope[BODY] = body
        # routes take the body from the scope: nothing is copied
        waiting: list[Message] = [{"type": "http.request", "body": b"", "more_body": False}]

        async def replay() -> Message:
            if waiting:
                return waiting.pop()
            await asyncio.Event().wait()  # the client's leaving cancels us: there is nothing to wait for
            raise AssertionError

        task = asyncio.current_task()
        over = False

        def left(_: asyncio.Future[Message]) -> None:
            if not over and task is not None and not exchange.is_complete:
                exchange.status = _CLIENT_LEFT
                task.cancel()

        watcher = asyncio.ensure_future(receive())
        watcher.add_done_callback(left)
        try:
            await self._app(exchange.scope, replay, exchange.send)
        except asyncio.CancelledError:
            if exchange.status != _CLIENT_LEFT:
                raise
            if task is not None:
                task.uncancel()
        except Exception:
            if exchange.status == _CLIENT_LEFT:
                return
            logs.event("unexpected error", level=logging.ERROR, exception=True, request_id=exchange.id)
            if not exchange.has_started:
                await exchange.refuse(Problem(500, "unexpected error; the log has more.", reason="unexpected"))
        finally:
            over = True
            watcher.cancel()

    def _hold(self, exchange: _Exchange, size: int) -> None:
        """Counts bytes of a body that are in memory until the request has ended."""
        exchange.held += size
        self._buffered += size
        self._check_size(exchange.held)

    def _check_head(self, exchange: _Exchange) -> str:
        """Makes sure that the head of a request is in order, and returns how its body is packed."""
        settings, headers = self._context.settings, exchange.headers
        scope = exchange.scope
        size = len(scope.get("raw_path") or b"") + len(scope["query_string"])
        size += sum(len(name) + len(value) + 4 for name, value in scope["headers"])
        if size > settings.max_header:
            raise Problem(431, f"the head of a request may have at most {settings.max_header} bytes.")
        host = _host_name(headers.get(b"host", b"").decode("latin-1"))
        known = host in settings.hosts if settings.hosts else not settings.is_loopback or is_loopback(host)
        if not known:
            raise Problem(421, "this server is not known by the name in the Host header. See --allow-host.")
        if scope["method"] not in _SAFE_METHODS and not _is_from_here(headers, settings.origins):
            raise Problem(403, "this request comes from a page of another site. See --allow-origin.")
        if settings.token and exchange.scope["path"] not in OPEN_PATHS:
            scheme, _, sent = headers.get(b"authorization", b"").partition(b" ")
            is_right = hmac.compare_digest(sent.strip(), settings.token.encode())
            if scheme.lower() != b"bearer" or not is_right:
                raise Problem(401, "this server asks for a token: Authorization: Bearer TOKEN.")
        coding = headers.get(b"content-encoding", b"identity").strip().lower().decode("latin-1").removeprefix("x-")
        if coding not in (*CODINGS, "identity"):
            raise Problem(
                415,
                f"bodies are taken as they are, or packed once with {' or '.join(CODINGS)}. "
                f"Received: Content-Encoding: {coding[:40]!r}.",
                headers={"Accept-Encoding": ", ".join(CODINGS)},
            )
        length = headers.get(b"content-length", b"")
        if length.isdigit():
            self._check_size(int(length[:20]))
        return "" if coding == "identity" else coding

    def _check_size(self, size: int) -> None:
        settings = self._context.settings
        if size > settings.max_body:
            raise Problem(413, f"a request may have at most {settings.max_body} bytes.")
        if self._buffered > settings.max_buffered:
            raise busy(1)


class _Exchange:
    """One request and its answer."""

    def __init__(self, scope: Scope, send: Send, context: Context):
        self.scope, self._send, self._context = scope, send, context
        self.begin = time.monotonic()
        self.headers: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:  # one that is there twice counts as the list of both
            self.headers[name] = self.headers[name] + b", " + value if name in self.headers else value
        given = self.headers.get(b"x-request-id", b"")
        self.id = given.decode() if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        self.status = 0
        self.sent = 0
        self.held = 0
        self.has_started = self.is_complete = False
        scope[SCOPE] = {}

    async def send(self, message: Message) -> None:
        """Passes a part of the answer on."""
        if message["type"] == "http.response.start":
            self.has_started = True
            self.status = message["status"]
            headers = list(message.get("headers", []))
            present = {name.lower() for name, _ in headers}
            headers += [(name, value) for name, value in SECURITY_HEADERS.items() if name not in present]
            headers.append((b"x-request-id", self.id.encode()))
            if self._context.is_draining:
                headers.append((b"connection", b"close"))
            message = {**message, "headers": headers}
        elif message["type"] == "http.response.body":
            self.sent += len(message.get("body", b""))
            self.is_complete = not message.get("more_body", False)
        # a client that does not read must not hold what it asked for
        try:
            async with asyncio.timeout(self._context.settings.body_timeout):
                await self._send(message)
        except TimeoutError:
            self.status = _CLIENT_LEFT
            raise ConnectionResetError("the client does not read") from None

    async def refuse(self, problem: Problem) -> None:
        """Answers with an error."""
        self._context.metrics.error(problem.reason)
        body = wire.error(str(problem))
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        headers += [(name.lower().encode(), value.encode()) for name, value in problem.headers.items()]
        await self.send({"type": "http.response.start", "status": problem.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})

    def end(self) -> None:
        """Writes the request to log and metrics."""
        seconds = time.monotonic() - self.begin
        route = getattr(self.scope.get("route"), "path", "") or "other"
        self._context.metrics.request(route, self.status, seconds)
        logs.event(
            "request",
            request_id=self.id,
            method=self.scope["method"],
            path=self.scope["path"],
            status=self.status,
            milliseconds=round(1000 * seconds, 2),
            sent=self.sent,
            **self.scope[SCOPE],
        )


def _is_from_here(headers: Mapping[bytes, bytes], origins: Sequence[str]) -> bool:
    """Says whether a request comes from a program, from this server's own page, or from a site that is let in.

    Browsers say in ``Sec-Fetch-Site`` where the page of a request comes from, and no page can change that; those that
    do not know the header say it in ``Origin``.
    """
    origin = headers.get(b"origin", b"").decode("latin-1").strip().lower()
    if origin in origins:
        return True
    site = headers.get(b"sec-fetch-site", b"").strip().lower()
    if site:
        return site in (b"same-origin", b"none")
    if not origin:
        return True
    scheme, _, place = origin.partition("://")
    host = headers.get(b"host", b"").decode("latin-1").strip().lower()
    port = {"http": ":80", "https": ":443"}.get(scheme, "")
    return bool(place) and place.removesuffix(port) == host.removesuffix(port)


def _host_name(host: str) -> str:
    """Returns a Host header without its port, in lower case."""
    name = host.rsplit(":", 1)[0] if not host.endswith("]") and host.rpartition(":")[2].isdigit() else host
    return name.strip("[]").lower()
