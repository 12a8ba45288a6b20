"""The collector is away for minutes under load: what is lost, what the agent needs, how long it takes to catch up.

Not in the default set: ``run.py outage`` takes ten minutes and more; ``bench_outage.py 0.5`` half a minute.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from bench_table import Row, print_table  # noqa: E402  its folder is put on the path above

from axonize_server.local import LocalCollector, free_port  # noqa: E402  same
from outage import SPANS_PER_REQUEST, Engine, stored_counts  # noqa: E402  same

SPANS_PER_S = 2_000
AWAY_MIN = 10.0
MEMORY_MB, DRAIN_S = 150, 120


class Watch(threading.Thread):
    """Reads the agent's memory, CPU time and queue once a second."""

    def __init__(self, engine):
        super().__init__(daemon=True)
        self.engine, self.process = engine, psutil.Process(engine.agent()["pid"])
        self.memory_mb, self.queue_mib, self.waiting, self.cpu_s = 0.0, 0.0, 0, 0.0
        self.stopping = threading.Event()

    def run(self):
        while not self.stopping.wait(1):
            lane = self.engine.export()["lanes"]["traces"]
            self.memory_mb = max(self.memory_mb, self.process.memory_info().rss / 1e6)
            self.queue_mib = max(self.queue_mib, lane["waiting_bytes"] / 2**20)
            self.waiting = max(self.waiting, lane["waiting"])
            self.cpu_s = sum(self.process.cpu_times()[:2])


def run(minutes: float = AWAY_MIN) -> list[Row]:
    """Return the rows; the load goes on until the agent has caught up."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "data").mkdir()
        collector = LocalCollector(directory / "data", http_port=free_port(), api_port=free_port())
        collector.start()
        engine = Engine(directory, collector.otlp_url, SPANS_PER_S / SPANS_PER_REQUEST)
        try:
            return _measure(minutes, collector, engine)
        finally:
            engine.close()
            collector.stop()


def _measure(minutes, collector, engine):
    engine.say("go")
    engine.wait(lambda facts: facts["spans_exported"] > SPANS_PER_S)
    watch = Watch(engine)
    watch.start()
    collector.stop()
    left = time.monotonic()
    time.sleep(minutes * 60)
    collector.start()
    away_s, back = time.monotonic() - left, time.monotonic()
    engine.wait(lambda facts: (facts["lanes"]["traces"]["oldest_age_s"] or 0) < 2, timeout_s=10 * DRAIN_S)
    drain_s = time.monotonic() - back
    requests, dropped_records = engine.say("pause")
    facts = engine.wait(lambda f: f["spans_waiting"] == 0 and f["spans_queued"] >= requests * SPANS_PER_REQUEST)
    watch.stopping.set()
    watch.join()
    load_s = time.monotonic() - left
    engine.say("end")
    _wait_until_stored(collector)
    stored_s = time.monotonic() - back
    collector.stop()
    made = requests * SPANS_PER_REQUEST
    rows, distinct, _ = stored_counts(collector.data_dir / "clickhouse")
    rate = f"{made / 1e3:.0f}k spans made, {made / load_s:.0f}/s, away {away_s / 60:.1f} min"
    lane = facts["lanes"]["traces"]
    retries, at_agent = lane["retries"], {**lane["dropped"], **lane["refused"]} or "none at the agent"
    agent = (
        f"{watch.queue_mib:.0f} MiB on disk for {watch.waiting / 1e3:.0f}k spans, {watch.cpu_s / load_s:.0%} of a core"
    )
    return [
        Row("collector away: lost", f"{made - distinct} spans ({at_agent})", f"{made}", rate, "-", "0", made == distinct and not dropped_records),
        Row("… stored twice", f"{rows - distinct} spans", f"{rows}", f"rows, all in after {stored_s:.0f} s; {retries} retries", "-", "(at least once)", True),
        Row("… agent's memory, most", f"{watch.memory_mb:.0f} MB", f"{MEMORY_MB} MB", agent, f"{watch.memory_mb / MEMORY_MB:.2f} x", f"< {MEMORY_MB} MB", watch.memory_mb < MEMORY_MB),
        Row("… caught up, load going on", f"{drain_s:.0f} s", f"{DRAIN_S} s", "limit, from the collector's readiness", f"{drain_s / DRAIN_S:.2f} x", f"<= {DRAIN_S} s", drain_s <= DRAIN_S),
    ]  # fmt: skip


def _wait_until_stored(collector):
    """Wait until the collector's spool is empty: it acknowledges before it inserts, and its stop has a limit."""
    deadline = time.monotonic() + 10 * DRAIN_S
    while collector.client.health()["spool"]["segments"]:
        assert time.monotonic() < deadline, "the collector does not empty its spool"
        time.sleep(0.5)


if __name__ == "__main__":
    print_table(run(float(sys.argv[1]) if sys.argv[1:] else AWAY_MIN))
