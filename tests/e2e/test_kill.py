"""kill -9 under load, of receivers, writer or everything: what was acknowledged is stored, once, in every table."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
import urllib.request
import uuid
from collections import Counter

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

import stored
from axonize_server.local import LocalCollector, free_port
from axonize_server.stats import read_stats, read_writer
from gpu_reports import gpu_info, samples
from own_spans import OwnLoad, as_requests

ROUNDS = int(os.environ.get("AXONIZE_TEST_KILL_ROUNDS", "30"))
VICTIMS = ("receiver", "writer", "everything")
SECONDS_A_ROUND = 15


class Load:
    """Posts traces, metrics and logs until stopped and keeps a ledger of the acknowledged ids, by table."""

    def __init__(self, url):
        self.url = url
        self.acked = Counter()
        self.ids = {"spans": [], "batches": [], "metrics": [], "logs": []}
        self.failed = 0
        self.stopping = threading.Event()
        makers = (traces, traces, metrics, logs)
        self.threads = [threading.Thread(target=self.post, args=(maker,), daemon=True) for maker in makers]

    def post(self, make):
        while not self.stopping.is_set():
            signal_name, body, ids = make()
            headers = {"Content-Type": "application/x-protobuf"}
            request = urllib.request.Request(f"{self.url}/v1/{signal_name}", data=body, headers=headers)
            try:
                with urllib.request.urlopen(request, timeout=10) as response:
                    assert response.status == 200
                for table, added in ids.items():
                    self.ids[table] += added
                self.acked[signal_name] += 1
            except OSError:
                # Not acknowledged: it may be stored or not, and nobody sends it again.
                self.failed += 1
                time.sleep(0.02)
            time.sleep(0.005)

    def wait_for_acks(self):
        """Wait until each signal had one more acknowledgement: a round without load proves nothing."""
        before, deadline = Counter(self.acked), time.monotonic() + 60
        while any(self.acked[name] <= before[name] for name in ("traces", "metrics", "logs")):
            assert time.monotonic() < deadline, self.acked
            time.sleep(0.01)

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        for thread in self.threads:
            thread.join(15)


def traces():
    """Requests and steps of a server, the older ones of yesterday: two partitions in one segment."""
    yesterday = random.random() < 0.3
    load = OwnLoad(random.randrange(1 << 30), start_ns=time.time_ns() - yesterday * 86_400 * 10**9, mean_output=4)
    served, steps = load.run(6)
    (request,) = as_requests([*served, *steps], load.resource)
    spans = [span.span_id.hex().upper() for span in [*served, *steps]]
    return "traces", request.SerializeToString(), {"spans": spans, "batches": spans[len(served) :]}


def metrics():
    gpu = gpu_info(f"node-{random.randrange(4)}", 0)
    made = samples([(gpu, {"hw.power": 300.5, "hw.energy": 10_000, "axonize.gpu.info": 1})])
    ids = []
    for metric in made.resource_metrics[0].scope_metrics[0].metrics:
        ids.append(uuid.uuid4().hex)
        metric.gauge.data_points[0].attributes.add(key="test.id").value.string_value = ids[-1]
    return "metrics", made.SerializeToString(), {"metrics": ids}


def logs():
    made = ExportLogsServiceRequest()
    records = made.resource_logs.add().scope_logs.add().log_records
    ids = [uuid.uuid4().hex for _ in range(5)]
    for one in ids:
        records.add(time_unix_nano=time.time_ns(), severity_number=9).body.string_value = one
    return "logs", made.SerializeToString(), {"logs": ids}


def kill(collector, victim):
    if victim == "everything":
        os.killpg(collector.pid, signal.SIGKILL)
        # Its children have sessions of their own, and end with its pipe; a power failure would not wait for that.
    for facts in [*read_stats(collector.data_dir), read_writer(collector.data_dir)]:
        role = "receiver" if "worker" in facts else "writer"
        if facts and victim in (role, "everything"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(facts["pid"], signal.SIGKILL)


def wait_until_stored(spool_dir):
    """The writer was killed as often as it began, and has some of it left."""
    deadline = time.monotonic() + 30 + 3 * ROUNDS
    while left := list(spool_dir.glob("*/*.pb")):
        assert time.monotonic() < deadline, f"{len(left)} segments are not stored"
        time.sleep(0.1)


@pytest.mark.timeout(120 + SECONDS_A_ROUND * ROUNDS)
def test_acked_records_survive_kill_9_exactly_once(tmp_path):
    """Thirty rounds (more in `make soak`): load, SIGKILL to someone at a random moment, on with the same data."""
    ports = {"http_port": free_port(), "api_port": free_port()}
    acked, failed, killed = {}, 0, Counter()
    rounds = [random.choice(VICTIMS) for _ in range(ROUNDS)]
    while rounds:
        collector = LocalCollector(tmp_path, **ports)
        collector.start()
        with Load(collector.otlp_url) as load:
            while rounds:
                victim = rounds.pop()
                load.wait_for_acks()
                time.sleep(random.random())
                kill(collector, victim)
                killed[victim] += 1
                if victim == "everything":
                    break
        collector.stop()
        failed += load.failed
        for table, ids in load.ids.items():
            acked[table] = [*acked.get(table, []), *ids]
    last = LocalCollector(tmp_path, **ports)
    last.start()
    wait_until_stored(tmp_path / "spool")
    assert last.stop() == 0, "SIGTERM ends it in order"
    found = stored.everything(tmp_path / "clickhouse")
    lost = {table: sum(one not in found.rows[table] for one in ids) for table, ids in acked.items()}
    print(f"killed {dict(killed)}, acked { {table: len(ids) for table, ids in acked.items()} }, unanswered {failed}")
    assert failed, "the kills were felt"
    assert lost == dict.fromkeys(acked, 0)
    assert found.doubled == dict.fromkeys(found.rows, 0)
    assert found.unequal == {}
    assert not [path for path in (tmp_path / "spool").rglob("*") if path.is_file()], "nothing was refused or left"
