"""OTLP/JSON becomes the protobuf message it stands for, however liberal its sender was."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from axonize_server import otlp_json
from axonize_server.otlp import InvalidRequestError
from axonize_server.otlp_json import to_protobuf
from axonize_server.otlp_json_spans import usual_trace_body
from otlp_bodies import logs_body, metrics_body, trace_request
from otlp_json_bodies import as_json
from otlp_values import EVERYTHING, pairs_of

KINDS = {"traces": ExportTraceServiceRequest, "metrics": ExportMetricsServiceRequest, "logs": ExportLogsServiceRequest}


def read(body, signal="traces"):
    given = body if isinstance(body, bytes) else json.dumps(body).encode()
    return KINDS[signal].FromString(to_protobuf(signal, given))


def span_of(**fields):
    return {"resourceSpans": [{"scopeSpans": [{"spans": [fields]}]}]}


def value_of(value):
    """What an attribute's JSON value is read as."""
    request = read(span_of(attributes=[{"key": "k", "value": value}]))
    return request.resource_spans[0].scope_spans[0].spans[0].attributes[0].value


def everything():
    request = trace_request(spans=2)
    for part in request.resource_spans:
        part.schema_url = "https://example.com"
        part.resource.attributes.extend(pairs_of(EVERYTHING))
        part.resource.dropped_attributes_count = 1
        for scope in part.scope_spans:
            scope.scope.version, scope.schema_url = "1", "https://example.com/scope"
            scope.scope.attributes.extend(pairs_of(EVERYTHING))
            scope.scope.dropped_attributes_count = 2
            for span in scope.spans:
                span.attributes.extend(pairs_of(EVERYTHING))
                span.trace_state, span.flags, span.name = "a=b", 0xFFFF_FFFF, "naïve 漢字" * 40
                span.status.code, span.status.message = 2, "broke"
                span.dropped_attributes_count, span.dropped_events_count, span.dropped_links_count = 300, 5, 70_000
                for event in span.events:
                    event.attributes.extend(pairs_of(EVERYTHING))
                    event.dropped_attributes_count = 7
                for link in span.links:
                    link.attributes.extend(pairs_of(EVERYTHING))
                    link.trace_state, link.flags, link.dropped_attributes_count = "c=d", 257, 8
    return request


def same(one, other):
    """Equality of messages, NaN included."""
    return one.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True)


@pytest.mark.parametrize("make", [everything, lambda: trace_request(7, spans=5)])
def test_a_usual_trace_body_goes_the_short_way(make, monkeypatch):
    """Every field of a span and every kind of value is known there; the long way agrees."""
    request = make()
    body = as_json(request)
    assert same(ExportTraceServiceRequest.FromString(usual_trace_body(body)), request)
    monkeypatch.setattr(otlp_json, "usual_trace_body", lambda _: None)
    assert same(read(body), request)


@pytest.mark.parametrize("options", [{"preserving_proto_field_name": True}, {"use_integers_for_enums": False}])
def test_original_names_and_names_of_enums(options):
    """Both are protobuf's JSON too."""
    request = everything()
    body = as_json(request, **options)
    assert usual_trace_body(body) is None
    assert same(read(body), request)


@pytest.mark.parametrize(("signal", "make"), [("metrics", metrics_body), ("logs", logs_body)])
def test_metrics_and_logs(signal, make):
    """The other signals are read by the same rules."""
    request = KINDS[signal].FromString(make())
    assert read(as_json(request), signal) == request
    assert read(as_json(request, preserving_proto_field_name=True), signal) == request


def test_every_kind_of_point():
    """Numbers that are 64 bits, fixed, signed or missing, and buckets of them."""
    request = ExportMetricsServiceRequest()
    metrics = request.resource_metrics.add().scope_metrics.add().metrics
    metrics.add(name="sum").sum.data_points.add(as_int=-(2**63), time_unix_nano=2**63)
    metrics[0].sum.aggregation_temporality = 2
    metrics.add().gauge.data_points.add(as_double=float("-inf")).exemplars.add(trace_id=b"t" * 16, as_int=0)
    metrics.add().histogram.data_points.add(bucket_counts=[1, 2**64 - 1], explicit_bounds=[0.5], sum=0.0, count=1)
    point = metrics.add().exponential_histogram.data_points.add(scale=-4, zero_count=1)
    point.positive.bucket_counts.extend([1, 2])
    metrics.add().summary.data_points.add(count=1).quantile_values.add(quantile=0.5, value=2)
    for options in ({}, {"use_integers_for_enums": False}, {"preserving_proto_field_name": True}):
        assert read(as_json(request, **options), "metrics") == request


