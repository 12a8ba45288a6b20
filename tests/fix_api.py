"""Answers of the query API in the shape of ARCHITECTURE.md §9, and a small HTTP server that gives them."""

from __future__ import annotations

import base64
import json
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

import pytest

SIMULATED = "GPU-5a1ad000-0000-4000-8000-000000000000"


def api_request(n=0, **fields):
    """Return the n-th request of a made-up load; every tenth second a new one."""
    return {
        "trace_id": f"{n:04x}bf92f3577b34da6a3ce929d0e4736"[:32].ljust(32, "0"),
        "span_id": f"{n:016x}",
        "request_id": f"req-{n:04d}",
        "request_seq": n,
        "instance_id": "9b0c6f5e-0000-4000-8000-000000000001",
        "service": "axonize-demo",
        "model": "tiny-llama",
        "engine": "transformers",
        "operation": "text_completion",
        "start_time": f"2026-03-01T10:20:{n % 60:02d}.123456789Z",
        "duration_ms": 187.25,
        "queue_ms": 12.5,
        "queue_provenance": "engine",
        "ttft_ms": 41.25,
        "tpot_ms": 4.711,
        "input_tokens": 24,
        "output_tokens": 32,
        "finish_reason": "length",
        "status": "ok",
        "error_type": None,
        "incomplete": False,
        "compute_resource": SIMULATED,
        "gpu_provenance": "simulated",
    } | fields


def api_failed_request(n=1, **fields):
    """Return a request that failed before its first step: most of it is unknown."""
    unknown = dict.fromkeys(
        ("queue_ms", "queue_provenance", "ttft_ms", "tpot_ms", "output_tokens", "compute_resource", "gpu_provenance")
    )
    failed = {"status": "error", "error_type": "ValueError", "finish_reason": "error", "duration_ms": 0.84}
    return api_request(n) | unknown | failed | fields


def api_span(name, start_ms, duration_ms, *, span_id, parent=None, **fields):
    """Return one span that starts so many ms after the trace."""
    attributes = {"ai.phase": name, "gen_ai.request.model": "tiny-llama"} | fields.pop("attributes", {})
    return {
        "span_id": span_id,
        "parent_span_id": parent,
        "name": name,
        "kind": "server" if name == "request" else "internal",
        "phase": name,
        "start_time": f"2026-03-01T10:20:00.{round(start_ms * 1e6):09d}Z",
        "duration_ms": duration_ms,
        "status": "ok",
        "status_message": "",
        "service": "axonize-demo",
        "scope": "axonize",
        "attributes": attributes,
        "resource": {"service.name": "axonize-demo"},
        "events": [],
        "links": [],
    } | fields


def api_trace():
    """Return the trace of one request with its three phases."""
    gpu = {"gpu.compute_resource.id": SIMULATED, "gpu.provenance": "simulated"}
    return {
        "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
        "spans": [
            api_span(
                "request",
                0,
                187.25,
                span_id="00000000000000a1",
                attributes={
                    "ai.request.id": "req-0007",
                    "gen_ai.usage.input_tokens": 24,
                    "gen_ai.usage.output_tokens": 32,
                    "gen_ai.latency.time_to_first_token": 0.04125,
                    "gen_ai.response.finish_reasons": ["length"],
                },
            ),
            api_span("queue", 0, 12.5, span_id="00000000000000a2", parent="00000000000000a1"),
            api_span(
                "prefill",
                12.5,
                28.75,
                span_id="00000000000000a3",
                parent="00000000000000a1",
                attributes={"gen_ai.usage.input_tokens": 24, "ai.steps": 1} | gpu,
            ),
            api_span(
                "decode",
                41.25,
                146.0,
                span_id="00000000000000a4",
                parent="00000000000000a1",
                attributes={
                    "gen_ai.usage.output_tokens": 32,
                    "ai.steps": 31,
                    "ai.itl.p50_ms": 4.6,
                    "ai.itl.p99_ms": 6.1,
                    "ai.itl.max_ms": 7.25,
                }
                | gpu,
            ),
        ],
    }


