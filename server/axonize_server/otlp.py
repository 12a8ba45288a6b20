"""Validation of OTLP request bodies: what must hold before their bytes are stored.

The official protobuf parser (upb, in C) checks structure and UTF-8: a body that fails is refused as a whole.
The rules of `otlp_rules` are asked of each record; one that breaks them is left out and reported, the others
are stored. A usual trace body is stored as it came; any other is written anew without what was left out.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias, TypeVar, cast

from google.protobuf.message import DecodeError, Message
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from axonize_core.errors import AxonizeError
from axonize_server.otlp_check import check_traces
from axonize_server.otlp_rules import (
    MAX_DAYS,
    MAX_RECORDS,
    Sieve,
    Window,
    log_fault,
    place_log,
    point_fault,
    span_fault,
)
from axonize_server.otlp_shortcut import usual_spans
from axonize_server.otlp_size import too_many_fields

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.internal.containers import RepeatedCompositeFieldContainer
    from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric, NumberDataPoint

__all__ = ["VALIDATORS", "Accepted", "InvalidRequestError", "validate_logs", "validate_metrics", "validate_traces"]

Body: TypeAlias = "bytes | bytearray | memoryview"
Request = TypeVar("Request", bound=Message)


class InvalidRequestError(AxonizeError):
    """A body that no retry can make right; the message is meant for its sender."""


class Accepted(NamedTuple):
    """A well-formed request.

    It has that many spans, data points or log records to store, which lie in no other days since the epoch than
    these; what is to be stored of it is the body as it came, or rewritten. `rejected` counts the records left out
    by reason; `message` says why, or what its sender should know although all was taken.
    """

    records: int
    days: set[int]
    body: Body
    rejected: dict[str, int] = {}  # noqa: RUF012 - never changed
    message: str = ""


def validate_traces(body: Body, window: Window) -> Accepted:
    """Check an ExportTraceServiceRequest.

    Raises:
        InvalidRequestError: It is no such message, or is made of more parts than there is memory for.
    """
    _bounded("traces", body)
    try:
        plain = check_traces(body)
    except DecodeError as error:
        raise _no_message(ExportTraceServiceRequest, error) from error
    usual = usual_spans(body, window)
    if usual is not None and usual[0] <= MAX_RECORDS and len(usual[1]) <= MAX_DAYS:
        if plain:
            return Accepted(*usual, body)
        _bounded("traces", body, inside=True)
        return Accepted(*usual, _rewritten(_parsed(ExportTraceServiceRequest, body)))
    _bounded("traces", body, inside=True)
    request = _parsed(ExportTraceServiceRequest, body)
    sieve = Sieve("span", span_fault, window)
    for resource in request.resource_spans:
        for scope in resource.scope_spans:
            sieve.sift(scope.spans)
    return _accepted(sieve, body if plain and not sieve.rejected else _rewritten(request))


def validate_metrics(body: Body, window: Window) -> Accepted:
    """Check an ExportMetricsServiceRequest.

    Raises:
        InvalidRequestError: It is no such message, or is made of more parts than there is memory for.
    """
    _bounded("metrics", body, inside=True)
    request = _parsed(ExportMetricsServiceRequest, body)
    sieve = Sieve("data point", point_fault, window)
    scopes = chain.from_iterable(resource.scope_metrics for resource in request.resource_metrics)
    for metric in chain.from_iterable(scope.metrics for scope in scopes):
        if (points := _points(metric)) is not None:
            sieve.sift(points)
    return _accepted(sieve, _rewritten(request))


def validate_logs(body: Body, window: Window) -> Accepted:
    """Check an ExportLogsServiceRequest; an id of a wrong length is dropped and its record kept, as OTLP wants.

    Raises:
        InvalidRequestError: It is no such message, or is made of more parts than there is memory for.
    """
    _bounded("logs", body, inside=True)
    request = _parsed(ExportLogsServiceRequest, body)
    sieve = Sieve("log record", log_fault, window)
    misplaced = 0
    for resource in request.resource_logs:
        for scope in resource.scope_logs:
            misplaced += sum([place_log(record, window) for record in scope.log_records])
            sieve.sift(scope.log_records)
    note = f"{misplaced} log records kept without their ids: trace_id has 16 bytes, span_id 8" if misplaced else ""
    return _accepted(sieve, _rewritten(request), note)


VALIDATORS: Final[dict[str, Callable[[Body, Window], Accepted]]] = {
    "traces": validate_traces,
    "metrics": validate_metrics,
    "logs": validate_logs,
}


def _bounded(signal: str, body: Body, *, inside: bool = False) -> None:
    if too_many_fields(signal, body, inside=inside):
        raise InvalidRequestError("the body holds too many records or attributes; send fewer at once")


def _parsed(kind: type[Request], body: Body) -> Request:
    try:
        return kind.FromString(cast("bytes", body))  # upb takes any buffer; its stub knows bytes only
    except DecodeError as error:
        raise _no_message(kind, error) from error


def _no_message(kind: type[Message], error: DecodeError) -> InvalidRequestError:
    return InvalidRequestError(f"the body is no valid {kind.__name__}: {error}")


def _rewritten(request: Message) -> bytes:
    """The request without unknown fields and with every number in its type's range, which upb saw to."""
    request.DiscardUnknownFields()
    return request.SerializeToString()


def _accepted(sieve: Sieve, stored: Body, note: str = "") -> Accepted:
    message = "; ".join(filter(None, (sieve.message(), note)))
    return Accepted(sieve.records, sieve.days, stored, dict(sieve.rejected), message)


def _points(metric: Metric) -> RepeatedCompositeFieldContainer[NumberDataPoint] | None:
    """The data points of a metric; those of all kinds have the times that the rules look at."""
    kind = metric.WhichOneof("data")
    return getattr(metric, kind).data_points if kind else None