@pytest.mark.parametrize(
    ("value", "field", "expected"),
    [
        ({"intValue": "9223372036854775807"}, "int_value", 2**63 - 1),
        ({"intValue": -9223372036854775808}, "int_value", -(2**63)),
        ({"intValue": 3.0}, "int_value", 3),
        ({"intValue": "0"}, "int_value", 0),
        ({"doubleValue": 3}, "double_value", 3.0),
        ({"doubleValue": "2.5"}, "double_value", 2.5),
        ({"doubleValue": "Infinity"}, "double_value", float("inf")),
        ({"doubleValue": "-Infinity"}, "double_value", float("-inf")),
        ({"bytesValue": "+/8="}, "bytes_value", b"\xfb\xff"),
        ({"bytesValue": "-_8"}, "bytes_value", b"\xfb\xff"),
        ({"bytes_value": ""}, "bytes_value", b""),
        ({"stringValue": "\ud83d\ude42"}, "string_value", "🙂"),
        ({"stringValue": ""}, "string_value", ""),
        ({"boolValue": False}, "bool_value", False),
        ({"arrayValue": {}}, "array_value", []),
        ({"kvlistValue": {"values": []}}, "kvlist_value", []),
        ({"stringValue": None, "intValue": 1, "newer": {"a": []}}, "int_value", 1),
        ({}, None, None),
    ],
    ids=str,
)
def test_values(value, field, expected):
    """Numbers as text, special numbers, both alphabets of base64, nulls, unknown fields, nothing at all."""
    found = value_of(value)
    assert found.WhichOneof("value") == field
    if field is not None:
        found = getattr(found, field)
        assert (list(found.values) if isinstance(expected, list) else found) == expected


def test_ids_times_and_unknown_fields():
    """Ids in either case; a null is not set; what a newer OTLP adds does not disturb."""
    body = span_of(traceId="AB" * 16, spanId="cd" * 8, parentSpanId=None, startTimeUnixNano="17", endTimeUnixNano=18)
    body["resourceSpans"][0]["newer"] = [1]
    (span,) = read(body).resource_spans[0].scope_spans[0].spans
    assert (span.trace_id, span.span_id, span.parent_span_id) == (b"\xab" * 16, b"\xcd" * 8, b"")
    assert (span.start_time_unix_nano, span.end_time_unix_nano) == (17, 18)
    assert read(span_of(kind="SPAN_KIND_SERVER")).resource_spans[0].scope_spans[0].spans[0].kind == 2
    assert read(span_of(kind="SPAN_KIND_OF_TOMORROW")).resource_spans[0].scope_spans[0].spans[0].kind == 0
    assert read({}) == read({"resourceSpans": None}) == ExportTraceServiceRequest()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"resourceSpans": {}}',
        b'{"resourceSpans": [1]}',
        span_of(traceId="xy"),
        span_of(traceId=7),
        span_of(startTimeUnixNano=-1),
        span_of(startTimeUnixNano=1.5),
        span_of(startTimeUnixNano="soon"),
        span_of(startTimeUnixNano=2**64),
        span_of(startTimeUnixNano=True),
        span_of(name=5),
        span_of(flags=2**32),
        span_of(kind=2**31),
        span_of(attributes=[{"key": "k", "value": {"intValue": 2**63}}]),
        span_of(attributes=[{"key": "k", "value": {"intValue": 1e30}}]),
        span_of(attributes=[{"key": "k", "value": {"bytesValue": "*"}}]),
        span_of(attributes=[{"key": "k", "value": {"boolValue": 2}}]),
        span_of(attributes=[{"key": "k", "value": "bare"}]),
        b'{"resourceSpans":[{"scopeSpans":[{"spans":[{"name":"\\ud800"}]}]}]}',
        b'{"resourceSpans":[{"scopeSpans":[{"spans":[{"name":"\xff"}]}]}]}',
        b'{"a":' * 100_000,
        b'{"resourceSpans":[' + b"{}," * 2**21 + b"{}]}",
    ],
    ids=lambda body: str(body)[:80],
)
@pytest.mark.parametrize("signal", ["traces"])
def test_what_is_no_such_message_is_refused(signal, body):
    """With a reason, whatever is wrong with it, and without taking memory for millions of objects."""
    with pytest.raises(InvalidRequestError, match="the body"):
        read(body, signal)


def test_deep_nesting_is_refused_or_read():
    """A value nested some levels is read; one nested beyond all use is an error, not a crash."""

    def nested(depth):
        inside = b'{"arrayValue":{"values":[' * depth + b'{"intValue":1}' + b"]}}" * depth
        value = b'{"key":"k","value":%s}' % inside
        return b'{"resourceSpans":[{"scopeSpans":[{"spans":[{"attributes":[%s]}]}]}]}' % value

    assert read(nested(20)).ByteSize() > 20
    with pytest.raises(InvalidRequestError):
        to_protobuf("traces", nested(5000))


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats().map(lambda number: float("nan") if math.isnan(number) else number)  # JSON has one NaN
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=150)
    | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=9), VALUES, max_size=6), max_size=4
    )
)
def test_any_attributes(many):
    """Both ways read any attributes as protobuf's own encoder wrote them."""
    request = ExportTraceServiceRequest()
    for attributes in many:
        span = request.resource_spans.add().scope_spans.add().spans.add(trace_id=b"t" * 16, span_id=b"s" * 8)
        span.attributes.extend(pairs_of(attributes))
        span.events.add(name="e", time_unix_nano=3).attributes.extend(pairs_of(attributes))
    body = as_json(request)
    assert same(ExportTraceServiceRequest.FromString(usual_trace_body(body)), request)
    fields = otlp_json._reader(ExportTraceServiceRequest.DESCRIPTOR)(json.loads(body))
    assert same(ExportTraceServiceRequest(**fields), request)
