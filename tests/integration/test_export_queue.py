"""The disk queue in real agents: kill -9, restarts, a read-only place, full disks, and what doctor says of each."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from axonize_core.export.otlp import OtlpExport
from axonize_core.gpu.sampler import Sampler
from axonize_core.plugins import AgentContext, Plugins
from axonize_core.settings import Settings
from outage import SPANS_PER_REQUEST, Engine

CLOSED = "http://127.0.0.1:9"


@pytest.fixture
def engine(tmp_path):
    """Starts engines in one directory, so with one queue; ends them and their agents."""
    started = []

    def start(url, requests_per_s=50, **env):
        started.append(Engine(tmp_path, url, requests_per_s, **env))
        return started[-1]

    yield start
    for one in started:
        one.close()


def load(engine, requests):
    """Let the engine make so many requests at least, and wait until all their spans are in the queue."""
    engine.say("go")
    time.sleep(requests / 50)
    made, dropped = engine.say("pause")
    assert dropped == 0
    engine.wait(lambda f: f["lanes"]["traces"]["waiting"] + f["spans_exported"] >= made * SPANS_PER_REQUEST)
    return made


def span_ids(sink):
    return [span.span_id for span in sink.spans]


def doctor(engine, *arguments, **env):
    command = [Path(sys.executable).parent / "axonize", "doctor", *arguments]
    given = {**os.environ, **engine.env, "AXONIZE_API_URL": CLOSED, **env}
    return subprocess.run(command, env=given, capture_output=True, text=True, timeout=60, check=False).stdout


def test_spans_survive_kill_9_of_the_agent_and_arrive_in_order(engine, otlp_sink):
    """503 for a while, SIGKILL of the agent, 200: the next agent sends what waited, oldest first, all of it."""
    otlp_sink.status = 503
    one = engine(otlp_sink.url)
    first = load(one, 30)
    os.kill(one.agent()["pid"], signal.SIGKILL)
    while one.runs():  # SIGKILL takes a moment, and what is written to a dying agent dies with it
        time.sleep(0.01)
    second = load(one, 30) - first
    assert second > 10
    assert "wait in" in (said := doctor(one))
    assert "HTTP 503; next try in" in said
    otlp_sink.status = 200
    otlp_sink.wait(lambda s: len(s.spans) >= (first + second) * SPANS_PER_REQUEST)
    ids = span_ids(otlp_sink)
    assert len(ids) == len(set(ids)) == (first + second) * SPANS_PER_REQUEST
    ends = [s.end_time_unix_nano for s in otlp_sink.spans if s.name == "request"]
    assert max(ends[:first]) < min(ends[first:])
    lane = one.wait(lambda f: f["spans_waiting"] == 0)["lanes"]["traces"]
    assert (lane["dropped"], lane["refused"], lane["fallback"], lane["torn_bytes"]) == ({}, {}, "", 0)
    assert "nothing waits" in doctor(one)


def test_an_agent_that_ends_leaves_its_queue_to_the_next(engine, otlp_sink, tmp_path):
    """The engine ends while the collector is away; doctor names the queue; the next engine's agent sends it first."""
    otlp_sink.status = 503
    one = engine(otlp_sink.url)
    first = load(one, 10)
    one.close()
    (queue,) = (tmp_path / "state" / "queue").iterdir()
    deadline = time.monotonic() + 10
    while "the next one with these export settings sends them" not in (said := doctor(one)):
        assert time.monotonic() < deadline, said
    assert str(queue) in said
    assert "only an agent with its settings" in doctor(one, OTEL_EXPORTER_OTLP_ENDPOINT=CLOSED)
    otlp_sink.status = 200
    two = engine(otlp_sink.url)
    two.say("pause")
    second = load(two, 10)
    otlp_sink.wait(lambda s: len(s.spans) >= (first + second) * SPANS_PER_REQUEST)
    assert len(set(span_ids(otlp_sink))) == (first + second) * SPANS_PER_REQUEST
    two.wait(lambda f: f["spans_waiting"] == 0)
    two.close()
    while queue.exists():
        assert time.monotonic() < deadline + 20, list(queue.iterdir())


def test_without_a_place_to_write_spans_wait_in_memory_and_it_is_said(engine, otlp_sink, tmp_path):
    """A state directory that cannot be made: nothing is lost while the agent lives, and doctor says what is wrong."""
    (tmp_path / "file").touch()
    otlp_sink.status = 503
    one = engine(otlp_sink.url, AXONIZE_STATE_DIR=str(tmp_path / "file"))
    made = load(one, 10)
    said = doctor(one)
    assert "spans wait in memory only, the disk queue does not work" in said
    assert "wait in memory (" in said
    otlp_sink.status = 200
    otlp_sink.wait(lambda s: len(s.spans) >= made * SPANS_PER_REQUEST)


