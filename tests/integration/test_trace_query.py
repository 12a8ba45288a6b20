"""Finding a trace: only the time its totals tell of is looked through, and nothing of it is missed."""

from __future__ import annotations

import time

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from axonize_server.query import spans_of
from axonize_server.spool import INSERT_SETTINGS

HOUR_NS = 3600 * 10**9
NOW_NS = time.time_ns()


def body(trace_id, times_ns):
    """A request with a span of this trace for each beginning and end, and one of another trace beside each."""
    made = ExportTraceServiceRequest()
    spans = made.resource_spans.add().scope_spans.add().spans
    for number, (start_ns, end_ns) in enumerate(times_ns):
        for trace in (trace_id, bytes(255 - byte for byte in trace_id)):
            spans.add(
                trace_id=trace,
                span_id=(number + 1).to_bytes(8, "big"),
                name="asked",
                start_time_unix_nano=start_ns,
                end_time_unix_nano=end_ns,
            )
    return made.SerializeToString()


@pytest.fixture
def put(store, write_segment):
    """Store spans of a trace, in a segment of their own."""

    def put(trace_id, *times_ns):
        segment = write_segment(body(trace_id, times_ns))
        store.insert(segment.path, "traces", segment.id, INSERT_SETTINGS)

    return put


def found(store, trace_id, tenant="default"):
    return [int.from_bytes(span["span_id"], "big") for span in spans_of(store, tenant=tenant, trace_id=trace_id)]


def test_other_times_are_not_read(store, put, monkeypatch):
    """Of five parts, hours apart, the one with the trace is left; a trace nobody knows reads none."""
    ids = [bytes([number] * 15 + [0]) for number in range(1, 6)]
    for hours, trace_id in enumerate(ids):
        at_ns = NOW_NS - hours * HOUR_NS
        put(trace_id, (at_ns, at_ns + 1000))
    asked = []
    query = store.query
    monkeypatch.setattr(store, "query", lambda *it: asked.append(it) or query(*it))
    assert found(store, ids[2]) == [1]
    assert len(asked) == 2
    sql, parameters = asked[-1]
    (estimate,) = query(f"EXPLAIN ESTIMATE {sql}, use_skip_indexes = 0", parameters)  # by the time alone
    assert (estimate["table"], estimate["parts"]) == ("spans", 1)
    asked.clear()
    assert found(store, b"\x77" * 16) == found(store, ids[2], "another tenant") == []
    assert len(asked) == 2


def test_no_span_is_missed(store, put):
    """In several segments and days, and with one that ends long before it starts."""
    trace_id = bytes(range(16))
    put(trace_id, (NOW_NS, NOW_NS + 1000))
    put(trace_id, (NOW_NS - 30 * HOUR_NS, NOW_NS - 29 * HOUR_NS), (NOW_NS + HOUR_NS // 2, NOW_NS - 48 * HOUR_NS))
    assert found(store, trace_id) == [1, 1, 2]


def test_totals_of_spans_that_are_gone_find_the_rest(store, put):
    """Spans may be dropped before their totals are."""
    trace_id = bytes(range(1, 17))
    put(trace_id, (NOW_NS - 30 * HOUR_NS, NOW_NS - 29 * HOUR_NS))
    put(trace_id, (NOW_NS, NOW_NS + 1000), (NOW_NS + 5, NOW_NS + 10))
    day = time.strftime("%Y-%m-%d", time.gmtime(NOW_NS // 10**9 - 30 * 3600))
    store.command(f"ALTER TABLE {store.database}.spans DROP PARTITION '{day}'")
    assert found(store, trace_id) == [1, 2]
