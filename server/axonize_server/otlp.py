"""Validation of OTLP request bodies: what must hold before their bytes are stored as they came.

The official protobuf parser (upb, in C) checks structure and UTF-8; the rules here check what OTLP demands
beyond that: lengths of ids, sane time stamps, a bounded number of days. Unknown fields are ignored.
"""

from __future__ import annotations

import time
from itertools import chain
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias, cast

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from axonize_core.errors import AxonizeError
from axonize_server.otlp_check import check_traces
from axonize_server.otlp_shortcut import usual_spans

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from google.protobuf.message import Message
    from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
    from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
    from opentelemetry.proto.trace.v1.trace_pb2 import Span

__all__ = [
    "MAX_DAYS",
    "VALIDATORS",
    "Accepted",
    "InvalidRequestError",
    "validate_logs",
    "validate_metrics",
    "validate_traces",
]

Body: TypeAlias = "bytes | bytearray | memoryview"
MAX_DAYS: Final = 64
DAY_NS: Final = 86_400 * 10**9
# upb takes any buffer; its stub knows bytes only.
_parse_traces = cast("Callable[[Body], ExportTraceServiceRequest]", ExportTraceServiceRequest.FromString)
_parse_metrics = cast("Callable[[Body], ExportMetricsServiceRequest]", ExportMetricsServiceRequest.FromString)
_parse_logs = cast("Callable[[Body], ExportLogsServiceRequest]", ExportLogsServiceRequest.FromString)
_TIME_LIMIT = 1 << 63  # the store's nanosecond clock is signed
_NO_TRACE, _NO_SPAN = bytes(16), bytes(8)


class InvalidRequestError(AxonizeError):
    """A body that no retry can make right; the message is meant for its sender."""


class Accepted(NamedTuple):
    """A valid request.

    It has that many spans, data points or log records, which lie in no other days since the epoch than these; what is to be
    stored of it is the body as it came, or rewritten without what OTLP does not know.
    """

    records: int
    days: set[int]
    body: Body


def validate_traces(body: Body) -> Accepted:
    """Check an ExportTraceServiceRequest.

    Raises:
        InvalidRequestError: It is no such message, or a span breaks a rule.
    """
    try:
        plain = check_traces(body)
    except DecodeError as error:
        raise InvalidRequestError(f"the body is no valid ExportTraceServiceRequest: {error}") from error
    stored = body if plain else _rewritten(_parse_traces(body))
    usual = usual_spans(body)
    if usual is None or len(usual[1]) > MAX_DAYS:
        usual = _walked(body)
    return Accepted(*usual, stored)


def _rewritten(request: Message) -> bytes:
    """The request without unknown fields and with every number in its type's range, which upb saw to."""
    request.DiscardUnknownFields()
    return request.SerializeToString()


def validate_metrics(body: Body) -> Accepted:
    """Check an ExportMetricsServiceRequest.

    Raises:
        InvalidRequestError: It is no such message, or a data point's time stamp breaks a rule.
    """
    try:
        request = _parse_metrics(body)
    except DecodeError as error:
        raise InvalidRequestError(f"the body is no valid ExportMetricsServiceRequest: {error}") from error
    scopes = chain.from_iterable(resource.scope_metrics for resource in request.resource_metrics)
    metrics = chain.from_iterable(scope.metrics for scope in scopes)
    records, days = 0, set()
    for metric in metrics:
        for start_ns, time_ns in _point_times(metric):
            if start_ns >= _TIME_LIMIT or time_ns >= _TIME_LIMIT:
                raise InvalidRequestError(f"metric {metric.name!r}: time stamp beyond 2**63-1 ns")
            records += 1
            days.add(time_ns // DAY_NS)
    return Accepted(records, _bounded(days), _rewritten(request))


def validate_logs(body: Body) -> Accepted:
    """Check an ExportLogsServiceRequest; a record that says neither when it was nor when it was seen is seen now.

    Raises:
        InvalidRequestError: It is no such message, or a record breaks a rule.
    """
    try:
        request = _parse_logs(body)
    except DecodeError as error:
        raise InvalidRequestError(f"the body is no valid ExportLogsServiceRequest: {error}") from error
    scopes = chain.from_iterable(resource.scope_logs for resource in request.resource_logs)
    records, days = 0, set()
    for record in chain.from_iterable(scope.log_records for scope in scopes):
        if (fault := _log_fault(record)) is not None:
            raise InvalidRequestError(f"log record {record.event_name or record.severity_text!r}: {fault}")
        if not (record.time_unix_nano or record.observed_time_unix_nano):
            record.observed_time_unix_nano = time.time_ns()
        records += 1
        days.add((record.time_unix_nano or record.observed_time_unix_nano) // DAY_NS)
    return Accepted(records, _bounded(days), _rewritten(request))


def _log_fault(record: LogRecord) -> str | None:
    if len(record.trace_id) not in (0, 16) or len(record.span_id) not in (0, 8):
        return "trace_id must be empty or 16 bytes, span_id empty or 8 bytes"
    if record.time_unix_nano >= _TIME_LIMIT or record.observed_time_unix_nano >= _TIME_LIMIT:
        return "time stamp beyond 2**63-1 ns"
    return None


VALIDATORS: Final[dict[str, Callable[[Body], Accepted]]] = {
    "traces": validate_traces,
    "metrics": validate_metrics,
    "logs": validate_logs,
}


def _walked(body: Body) -> tuple[int, set[int]]:
    """The rules themselves, span by span; what `usual_spans` lets pass passes here too."""
    records, days = 0, set()
    for resource in _parse_traces(body).resource_spans:
        for span in chain.from_iterable(scope.spans for scope in resource.scope_spans):
            if (fault := _fault(span)) is not None:
                raise InvalidRequestError(f"span {span.name!r}: {fault}")
            records += 1
            days.add(span.start_time_unix_nano // DAY_NS)
    return records, _bounded(days)


def _fault(span: Span) -> str | None:
    if not _ids_hold(span.trace_id, span.span_id):
        return "trace_id must be 16 bytes and span_id 8 bytes, not all zero"
    if len(span.parent_span_id) not in (0, 8):
        return "parent_span_id must be empty or 8 bytes"
    if not all(_ids_hold(link.trace_id, link.span_id) for link in span.links):
        return "a link's trace_id must be 16 bytes and its span_id 8 bytes, not all zero"
    if not 1 <= span.start_time_unix_nano < _TIME_LIMIT:
        return "start_time_unix_nano must be set and below 2**63"
    if span.end_time_unix_nano >= _TIME_LIMIT:
        return "end_time_unix_nano must be below 2**63"
    return None


def _ids_hold(trace_id: bytes, span_id: bytes) -> bool:
    return (
        len(trace_id) == len(_NO_TRACE)
        and len(span_id) == len(_NO_SPAN)
        and trace_id != _NO_TRACE
        and span_id != _NO_SPAN
    )


def _point_times(metric: Metric) -> Iterator[tuple[int, int]]:
    kind = metric.WhichOneof("data")
    points = getattr(metric, kind).data_points if kind else ()
    return ((point.start_time_unix_nano, point.time_unix_nano) for point in points)


def _bounded(days: set[int]) -> set[int]:
    if len(days) > MAX_DAYS:
        raise InvalidRequestError(f"one request spans {len(days)} days, more than {MAX_DAYS}; send fewer at once")
    return days
