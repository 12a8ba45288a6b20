"""Batches over OTLP/gRPC: encoded bodies through a channel, no message is built again. Needs the ``grpc`` extra."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped] # no types are published
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped] # same

from axonize_core import __version__
from axonize_core.export.answer import Answer
from axonize_core.export.batch import unpacked
from axonize_core.export.http_sender import RESPONSES, partial

if TYPE_CHECKING:
    from axonize_core.export.batch import Batch
    from axonize_core.export.endpoint import Endpoint

__all__ = ["GrpcSender"]

_METHODS = {
    "traces": "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
    "metrics": "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
}
_RETRYABLE = {
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DATA_LOSS,
}
# The waits between attempts are the lane's: gRPC's own would add up to two minutes.
_OPTIONS = (
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.primary_user_agent", f"axonize/{__version__}"),
)


class GrpcSender:
    """One channel for one endpoint.

    Raises:
        OSError: a certificate cannot be read.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._channel = _channel(endpoint)
        self._export = self._channel.unary_unary(
            _METHODS[endpoint.signal],
            request_serializer=None,
            response_deserializer=RESPONSES[endpoint.signal].FromString,
        )
        self._metadata = tuple((key.lower(), value) for key, value in endpoint.headers.items())

    def send(self, batch: Batch, timeout_s: float) -> Answer:
        """Call Export with one body; gRPC compresses it again when it was stored compressed."""
        compression = grpc.Compression.Gzip if batch.gzipped else grpc.Compression.NoCompression
        try:
            return partial(
                self._export(unpacked(batch), timeout=timeout_s, metadata=self._metadata, compression=compression)
            )
        except grpc.RpcError as e:
            return _judge(e, batch)

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()


def _channel(endpoint: Endpoint) -> grpc.Channel:
    if not endpoint.secure:
        return grpc.insecure_channel(endpoint.url, options=_OPTIONS)
    ca, key, own = (
        Path(name).read_bytes() if name else None
        for name in (endpoint.certificate, endpoint.client_key, endpoint.client_certificate)
    )
    credentials = grpc.ssl_channel_credentials(root_certificates=ca, private_key=key, certificate_chain=own)
    return grpc.secure_channel(endpoint.url, credentials, options=_OPTIONS)


def _judge(error: Any, batch: Batch) -> Answer:
    code, wait_s = error.code(), _retry_delay_s(error)
    reason, detail = f"gRPC {code.name}", str(error.details())[:300]
    if code in _RETRYABLE or (code is grpc.StatusCode.RESOURCE_EXHAUSTED and wait_s is not None):
        return Answer(settled=False, reason=reason, detail=detail, wait_s=wait_s)
    return Answer(settled=True, refused=batch.items, reason=reason, detail=detail)


def _retry_delay_s(error: Any) -> float | None:
    """Return the RetryInfo of a status, if it has one."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            try:
                details = Status.FromString(value).details
            except DecodeError:
                return None
            info = RetryInfo()
            if any(detail.Unpack(info) for detail in details):
                return float(info.retry_delay.seconds + info.retry_delay.nanos / 1e9)
    return None
