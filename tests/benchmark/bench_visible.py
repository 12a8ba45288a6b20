"""From the ack of a span to its trace in the query API, through a whole collector as a user starts it."""

from __future__ import annotations

import random
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from bench_table import Row
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from axonize_server.local import LocalCollector, free_port

SENT = 60
TARGET_S = 2.0


def run() -> list[Row]:
    """Return the row of `make bench`."""
    with tempfile.TemporaryDirectory() as directory:
        collector = LocalCollector(Path(directory), http_port=free_port(), api_port=free_port())
        with collector.running():
            seconds = sorted(visible_after_s(collector) for _ in range(SENT))
    p50, p95 = seconds[SENT // 2], seconds[int(SENT * 0.95)]
    return [
        Row(
            name="ack -> visible in /api/v1/traces, p95",
            ours=f"{p95:.2f} s (p50 {p50:.2f})",
            peer=f"{TARGET_S} s",
            peer_name="limit",
            ratio=f"{p95 / TARGET_S:.2f} x",
            target=f"<= {TARGET_S} s",
            met=p95 <= TARGET_S,
        )
    ]


def visible_after_s(collector: LocalCollector) -> float:
    """Return the seconds from the acknowledgement of a trace of 20 spans until the API has it."""
    time.sleep(random.random() * 0.3)
    trace_id = random.randbytes(16)
    request = urllib.request.Request(
        f"{collector.otlp_url}/v1/traces", data=_body(trace_id), headers={"Content-Type": "application/x-protobuf"}
    )
    with urllib.request.urlopen(request, timeout=10):
        acked = time.monotonic()
    while not _visible(f"{collector.client.url}/api/v1/traces/{trace_id.hex()}"):
        time.sleep(0.02)
    return time.monotonic() - acked


def _visible(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return response.status == 200
    except urllib.error.HTTPError as e:
        e.close()
        return False


def _body(trace_id: bytes) -> bytes:
    request = ExportTraceServiceRequest()
    spans = request.resource_spans.add().scope_spans.add().spans
    now = time.time_ns()
    for _ in range(20):
        spans.add(
            trace_id=trace_id,
            span_id=random.randbytes(8),
            name="x",
            start_time_unix_nano=now,
            end_time_unix_nano=now + 5,
        )
    return request.SerializeToString()
