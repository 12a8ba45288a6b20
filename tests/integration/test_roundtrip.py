"""What OTel clients send comes back equal: every attribute, every type, every field of a span."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from axonize_server.query import spans_of
from oracle import same, walk
from otlp_values import EVERYTHING, pairs_of

if TYPE_CHECKING:
    from axonize_server.store.clickhouse import ClickHouseStore

DAY_NS = 86_400 * 10**9


def everything() -> ExportTraceServiceRequest:
    """A request that uses every field of OTLP spans, with every kind of value at every level."""
    now = time.time_ns()
    request = ExportTraceServiceRequest()
    for schema_url, service in (("https://example.com/schema/1", "one"), ("", "two")):
        resource_spans = request.resource_spans.add(schema_url=schema_url)
        resource_spans.resource.attributes.extend(pairs_of({**EVERYTHING, "service.name": service}))
        resource_spans.resource.dropped_attributes_count = 3
        scope_spans = resource_spans.scope_spans.add(schema_url="https://example.com/scope")
        scope_spans.scope.name, scope_spans.scope.version = "scope", "1.2"
        scope_spans.scope.attributes.extend(pairs_of(EVERYTHING))
        scope_spans.scope.dropped_attributes_count = 4
        for number in range(3):
            span = scope_spans.spans.add(
                trace_id=b"\x00" * 15 + b"\x01",
                span_id=secrets.token_bytes(8),
                parent_span_id=b"" if number == 0 else secrets.token_bytes(8),
                trace_state="vendor=value,other=1",
                flags=0xFFFF_FFFF,
                name="námé",
                kind=number,
                start_time_unix_nano=now + number,
                end_time_unix_nano=now + 3_000_000_001 - number * 2_000_000_000,
                dropped_attributes_count=1,
                dropped_events_count=2,
                dropped_links_count=2**32 - 1,
            )
            span.attributes.extend(pairs_of(EVERYTHING if number else {}))
            span.status.code, span.status.message = number, "message" * number
            for event_number in range(number):
                event = span.events.add(time_unix_nano=now + event_number, name=f"event {event_number}")
                event.attributes.extend(pairs_of(EVERYTHING))
                event.dropped_attributes_count = 9
            for _ in range(number):
                link = span.links.add(trace_id=secrets.token_bytes(16), span_id=secrets.token_bytes(8), flags=257)
                link.trace_state, link.dropped_attributes_count = "a=b", 5
                link.attributes.extend(pairs_of(EVERYTHING))
    empty = request.resource_spans.add().scope_spans.add().spans.add()
    empty.trace_id, empty.span_id = b"\x00" * 15 + b"\x01", secrets.token_bytes(8)
    empty.start_time_unix_nano = empty.end_time_unix_nano = now
    return request


def stored(store: ClickHouseStore, request: ExportTraceServiceRequest) -> list[Any]:
    ids = sorted({span["trace_id"] for span in walk(request)})
    return [span for trace_id in ids for span in spans_of(store, tenant="default", trace_id=trace_id)]


def by_id(spans: list[Any]) -> dict[bytes, Any]:
    return {span["span_id"]: span for span in spans}


def assert_same(store: ClickHouseStore, request: ExportTraceServiceRequest) -> None:
    expected, found = by_id(walk(request)), by_id(stored(store, request))
    assert found.keys() == expected.keys()
    for span_id, span in expected.items():
        for field, value in span.items():
            assert same(found[span_id][field], value), (field, found[span_id][field], value)


def insert(store: ClickHouseStore, segment: Any) -> None:
    store.insert(segment.path, segment.signal, segment.id)


def test_every_field_and_type(store, write_segment):
    """A span that uses all OTLP has to offer comes back equal to the oracle's walk."""
    request = everything()
    insert(store, write_segment(request))
    assert_same(store, request)


def test_every_field_and_type_over_http(http_store, write_segment):
    """The same holds when ClickHouse is reached over HTTP."""
    request = everything()
    insert(http_store, write_segment(request))
    assert_same(http_store, request)


