"""OTLP/HTTP: one receiver process. Bytes in, an acknowledgement when they are durable in the spool.

Routes: ``POST /v1/traces``, ``/v1/metrics``, ``/v1/logs`` (protobuf or JSON, plain or gzip), ``GET /healthz``. Every
error body is a ``google.rpc.Status`` in the request's encoding, as OTLP demands.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import signal
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import structlog
import uvloop

from axonize_core import __version__
from axonize_core.errors import ConfigurationError
from axonize_server.buffers import Buffers
from axonize_server.grpc_receiver import serve_grpc
from axonize_server.http import Connection, Head, HttpLimits, Response
from axonize_server.inflate import InflatedTooLargeError, inflate
from axonize_server.intake import Intake
from axonize_server.otlp import InvalidRequestError
from axonize_server.otlp_answer import JSON, PROTOBUF, failure, success
from axonize_server.otlp_json import to_protobuf
from axonize_server.spool import SpoolFullError, SpoolUnavailableError
from axonize_server.stats import write_stats

if TYPE_CHECKING:
    import socket

    from axonize_server.grpc_receiver import GrpcServer
    from axonize_server.otlp import Accepted
    from axonize_server.settings import Settings

__all__ = ["Receiver", "run"]

_log = structlog.get_logger("axonize.receiver")

_SIGNALS: Final = {"/v1/traces": "traces", "/v1/metrics": "metrics", "/v1/logs": "logs"}
_TICK_S: Final = 0.05
_BACKLOG: Final = 4096
_FILES_KEPT: Final = 1024  # open files that are no HTTP clients: the spool's, and gRPC's connections
_RETRY_AFTER: Final = {"retry-after": "2"}
# google.rpc.Code
_CODES: Final[dict[int, int]] = {400: 3, 404: 5, 405: 12, 408: 4, 413: 8, 415: 3, 431: 8, 503: 14}


class Receiver:
    """The HTTP application; lives on the event loop's thread."""

    def __init__(self, settings: Settings, intake: Intake, limits: HttpLimits | None = None) -> None:
        self.limits = limits or HttpLimits()
        self.connections: set[Connection] = set()
        self.buffers = Buffers(self.limits.buffered_bytes)
        self.stopping = False
        self._settings, self._intake = settings, intake

    def body_limit(self, head: Head) -> int:
        """As sent: compressed bodies have a limit of their own, lower than the inflated one."""
        if _content_encoding(head) == "gzip":
            return min(self._settings.max_compressed_bytes, self._settings.max_body_bytes)
        return self._settings.max_body_bytes

    def refusal(self, head: Head, status: HTTPStatus, reason: str, counted: str = "") -> Response:
        """An error answer, counted under its status or another name."""
        self._intake.refused(counted or f"http_{status.value}")
        return _status(head, status, reason)

    def serve(self, head: Head, body: memoryview, connection: Connection) -> None:
        """Route one request."""
        path = head.path.partition("?")[0]
        if path == "/healthz":
            connection.respond(_healthy())
        elif (signal_name := _SIGNALS.get(path)) is None:
            connection.respond(self.refusal(head, HTTPStatus.NOT_FOUND, f"nothing is received at {path!r}"))
        elif head.method != "POST":
            answer = self.refusal(head, HTTPStatus.METHOD_NOT_ALLOWED, f"{path} takes POST, not {head.method}")
            connection.respond(answer._replace(headers={"allow": "POST"}))
        else:
            self._receive(signal_name, head, body, connection)

    def check(self, now: float) -> None:
        """End what is slow; called about once a second with the event loop's time."""
        for connection in list(self.connections):
            connection.check(now)

    def _receive(self, signal_name: str, head: Head, body: memoryview, connection: Connection) -> None:
        if (wrong := _unsupported(head)) is not None:
            connection.respond(self.refusal(head, HTTPStatus.UNSUPPORTED_MEDIA_TYPE, wrong))
            return
        try:
            message = self._message(signal_name, head, body)
            self._intake.accept(
                signal_name, message, lambda taken: connection.respond(_answer(head, signal_name, taken))
            )
        except tuple(_REFUSALS) as error:
            status, counted = _REFUSALS[type(error)]
            connection.respond(self.refusal(head, status, str(error), counted))

    def _message(self, signal_name: str, head: Head, body: bytes | memoryview) -> bytes | memoryview:
        """The protobuf bytes of a request, however they were sent."""
        if _content_encoding(head) == "gzip":
            body = inflate(body, self._settings.max_body_bytes)
        return to_protobuf(signal_name, body) if _encoding(head) == JSON else body


def _content_type(head: Head) -> str:
    return head.headers.get("content-type", "").partition(";")[0].strip().lower()


