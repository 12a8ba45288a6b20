"""OTLP/gRPC: the same requests and acknowledgements by another transport (`http2.py`).

What gRPC adds to HTTP/2: a message behind five bytes, its own compression, and a status in the trailers.
"""

from __future__ import annotations

import asyncio
import base64
from enum import IntEnum
from http import HTTPStatus
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from axonize_server.http2 import Connection
from axonize_server.http2_calls import Answer, Fault, Http2Limits
from axonize_server.inflate import InflatedTooLargeError, inflate
from axonize_server.listeners import listen_beside
from axonize_server.otlp import InvalidRequestError
from axonize_server.otlp_answer import failure, success
from axonize_server.spool import SpoolFullError, SpoolUnavailableError

if TYPE_CHECKING:
    from axonize_server.buffers import Buffers
    from axonize_server.http2_calls import Call
    from axonize_server.intake import Intake
    from axonize_server.otlp import Accepted
    from axonize_server.settings import Settings

__all__ = ["GrpcReceiver", "GrpcServer", "serve_grpc"]

_PATHS: Final = {
    b"/opentelemetry.proto.collector.trace.v1.TraceService/Export": "traces",
    b"/opentelemetry.proto.collector.metrics.v1.MetricsService/Export": "metrics",
    b"/opentelemetry.proto.collector.logs.v1.LogsService/Export": "logs",
}
_PORT: Final = 4317
_PREFIX_BYTES: Final = 5
_BACKLOG: Final = 1024
_RETRY_S: Final = 2
_MESSAGE_CHARACTERS: Final = 1024
_PRINTABLE: Final = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")
_HEADERS: Final = ((b":status", b"200"), (b"content-type", b"application/grpc"))
_OK: Final = ((b"grpc-status", b"0"),)
_CONTENT_TYPES: Final = (b"application/grpc", b"application/grpc+proto")
_ENCODINGS: Final = (b"grpc-accept-encoding", b"identity,gzip")
_REASONS: Final[dict[type[Exception], str]] = {SpoolFullError: "spool_full", SpoolUnavailableError: "spool_unavailable"}


class _Code(IntEnum):
    """Those of google.rpc.Code that we answer with."""

    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    UNAVAILABLE = 14


class GrpcReceiver:
    """The gRPC application; lives on the event loop's thread."""

    def __init__(self, settings: Settings, intake: Intake, buffers: Buffers, limits: Http2Limits | None = None) -> None:
        self.limits = limits or Http2Limits()
        self.buffers = buffers
        self.connections: set[Connection] = set()
        self.calls = 0
        self._settings, self._intake = settings, intake

    def refused(self, reason: str) -> None:
        """Count what was not taken."""
        self._intake.refused(reason)

    def begin(self, call: Call, headers: dict[bytes, bytes], connection: Connection) -> None:
        """Note the signal of a call and whether its messages may be gzip, or refuse it."""
        path, encoding = headers.get(b":path", b""), headers.get(b"grpc-encoding", b"identity")
        signal = _PATHS.get(path)
        if (status := _http_status(headers)) is not HTTPStatus.OK:
            self.refused(f"http_{status.value}")
            connection.respond(call, Answer(((b":status", b"%d" % status),)))
        elif signal is None or encoding not in (b"identity", b"gzip"):
            what = f"grpc-encoding {_text(encoding)}" if signal else f"the method {_text(path)}"
            self.refused("grpc_unimplemented")
            connection.respond(call, _status(_Code.UNIMPLEMENTED, f"{what} is not known here", _ENCODINGS))
        elif self.calls > self.limits.requests:
            self.refused("requests")
            connection.respond(call, _retry(_Code.RESOURCE_EXHAUSTED, "too many requests are under way; try again"))
        else:
            call.context = signal, encoding == b"gzip"
            call.limit_bytes = self._settings.max_body_bytes + _PREFIX_BYTES

    def serve(self, call: Call, body: bytes | bytearray | memoryview, connection: Connection) -> None:
        """Take the one message of a call."""
        signal, zipped = call.context
        try:
            message = self._message(body, zipped=zipped)
            self._intake.accept(signal, message, lambda taken: connection.respond(call, _answer(signal, taken)))
        except InvalidRequestError as error:
            self.refused("invalid")
            connection.respond(call, _status(_Code.INVALID_ARGUMENT, str(error)))
        except InflatedTooLargeError:
            self.fault(call, Fault.TOO_LARGE, connection)
        except (SpoolFullError, SpoolUnavailableError) as error:
            self.refused(_REASONS[type(error)])
            connection.respond(call, _retry(_Code.UNAVAILABLE, str(error)))

    def _message(self, body: bytes | bytearray | memoryview, *, zipped: bool) -> bytes | memoryview:
        if not body:
            raise InvalidRequestError("the call has no message; send one request in each")
        flag, end = body[0], _PREFIX_BYTES + int.from_bytes(body[1:_PREFIX_BYTES], "big")
        if len(body) < max(end, _PREFIX_BYTES):
            raise InvalidRequestError("the message is cut short")
        if len(body) > end:
            raise InvalidRequestError("the call has more than one message; send one request in each")
        message = memoryview(body)[_PREFIX_BYTES:]
        if not flag:
            return message
        if flag != 1 or not zipped:
            raise InvalidRequestError("the message is compressed, and grpc-encoding does not say how")
        if len(message) > self._settings.max_compressed_bytes:
            raise InflatedTooLargeError("the message is larger than the limit as sent")
        return inflate(message, self._settings.max_body_bytes)

    def fault(self, call: Call, fault: Fault, connection: Connection) -> None:
        """Answer what HTTP/2 rules out."""
        if fault is Fault.TOO_LARGE:
            self.refused("grpc_too_large")
            most = self._settings.max_body_bytes
            answer = _status(_Code.RESOURCE_EXHAUSTED, f"the message is larger than {most} bytes, or too large as sent")
        elif fault is Fault.LATE:
            self.refused("grpc_deadline")
            reason = f"the request did not arrive within {self.limits.body_s:g} s"
            answer = _status(_Code.DEADLINE_EXCEEDED, reason)
        elif fault is Fault.NO_ROOM:
            self.refused("buffers")
            answer = _retry(_Code.UNAVAILABLE, "too many bytes are being received; try again")
        else:
            reason = f"the spool was not synced within {self.limits.ack_s:g} s; send again"
            answer = _retry(_Code.UNAVAILABLE, reason)
        connection.respond(call, answer)


