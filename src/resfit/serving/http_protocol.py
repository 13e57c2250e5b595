"""uvicorn's HTTP protocol with what it lacks against clients that are slow, in haste, or not what they seem."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from resfit.serving import logs
from resfit.serving.context import Context
from resfit.serving.settings import ServerSettings

_LINGER = 0.25  # seconds in which a request may still arrive on an idle connection that is to be closed
_SLICE = 4096  # bytes of a chunked body that are read at once: a byte a chunk, these are some milliseconds
# What RFC 9112 lets a server refuse, as another server on the way may see the request end elsewhere: lines that end
# without a carriage return, and lines that go on in the next one.
_UNCLEAR_LINE = re.compile(rb"(?<!\r)\n|\n[ \t]")
_HEAD_END = re.compile(rb"\n\r?\n")
# An answer begins with these bytes, whatever it is: they may be sent while it is being made.
_BEGINNING = b"HTTP/1.1 "
_PROBES = (0.05, 0.05, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0)  # seconds after the end of sending; fewer than the bytes above


class _Transport:
    """A connection on which the beginning of an answer may have been sent before the answer is known.

    Args:
        transport: The connection.
    """

    def __init__(self, transport: asyncio.Transport):
        self._transport = transport
        self._sent = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def probe(self) -> None:
        """Sends one more byte of the beginning of the answer: a client that has gone then lets its system say so."""
        if self._sent < len(_BEGINNING) and not self._transport.is_closing():
            self._transport.write(_BEGINNING[self._sent : self._sent + 1])
            self._sent += 1

    def write(self, data: bytes) -> None:
        """Sends data, less what was sent of them already."""
        if self._sent:
            data, self._sent = data[self._sent :], 0
        self._transport.write(data)


class _Connection(h11.Connection):
    """h11's connection, which refuses requests whose end two servers could see at different places."""

    def next_event(self) -> Any:
        """Returns the next event.

        Raises:
            RemoteProtocolError: The request follows no protocol, or not clearly.
        """
        if self.their_state is h11.IDLE:
            head = bytes(self.trailing_data[0])
            end = _HEAD_END.search(head)
            if _UNCLEAR_LINE.search(head, 0, end.end() if end else len(head)):
                raise h11.RemoteProtocolError("a line of the head does not end with CR LF, or goes on in the next one")
        event = super().next_event()
        if isinstance(event, h11.Request):
            names = {name for name, _ in event.headers}
            if b"transfer-encoding" in names and (b"content-length" in names or event.http_version != b"1.1"):
                raise h11.RemoteProtocolError("the length of the body is said in two ways, or by HTTP/1.0 in chunks")
        return event


def protocol(settings: ServerSettings, context: Context) -> type[H11Protocol]:
    """Returns the protocol of a server's connections.

    - What the client has yet to send has a time.
    - A request whose end is not clear is refused, and ends the connection: one with both ``Content-Length`` and
      ``Transfer-Encoding``, and one with odd line ends in its head.
    - A client that has closed its sending side gets its answer. One that has closed the whole connection looks the
      same; the first bytes of the answer, sent early, tell the two apart.
    - A body in many tiny chunks is read in turns with what other clients send.

    Args:
        settings: The bounds.
        context: The server's parts.
    """

    class Guarded(H11Protocol):
        _clock: asyncio.TimerHandle | None = None
        _has_ended = False  # the client sends no more
        _is_refused = False
        _is_probing = False
        _unread: bytes = b""
        _is_turn_due = False

        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            self.conn = _Connection(h11.SERVER, settings.max_header)

        def connection_made(self, transport: Any) -> None:
            super().connection_made(_Transport(transport))  # type: ignore[arg-type]
            self._expect(settings.header_timeout)

        def connection_lost(self, exc: Exception | None) -> None:
            self._expect(None)
            self._unread = b""
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self._is_refused:
                return
            if self._unread:
                self._unread += data
            elif self._is_chunked():
                self._unread = data
                self._take_turn()
            else:
                super().data_received(data)

        def _is_chunked(self) -> bool:
            if self.conn.their_state is not h11.SEND_BODY:
                return False
            return any(name == b"transfer-encoding" for name, _ in self.headers)

        def _take_turn(self) -> None:
            """Reads a little, and lets others go on before the rest."""
            self._is_turn_due = False
            if self._is_refused or self.transport.is_closing():
                self._unread = b""
                return
            piece, self._unread = self._unread[:_SLICE], self._unread[_SLICE:]
            if piece:
                super().data_received(piece)
            if self._unread and not self._is_turn_due:
                self._is_turn_due = True
                self.flow.pause_reading()
                self.loop.call_soon(self._take_turn)
            elif self._has_ended:
                self._end_of_sending()

        def eof_received(self) -> bool:  # type: ignore[override]
            self._has_ended = True
            if self._unread:
                return True
            return self._end_of_sending()

        def _end_of_sending(self) -> bool:
            """Closes the connection unless an answer is owed; says whether one is."""
            is_complete = self.conn.their_state in (h11.DONE, h11.MUST_CLOSE)
            if self.cycle is None or self.cycle.response_complete or not is_complete:
                self.transport.close()
                return False
            self._begin_to_probe()
            return True

        def _begin_to_probe(self) -> None:
            if not self._is_probing:
                self._is_probing = True
                self.loop.call_later(_PROBES[0], self._probe, 0)

        def _probe(self, number: int) -> None:
            cycle = self.cycle
            if cycle is None or cycle.response_started or self.transport.is_closing():
                self._is_probing = False
                return
            self.transport.probe()  # type: ignore[attr-defined]
            if number + 1 < len(_PROBES):
                self.loop.call_later(_PROBES[number + 1], self._probe, number + 1)

        def handle_events(self) -> None:
            super().handle_events()
            self._look()

        def send_400_response(self, msg: str) -> None:
            self._is_refused = True
            context.metrics.error("malformed")
            logs.event("connection closed: no valid request", level=logging.WARNING)
            try:
                super().send_400_response(msg)
            except h11.LocalProtocolError:  # an answer is under way already
                self.transport.close()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._look()
            if self._has_ended and not self._unread:
                self._end_of_sending()

        def shutdown(self) -> None:
            if self.cycle is None or self.cycle.response_complete:
                self.loop.call_later(_LINGER, self._shut)
            else:
                super().shutdown()

        def _shut(self) -> None:
            if not self.transport.is_closing():
                with contextlib.suppress(h11.LocalProtocolError):
                    super().shutdown()

        def _look(self) -> None:
            """Sets the clock by what is missing: the rest of a head, or of a body that is answered already."""
            client, server = self.conn.their_state, self.conn.our_state
            half_head = client is h11.IDLE and bool(self.conn.trailing_data[0])
            unread_body = client is h11.SEND_BODY and server is h11.DONE
            if half_head or unread_body:
                if self._clock is None:
                    self._expect(settings.header_timeout)
            elif client is not h11.IDLE or self.cycle is not None:
                self._expect(None)

        def _expect(self, seconds: float | None) -> None:
            if self._clock is not None:
                self._clock.cancel()
                self._clock = None
            if seconds is not None:
                self._clock = self.loop.call_later(seconds, self._too_late)

        def _too_late(self) -> None:
            self._clock = None
            context.metrics.error("slow")
            logs.event("connection closed: too slow", level=logging.WARNING)
            self.transport.abort()

    return Guarded
