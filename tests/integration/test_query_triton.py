"""What Triton's own spans add to a question's answer."""

from __future__ import annotations

import random
import time

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from axonize_core import attributes as names
from axonize_server.query import requests
from axonize_server.spool import INSERT_SETTINGS
from own_spans import as_requests, own_span

TENANT = {"tenant": "default"}


def triton_spans(trace_id, start_ns, queued_ms, model=b"m" * 8):
    """Return Triton's own spans of a request: of its model, and of what it computed, as its OpenTelemetry mode sends them."""
    request = ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add()
    scope.scope.name = "triton-server"
    own = scope.spans.add(name="add", span_id=model, parent_span_id=b"c" * 8)
    compute = scope.spans.add(name="compute", span_id=random.randbytes(8), parent_span_id=model)
    for span in (own, compute):
        span.trace_id, span.start_time_unix_nano, span.end_time_unix_nano = trace_id, start_ns, start_ns + 10**8
    own.events.add(name="REQUEST_START", time_unix_nano=start_ns)
    own.events.add(name="QUEUE_START", time_unix_nano=start_ns + 1_000_000)
    compute.events.add(name="COMPUTE_START", time_unix_nano=start_ns + 1_000_000 + queued_ms * 1_000_000)
    return request


def test_tritons_queue_is_taken_from_its_own_spans(store, write_segment):
    """A model's process does not see it; where Triton's spans are in the trace, it is told with where it is from."""
    start_ns, traces = time.time_ns() - 10**10, [bytes([n]) * 16 for n in (1, 2, 3)]
    ours = [
        own_span("request", start_ns + 10**7, start_ns + 10**8, {}, trace_id=trace_id, parent_span_id=b"m" * 8)
        for trace_id in traces
    ]
    own = own_span("request", start_ns, start_ns + 10**8, {names.LATENCY_QUEUE_S: 0.5}, trace_id=traces[0])
    unfinished = triton_spans(traces[1], start_ns, 4)
    del unfinished.resource_spans[0].scope_spans[0].spans[1]
    resource = {"service.name": "svc", names.ENGINE: "triton"}
    spans = as_requests([*ours, own], resource)
    segment = write_segment(*spans, triton_spans(traces[0], start_ns, 7), unfinished)
    store.insert(segment.path, segment.signal, segment.id, INSERT_SETTINGS)
    found = {(row["trace_id"], row["span_id"]): row for row in requests(store, **TENANT)}
    told = [
        (row["queue_ms"], row["queue_provenance"])
        for span in (*ours, own)
        if (row := found[span.trace_id.hex(), span.span_id.hex()])
    ]
    assert told == [(7.0, "triton"), (None, None), (None, None), (500.0, "engine")]
    assert requests(store, tenant="other") == []