def test_a_full_queue_drops_the_newest_and_counts_every_span(engine, otlp_sink):
    """What was queued first arrives; sent, waiting and dropped add up; doctor says why."""
    otlp_sink.status = 503
    one = engine(otlp_sink.url, AXONIZE_EXPORT_QUEUE_BYTES="20000")
    one.say("go")
    one.wait(lambda f: f["spans_dropped"] > 0)
    made, _ = one.say("pause")
    facts = one.wait(lambda f: f["lanes"]["traces"]["waiting"] + f["spans_dropped"] == made * SPANS_PER_REQUEST)
    findings = json.loads(doctor(one, "--json"))
    assert f"{facts['spans_dropped']:,} spans were dropped because the queue was full" in [f["text"] for f in findings]
    otlp_sink.status = 200
    otlp_sink.wait(lambda s: len(s.spans) == facts["spans_waiting"])
    assert one.wait(lambda f: f["spans_waiting"] == 0)["lanes"]["traces"]["dropped"] == {"full": facts["spans_dropped"]}


@pytest.fixture
def export(monkeypatch, state_dir):
    """Makes exporters as an inline agent has them, in this process."""

    def make(url, **env):
        for name, value in {"OTEL_EXPORTER_OTLP_ENDPOINT": url, **env}.items():
            monkeypatch.setenv(name, value)
        settings = Settings.from_env()
        plugins = Plugins()
        return OtlpExport(AgentContext(settings, plugins, Sampler(None, 1.0)))

    return make


def test_ending_never_takes_longer_than_it_was_given(export, spans, tmp_path):
    """An endpoint that takes connections and never answers: the exit is on time, the spans stay on disk."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        one = export(f"http://127.0.0.1:{silent.getsockname()[1]}", OTEL_METRICS_EXPORTER="none")
        one.axonize_spans(spans(5))
        before = time.monotonic()
        one.axonize_shutdown(1.0)
        assert time.monotonic() - before < 2


def test_grpc_is_spoken_when_it_is_asked_for(export, spans, scripted_grpc):
    """The same spans, over the other protocol; metrics may stay with HTTP."""
    one = export(f"http://{scripted_grpc.address}", OTEL_EXPORTER_OTLP_PROTOCOL="grpc", OTEL_METRICS_EXPORTER="none")
    one.axonize_spans(spans(3))
    one.axonize_shutdown(5.0)
    (method, _, body) = scripted_grpc.requests[0]
    assert method.endswith("TraceService/Export")
    sent = ExportTraceServiceRequest.FromString(body).resource_spans[0].scope_spans[0].spans
    assert [span.name for span in sent] == ["s0", "s1", "s2"]
    facts = one.facts()
    assert (facts["spans_exported"], facts["spans_waiting"], facts["spans_dropped"]) == (3, 0, 0)


def test_nothing_is_queued_when_nothing_is_exported(export, spans, state_dir):
    """OTEL_TRACES_EXPORTER=none and the same for metrics: no lane, no directory."""
    one = export(CLOSED, OTEL_TRACES_EXPORTER="none", OTEL_METRICS_EXPORTER="none")
    one.axonize_spans(spans(3))
    one.axonize_gpu_samples([])
    one.axonize_shutdown(1.0)
    assert one.facts()["lanes"] == {}
    assert not state_dir.exists()


def test_more_than_can_be_encoded_is_dropped_and_counted(export, spans):
    """The bound on what waits in memory to be encoded, and an attribute nobody can encode."""
    one = export(CLOSED, OTEL_METRICS_EXPORTER="none", AXONIZE_EXPORT_QUEUE_CAPACITY="4")
    one.axonize_spans(spans(10))
    one.axonize_shutdown(1.0)
    facts = one.facts()
    assert facts["lanes"]["traces"]["dropped"] == {"overrun": 6}
    assert (facts["spans_queued"], facts["spans_dropped"]) == (4, 6)


@pytest.fixture
def spans():
    """Makes finished spans of the SDK."""
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import SpanContext

    def make(count):
        return [
            ReadableSpan(f"s{n}", SpanContext(1, n + 1, is_remote=False), start_time=1, end_time=2)
            for n in range(count)
        ]

    return make
