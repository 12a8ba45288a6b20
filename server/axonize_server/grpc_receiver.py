"""OTLP/gRPC: the same accept path as HTTP, the message's bytes untouched by gRPC (no deserializer).

grpcio serves on threads of its own; each call hops to the receiver's event loop and waits there for its sync.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TYPE_CHECKING, Final, NoReturn

import grpc
from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped]  # no types are published
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]  # the same

from axonize_core.errors import ConfigurationError
from axonize_server.otlp import InvalidRequestError
from axonize_server.otlp_answer import success
from axonize_server.spool import SpoolFullError, SpoolUnavailableError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from axonize_server.intake import Intake
    from axonize_server.otlp import Accepted
    from axonize_server.settings import Settings

__all__ = ["serve_grpc"]

_SERVICES: Final = {
    "traces": "opentelemetry.proto.collector.trace.v1.TraceService",
    "metrics": "opentelemetry.proto.collector.metrics.v1.MetricsService",
    "logs": "opentelemetry.proto.collector.logs.v1.LogsService",
}
_THREADS = 16
_ACK_S = 30.0
_RETRY_S = 2
_REASONS: Final[dict[type[Exception], str]] = {
    InvalidRequestError: "invalid",
    SpoolFullError: "spool_full",
    SpoolUnavailableError: "spool_unavailable",
}


def serve_grpc(settings: Settings, port: int, intake: Intake, loop: asyncio.AbstractEventLoop) -> grpc.Server:
    """Start a server for the three signals; a body over the limit is RESOURCE_EXHAUSTED by grpcio itself.

    Raises:
        ConfigurationError: The port is taken.
    """
    server = grpc.server(
        ThreadPoolExecutor(_THREADS, thread_name_prefix="axonize-grpc"),
        options=[
            ("grpc.max_receive_message_length", settings.max_body_bytes),
            ("grpc.so_reuseport", int(settings.workers > 1)),
        ],
    )
    for signal, service in _SERVICES.items():
        handler = grpc.unary_unary_rpc_method_handler(_export(signal, intake, loop))
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Export": handler}),))
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    try:
        server.add_insecure_port(f"{host}:{port}")
    except RuntimeError as error:
        raise ConfigurationError(
            f"cannot listen on {host}:{port} for gRPC; stop what uses it, or give another --grpc-port (0: off)"
        ) from error
    server.start()
    return server


def _export(
    signal: str, intake: Intake, loop: asyncio.AbstractEventLoop
) -> Callable[[bytes, grpc.ServicerContext], bytes]:
    def export(body: bytes, context: grpc.ServicerContext) -> bytes:
        outcome: Future[Accepted | None] = Future()
        loop.call_soon_threadsafe(_accept, intake, signal, body, outcome)
        try:
            accepted = outcome.result(_ACK_S)
        except InvalidRequestError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except (SpoolFullError, SpoolUnavailableError, FutureTimeoutError) as error:
            _unavailable(context, str(error))
        if accepted is None:
            _unavailable(context, "the spool could not be synced; send again")
        return success(signal, accepted)

    return export


def _unavailable(context: grpc.ServicerContext, reason: str) -> NoReturn:
    """Tell the client to send again, and when: a retry is allowed to it whatever it makes of the hint."""
    status = Status(code=grpc.StatusCode.UNAVAILABLE.value[0], message=reason)
    status.details.add().Pack(RetryInfo(retry_delay={"seconds": _RETRY_S}))
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    context.abort(grpc.StatusCode.UNAVAILABLE, reason)


def _accept(intake: Intake, signal: str, body: bytes, outcome: Future[Accepted | None]) -> None:
    """On the loop's thread."""
    try:
        intake.accept(signal, body, outcome.set_result)
    except tuple(_REASONS) as error:
        intake.refused(_REASONS[type(error)])
        outcome.set_exception(error)
