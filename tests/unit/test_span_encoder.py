"""Our encoder of spans against OpenTelemetry's own: the same messages, whatever a span holds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from axonize_core.export import span_encoder
from axonize_core.export.span_encoder import encode_traces

RESOURCES = [Resource({"service.name": "a", "n": 1}), Resource({}, "https://schema"), Resource({"list": ["x", "y"]})]
SCOPES = [
    InstrumentationScope("axonize", "1"),
    InstrumentationScope("other", None, "https://schema", {"k": True}),
    None,
]
INT64 = 1 << 63

scalars = st.one_of(
    st.text(max_size=300),
    st.integers(-INT64, INT64 - 1),
    st.floats(),
    st.booleans(),
    st.binary(max_size=300),
)
values = st.one_of(scalars, st.lists(st.one_of(scalars, st.lists(scalars, max_size=2)), max_size=4), st.tuples(scalars))
unusual = st.one_of(
    st.none(), st.dictionaries(st.text(max_size=5), scalars, max_size=2), st.integers(INT64), st.just("\ud800")
)
attributes = st.dictionaries(st.text(max_size=200), values, max_size=6)
contexts = st.builds(
    SpanContext,
    st.integers(1, 2**128 - 1),
    st.integers(1, 2**64 - 1),
    st.booleans(),
    st.just(TraceFlags(1)),
)
links = st.builds(Link, contexts, st.one_of(st.none(), attributes))
times_ns = st.integers(0, 2**64 - 1)


@st.composite
def spans(draw):
    """A span as ours are, with what theirs may have beside."""
    status = draw(st.sampled_from([Status(StatusCode.UNSET), Status(StatusCode.OK), Status(StatusCode.ERROR, "why ü")]))
    context = draw(contexts)
    if draw(st.integers(0, 5)) == 0:
        context = SpanContext(context.trace_id, context.span_id, False, TraceFlags(1), TraceState([("a", "b")]))
    return ReadableSpan(
        name=draw(st.text(max_size=200)),
        context=context,
        parent=draw(st.one_of(st.none(), contexts)),
        resource=draw(st.sampled_from(RESOURCES)),
        attributes={**draw(attributes), **({"odd": draw(unusual)} if draw(st.integers(0, 5)) == 0 else {})},
        events=[Event("e", {"k": 1}, 5)] if draw(st.integers(0, 5)) == 0 else (),
        links=draw(st.lists(links, max_size=3)),
        kind=draw(st.sampled_from(SpanKind)),
        status=status,
        start_time=draw(times_ns),
        end_time=draw(times_ns),
        instrumentation_scope=draw(st.sampled_from(SCOPES)),
    )


def by_span(request):
    """All spans with what stands around each, however they are grouped."""
    found = []
    for resource_spans in request.resource_spans:
        for scope_spans in resource_spans.scope_spans:
            around = (resource_spans.resource, resource_spans.schema_url, scope_spans.scope, scope_spans.schema_url)
            found += [(str(around), str(span)) for span in scope_spans.spans]
    return sorted(found)


@given(st.lists(spans(), max_size=6))
def test_messages_are_those_of_the_official_encoder(made):
    """Each span, its resource and its scope, read back as a collector reads them."""
    ours = ExportTraceServiceRequest.FromString(encode_traces(made))
    assert by_span(ours) == by_span(encode_spans(made))


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 128, 16_381, 16_384, 70_000])
def test_lengths_at_the_edges_of_their_own_lengths(size):
    """A length of more bytes moves all that encloses it."""
    made = [usual(**{"k": "x" * size, "b": b"y" * size, "n" * size: size})]
    assert ExportTraceServiceRequest.FromString(encode_traces(made)) == encode_spans(made)


def test_ours_are_encoded_here(monkeypatch):
    """The official encoder sees what encloses them, once for a resource, and none of the spans but the first."""
    seen = []
    span_encoder._kept_around.clear()
    monkeypatch.setattr(span_encoder, "encode_spans", lambda spans: seen.extend(spans) or encode_spans(spans))
    made = [usual(**{"gen_ai.response.finish_reasons": ["stop"], "n": n, "x": 0.5}) for n in range(20)]
    assert len(ExportTraceServiceRequest.FromString(encode_traces(made)).resource_spans[0].scope_spans[0].spans) == 20
    assert encode_traces(made[1:])
    assert seen == made[:1]


def test_what_encloses_spans_is_kept_of_a_few(monkeypatch):
    """However many resources there are, and each time with its own."""
    monkeypatch.setattr(span_encoder, "_MOST_AROUND", 3)
    for n in range(10):
        made = [usual(Resource({"service.name": f"s{n % 4}"}), n=n)]
        assert ExportTraceServiceRequest.FromString(encode_traces(made)) == encode_spans(made)
        assert len(span_encoder._kept_around) <= 3


def test_long_texts_are_not_kept():
    """A plugin may add a prompt to each span; the agent's memory stays as it is."""
    span_encoder._string.cache_clear()
    encode_traces([usual(prompt=f"{n}" * 1000, phase="decode") for n in range(1, 10)])
    assert span_encoder._string.cache_info().currsize == 1


def test_spans_of_one_resource_stand_together():
    """As the official encoder groups them, in their order."""
    made = [usual(RESOURCES[n % 2], n=n) for n in range(6)]
    request = ExportTraceServiceRequest.FromString(encode_traces(made))
    numbers = [[s.attributes[0].value.int_value for s in r.scope_spans[0].spans] for r in request.resource_spans]
    assert numbers == [[0, 2, 4], [1, 3, 5]]


def usual(resource=RESOURCES[0], **attributes):
    context = SpanContext(1 << 100, 1 << 40, False, TraceFlags(1))
    return ReadableSpan(
        "batch",
        context,
        context,
        resource,
        attributes,
        links=[Link(context)],
        status=Status(StatusCode.UNSET),
        start_time=1,
        end_time=2,
        instrumentation_scope=SCOPES[0],
    )
