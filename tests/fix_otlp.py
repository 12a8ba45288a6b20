"""An OTLP/HTTP endpoint that keeps what it is sent; for what has to be seen without a whole collector."""

from __future__ import annotations

import gzip
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class OtlpSink:
    """Answers with ``status``; spans and metrics are those of accepted requests only."""

    def __init__(self):
        self.status = 200
        self.requests = []
        self.spans = []
        self.resources = []
        self.metrics = []
        sink = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                sink.take(self.path, dict(self.headers), body)
                self.send_response(sink.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def take(self, path, headers, body):
        self.requests.append((path, headers))
        if self.status != 200:
            return
        if path == "/v1/traces":
            for rs in ExportTraceServiceRequest.FromString(body).resource_spans:
                resource = {a.key: a.value.string_value for a in rs.resource.attributes}
                for ss in rs.scope_spans:
                    self.spans += ss.spans
                    self.resources += [resource] * len(ss.spans)
        else:
            for rm in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                self.metrics += [m for sm in rm.scope_metrics for m in sm.metrics]

    def wait(self, condition, timeout_s=20.0):
        """Wait until ``condition(self)`` holds; fail when it does not in time."""
        deadline = time.monotonic() + timeout_s
        while not condition(self):
            assert time.monotonic() < deadline, (
                f"not seen in {timeout_s} s: {len(self.spans)} spans, {self.requests[-3:]}"
            )
            time.sleep(0.02)

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def otlp_sink():
    """A real OTLP/HTTP endpoint on loopback."""
    sink = OtlpSink()
    yield sink
    sink.close()
