"""Models on a real server, recorded against not; runs in the environment that has tritonserver.

Four that are the same but for tracing: off, off again (the control), on, and OTel spans in ``execute``. A round asks each in
random order: one client over HTTP, one over gRPC, and then the model drives itself, for the times from execute to execute.
The agent, a process of its own, exports what it is told to a sink meanwhile. ``bench_triton_serve.py [SECONDS]``.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from pathlib import Path

from bench_table import Row
from bench_triton_clients import Grpc, Http
from bench_triton_server import add_model, running_server, say_rows

from axonize_core.bench.agent_process import counters, running_sink, started_agent
from axonize_core.bench.intervals import Interval, paired_interval, quantile

SECONDS = 200.0
LEAST_ROUNDS, NAIVE_EVERY = 8, 3
WAYS = ("off", "control", "on", "naive")
REQUESTS = 600
SETTLE_S, EXPORT_S = 0.05, 0.4
"""Pauses after a model was asked: any, and one of whose requests the agent has still to tell."""


def run(seconds: float = SECONDS) -> list[Row]:
    """Return the rows of latency and of the gaps between executes."""
    with tempfile.TemporaryDirectory(prefix="axonize-bench-") as name, running_sink() as endpoint:
        home = Path(name)
        env = {
            "AXONIZE_RUNTIME_DIR": name,
            "AXONIZE_STATE_DIR": f"{name}/state",
            "AXONIZE_GPU_PROVIDER": "none",
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        }
        for way in WAYS:
            add_model(home / "models", way, "serve", way="off" if way == "control" else way)
        with running_server(home / "server", home / "models", env) as server:
            rounds = Rounds(server)
            agent = started_agent(home)
            deadline = time.monotonic() + seconds
            while rounds.done < LEAST_ROUNDS or time.monotonic() < deadline:
                rounds.round()
            rounds.close()
            facts = agent.drained()
    spans = counters(facts).get("spans_exported", 0)
    lost = {what: count for what, count in facts["counts"].items() if count and what != "records"}
    print(f"agent: {facts['counts'].get('records')} records, {spans} spans exported, {lost}", file=sys.stderr)
    asked = rounds.done * 2 * REQUESTS + rounds.executes
    assert spans >= asked, f"{asked} requests, and {spans} spans: {facts}"
    return [
        rounds.gap_row(0.999),
        rounds.gap_row(0.5),
        *(rounds.latency_row(p, q) for p in ("HTTP", "gRPC") for q in (0.5, 0.99)),
    ]


class Rounds:
    """What was measured of each way, by kind: one list of ns per round."""

    def __init__(self, server) -> None:
        self._http, self._grpc = Http(server.port), Grpc(server.grpc_address)
        self._chance = random.Random(7)
        self.done = 0
        self.executes = self._driven_ns = 0
        """Of the recorded model, driving itself."""
        self._times: dict[tuple[str, str], dict[int, list[int]]] = {}
        self._ask(WAYS, 0)  # nothing is done for the first time any more
        self._times.clear()

    def round(self) -> None:
        """Ask each of them, in random order."""
        ways = [way for way in WAYS if way != "naive" or self.done % NAIVE_EVERY == 0]
        self._chance.shuffle(ways)
        self._ask(ways, self.done)
        self.done += 1

    def _ask(self, ways, number: int) -> None:
        for way in ways:
            kept = self._times
            kept.setdefault((way, "HTTP"), {})[number] = sorted(self._http.latencies_ns(way, REQUESTS))
            kept.setdefault((way, "gRPC"), {})[number] = sorted(self._grpc.latencies_ns(way, REQUESTS))
            kept.setdefault((way, "gaps"), {})[number] = gaps = sorted(self._http.driven_ns(way))
            if way == "on":
                self.executes += len(gaps)
                self._driven_ns += sum(gaps)
            time.sleep(SETTLE_S + (EXPORT_S if way == "on" else 0))

    def close(self) -> None:
        self._http.close()
        self._grpc.close()

    def gap_row(self, share: float) -> Row:
        """Return the row of the time from one execute's beginning to the next's."""
        on, control, naive = (self._against_off(way, "gaps", share) for way in ("on", "control", "naive"))
        rate = self.executes / self._driven_ns * 1e9
        return Row(
            name=f"Triton, {_name(share)} from execute to execute, export busy",
            ours=text(on),
            peer=text(control),
            peer_name=f"off/off; {self._all('gaps', share)}; OTel spans {text(naive)}; {rate:.0f} executes/s, {self.done} rounds",
            ratio=f"± {on.half_width:.1%}",
            target="within off/off" if share > 0.9 else "(printed)",
            met=share < 0.9 or on.share <= max(control.high, 0),
        )

    def latency_row(self, protocol: str, share: float) -> Row:
        """Return the row of one client's round trip; so small a difference does not show in it, a larger one would."""
        on, control, naive = (self._against_off(way, protocol, share) for way in ("on", "control", "naive"))
        return Row(
            name=f"Triton, {_name(share)} of a request over {protocol}",
            ours=text(on),
            peer=text(control),
            peer_name=f"off/off; {self._all(protocol, share)}; OTel spans {text(naive)}",
            ratio=f"± {on.half_width:.1%}",
            target="(printed)",
            met=True,
        )

    def _against_off(self, way: str, kind: str, share: float) -> Interval:
        off = self._times["off", kind]
        return paired_interval(
            [quantile(times, share) / quantile(off[n], share) for n, times in self._times[way, kind].items()]
        )

    def _all(self, kind: str, share: float) -> str:
        """Return the quantiles over all rounds."""
        found = (
            quantile(sorted(ns for times in self._times[way, kind].values() for ns in times), share) for way in WAYS
        )
        return ", ".join(f"{way} {ns / 1e3:.0f}" for way, ns in zip(WAYS, found, strict=True)) + " us"


def _name(share: float) -> str:
    return f"p{share * 100:g}"


def text(interval: Interval) -> str:
    return interval.text().replace("95 % interval ", "")


if __name__ == "__main__":
    say_rows(run(*map(float, sys.argv[1:])))
