"""The commands against a real collector that got spans from the official OpenTelemetry exporter."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import StatusCode, set_span_in_context

from axonize_server.local import LocalCollector, free_port

NS_PER_MS = 1_000_000
INSTANCE = "0f0e0d0c-0000-4000-8000-000000000001"
DEVICE = {"gpu.compute_resource.id": "GPU-11111111-2222-4333-8444-555555555555", "gpu.provenance": "simulated"}


@pytest.fixture(scope="module")
def collector(tmp_path_factory):
    """A collector of its own, with two requests and one step of both in it."""
    collector = LocalCollector(tmp_path_factory.mktemp("data"), http_port=free_port(), api_port=free_port())
    with collector.running():
        _send(collector.otlp_url)
        _wait(lambda: len(collector.client.requests()) == 2 and collector.client.batches())
        yield collector


@pytest.fixture
def axonize(collector):
    """Run ``axonize`` as a process that reads from the collector."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AXONIZE_", "OTEL_"))}
    environment = kept | {"AXONIZE_API_URL": collector.client.url, "OTEL_EXPORTER_OTLP_ENDPOINT": collector.otlp_url}

    def run(*arguments, **extra):
        return subprocess.run(
            [sys.executable, "-c", "from axonize_core.cli import main; main()", *arguments],
            capture_output=True,
            text=True,
            env=environment | extra,
            timeout=60,
            check=False,
        )

    return run


def _send(otlp_url):
    resource = Resource({"service.name": "cli-test", "service.instance.id": INSTANCE})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(otlp_url + "/v1/traces")))
    tracer = provider.get_tracer("axonize")
    start = time.time_ns() - 1000 * NS_PER_MS
    for seq, request_id in enumerate(("good", "bad")):
        _request(tracer, seq, request_id, start + seq * NS_PER_MS)
    members = {
        f"ai.batch.member.{name}": struct.pack(f"<2{code}", *values)
        for name, code, values in (
            ("request_seq", "Q", (0, 1)),
            ("prefill_tokens", "I", (24, 9)),
            ("decode_tokens", "I", (0, 0)),
            ("context_tokens", "I", (0, 0)),
        )
    }
    totals = {"ai.batch.seq": 7, "ai.batch.size": 2, "ai.batch.prefill_tokens": 33, "ai.batch.decode_tokens": 0}
    _span(tracer, "batch", start + 5 * NS_PER_MS, 12, **members, **totals, **DEVICE)
    provider.shutdown()


def _request(tracer, seq, request_id, start):
    about = {"ai.request.id": request_id, "ai.request.seq": seq, "gen_ai.request.model": "tiny"}
    latencies = {"gen_ai.latency.time_in_queue": 0.005, "gen_ai.latency.time_to_first_token": 0.017}
    tokens = {"gen_ai.usage.input_tokens": 24, "gen_ai.usage.output_tokens": 8}
    span = _span(tracer, "request", start, 80, **about, **latencies, **tokens, failed=request_id == "bad")
    _span(tracer, "queue", start, 5, parent=span)
    _span(tracer, "prefill", start + 5 * NS_PER_MS, 12, parent=span, **DEVICE)
    _span(tracer, "decode", start + 17 * NS_PER_MS, 63, parent=span, **DEVICE)


def _span(tracer, phase, start, ms, *, parent=None, failed=False, **attributes):
    context = set_span_in_context(parent) if parent else None
    span = tracer.start_span(phase, context=context, start_time=start, attributes={"ai.phase": phase, **attributes})
    if failed:
        span.set_attribute("error.type", "OutOfMemoryError")
        span.set_status(StatusCode.ERROR, "no room for the cache")
    span.end(start + ms * NS_PER_MS)
    return span


def _wait(visible, within_s=20):
    deadline = time.monotonic() + within_s
    while not visible():
        assert time.monotonic() < deadline, "not visible in time"
        time.sleep(0.1)