def api_preempted_trace():
    """Return the trace of a request of vLLM that was preempted once; its prompt came in two chunks each time."""
    root = "00000000000000a1"
    first = chunk_attributes((710, 182), (711, 18))
    again = chunk_attributes((1108, 221), (1109, 28))
    return {
        "trace_id": "73086dd8d47ac8d313385fa401b58b2c",
        "spans": [
            api_span(
                "request",
                0,
                980,
                span_id=root,
                attributes={
                    "ai.request.id": "cmpl-many-11-0",
                    "gen_ai.usage.input_tokens": 200,
                    "gen_ai.usage.output_tokens": 400,
                    "gen_ai.usage.cache_read.input_tokens": 128,
                    "ai.discarded_tokens": 3,
                    "ai.preemptions": 1,
                    "ai.kv_cache.blocks": 5,
                    "ai.request.choice.index": 1,
                    "ai.adapters": ["sql"],
                    "ai.speculative.drafted_tokens": 40,
                    "ai.speculative.accepted_tokens": 31,
                    "ai.frontend.time_to_first_token": 0.0757,
                    "ai.frontend.e2e": 0.9812,
                    "gen_ai.response.finish_reasons": ["stop"],
                },
            ),
            api_span("queue", 0, 26, span_id="b1", parent=root),
            api_span(
                "prefill",
                26,
                4,
                span_id="b2",
                parent=root,
                attributes={
                    "gen_ai.usage.input_tokens": 200,
                    "gen_ai.usage.cache_read.input_tokens": 128,
                    "ai.steps": 2,
                }
                | first,
            ),
            api_span("decode", 30, 62, span_id="b3", parent=root),
            api_span("preempted", 92, 468, span_id="b4", parent=root),
            api_span(
                "prefill",
                560,
                4,
                span_id="b5",
                parent=root,
                attributes={"ai.recomputed_tokens": 249, "ai.steps": 2} | again,
            ),
            api_span("decode", 564, 416, span_id="b6", parent=root),
        ],
    }


def chunk_attributes(*chunks):
    """Return the attributes of a prefill's chunks, each a step and its tokens, as the API gives bytes."""
    columns = zip(
        ("ai.prefill.chunk.batch_seq", "ai.prefill.chunk.tokens"), ("Q", "I"), zip(*chunks, strict=True), strict=True
    )
    return {
        name: {"$bytes": base64.b64encode(struct.pack(f"<{len(numbers)}{code}", *numbers)).decode()}
        for name, code, numbers in columns
    }


def api_batch(step=41, members=3, **fields):
    """Return one engine step; the last member's request has not ended, so its ids are unknown."""
    return {
        "trace_id": "b" * 32,
        "span_id": "b" * 16,
        "step_seq": step,
        "instance_id": "9b0c6f5e-0000-4000-8000-000000000001",
        "service": "axonize-demo",
        "engine": "transformers",
        "model": "tiny-llama",
        "start_time": "2026-03-01T10:20:01.000000000Z",
        "duration_ms": 4.25,
        **dict.fromkeys(("schedule_ms", "execute_ms", "update_ms", "device_ms")),
        "size": members,
        "prefill_tokens": 0,
        "decode_tokens": members,
        **dict.fromkeys(("running", "waiting", "kv_cache_usage")),
        "compute_resource": SIMULATED,
        "gpu_provenance": "simulated",
        "members": [
            {
                "request_seq": n,
                "prefill_tokens": 0,
                "decode_tokens": 1,
                "context_tokens": 24 + n,
                "trace_id": None if n == members - 1 else api_request(n)["trace_id"],
                "request_id": None if n == members - 1 else f"req-{n:04d}",
            }
            for n in range(members)
        ],
    } | fields


class CannedApi:
    """Answers each path with ``(status, body)`` of ``answers`` and notes what was asked."""

    def __init__(self):
        self.answers = {}
        self.asked = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def _handler(self):
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                parts = urlsplit(self.path)
                api.asked.append((parts.path, dict(parse_qsl(parts.query))))
                unknown = (404, {"error": {"code": "not_found", "message": f"nothing at {parts.path}"}})
                status, body = api.answers.get(parts.path, unknown)
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args):
                pass

        return Handler

    def close(self):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def canned_api():
    """An API server that gives canned answers; for what the commands do with them, not for what the API says."""
    api = CannedApi()
    yield api
    api.close()
