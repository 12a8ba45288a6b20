"""OTLP/gRPC: the same requests and acknowledgements by another transport, where grpcio is installed.

Served on the receiver's own event loop: a client that sends slowly takes no thread from the others. Every wait
for one has an end.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn

import grpc
import grpc.aio
from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped]  # no types are published
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]  # the same

from axonize_core.errors import ConfigurationError
from axonize_server.otlp import InvalidRequestError
from axonize_server.otlp_answer import success
from axonize_server.spool import SpoolFullError, SpoolUnavailableError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from axonize_server.intake import Intake
    from axonize_server.otlp import Accepted
    from axonize_server.settings import Settings

__all__ = ["GrpcLimits", "serve_grpc"]

_SERVICES: Final = {
    "traces": "opentelemetry.proto.collector.trace.v1.TraceService",
    "metrics": "opentelemetry.proto.collector.metrics.v1.MetricsService",
    "logs": "opentelemetry.proto.collector.logs.v1.LogsService",
}
_ACK_S = 30.0
_RETRY_S = 2
_REASONS: Final[dict[type[Exception], str]] = {
    InvalidRequestError: "invalid",
    SpoolFullError: "spool_full",
    SpoolUnavailableError: "spool_unavailable",
}


@dataclass(frozen=True)
class GrpcLimits:
    """What a client may take of us; times in seconds."""

    connections: int = 768
    streams: int = 128  # of one connection; more wait at the client
    requests: int = 1024  # of all; more are told RESOURCE_EXHAUSTED
    handshake_s: float = 10.0
    body_s: float = 60.0
    idle_s: float = 120.0


async def serve_grpc(
    settings: Settings, port: int, intake: Intake, limits: GrpcLimits | None = None
) -> grpc.aio.Server:
    """Start a server for the three signals; a body over the limit is RESOURCE_EXHAUSTED by grpcio itself.

    Raises:
        ConfigurationError: The port is taken.
    """
    limits = limits or GrpcLimits()
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", settings.max_body_bytes),
            ("grpc.so_reuseport", int(settings.workers > 1)),
            ("grpc.max_allowed_incoming_connections", limits.connections),
            ("grpc.max_concurrent_streams", limits.streams),
            ("grpc.server_handshake_timeout_ms", int(limits.handshake_s * 1000)),
            ("grpc.max_connection_idle_ms", int(limits.idle_s * 1000)),
        ],
        maximum_concurrent_rpcs=limits.requests,
    )
    for signal, service in _SERVICES.items():
        # As a stream, because grpcio waits without end for the message of a unary call.
        handler = grpc.stream_unary_rpc_method_handler(_export(signal, intake, limits.body_s))
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Export": handler}),))
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    try:
        server.add_insecure_port(f"{host}:{port}")
    except RuntimeError as error:
        raise ConfigurationError(
            f"cannot listen on {host}:{port} for gRPC; stop what uses it, or give another --grpc-port (0: off)"
        ) from error
    await server.start()
    return server


def _export(
    signal: str, intake: Intake, body_s: float
) -> Callable[[object, grpc.aio.ServicerContext[bytes, bytes]], Awaitable[bytes]]:
    async def export(_: object, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        body = await _message(context, intake, body_s)
        outcome: asyncio.Future[Accepted | None] = asyncio.get_running_loop().create_future()
        try:
            intake.accept(signal, body, lambda accepted: None if outcome.done() else outcome.set_result(accepted))
            accepted = await asyncio.wait_for(outcome, _ACK_S)
        except tuple(_REASONS) as error:
            intake.refused(_REASONS[type(error)])
            if isinstance(error, InvalidRequestError):
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            await _unavailable(context, str(error))
        except asyncio.TimeoutError:
            await _unavailable(context, f"the spool was not synced within {_ACK_S:g} s; send again")
        if accepted is None:
            await _unavailable(context, "the spool could not be synced; send again")
        return success(signal, accepted)

    return export


async def _message(context: grpc.aio.ServicerContext[bytes, bytes], intake: Intake, body_s: float) -> bytes:
    """The one message of a call."""
    try:
        body = await asyncio.wait_for(context.read(), body_s)
    except asyncio.TimeoutError:
        intake.refused("grpc_deadline")
        await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, f"the request did not arrive within {body_s:g} s")
    if body is grpc.aio.EOF:  # type: ignore[attr-defined]  # its stub does not know it
        intake.refused("invalid")
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the call has no message; send one request in each")
    return body


async def _unavailable(context: grpc.aio.ServicerContext[bytes, bytes], reason: str) -> NoReturn:
    """Tell the client to send again, and when: a retry is allowed to it whatever it makes of the hint."""
    status = Status(code=grpc.StatusCode.UNAVAILABLE.value[0], message=reason)
    status.details.add().Pack(RetryInfo(retry_delay={"seconds": _RETRY_S}))
    details = (("grpc-status-details-bin", status.SerializeToString()),)
    await context.abort(grpc.StatusCode.UNAVAILABLE, reason, details)
