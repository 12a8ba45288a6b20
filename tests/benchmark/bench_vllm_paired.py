"""Steps of a real engine with recording on against off; runs in the environment that has vLLM.

A round is one segment of the same load in each condition, in random order: off, on, off again (the control), and in some
rounds the naive way. Requests come and go all the time, evenly spread. Timed is what follows a lead-in longer than the
shipper's period, so that its work falls into what is timed as it does for ever. The agent and where it sends to are
processes of their own. ``bench_vllm_paired.py [SECONDS]``, per batch size.
"""

from __future__ import annotations

import gc
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from statistics import fmean, median
from typing import NamedTuple

from bench_table import Row
from bench_vllm_engine import Load, make_engine, say_rows, scheduler_of
from bench_vllm_naive import Naive

from axonize_core.bench.agent_process import counters, running_agent, running_sink
from axonize_core.bench.intervals import Interval, paired_interval
from axonize_core.recorder import get_recorder

BATCHES = (1, 8, 32)
SECONDS = 200.0
LEAST_ROUNDS = 30
HALF_WIDTH, STOP_HALF_WIDTH, LIMIT = 0.02, 0.01, 0.02
NAIVE_EVERY, NAIVE_ROUNDS = 4, 3
LEAD_S, TIMED_S, SETTLE_S, FLUSH_S = 0.15, 0.4, 0.02, 10.0
PROCESSOR = ("add_request", "process_outputs", "abort_requests", "propagate_error")


def run(seconds: float = SECONDS) -> list[Row]:
    """Return one row per batch size; each until both intervals are narrow, or so long."""
    with tempfile.TemporaryDirectory(prefix="axonize-bench-") as directory, running_sink() as endpoint:
        home = Path(directory)
        os.environ.update(
            AXONIZE_AGENT=f"unix://{home / 'agent.sock'}",
            AXONIZE_RUNTIME_DIR=directory,
            AXONIZE_STATE_DIR=f"{directory}/state",
            AXONIZE_GPU_PROVIDER="none",
            OTEL_EXPORTER_OTLP_ENDPOINT=endpoint,
        )
        with running_agent(home / "agent.sock", os.environ) as agent:
            engine = make_engine(max(BATCHES))
            rows = [row for batch in BATCHES for row in _rows(engine, batch, seconds)]
            recorder = get_recorder()
            assert recorder.close(FLUSH_S), "the agent did not take everything"
            assert not recorder.errors, recorder.errors
            facts, cpu_s = agent.drained(), agent.cpu_s()
        spans = counters(facts).get("spans_exported", 0)
        assert spans, f"nothing was recorded: {facts}"
        print(f"agent: {cpu_s} s of CPU, {spans} spans exported, {facts['counts']}", file=sys.stderr)
        return rows


def _rows(engine, batch: int, seconds: float) -> list[Row]:
    """Return the row of the mean, which has the target, and that of the median, which neighbours disturb less."""
    bench = Paired(engine, batch)
    deadline = time.monotonic() + seconds
    while bench.naive_rounds < NAIVE_ROUNDS or (time.monotonic() < deadline and not bench.is_narrow()):
        bench.round()
    found = []
    for name, field in (("mean time", "mean_us"), ("median time", "median_us")):
        on, control, naive = (bench.interval(condition, field) for condition in ("on", "control", "naive"))
        off_us = median(getattr(segment, field) for segment in bench.segments["off"])
        row = Row(
            name=f"vLLM, {name} of a step, batch {batch}",
            ours=_text(on),
            peer=_text(naive),
            peer_name=f"OTel spans in the process; off/off {_text(control)}, {bench.rounds} pairs, {off_us:.0f} us",
            ratio=f"± {on.half_width:.2%}",
            target=f"± {HALF_WIDTH:.0%}, has 0, below +{LIMIT:.0%}",
            met=on.half_width <= HALF_WIDTH and on.low <= 0 <= on.high < LIMIT,
        )
        found.append(row if field == "mean_us" else row._replace(target="(printed)", met=True))
    return found


def _text(interval: Interval) -> str:
    return interval.text().replace("95 % interval ", "")


class Segment(NamedTuple):
    """What a step took: all the time there was, and the middle one."""

    mean_us: float
    median_us: float


class Paired:
    """The rounds of one batch size."""

    def __init__(self, engine, batch: int) -> None:
        self._engine, self._scheduler = engine, scheduler_of(engine)
        self._load = Load(engine, batch)
        self._naive = Naive(self._scheduler)
        self._chance = random.Random(batch)
        self.rounds = 0
        self.segments: dict[str, list[Segment]] = {name: [] for name in ("off", "on", "control", "naive")}
        self._off_of_naive: list[Segment] = []
        self._lead = self._timed = 100
        for condition in ("off", "on", "naive", "off"):  # nothing is done for the first time any more
            step_s = self._segment(condition).mean_us / 1e6
        self._lead, self._timed = round(LEAD_S / step_s), round(TIMED_S / step_s)
        gc.collect()
        gc.freeze()

    @property
    def naive_rounds(self) -> int:
        """Return how often the naive way was measured."""
        return len(self._off_of_naive)

    def round(self) -> None:
        """Run each condition once, in random order."""
        conditions = ["off", "on", "control"] + ["naive"] * (self.rounds % NAIVE_EVERY == 0)
        self._chance.shuffle(conditions)
        for condition in conditions:
            self.segments[condition].append(self._segment(condition))
        if "naive" in conditions:
            self._off_of_naive.append(self.segments["off"][-1])
        self.rounds += 1

    def is_narrow(self) -> bool:
        """Say whether there are enough rounds, and the intervals of on and control are narrow."""
        enough = self.rounds >= LEAST_ROUNDS
        return enough and all(self.interval(c, "mean_us").half_width <= STOP_HALF_WIDTH for c in ("on", "control"))

    def interval(self, condition: str, field: str) -> Interval:
        """Return how much more a step takes than when off."""
        off = self._off_of_naive if condition == "naive" else self.segments["off"]
        pairs = zip(self.segments[condition], off, strict=True)
        return paired_interval([getattr(one, field) / getattr(other, field) for one, other in pairs])

    def _segment(self, condition: str) -> Segment:
        self._switch(condition, on=True)
        self._load.fill()
        self._load.steps(self._lead)
        took_ns = self._load.steps(self._timed)
        self._load.drain()
        self._switch(condition, on=False)
        time.sleep(SETTLE_S)
        return Segment(fmean(took_ns) / 1e3, median(took_ns) / 1e3)

    def _switch(self, condition: str, *, on: bool) -> None:
        from axonize_vllm import frontend, scheduler

        if condition == "naive":
            (self._naive.record if on else self._naive.release)()
        elif condition == "on" and on:
            scheduler.record(self._scheduler)
            frontend.record(self._engine)
        elif condition == "on":
            scheduler.release(self._scheduler)
            for name in PROCESSOR:
                del self._engine.output_processor.__dict__[name]
            get_recorder().flush(FLUSH_S)


if __name__ == "__main__":
    say_rows(run(*map(float, sys.argv[1:])))
