"""A receiver's CPU from request to durable acknowledgement, by encoding, beside parsing the same bodies.

The receiver is a process of its own, on its own sockets and spool; the bodies are all different. Each round
measures everything in turn, so that what else the machine does meets all of it.
"""

from __future__ import annotations

import gzip
import tempfile
import time
from pathlib import Path
from statistics import median

from bench_table import Row
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from receivers import JSON, Receivers, cpu_ns, export, peak_rss_mb, post, post_from_many

from oracle import walk
from otlp_bodies import trace_body
from otlp_json_bodies import as_json

SPANS = 512
BODIES = 60
ROUNDS = 30
WALKED, IN_JSON = 3, 12
CONNECTIONS = 8
UPB_TARGET, GRPC_TARGET, JSON_TARGET, TWO_TARGET, RSS_TARGET_MB = 0.45, 0.8, 60_000, 1.15, 100.0


def run() -> list[Row]:
    """Spans per CPU-second, as rows of the table."""
    bodies = [trace_body(seed, SPANS) for seed in range(BODIES)]
    messages = [ExportTraceServiceRequest.FromString(body) for body in bodies]
    in_json = [as_json(message) for message in messages[:IN_JSON]]
    zipped = [gzip.compress(body, 6) for body in bodies]
    with tempfile.TemporaryDirectory() as directory, Receivers(Path(directory)) as one:
        ways = {
            "plain": lambda: post(one.port, bodies),
            "gzip": lambda: post(one.port, zipped, encoding="gzip"),
            "gRPC": lambda: export(one.grpc_port, messages),
            "JSON": lambda: post(one.port, in_json, JSON),
        }
        post(one.port, bodies[:20])
        export(one.grpc_port, messages[:2])
        rounds = []
        for _ in range(ROUNDS):
            rates = {way: _rate(one, send, IN_JSON if way == "JSON" else BODIES) for way, send in ways.items()}
            rounds.append({**rates, "upb": _parsed(bodies), "walk": _walked(bodies[:WALKED])})
        rss_mb = peak_rss_mb(one.pids[0])
    size = f"{len(bodies[0]) / SPANS:.0f} B a span"
    return [
        _against(rounds, f"receiver, HTTP to durable ack ({size})", "plain", "upb", "upb parse of them", UPB_TARGET),
        _against(rounds, f"receiver, HTTP to durable ack ({size})", "plain", "walk", "Python walk of them", 1.0),
        _against(rounds, f"receiver, gzip ({len(zipped[0]) / SPANS:.0f} B a span)", "gzip", "plain", "ours, plain", None),
        _against(rounds, "receiver, gRPC from the official stub", "gRPC", "plain", "ours, HTTP", GRPC_TARGET),
        _limit(rounds, f"receiver, OTLP/JSON ({len(in_json[0]) / SPANS:.0f} B a span)", "JSON", JSON_TARGET),
        Row("receiver, most memory", f"{rss_mb:.0f} MB", f"{RSS_TARGET_MB:.0f} MB", "limit", f"{rss_mb / RSS_TARGET_MB:.2f} x", "< 1 x", rss_mb < RSS_TARGET_MB),
        two_instead_of_one(bodies),
    ]  # fmt: skip


def two_instead_of_one(bodies: list[bytes]) -> Row:
    """Return what a span costs two receivers on one port, beside what it costs one; the same load on each in turn."""
    rounds, share = [], 0.0
    with tempfile.TemporaryDirectory() as name, Receivers(Path(name, "1")) as one, Receivers(Path(name, "2"), 2) as two:
        for _ in range(ROUNDS):
            costs = []
            for receivers in (one, two):
                before = [cpu_ns(pid) for pid in receivers.pids]
                post_from_many(receivers.port, bodies, CONNECTIONS)
                spent = [cpu_ns(pid) - was for pid, was in zip(receivers.pids, before, strict=True)]
                costs.append(sum(spent))
            rounds.append(costs)
            share += min(spent) / sum(spent) / ROUNDS
    ratio = median(costs[1] / costs[0] for costs in rounds)
    us = [median(costs[at] for costs in rounds) / BODIES / SPANS / 1e3 for at in (0, 1)]
    return Row(
        name=f"2 receivers instead of 1, CPU a span (the idler one had {share:.0%})",
        ours=f"{us[1]:.2f} us",
        peer=f"{us[0]:.2f} us",
        peer_name=f"1 receiver, same {CONNECTIONS} connections",
        ratio=f"{ratio:.2f} x",
        target=f"<= {TWO_TARGET} x",
        met=ratio <= TWO_TARGET,
    )


def _rate(receivers: Receivers, send, count: int) -> float:
    """Return the spans per second of the receiver's CPU."""
    before = cpu_ns(*receivers.pids)
    send()
    return count * SPANS / (cpu_ns(*receivers.pids) - before) * 1e9


def _parsed(bodies: list[bytes]) -> float:
    before = time.process_time_ns()
    for body in bodies:
        ExportTraceServiceRequest().ParseFromString(body)
    return len(bodies) * SPANS / (time.process_time_ns() - before) * 1e9


def _walked(bodies: list[bytes]) -> float:
    before = time.process_time_ns()
    for body in bodies:
        walk(ExportTraceServiceRequest.FromString(body))
    return len(bodies) * SPANS / (time.process_time_ns() - before) * 1e9


def _against(rounds, name: str, way: str, peer: str, peer_name: str, target: float | None) -> Row:
    ours, theirs = (median(rates[key] for rates in rounds) for key in (way, peer))
    ratio = median(rates[way] / rates[peer] for rates in rounds)
    return Row(
        name=name,
        ours=f"{ours / 1000:.0f} k spans/cpu-s",
        peer=f"{theirs / 1000:.0f} k",
        peer_name=peer_name,
        ratio=f"{ratio:.2f} x",
        target="(printed)" if target is None else f">= {target} x",
        met=target is None or ratio >= target,
    )


def _limit(rounds, name: str, way: str, target: float) -> Row:
    ours = median(rates[way] for rates in rounds)
    ratio = ours / target
    return Row(
        name,
        f"{ours / 1000:.0f} k spans/cpu-s",
        f"{target / 1000:.0f} k",
        "limit",
        f"{ratio:.2f} x",
        ">= 1 x",
        ratio >= 1,
    )