def _http_status(headers: dict[bytes, bytes]) -> HTTPStatus:
    """200 for what is gRPC at all."""
    if headers.get(b":method") != b"POST":
        return HTTPStatus.METHOD_NOT_ALLOWED
    kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    return HTTPStatus.OK if kind in _CONTENT_TYPES else HTTPStatus.UNSUPPORTED_MEDIA_TYPE


def _answer(signal: str, taken: Accepted | None) -> Answer:
    if taken is None:
        return _retry(_Code.UNAVAILABLE, "the spool could not be synced; send again")
    message = success(signal, taken)
    return Answer(_HEADERS, b"\0" + len(message).to_bytes(4, "big") + message, _OK)


def _status(code: _Code, reason: str, *more: tuple[bytes, bytes]) -> Answer:
    """An answer without a message."""
    said = quote(reason[:_MESSAGE_CHARACTERS], safe=_PRINTABLE).encode()
    return Answer((*_HEADERS, (b"grpc-status", b"%d" % code), (b"grpc-message", said), *more))


def _retry(code: _Code, reason: str) -> Answer:
    """Tell the client to send again, and when: a retry is allowed to it whatever it makes of the hint."""
    details = base64.b64encode(failure(code, reason, retry_s=_RETRY_S)).rstrip(b"=")
    return _status(code, reason, (b"grpc-status-details-bin", details))


def _text(value: bytes) -> str:
    return repr(value.decode(errors="replace"))


class GrpcServer:
    """A listening socket and the connections that came by it."""

    def __init__(self, server: asyncio.AbstractServer, application: GrpcReceiver) -> None:
        self._server, self._app = server, application

    @property
    def connections(self) -> set[Connection]:
        """Those there are."""
        return self._app.connections

    def check(self, now: float) -> None:
        """End what is slow; called about once a second with the event loop's time."""
        for connection in list(self._app.connections):
            connection.check(now)

    async def stop(self, limit_s: float) -> None:
        """Take no more calls, let those under way finish, close."""
        self._server.close()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + limit_s
        for connection in list(self._app.connections):
            connection.stop()
        while self._app.calls and loop.time() < deadline:  # noqa: ASYNC110 - once, at the end
            await asyncio.sleep(0.01)
        for connection in list(self._app.connections):
            connection.close()


async def serve_grpc(
    settings: Settings, intake: Intake, buffers: Buffers, limits: Http2Limits | None = None
) -> GrpcServer:
    """Start a server for the three signals on the settings' port, or OTLP's own.

    Raises:
        ConfigurationError: The port is taken.
    """
    application = GrpcReceiver(settings, intake, buffers, limits)
    port = _PORT if settings.grpc_port is None else settings.grpc_port
    listener = listen_beside(settings.host, port, shared=settings.workers > 1)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(application), sock=listener, backlog=_BACKLOG)
    return GrpcServer(server, application)
