"""The reference: a plain walk over parsed OTLP in Python, what every stored span and log record must equal.

Slow and obvious on purpose, and written against OTLP's own generated classes, never against our code.
"""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
    from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs
    from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

__all__ = ["same", "walk", "walk_logs"]


def walk(request: ExportTraceServiceRequest) -> list[dict[str, Any]]:
    """All spans of a request as plain Python, with scope and resource beside each."""
    return [
        _span(span, scope_spans, resource_spans)
        for resource_spans in request.resource_spans
        for scope_spans in resource_spans.scope_spans
        for span in scope_spans.spans
    ]


def walk_logs(request: ExportLogsServiceRequest) -> list[dict[str, Any]]:
    """All log records of a request as plain Python, with scope and resource beside each."""
    return [
        _log(record, scope_logs, resource_logs)
        for resource_logs in request.resource_logs
        for scope_logs in resource_logs.scope_logs
        for record in scope_logs.log_records
    ]


def same(one: Any, other: Any) -> bool:
    """Equality of values and of types: 1, 1.0 and True differ, NaN equals itself, 0.0 and -0.0 differ."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float):
        return (math.isnan(one) and math.isnan(other)) or struct.pack("d", one) == struct.pack("d", other)
    return one == other


def _span(span: Span, scope_spans: ScopeSpans, resource_spans: ResourceSpans) -> dict[str, Any]:
    return {
        "trace_id": span.trace_id,
        "span_id": span.span_id,
        "parent_span_id": span.parent_span_id,
        "trace_state": span.trace_state,
        "flags": span.flags,
        "name": span.name,
        "kind": span.kind,
        "start_time_unix_nano": span.start_time_unix_nano,
        "end_time_unix_nano": span.end_time_unix_nano,
        "status": {"code": span.status.code, "message": span.status.message},
        "attributes": _attributes(span.attributes),
        "dropped_attributes_count": span.dropped_attributes_count,
        "events": [
            {
                "time_unix_nano": event.time_unix_nano,
                "name": event.name,
                "attributes": _attributes(event.attributes),
                "dropped_attributes_count": event.dropped_attributes_count,
            }
            for event in span.events
        ],
        "dropped_events_count": span.dropped_events_count,
        "links": [
            {
                "trace_id": link.trace_id,
                "span_id": link.span_id,
                "trace_state": link.trace_state,
                "attributes": _attributes(link.attributes),
                "dropped_attributes_count": link.dropped_attributes_count,
                "flags": link.flags,
            }
            for link in span.links
        ],
        "dropped_links_count": span.dropped_links_count,
        **_origin(scope_spans, resource_spans),
    }


def _log(record: LogRecord, scope_logs: ScopeLogs, resource_logs: ResourceLogs) -> dict[str, Any]:
    return {
        "time_unix_nano": record.time_unix_nano,
        "observed_time_unix_nano": record.observed_time_unix_nano,
        "trace_id": record.trace_id,
        "span_id": record.span_id,
        "flags": record.flags,
        "severity_number": record.severity_number,
        "severity_text": record.severity_text,
        "event_name": record.event_name,
        "body": _value(record.body),
        "attributes": _attributes(record.attributes),
        "dropped_attributes_count": record.dropped_attributes_count,
        **_origin(scope_logs, resource_logs),
    }


def _origin(of_scope: ScopeSpans | ScopeLogs, of_resource: ResourceSpans | ResourceLogs) -> dict[str, Any]:
    scope, resource = of_scope.scope, of_resource.resource
    return {
        "scope": {
            "name": scope.name,
            "version": scope.version,
            "attributes": _attributes(scope.attributes),
            "dropped_attributes_count": scope.dropped_attributes_count,
            "schema_url": of_scope.schema_url,
        },
        "resource": {
            "attributes": _attributes(resource.attributes),
            "dropped_attributes_count": resource.dropped_attributes_count,
            "schema_url": of_resource.schema_url,
        },
    }


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    for scalar in ("string_value", "bool_value", "int_value", "double_value", "bytes_value"):
        if value.HasField(scalar):
            return getattr(value, scalar)
    if value.HasField("array_value"):
        return [_value(item) for item in value.array_value.values]
    return _attributes(value.kvlist_value.values) if value.HasField("kvlist_value") else None