def _content_encoding(head: Head) -> str:
    return head.headers.get("content-encoding", "").strip().lower()


def _encoding(head: Head) -> str:
    """What a request is answered in: JSON when it came so, else protobuf."""
    return JSON if _content_type(head) == JSON else PROTOBUF


def _unsupported(head: Head) -> str | None:
    if (kind := _content_type(head)) not in (PROTOBUF, JSON):
        return f"content-type {kind!r} is not supported; send {PROTOBUF} or {JSON}"
    if (encoding := _content_encoding(head)) not in ("gzip", "identity", ""):
        return f"content-encoding {encoding!r} is not supported; send gzip or none"
    return None


def _answer(head: Head, signal_name: str, taken: Accepted | None) -> Response:
    if taken is None:
        return _status(head, HTTPStatus.SERVICE_UNAVAILABLE, "the spool could not be synced; send again")
    encoding = _encoding(head)
    return Response(200, success(signal_name, taken, encoding), encoding)


def _status(head: Head, status: HTTPStatus, reason: str) -> Response:
    headers = _RETRY_AFTER if status is HTTPStatus.SERVICE_UNAVAILABLE else {}
    encoding = _encoding(head)
    return Response(status.value, failure(_CODES[status.value], reason, encoding), encoding, headers)


_REFUSALS: Final[dict[type[Exception], tuple[HTTPStatus, str]]] = {
    InvalidRequestError: (HTTPStatus.BAD_REQUEST, "invalid"),
    InflatedTooLargeError: (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "http_413"),
    SpoolFullError: (HTTPStatus.SERVICE_UNAVAILABLE, "spool_full"),
    SpoolUnavailableError: (HTTPStatus.SERVICE_UNAVAILABLE, "spool_unavailable"),
}


def _healthy() -> Response:
    return Response(200, json.dumps({"status": "ok", "version": __version__}).encode(), JSON)


def run(settings: Settings, listener: socket.socket, *, worker: int = 0) -> None:
    """Serve on a listening socket until SIGTERM or SIGINT; then finish what is under way, seal, and return."""
    uvloop.run(_serve(settings, listener, worker))


async def _serve(settings: Settings, listener: socket.socket, worker: int) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    intake = Intake(settings, loop)
    receiver = Receiver(settings, intake, HttpLimits(connections=_connections()))
    grpc = await _start_grpc(settings, intake, receiver.buffers)
    server = await loop.create_server(lambda: Connection(receiver), sock=listener, backlog=_BACKLOG)
    try:
        await _tick_until(stop, settings, [receiver, *([grpc] if grpc else [])], intake, worker)
    finally:
        server.close()
        if grpc:
            await grpc.stop(settings.drain_s)
        await _drain(receiver, intake, settings.drain_s)
        intake.close()
        write_stats(settings.data_dir, worker, intake.counters)


def _connections() -> int:
    """Raise this process's limit of open files as far as it may, and say how many clients that leaves room for."""
    wanted = HttpLimits.connections + _FILES_KEPT
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return min(HttpLimits.connections, max(soft - _FILES_KEPT, 1)) if soft > 0 else HttpLimits.connections


async def _start_grpc(settings: Settings, intake: Intake, buffers: Buffers) -> GrpcServer | None:
    """Serve gRPC too, unless it is off, or nobody asked for it and another process has OTLP's port.

    Raises:
        ConfigurationError: The port that was asked for is taken.
    """
    if settings.grpc_port == 0:
        return None
    try:
        return await serve_grpc(settings, intake, buffers)
    except ConfigurationError as error:
        if settings.grpc_port is None:
            _log.warning("grpc_off", reason=str(error))
            return None
        intake.close()
        raise


async def _tick_until(
    stop: asyncio.Event, settings: Settings, doors: list[Receiver | GrpcServer], intake: Intake, worker: int
) -> None:
    """The clockwork: seal what is old, end what is slow, publish the counters."""
    swept = float("-inf")
    while not stop.is_set():
        intake.seal_due()
        if (now := time.monotonic()) - swept >= 1:
            swept = now
            for door in doors:
                door.check(asyncio.get_running_loop().time())
            write_stats(settings.data_dir, worker, intake.counters)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(stop.wait(), _TICK_S)


async def _drain(receiver: Receiver, intake: Intake, limit_s: float) -> None:
    """Let the requests under way finish; those still arriving at the limit were never acknowledged."""
    receiver.stopping = True
    deadline = time.monotonic() + limit_s
    for connection in list(receiver.connections):
        connection.stop()
    while not intake.idle or any(connection.under_way for connection in receiver.connections):
        if time.monotonic() > deadline:
            break
        await asyncio.sleep(0.01)
