"""What a request is answered with, in its own encoding: an Export*ServiceResponse or a google.rpc.Status."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped]  # no types are published
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]  # the same
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

if TYPE_CHECKING:
    from axonize_server.otlp import Accepted

__all__ = ["JSON", "PROTOBUF", "failure", "success"]

PROTOBUF: Final = "application/x-protobuf"
JSON: Final = "application/json"

_MESSAGE_CHARACTERS = 1024
_RESPONSES: Final = {
    "traces": (ExportTraceServiceResponse, "rejected_spans", "rejectedSpans"),
    "metrics": (ExportMetricsServiceResponse, "rejected_data_points", "rejectedDataPoints"),
    "logs": (ExportLogsServiceResponse, "rejected_log_records", "rejectedLogRecords"),
}


def success(signal: str, accepted: Accepted, encoding: str = PROTOBUF) -> bytes:
    """The response to a request that was taken, whole or in part; nothing to say is an empty message."""
    if not accepted.message:
        return b"{}" if encoding == JSON else b""
    response, field, json_name = _RESPONSES[signal]
    rejected, message = sum(accepted.rejected.values()), accepted.message[:_MESSAGE_CHARACTERS]
    if encoding == JSON:
        return json.dumps({"partialSuccess": {json_name: str(rejected), "errorMessage": message}}).encode()
    answer = response(partial_success={field: rejected, "error_message": message})
    return bytes(answer.SerializeToString())


def failure(code: int, reason: str, encoding: str = PROTOBUF, *, retry_s: int = 0) -> bytes:
    """A status, its code that of google.rpc.Code, for a request of which nothing was taken.

    In protobuf it may say after how many seconds to send it again; over HTTP a header does.
    """
    message = reason[:_MESSAGE_CHARACTERS]
    if encoding == JSON:
        return json.dumps({"code": code, "message": message}).encode()
    status = Status(code=code, message=message)
    if retry_s:
        status.details.add().Pack(RetryInfo(retry_delay={"seconds": retry_s}))
    return bytes(status.SerializeToString())
