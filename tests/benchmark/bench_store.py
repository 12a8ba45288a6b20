"""What our own spans cost: bytes on disk after merging, and the writer's CPU from segment to rows.

The load is a made-up continuous-batching server (`own_spans`): random ids, arrivals, lengths and step times, so
that nothing compresses here that would not in production. Request spans and steps go to databases of their own,
so that each is measured alone.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from bench_table import Row
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from axonize_server.migrate import migrate_store
from axonize_server.settings import Settings
from axonize_server.spool import INSERT_SETTINGS, header_message, request_frame
from axonize_server.store.clickhouse import ClickHouseStore
from oracle import walk
from own_spans import OwnLoad, as_requests

SERVERS = 4
REQUESTS = 8000  # of four spans: a part of more rows than a compact one has, as merges make them
REQUESTS_A_SEGMENT = 128  # of 512 spans: 65,536 records
SPAN_BYTES, STEP_BYTES = 45.0, 1.0


def run():
    """Bytes per span and per request-step, and spans per CPU-second, as rows of the table."""
    served, steps, spans, members = _load()
    with tempfile.TemporaryDirectory() as directory:
        span_bytes, _, rate = _measure(Path(directory), "served", served)
        step_span_bytes, table_bytes, step_rate = _measure(Path(directory), "steps", steps)
    walked = _walk(served[:10])
    per_span, per_step = span_bytes / spans, table_bytes / members
    in_spans = f"and {step_span_bytes / members:.1f} B in spans"
    return [
        _bytes("bytes per span on disk (request, queue, prefill, decode)", per_span, SPAN_BYTES, "limit"),
        _bytes("bytes per request-step on disk (batches)", per_step, STEP_BYTES, f"limit; {in_spans}"),
        Row(
            name="writer, segment to rows in all tables",
            ours=f"{rate / 1000:.0f} k spans/cpu-s",
            peer=f"{walked / 1000:.0f} k",
            peer_name="Python walk of the same bodies, no insert",
            ratio=f"{rate / walked:.1f}",
            target=">= 1",
            met=rate >= walked,
        ),
        Row(
            name=f"writer, steps of {members / step_rate[1]:.0f} members to rows",
            ours=f"{step_rate[0] / 1000:.0f} k steps/cpu-s",
            peer="-",
            peer_name="-",
            ratio="-",
            target="-",
            met=True,
        ),
    ]


def _bytes(name, ours, limit, peer_name):
    return Row(
        name=name,
        ours=f"{ours:.2f} B",
        peer=f"{limit:g} B",
        peer_name=peer_name,
        ratio=f"{ours / limit:.2f}",
        target=f"<= {limit:g}",
        met=ours <= limit,
    )


def _load():
    """Encoded requests with the spans of requests, with those of steps; and how many spans and members there are."""
    served, steps, spans, members = [], [], 0, 0
    start_ns = time.time_ns() - 3600 * 10**9
    for seed in range(SERVERS):
        made = OwnLoad(seed, start_ns=start_ns, mean_output=120)
        own, batches = made.run(REQUESTS)
        served += [request.SerializeToString() for request in as_requests(own, made.resource)]
        steps += [request.SerializeToString() for request in as_requests(batches, made.resource)]
        spans += len(own)
        members += made.members
    return served, steps, spans, members


def _measure(directory, database, bodies):
    """Insert as the writer does, merge; bytes of `spans` and of `batches`, rows inserted per CPU-second."""
    store = ClickHouseStore(f"chdb://{directory}/clickhouse?database={database}")
    migrate_store(store, Settings(data_dir=directory))
    segments = _segments(directory, bodies)
    began = time.process_time()
    for segment in segments:
        store.insert(segment, "traces", f"{database}-{segment.stem}", INSERT_SETTINGS)
    cpu_s = time.process_time() - began
    rows = store.rows()["spans"]
    for table in ("spans", "batches"):
        store.command(f"OPTIMIZE TABLE {database}.{table} FINAL")
    sizes = store.query(
        "SELECT sumIf(bytes_on_disk, table = 'spans') AS spans, sumIf(bytes_on_disk, table = 'batches') AS batches"
        " FROM system.parts WHERE database = {database:String} AND active",
        {"database": database},
    )[0]
    store.close()
    rate = rows / cpu_s
    return sizes["spans"], sizes["batches"], rate if database == "served" else (rate, rows)


def _segments(directory, bodies):
    segments = []
    for at in range(0, len(bodies), REQUESTS_A_SEGMENT):
        parts = [header_message("traces")]
        for body in bodies[at : at + REQUESTS_A_SEGMENT]:
            length, trailer = request_frame(body, tenant="default", received_ns=time.time_ns())
            parts += [length, body, trailer]
        segments.append(directory / f"{at}.pb")
        segments[-1].write_bytes(b"".join(parts))
    return segments


def _walk(bodies):
    """Spans per CPU-second of parsing and walking in Python."""
    began = time.process_time()
    spans = sum(len(walk(ExportTraceServiceRequest.FromString(body))) for body in bodies)
    return spans / (time.process_time() - began)