def test_spans_of_the_official_sdk(store, write_segment):
    """Spans recorded by the OTel SDK and encoded by its exporter come back equal."""
    memory = InMemorySpanExporter()
    provider = TracerProvider(resource=Resource({"service.name": "sdk", "numbers": [1, 2], "on": True}))
    provider.add_span_processor(SimpleSpanProcessor(memory))
    tracer = provider.get_tracer("tests", "1.0", schema_url="https://example.com", attributes={"scope": [1.5]})
    elsewhere = SpanContext(
        1 << 100, 1 << 50, is_remote=True, trace_flags=TraceFlags(1), trace_state=TraceState([("a", "b")])
    )
    with tracer.start_as_current_span(
        "parent", kind=SpanKind.SERVER, links=[Link(elsewhere, {"why": "batch"})]
    ) as span:
        span.set_attributes({"ints": [1, 2, 3], "text": "é", "zero": 0, "no": False, "empty": "", "none": [], "x": 1.0})
        span.set_attribute("raw", b"\x00\x01")
        span.add_event("happened", {"bools": [True, False]}, timestamp=time.time_ns())
        span.set_status(Status(StatusCode.ERROR, "broke"))
        tracer.start_span("child").end()
    request = ExportTraceServiceRequest.FromString(encode_spans(memory.get_finished_spans()).SerializeToString())
    insert(store, write_segment(request))
    assert_same(store, request)
    assert len(stored(store, request)) == 2


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    st.binary(max_size=20),
)
keys = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=12
)
attributes = st.dictionaries(keys, values, max_size=8)


@hypothesis_settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    data=st.lists(st.tuples(attributes, attributes, attributes, st.integers(-DAY_NS, DAY_NS)), min_size=1, max_size=6)
)
def test_any_attributes(store, write_segment, data):
    """Whatever the attributes of spans, events, links, scopes and resources are, they come back equal."""
    request = ExportTraceServiceRequest()
    trace_id, now = secrets.token_bytes(16), time.time_ns()
    for outer, inner, own, shift in data:
        resource_spans = request.resource_spans.add()
        resource_spans.resource.attributes.extend(pairs_of(outer))
        scope_spans = resource_spans.scope_spans.add()
        scope_spans.scope.attributes.extend(pairs_of(inner))
        span = scope_spans.spans.add(
            trace_id=trace_id, span_id=secrets.token_bytes(8), start_time_unix_nano=now + shift
        )
        span.end_time_unix_nano = now
        span.attributes.extend(pairs_of(own))
        span.events.add(name="e").attributes.extend(pairs_of(inner))
        span.links.add(trace_id=trace_id, span_id=span.span_id).attributes.extend(pairs_of(own))
    insert(store, write_segment(request))
    assert_same(store, request)


def test_the_oracle_tells_types_apart():
    """The comparison itself would notice a value that changed its type or sign."""
    for one, other in (
        (1, True),
        (1, 1.0),
        (0.0, -0.0),
        ("", None),
        ([], {}),
        (b"a", "a"),
        ([1], [1, 2]),
        ({"a": 1}, {}),
    ):
        assert not same(one, other), (one, other)
    assert same({"a": [float("nan"), None]}, {"a": [float("nan"), None]})


@pytest.mark.parametrize("tenant", ["acme", "ünïcode"])
def test_a_sender_cannot_choose_its_tenant(store, write_segment, tenant):
    """A tenant field written by the sender is overruled by the one the receiver wrote behind it."""
    request = everything()
    spoofed = request.SerializeToString() + b"\xca\x3e\x04evil"  # field 1001, length-delimited
    insert(store, write_segment(spoofed, tenant=tenant))
    trace_id = b"\x00" * 15 + b"\x01"
    assert len(spans_of(store, tenant=tenant, trace_id=trace_id)) == 7
    assert spans_of(store, tenant="evil", trace_id=trace_id) == []
