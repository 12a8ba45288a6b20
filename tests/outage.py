"""A load through a real engine and agent while the collector goes and comes; for the outage test and benchmark."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from axonize_core.doctor import agent_status

__all__ = ["SPANS_PER_REQUEST", "Engine", "stored_counts"]

SPANS_PER_REQUEST = 8
"""request, queue, prefill, decode and a step for each of 4 tokens"""
_EXPORT = "axonize_core.export.otlp.OtlpExport"
# Commands on stdin: "pause", "go", "end"; every one is answered by the number of requests so far.
_LOAD = """
import select, sys, time
from axonize_core.frames import Kind
from axonize_core.recorder import get_recorder
rec = get_recorder()
source = rec.source("transformers", "", "tiny", "hf", ("cpu", 0, None))
per_s, count, running, next_at = float(sys.argv[1]), 0, False, time.monotonic()

def request():
    seq, run, times = rec.next_handle(), rec.next_handle(), []
    rec.emit(Kind.REQUEST, seq, (source, rec.clock(), f"r{seq}", None, "text_completion", 3, None))
    rec.emit(Kind.RUN, run, (source, (seq,), (3,), "generate", times))
    times += [rec.clock() for _ in range(4)] + [-rec.clock()]
    rec.emit(Kind.RUN_END, run, (4, None))
    rec.emit(Kind.REQUEST_END, seq, ("length", 3, 4, None, None))

while True:
    wait = max(0.0, next_at - time.monotonic()) if running else 60.0
    if select.select([sys.stdin], [], [], wait)[0]:
        command = sys.stdin.readline().strip() or "end"
        running, next_at = command == "go", time.monotonic()
        if command != "go":
            rec.flush(20)
        print(count, rec.dropped_total(), flush=True)
        if command == "end":
            break
    elif running:
        request()
        count, next_at = count + 1, next_at + 1 / per_s
"""


class Engine:
    """A process that records ``requests_per_s``, with an agent that exports to ``url``."""

    def __init__(self, directory, url, requests_per_s, **env):
        self.runtime = directory / "run"
        self.env = {
            "AXONIZE_RUNTIME_DIR": str(self.runtime),
            "AXONIZE_STATE_DIR": str(directory / "state"),
            "AXONIZE_GPU_PROVIDER": "simulated",
            "OTEL_EXPORTER_OTLP_ENDPOINT": url,
            "OTEL_SERVICE_NAME": "outage",
            **env,
        }
        self._process = subprocess.Popen(
            [sys.executable, "-c", _LOAD, str(requests_per_s)],
            env={**os.environ, **self.env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def say(self, command):
        """Return (requests made, records dropped) after the command."""
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        requests, dropped = self._process.stdout.readline().split()
        return int(requests), int(dropped)

    def agent(self):
        """Return what the agent says of itself."""
        (socket,) = self.runtime.glob("agent-*.sock")
        return agent_status(socket)

    def runs(self):
        """Say whether an agent answers."""
        try:
            self.agent()
        except (OSError, ValueError):
            return False
        return True

    def export(self):
        """Return what the agent's exporter says."""
        return self.agent()["facts"][_EXPORT]

    def wait(self, condition, timeout_s=30.0):
        """Wait until ``condition(export facts)``; an agent that is just not there is no answer."""
        deadline, facts = time.monotonic() + timeout_s, {}
        while True:
            try:
                facts = self.export()
            except (OSError, ValueError):
                pass
            else:
                if condition(facts):
                    return facts
            assert time.monotonic() < deadline, f"not seen in {timeout_s} s: {facts}"
            time.sleep(0.05)

    def close(self):
        """End the engine, then wait for its agent."""
        if self._process.poll() is None:
            self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()
        deadline = time.monotonic() + 20
        while list(self.runtime.glob("agent-*.sock")):
            assert time.monotonic() < deadline, "the agent outlived its engine"
            time.sleep(0.05)


_COUNT = """
import sys
from axonize_server.store.clickhouse import ClickHouseStore
store = ClickHouseStore(f"chdb://{sys.argv[1]}")
query = "SELECT count() AS rows, uniqExact(trace_id, span_id) AS spans, uniqExactIf(trace_id, name = 'request') AS requests"
row = store.query(query + " FROM axonize.spans")[0]
print(row["rows"], row["spans"], row["requests"])
store.close()
"""


def stored_counts(directory):
    """Return (rows, distinct spans, distinct requests) of an embedded store whose collector ended."""
    command = [sys.executable, "-c", _COUNT, str(directory)]
    said = subprocess.run(command, capture_output=True, check=True, text=True, cwd=directory.parent).stdout
    return tuple(int(n) for n in said.split())
