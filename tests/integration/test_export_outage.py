"""Pulling the collector's plug under load and putting it back loses nothing, whatever happens to the agent meanwhile."""

from __future__ import annotations

import os
import signal
import time

from axonize_core.export.otlp import BATCH_SPANS
from axonize_server.local import LocalCollector, free_port
from outage import SPANS_PER_REQUEST, Engine, stored_counts


def test_nothing_is_lost_while_the_collector_is_away_and_the_agent_dies(tmp_path):
    """SIGKILL of the whole collector under load, then of the agent; both come back; the store holds every span."""
    data = tmp_path / "data"
    data.mkdir()
    collector = LocalCollector(data, http_port=free_port(), api_port=free_port())
    collector.start()
    engine = Engine(tmp_path, collector.otlp_url, requests_per_s=100)
    try:
        engine.say("go")
        engine.wait(lambda f: f["spans_exported"] > 0)
        os.killpg(collector.pid, signal.SIGKILL)
        collector.stop()
        engine.wait(lambda f: f["lanes"]["traces"]["waiting"] > 1000)
        # What the engine handed to the agent must be in the queue: an agent's own memory dies with it.
        before, _ = engine.say("pause")
        engine.wait(lambda f: f["spans_exported"] + f["lanes"]["traces"]["waiting"] >= before * SPANS_PER_REQUEST)
        os.kill(engine.agent()["pid"], signal.SIGKILL)
        while engine.runs():
            time.sleep(0.01)
        engine.say("go")
        engine.wait(lambda f: f["spans_queued"] > 100)
        collector.start()
        engine.wait(lambda f: f["spans_exported"] > 1000)
        made, dropped = engine.say("pause")
        engine.wait(lambda f: f["spans_queued"] == (made - before) * SPANS_PER_REQUEST and not f["spans_waiting"])
    finally:
        engine.close()
        collector.stop()
    rows, spans, requests = stored_counts(data / "clickhouse")
    assert (spans, requests, dropped) == (made * SPANS_PER_REQUEST, made, 0)
    # At least once: the batch in flight at each of the two kills may be there twice.
    assert rows - spans <= 2 * BATCH_SPANS
