"""kill -9 of the whole collector under load: what was acknowledged is stored, once."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
import urllib.request
from collections import Counter

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

import stored as stored_spans
from axonize_server.local import LocalCollector, free_port

ROUNDS = 10
SPANS = 40


class Load:
    """Posts bodies of distinct spans until stopped and keeps a ledger of the acknowledged ids."""

    def __init__(self, url):
        self.url = f"{url}/v1/traces"
        self.acked = []
        self.failed = 0
        self.stopping = threading.Event()
        self.threads = [threading.Thread(target=self.post, args=(seed,), daemon=True) for seed in range(3)]

    def post(self, seed):
        while not self.stopping.is_set():
            ids, body = make_body()
            request = urllib.request.Request(self.url, data=body, headers={"Content-Type": "application/x-protobuf"})
            try:
                with urllib.request.urlopen(request, timeout=10) as response:
                    assert response.status == 200
                self.acked += ids
            except OSError:
                # Not acknowledged: it may be stored or not, and nobody sends it again.
                self.failed += 1
                time.sleep(0.02)

    def wait_for_acks(self):
        deadline = time.monotonic() + 30
        while not self.acked:
            assert time.monotonic() < deadline, "a round without load proves nothing"
            time.sleep(0.01)

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        for thread in self.threads:
            thread.join(15)


def make_body():
    request = ExportTraceServiceRequest()
    spans = request.resource_spans.add().scope_spans.add().spans
    now = time.time_ns()
    ids = [random.randbytes(8) for _ in range(SPANS)]
    trace_id = random.randbytes(16)
    for span_id in ids:
        spans.add(trace_id=trace_id, span_id=span_id, name="x", start_time_unix_nano=now, end_time_unix_nano=now + 9)
    return ids, request.SerializeToString()


@pytest.mark.timeout(240)
def test_acked_spans_survive_kill_9_of_everything_exactly_once(tmp_path):
    """Ten times: load, SIGKILL to supervisor, receivers and writer at a random moment, start again on the same data."""
    acked, failed = [], 0
    ports = {"http_port": free_port(), "api_port": free_port()}
    for round_ in range(ROUNDS):
        collector = LocalCollector(tmp_path, **ports)
        collector.start()
        with Load(collector.otlp_url) as load:
            load.wait_for_acks()
            time.sleep(random.random() * 1.5)
            if round_ < ROUNDS - 1:
                os.killpg(collector.pid, signal.SIGKILL)
        if round_ == ROUNDS - 1:
            assert collector.stop() == 0, "SIGTERM drains"
        else:
            collector.stop()
        acked += load.acked
        failed += load.failed
    assert failed, "the kills were felt"
    stored = Counter(stored_spans.span_ids(tmp_path / "clickhouse"))
    lost = [i for i in acked if i not in stored]
    doubled = [i for i in acked if stored[i] > 1]
    assert (len(lost), len(doubled)) == (0, 0), f"of {len(acked)} acked"
    assert not list((tmp_path / "spool").glob("*/*.pb")), "SIGTERM left nothing in the spool"
