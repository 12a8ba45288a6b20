"""Half an hour of a collector with ClickHouse inside, at 60 % of what it can store: memory, acknowledgements, visibility.

``SOAK_MINUTES`` makes it shorter or longer. What it can store is found first, by sending bodies of 512 spans of 1 KB as
fast as they are taken, which is more than is stored, for two minutes: in half a minute hardly a row is merged twice,
and merging takes more of the CPU than inserting. Everything shares this machine.
"""

from __future__ import annotations

import os
import random
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
from bench_table import Row
from bench_visible import visible_after_s

from axonize_server.local import LocalCollector, free_port
from otlp_bodies import trace_body

MINUTES = float(os.environ.get("SOAK_MINUTES", "30"))
LOAD = 0.6
SPANS, BODIES, SENDERS = 512, 48, 2
FIND_S, LOOK_S, PROBE_S = 120.0, 5.0, 3.0
FULL, FULL_S = 503, 0.2
"""What a spool without room answers, and how long its sender waits then."""
ACK_P99_S, VISIBLE_P95_S, GROWTH = 0.1, 2.0, 1.1


def run() -> list[Row]:
    """Return the rows; the load goes on all the time in between."""
    bodies = [trace_body(seed, SPANS) for seed in range(BODIES)]
    with tempfile.TemporaryDirectory() as directory:
        collector = LocalCollector(Path(directory), http_port=free_port(), api_port=free_port())
        with collector.running():
            most = _most(collector, bodies)
            load = Load(collector.otlp_url, bodies, most * LOAD)
            memory, visible = _watch(collector)
            load.stop()
            stored = _settled(collector)
    acks, third = sorted(load.acks_s), len(memory) // 3
    early, late = (
        _middle([sum(one.values()) for one in part]) for part in (memory[third : 2 * third], memory[-third:])
    )
    most_of = {name: max(one.get(name, 0.0) for one in memory) for name in memory[-1]}
    p99, p95 = acks[int(len(acks) * 0.99)], sorted(visible)[int(len(visible) * 0.95)]
    acked = load.acked + len(visible) * 20 + most.sent
    name = f"soak, {MINUTES:g} min at {load.acked / MINUTES / 60:.0f} spans/s"
    parts = ", ".join(f"{process} {megabytes:.0f}" for process, megabytes in most_of.items())
    return [
        Row(f"{name}: p99 of an acknowledgement", f"{p99 * 1e3:.0f} ms", f"{ACK_P99_S * 1e3:.0f} ms", f"limit; p50 {_middle(acks) * 1e3:.1f}, most {acks[-1] * 1e3:.0f}, {load.refused} refused", f"{p99 / ACK_P99_S:.2f} x", "< 1 x", p99 < ACK_P99_S),
        Row(f"{name}: ack -> visible, p95", f"{p95:.2f} s", f"{VISIBLE_P95_S:g} s", f"limit; {len(visible)} traces", f"{p95 / VISIBLE_P95_S:.2f} x", "<= 1 x", p95 <= VISIBLE_P95_S),
        Row(f"{name}: memory, last third", f"{late:.0f} MB", f"{early:.0f} MB", f"second third; most: {parts}", f"{late / early:.2f} x", f"<= {GROWTH} x", late <= early * GROWTH),
        Row(f"{name}: rows", f"{stored}", f"{acked}", "acknowledged", "-", "equal", stored == acked),
    ]  # fmt: skip


class Load:
    """Sends so many spans a second until told to stop; how long each acknowledgement took."""

    def __init__(self, url: str, bodies: list[bytes], spans_per_s: float) -> None:
        self.acks_s: list[float] = []
        self.refused = 0
        self._url, self._bodies, self._period_s = url, bodies, SPANS * SENDERS / spans_per_s
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._send, args=(at,)) for at in range(SENDERS)]
        for thread in self._threads:
            thread.start()

    @property
    def acked(self) -> int:
        """Spans acknowledged so far."""
        return len(self.acks_s) * SPANS

    def _send(self, place: int) -> None:
        due, at = time.monotonic() + place * self._period_s / SENDERS, place
        while not self._stopping.wait(max(0.0, due - time.monotonic())):
            try:
                self.acks_s.append(_post(self._url, self._bodies[at % BODIES]))
                due, at = due + self._period_s, at + SENDERS
            except urllib.error.HTTPError as e:
                e.close()
                if e.code != FULL:
                    raise
                self.refused += 1
                self._stopping.wait(FULL_S)

    def stop(self) -> None:
        """End, after what is under way."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()


class Most(float):
    """Spans stored a second; ``sent`` is how many were sent to find that."""

    sent = 0


def _most(collector: LocalCollector, bodies: list[bytes]) -> Most:
    """Return what is stored in a second while more than that is sent."""
    load = Load(collector.otlp_url, bodies, 1e9)
    time.sleep(FIND_S / 3)
    before, began = _rows(collector), time.monotonic()
    time.sleep(FIND_S)
    most = Most((_rows(collector) - before) / (time.monotonic() - began))
    load.stop()
    most.sent = load.acked
    _settled(collector)
    return most


def _watch(collector: LocalCollector) -> tuple[list[dict[str, float]], list[float]]:
    """Return the memory of each process in MB, every few seconds, and how long traces took to be visible."""
    memory, visible = [], []
    end = time.monotonic() + MINUTES * 60
    while time.monotonic() < end:
        memory.append(_memory(collector.pid))
        for _ in range(max(1, round(LOOK_S / PROBE_S))):
            visible.append(visible_after_s(collector))
            time.sleep(random.random())
    return memory, visible


def _memory(pid: int) -> dict[str, float]:
    supervisor = psutil.Process(pid)
    found = {"supervisor": supervisor.memory_info().rss / 2**20}
    for child in supervisor.children():
        role = "writer" if "writer" in child.cmdline() else "receiver"
        found[role] = found.get(role, 0.0) + child.memory_info().rss / 2**20
    return found


def _rows(collector: LocalCollector) -> int:
    return collector.client.health()["store"]["rows"]["spans"]


def _settled(collector: LocalCollector) -> int:
    """Wait until the spool is empty and nothing more is stored; return the rows."""
    rows = -1
    while (now := _rows(collector)) != rows or collector.client.health()["spool"]["segments"]:
        rows = now
        time.sleep(3)
    return rows


def _post(url: str, body: bytes) -> float:
    request = urllib.request.Request(f"{url}/v1/traces", data=body, headers={"Content-Type": "application/x-protobuf"})
    began = time.monotonic()
    with urllib.request.urlopen(request, timeout=60):
        return time.monotonic() - began


def _middle(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]
