"""HTTP/1.1 for bodies of some hundred KB: one buffer per connection, from the socket to the handler uncopied.

llhttp (httptools) parses heads and chunked bodies; a body of known length is received behind its head, in
place. One request of a connection is served at a time; what a client pipelines waits in the buffer. Every
wait for a client has a deadline, for its reading of answers too. A connection without a request has no buffer,
and those of all together are bounded. Runs on one event loop thread.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from enum import Enum, auto
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

import httptools

if TYPE_CHECKING:
    from collections.abc import Mapping

    from axonize_server.buffers import Buffers

__all__ = ["Application", "Connection", "Head", "HttpLimits", "Response"]

_FIRST_BYTES = 8 << 10  # a head; ten thousand clients may begin one and stop
_PIECE_BYTES = 64 << 10
_STEP_BYTES = 1 << 20  # a buffer grows as data arrives, never on a promise; a larger one is not kept
_SPARE_BYTES = 4096


@dataclass(frozen=True)
class HttpLimits:
    """What a client may take of us; times in seconds."""

    connections: int = 16 << 10
    header_bytes: int = 16 << 10
    buffered_bytes: int = 512 << 20
    header_s: float = 10.0
    body_s: float = 60.0
    idle_s: float = 120.0
    answer_s: float = 30.0
    linger_s: float = 5.0


@dataclass
class Head:
    """The head of a request; header names in lower case."""

    method: str = ""
    path: str = ""
    headers: dict[str, str] = field(default_factory=dict)


class Response(NamedTuple):
    """An answer; `close` ends the connection behind it."""

    status: int
    body: bytes = b""
    content_type: str = "application/x-protobuf"
    headers: Mapping[str, str] = {}
    close: bool = False


class Application(Protocol):
    """What serves the requests of all connections."""

    limits: HttpLimits
    connections: set[Connection]
    buffers: Buffers
    stopping: bool

    def body_limit(self, head: Head) -> int:
        """The largest body accepted for this request, in bytes as sent."""

    def refusal(self, head: Head, status: HTTPStatus, reason: str, counted: str = "") -> Response:
        """The answer to a request that HTTP itself rules out; `counted` under another name than its status."""

    def serve(self, head: Head, body: memoryview, connection: Connection) -> None:
        """Answer by `connection.respond`, now or later; `body` is valid until then."""


class _State(Enum):
    HEAD = auto()
    BODY = auto()
    CHUNKS = auto()
    BUSY = auto()
    ANSWERED = auto()  # and more has come, or the answer is not read
    LINGER = auto()
    CLOSED = auto()


class Connection(asyncio.BufferedProtocol):
    """One client connection."""

    def __init__(self, application: Application) -> None:
        self._app = application
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._have = self._held = 0
        self._body_at = self._body_end = 0
        self._state = _State.HEAD
        self._head = Head()
        self._keep_alive = True
        self._chunks, self._chunks_done = bytearray(), False
        self._framing_bytes = 0
        self._unread = self._ended = False
        self._deadline = self._loop.time() + application.limits.header_s

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Join the application's connections."""
        self._transport = cast("asyncio.Transport", transport)
        self._app.connections.add(self)
        if len(self._app.connections) > self._app.limits.connections:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections; try again", "connections")

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Leave; an answer that is still to come goes nowhere."""
        self._state = _State.CLOSED
        self._app.connections.discard(self)
        self._account(0)

    @property
    def buffered_bytes(self) -> int:
        """What this connection's buffers take."""
        return self._held

    def _account(self, held: int) -> None:
        """Note what the buffers take now, here and among those of all connections."""
        self._app.buffers.held_bytes += held - self._held
        self._held = held

    @property
    def under_way(self) -> bool:
        """Whether a request is arriving or waits for its answer."""
        arriving = self._state in (_State.HEAD, _State.ANSWERED) and self._have > 0
        return arriving or self._state in (_State.BODY, _State.CHUNKS, _State.BUSY)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        """Where the next bytes go; never empty, because reading pauses when the buffer is full."""
        if self._state is _State.LINGER:
            return memoryview(self._buffer)
        if self._have == len(self._buffer):
            self._resize(max(self._have + _SPARE_BYTES, _FIRST_BYTES))
        return memoryview(self._buffer)[self._have :]

    def _resize(self, size: int) -> None:
        """A new buffer, not another size: the event loop and the handler may hold views of this one."""
        larger = bytearray(size)
        larger[: self._have] = memoryview(self._buffer)[: self._have]
        self._buffer = larger
        self._account(size + len(self._chunks))

    def buffer_updated(self, nbytes: int) -> None:
        """Go on with what arrived."""
        if self._state is _State.LINGER:
            return
        arrived, self._have = self._have, self._have + nbytes
        if self._state is _State.HEAD:
            self._try_head(arrived)
        elif self._state is _State.BODY:
            self._try_body()
        elif self._state is _State.CHUNKS:
            self._feed_chunks()
        elif self._have == len(self._buffer):
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        """A client that sends no more may still read its answers."""
        self._ended = True
        return self._state in (_State.BUSY, _State.ANSWERED)

    def _try_head(self, seen: int) -> None:
        """Look for the end of a head of which so many bytes were there before."""
        end = self._buffer.find(b"\r\n\r\n", max(seen - 3, 0), self._have) + 4
        if end < 4:  # noqa: PLR2004 - not found
            if not seen:
                self._deadline = self._loop.time() + self._app.limits.header_s
            if self._have > self._app.limits.header_bytes:
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the request's head is too large")
            return
        if end > self._app.limits.header_bytes:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the request's head is too large")
            return
        self._head, self._chunks_done = Head(), False
        self._parser = httptools.HttpRequestParser(self)
        try:
            self._parser.feed_data(bytes(memoryview(self._buffer)[:end]))
        except (httptools.HttpParserError, httptools.HttpParserUpgrade, UnicodeDecodeError) as error:
            self._refuse(HTTPStatus.BAD_REQUEST, f"the request's head is no HTTP/1.1: {error}")
            return
        self._begin_body(end)

    def on_url(self, url: bytes) -> None:
        """Called by the parser."""
        if not self._chunks_done:
            self._head.path += url.decode("ascii")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser; what stands behind a chunked body says nothing about it."""
        if self._state is not _State.CHUNKS:
            self._head.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def _begin_body(self, at: int) -> None:
        head, parser = self._head, self._parser
        head.method = parser.get_method().decode("ascii")
        self._keep_alive = parser.should_keep_alive()
        self._body_at = self._body_end = at
        self._limit = self._app.body_limit(head)
        length = int(head.headers.get("content-length", 0))
        if length > self._limit:
            self._too_large()
            return
        if length > _STEP_BYTES and not self._app.buffers.has_room(length):
            self._no_room()
            return
        self._deadline = self._loop.time() + self._app.limits.body_s
        if (length or "transfer-encoding" in head.headers) and head.headers.get("expect", "").lower() == "100-continue":
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if "transfer-encoding" in head.headers:
            self._begin_chunks()
        else:
            self._state, self._body_end = _State.BODY, at + length
            self._try_body()

    def _try_body(self) -> None:
        if self._have >= self._body_end:
            self._serve(memoryview(self._buffer)[self._body_at : self._body_end])
        elif self._have == len(self._buffer):
            size = min(self._body_end, max(_STEP_BYTES, 2 * self._have)) + _SPARE_BYTES
            if self._app.buffers.has_room(size - self._have):
                self._resize(size)
            else:
                self._no_room()

    def _begin_chunks(self) -> None:
        self._state, self._chunks, self._framing_bytes = _State.CHUNKS, bytearray(), 0
        self._resize(max(len(self._buffer), _PIECE_BYTES))
        self._feed_chunks()

    def _feed_chunks(self) -> None:
        """Hand what stands behind the head to the parser, which gives back the chunks' contents."""
        arrived, before = bytes(memoryview(self._buffer)[self._body_at : self._have]), len(self._chunks)
        self._have = self._body_at
        try:
            self._parser.feed_data(arrived)
        except httptools.HttpParserError as error:
            if not self._chunks_done:
                self._refuse(HTTPStatus.BAD_REQUEST, f"the chunked body is broken: {error}")
                return
            self._keep_alive = False
        self._framing_bytes = 0 if len(self._chunks) > before else self._framing_bytes + len(arrived)
        self._account(len(self._buffer) + len(self._chunks))
        if len(self._chunks) > self._limit:
            self._too_large()
        elif self._chunks_done:
            self._serve(memoryview(self._chunks))
        elif self._framing_bytes > self._app.limits.header_bytes:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "what stands between the chunks is too large")
        elif not self._app.buffers.has_room():
            self._no_room()

    def on_body(self, chunk: bytes) -> None:
        """Called by the parser with a piece of a chunked body."""
        if not self._chunks_done and len(self._chunks) <= self._limit:
            self._chunks += chunk

    def on_message_begin(self) -> None:
        """Called by the parser; a second message behind a chunked one is not served, but closed upon."""
        if self._state is _State.CHUNKS:
            self._keep_alive = False

    def on_message_complete(self) -> None:
        """Called by the parser; for a body of known length it has seen the head only."""
        if self._state is _State.CHUNKS:
            self._chunks_done = True

    def _serve(self, body: memoryview) -> None:
        self._state = _State.BUSY
        if self._have == len(self._buffer):
            self._transport.pause_reading()
        self._app.serve(self._head, body, self)

    def _too_large(self) -> None:
        self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body is larger than {self._limit} bytes as sent")

    def _no_room(self) -> None:
        self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "too many bytes are being received; try again", "buffers")

    def _refuse(self, status: HTTPStatus, reason: str, counted: str = "") -> None:
        self._state = _State.BUSY
        self.respond(self._app.refusal(self._head, status, reason, counted)._replace(close=True))

    def respond(self, response: Response) -> None:
        """Answer the request being served; the next one's turn comes when the client reads."""
        if self._state is not _State.BUSY:
            return
        rest = bytes(memoryview(self._buffer)[self._body_end : self._have])
        close = response.close or not self._keep_alive or self._app.stopping or (self._ended and not rest)
        self._transport.write(_encoded(response, close=close))
        if close:
            self._linger()
            return
        self._keep(rest)
        self._state = _State.HEAD
        self._deadline = self._loop.time() + self._app.limits.idle_s
        if rest or self._unread:
            self._state = _State.ANSWERED
            self._deadline = self._loop.time() + self._app.limits.answer_s
            self._loop.call_soon(self._next)  # not at once: one read may bring thousands of requests
        else:
            self._transport.resume_reading()

    def _keep(self, rest: bytes) -> None:
        """Go on with the buffer, or with one just large enough when it is large or all together are."""
        large = len(self._buffer) > _STEP_BYTES + _SPARE_BYTES
        if large or self._app.buffers.is_busy:
            self._buffer = bytearray(len(rest))
        self._buffer[: len(rest)] = rest
        self._have, self._chunks = len(rest), bytearray()
        self._body_at = self._body_end = 0
        self._account(len(self._buffer))

    def pause_writing(self) -> None:
        """The client does not read its answers; it gets no more until it does."""
        self._unread = True

    def resume_writing(self) -> None:
        """It has read them."""
        self._unread = False
        self._next()

    def _next(self) -> None:
        """Turn to what a client sent behind an answered request."""
        if self._state is not _State.ANSWERED or self._unread:
            return
        self._state = _State.HEAD
        self._deadline = self._loop.time() + self._app.limits.idle_s
        self._transport.resume_reading()
        if self._have:
            self._try_head(0)
        if self._ended and self._state in (_State.HEAD, _State.BODY, _State.CHUNKS):
            self._transport.close()

    def _linger(self) -> None:
        """Read on for a while: closing upon unread bytes would reset the answer away."""
        self._state = _State.LINGER
        self._have, self._buffer, self._chunks = 0, bytearray(_SPARE_BYTES), bytearray()
        self._account(_SPARE_BYTES)
        self._deadline = self._loop.time() + self._app.limits.linger_s
        self._transport.resume_reading()
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def check(self, now: float) -> None:
        """End a connection whose deadline has passed, free an idle one's buffer; called about once a second."""
        if self._state is _State.HEAD and not self._have and self._buffer:
            self._buffer = bytearray()
            self._account(0)
        if self._state is _State.BUSY or now < self._deadline:
            return
        if self._state in (_State.BODY, _State.CHUNKS) or (self._state is _State.HEAD and self._have):
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, "the request did not arrive in time")
        else:
            self._transport.abort()

    def stop(self) -> None:
        """Close when idle; what is under way is finished first."""
        if self._state is _State.HEAD and not self._have:
            self._transport.close()


def _encoded(response: Response, *, close: bool) -> bytes:
    lines = [
        f"HTTP/1.1 {response.status} {HTTPStatus(response.status).phrase}",
        f"content-type: {response.content_type}",
        f"content-length: {len(response.body)}",
        *(f"{name}: {value}" for name, value in response.headers.items()),
        *(["connection: close"] if close else []),
    ]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + response.body
