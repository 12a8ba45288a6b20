"""Spans of the official OTel SDK and exporter, through a whole collector, come back equal to what was sent."""

from __future__ import annotations

import json
import time
import urllib.request

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, SpanKind, Status, StatusCode

import stored
from axonize_server.local import LocalCollector, free_port
from oracle import same, walk

ATTRIBUTES = {
    "text": "plain",
    "unicode": "naïve 漢字 🙂",
    "empty": "",
    "zero": 0,
    "false": False,
    "zero.float": 0.0,
    "int.min": -(2**63),
    "int.max": 2**63 - 1,
    "bytes": b"\x00\xff\x10",
    "strings": ["a", "", "漢"],
    "ints": [0, -1, 2**62],
    "floats": [0.5, -0.0, 1e300],
    "bools": [True, False],
    "none": [],
}


def make_spans():
    memory = InMemorySpanExporter()
    provider = TracerProvider(resource=Resource({"service.name": "exporter", "list": ["x", "y"], "n": 7}))
    provider.add_span_processor(SimpleSpanProcessor(memory))
    tracer = provider.get_tracer("scope", "1.2", attributes={"scope.bytes": b"\x01"})
    with tracer.start_as_current_span("root", kind=SpanKind.SERVER, attributes=ATTRIBUTES) as root:
        root.add_event("first", {"k": [1, 2], "b": b"\x00"}, timestamp=time.time_ns())
        root.add_link(root.get_span_context(), {"why": "itself"})
        with tracer.start_as_current_span("child", links=[Link(root.get_span_context())]) as child:
            child.set_status(Status(StatusCode.ERROR, "it broke"))
    return memory.get_finished_spans()


@pytest.mark.parametrize("compression", [Compression.NoCompression, Compression.Gzip], ids=["plain", "gzip"])
def test_what_the_official_exporter_sends_comes_back_equal(tmp_path, compression):
    """Attribute by attribute and type by type, to the walk of the bytes that were sent."""
    collector = LocalCollector(tmp_path, http_port=free_port(), api_port=free_port())
    spans = make_spans()
    exporter = OTLPSpanExporter(endpoint=f"{collector.otlp_url}/v1/traces", compression=compression)
    trace_id = spans[0].context.trace_id.to_bytes(16, "big")
    with collector.running():
        assert exporter.export(spans) is SpanExportResult.SUCCESS
        answered = wait_for_trace(collector, trace_id)
    exporter.shutdown()
    expected = sorted(walk(encode_spans(spans)), key=lambda span: (span["start_time_unix_nano"], span["span_id"]))
    found = stored.spans(tmp_path / "clickhouse", trace_id)
    assert len(found) == len(expected) == 2
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name, value in other.items():
            assert same(one[name], value), (name, one[name], value)
    root = next(span for span in answered["spans"] if span["name"] == "root")
    assert root["attributes"]["bytes"] == {"$bytes": "AP8Q"}
    assert root["attributes"]["strings"] == ["a", "", "漢"]
    assert root["attributes"]["false"] is False
    assert root["attributes"]["int.max"] == 2**63 - 1


def wait_for_trace(collector, trace_id):
    deadline = time.monotonic() + 20
    while True:
        try:
            with urllib.request.urlopen(
                f"{collector.client.url}/api/v1/traces/{trace_id.hex()}", timeout=5
            ) as response:
                return json.load(response)
        except urllib.error.HTTPError as e:
            e.close()
            assert time.monotonic() < deadline, "the trace is not there"
            time.sleep(0.05)
