"""A receiver's CPU from HTTP request to durable acknowledgement, beside parsing the same bodies.

The receiver is a process of its own, on its own sockets and spool; the bodies are all different. Each round
measures the receiver, upb and the Python walk in turn, so that what else the machine does meets all three.
"""

from __future__ import annotations

import tempfile
import threading
import time
from pathlib import Path
from statistics import median

from bench_table import Row
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from axonize_server.spool import remove, sealed_segments
from fix_receiver import Receiver
from oracle import walk
from otlp_bodies import trace_body
from otlp_json_bodies import as_json

SPANS = 512
BODIES = 60
ROUNDS = 10
WALKED = 3
IN_JSON = 12
JSON = "application/json"
JSON_TARGET = 60_000
TARGET = 0.4


def run():
    """Spans per CPU-second, as rows of the table."""
    bodies = [trace_body(seed, SPANS) for seed in range(BODIES)]
    with tempfile.TemporaryDirectory() as directory:
        receiver = Receiver(Path(directory))
        done = threading.Event()
        writer = threading.Thread(target=_empty, args=(receiver.settings.spool_dir, done))
        writer.start()
        try:
            receiver.wait_ready()
            _post(receiver, bodies[:20])
            in_json = [as_json(ExportTraceServiceRequest.FromString(body)) for body in bodies[:IN_JSON]]
            rounds = [
                (_post(receiver, bodies), _parse(bodies), _walk(bodies[:WALKED]), _post(receiver, in_json, JSON))
                for _ in range(ROUNDS)
            ]
        finally:
            done.set()
            writer.join()
            receiver.close()
    ours, upb, walked, from_json = (median(values) for values in zip(*rounds, strict=True))
    against_upb, against_walk = (median(r[0] / r[peer] for r in rounds) for peer in (1, 2))
    name = f"receiver, HTTP to durable ack ({len(bodies[0]) / SPANS:.0f} B a span)"
    return [
        _row(name, ours, upb, "upb parse of the same bodies", against_upb, TARGET),
        _row(name, ours, walked, "Python walk of the same bodies", against_walk, 1.0),
        Row(
            name=f"receiver, OTLP/JSON ({len(in_json[0]) / SPANS:.0f} B a span)",
            ours=f"{from_json / 1000:.0f} k spans/cpu-s",
            peer="60 k",
            peer_name="what it should reach",
            ratio=f"{from_json / JSON_TARGET:.2f} x",
            target=">= 1 x",
            met=from_json >= JSON_TARGET,
        ),
    ]


def _row(name, ours, peer, peer_name, ratio, target):
    return Row(
        name=name,
        ours=f"{ours / 1000:.0f} k spans/cpu-s",
        peer=f"{peer / 1000:.0f} k",
        peer_name=peer_name,
        ratio=f"{ratio:.2f} x",
        target=f">= {target} x",
        met=ratio >= target,
    )


def _post(receiver, bodies, content_type="application/x-protobuf"):
    """Spans per second of the receiver's CPU; one connection, so that it and we take turns."""
    client = receiver.client()
    before = _cpu_ns(receiver.child.pid)
    for body in bodies:
        status, _, _ = receiver.post(body, client=client, content_type=content_type)
        if status != 200:
            raise RuntimeError(f"the receiver answered {status}")
    spent = _cpu_ns(receiver.child.pid) - before
    client.close()
    return len(bodies) * SPANS / spent * 1e9


def _cpu_ns(pid):
    """Of all threads of a process, user and system; /proc counts it in nanoseconds."""
    tasks = Path(f"/proc/{pid}/task")
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks.iterdir())


def _parse(bodies):
    before = time.process_time_ns()
    for body in bodies:
        ExportTraceServiceRequest().ParseFromString(body)
    return len(bodies) * SPANS / (time.process_time_ns() - before) * 1e9


def _walk(bodies):
    before = time.process_time_ns()
    for body in bodies:
        walk(ExportTraceServiceRequest.FromString(body))
    return len(bodies) * SPANS / (time.process_time_ns() - before) * 1e9


def _empty(spool_dir, done):
    """Delete sealed segments, as the writer does once they are stored."""
    while not done.wait(0.1):
        for segment in sealed_segments(spool_dir):
            remove(segment)