def test_requests_lists_what_was_sent(axonize):
    """Both requests, newest first, the failed one by its error."""
    done = axonize("requests")
    assert done.returncode == 0, done.stderr
    rows = done.stdout.splitlines()[-2:]
    assert ["bad" in rows[0], "good" in rows[1]] == [True, True]
    assert "OutOfMemoryError" in rows[0]
    assert "17.0 ms" in rows[1]


def test_requests_filters(axonize):
    """``--status`` and ``--model`` narrow the list."""
    assert axonize("requests", "--status", "error").stdout.splitlines()[0] == "1 request"
    assert axonize("requests", "--model", "another").stdout == "no requests\n"


@pytest.mark.parametrize("by", ["trace id", "beginning", "request id"])
def test_what_requests_prints_leads_to_the_trace(axonize, by):
    """The full id, its first eight digits and the request's own id find the same waterfall."""
    (request,) = [r for r in json.loads(axonize("requests", "--json").stdout)["requests"] if r["request_id"] == "bad"]
    wanted = {"trace id": request["trace_id"], "beginning": request["trace_id"][:8], "request id": "bad"}[by]
    done = axonize("trace", wanted)
    assert done.returncode == 0, done.stderr
    assert request["trace_id"] in done.stdout
    assert "└─ decode" in done.stdout
    assert "OutOfMemoryError: no room for the cache" in done.stdout
    assert "(simulated)" in done.stdout


def test_batches_name_their_members(axonize):
    """Members are joined with the requests they belong to."""
    done = axonize("batches", "--members")
    assert "batch 7" in done.stdout
    assert [line.split()[0] for line in done.stdout.splitlines() if "good" in line or "bad" in line] == ["0", "1"]
    narrowed = axonize("batches", "--instance-id", INSTANCE, "--request-seq", "1", "--json")
    assert json.loads(narrowed.stdout)["batches"][0]["prefill_tokens"] == 33


@pytest.mark.parametrize("wanted", ["f" * 32, "nothing-like-it"])
def test_an_unknown_trace_is_one_line(axonize, wanted):
    """Neither a full id nor a name that nobody used is a traceback."""
    done = axonize("trace", wanted)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_a_bad_filter_is_explained(axonize):
    """What the API refuses is said in its words."""
    done = axonize("requests", "--since", "yesterday")
    assert done.returncode == 2
    assert "yesterday" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_second_collector_on_the_same_directory_is_refused(axonize, collector):
    """One owner per data directory, said in a line that names it."""
    ports = ["--http-port", str(free_port()), "--api-port", str(free_port()), "--grpc-port", "0"]
    done = axonize("collector", "--data-dir", str(collector.data_dir), *ports)
    assert done.returncode != 0
    assert str(collector.data_dir) in done.stderr
    assert "Traceback" not in done.stderr


def test_migrate_keeps_off_a_directory_in_use(axonize, collector):
    """The embedded engine has one owner; the error is one of ours."""
    done = axonize("migrate", "--data-dir", str(collector.data_dir))
    assert done.returncode != 0
    assert "Traceback" not in done.stderr


def test_migrate_says_what_it_did(axonize, tmp_path):
    """A dry run prints SQL and changes nothing; the first run applies, the second has nothing to do."""
    at = ("--data-dir", str(tmp_path))
    assert "CREATE TABLE IF NOT EXISTS axonize.spans" in axonize("migrate", "--dry-run", *at).stdout
    assert "store: applied 0001_spans.sql" in axonize("migrate", *at).stdout
    assert axonize("migrate", *at).stdout == "store: up to date\nregistry: up to date\n"


def test_a_public_address_is_refused(axonize, tmp_path):
    """Until there is authentication, loopback only."""
    done = axonize("collector", "--host", "0.0.0.0", "--data-dir", str(tmp_path))
    assert done.returncode == 2
    assert "loopback" in done.stderr


def test_doctor_finds_the_collector(axonize, collector):
    """It names the API's address and what is stored."""
    done = axonize("doctor")
    assert collector.client.url in done.stdout
    assert "cannot be reached" not in done.stdout
