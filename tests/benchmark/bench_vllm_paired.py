"""A real engine with recording on against off; runs in the environment that has vLLM.

A round is one wave in each condition, in random order: off, on, off again (the control), and in some rounds the naive way.
A wave is so many requests of 100 tokens, from the first that is added to the last that ends, 0.1 to 0.2 s: what else this
machine does changes within a second, so only what lies close together can be compared. (Of the large model, see
bench_vllm_large, 300 tokens, 2 to 8 s.) A pause after each wave lets the agent finish, so that what one wave told is no
burden of the next. The engine's thread hands over by its clock, after the first step and then every 76 ms; the shipper's
sleeps all the time, as it does beside an engine whose steps take less than 40 ms. Agent and sink are processes of their
own, on the same two CPUs; two servers with everything in it are in bench_vllm_serve.
``bench_vllm_paired.py [SECONDS]``, per batch size.
"""

from __future__ import annotations

import gc
import os
import random
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple

from bench_table import Row
from bench_vllm_engine import TINY, Load, Model, make_engine, say_rows, scheduler_of
from bench_vllm_naive import Naive

from axonize_core import alarm, shipper
from axonize_core.bench.agent_process import counters, running_agent, running_sink
from axonize_core.bench.intervals import Interval, paired_interval, quantile
from axonize_core.recorder import Recorder, get_recorder

BATCHES = (1, 8, 32)
SECONDS = 150.0
HALF_WIDTH, STOP_HALF_WIDTH, LIMIT = 0.02, 0.01, 0.02
NAIVE_EVERY = 8
PAUSE_S, FLUSH_S, FOR_EVER_S = 0.12, 10.0, 1e6
PROCESSOR = ("add_request", "process_outputs", "abort_requests", "propagate_error")


def run(seconds: float = SECONDS, model: Model = TINY) -> list[Row]:
    """Return the rows of each batch size, each measured until both intervals are narrow, or so long."""
    with recorded_engine(model) as engine:
        return [row for batch in BATCHES for row in _rows(engine, model, batch, seconds)]


@contextmanager
def recorded_engine(model: Model):
    """Give an engine, with agent and sink running, that can be recorded; all that was must have come through."""
    with tempfile.TemporaryDirectory(prefix="axonize-bench-") as directory, running_sink() as endpoint:
        home = Path(directory)
        os.environ.update(
            AXONIZE_AGENT=f"unix://{home / 'agent.sock'}",
            AXONIZE_RUNTIME_DIR=directory,
            AXONIZE_STATE_DIR=f"{directory}/state",
            AXONIZE_GPU_PROVIDER="none",
            OTEL_EXPORTER_OTLP_ENDPOINT=endpoint,
        )
        shipper.PERIOD_S = alarm.LONGEST_S = FOR_EVER_S
        with running_agent(home / "agent.sock", os.environ) as agent:
            yield make_engine(max(BATCHES), model)
            recorder = get_recorder()
            assert recorder.close(FLUSH_S), "the agent did not take everything"
            assert not recorder.errors, recorder.errors
            facts, cpu_s = agent.drained(), agent.cpu_s()
        spans = counters(facts).get("spans_exported", 0)
        assert spans, f"nothing was recorded: {facts}"
        print(f"agent: {cpu_s} s of CPU, {spans} spans exported, {facts['counts']}", file=sys.stderr)


def _rows(engine, model: Model, batch: int, seconds: float) -> list[Row]:
    """Return the row of the time a wave takes, and that of the middle time of its steps, which neighbours disturb less."""
    bench = Paired(engine, batch, model)
    deadline = time.monotonic() + seconds
    while bench.rounds < model.least_rounds or (time.monotonic() < deadline and not bench.is_narrow()):
        bench.round()
    found = []
    for name, field in (("a wave", "wave_us"), ("median step", "step_us")):
        on, control, naive = (bench.interval(condition, field) for condition in ("on", "control", "naive"))
        off_us = median(getattr(wave, field) for wave in bench.waves["off"])
        row = Row(
            name=f"{model.name}, time of {name}, batch {batch}",
            ours=_text(on),
            peer=_text(naive),
            peer_name=f"OTel spans in the process; off/off {_text(control)}, {bench.rounds} pairs, {off_us:.0f} us",
            ratio=f"± {on.half_width:.2%}",
            target=f"± {HALF_WIDTH:.0%}, has 0, below +{LIMIT:.0%}",
            met=on.half_width <= HALF_WIDTH and on.low <= 0 <= on.high < LIMIT,
        )
        found.append(row if field == "wave_us" else row._replace(target="(printed)", met=True))
    return [*found, bench.hand_overs(f"{model.name}, a hand-over on the engine's thread, batch {batch}")]


def _text(interval: Interval) -> str:
    return interval.text().replace("95 % interval ", "")


class Wave(NamedTuple):
    """What a wave took, and the middle one of its steps."""

    wave_us: float
    step_us: float


class Paired:
    """The rounds of one batch size."""

    def __init__(self, engine, batch: int, model: Model) -> None:
        self._engine, self._scheduler = engine, scheduler_of(engine)
        self._load = Load(engine, batch, model.answer_tokens)
        self._naive = Naive(self._scheduler)
        self._chance = random.Random(batch)
        self._took_ns: list[int] = []
        self._ship_here = Recorder.ship_here.__get__(get_recorder())
        get_recorder().ship_here = self._timed
        self.rounds = 0
        self.waves: dict[str, list[Wave]] = {}
        for condition in ("off", "on", "naive") * model.warm_waves:  # nothing is done for the first time any more
            self._wave(condition)
        assert get_recorder().flush(FLUSH_S), "no agent"
        self.waves = {name: [] for name in ("off", "on", "control", "naive")}
        self._off_of_naive: list[Wave] = []
        self._took_ns.clear()
        gc.collect()
        gc.freeze()

    def round(self) -> None:
        """Run each condition once, in random order."""
        conditions = ["off", "on", "control"] + ["naive"] * (self.rounds % NAIVE_EVERY == 0)
        self._chance.shuffle(conditions)
        for condition in conditions:
            self.waves[condition].append(self._wave(condition))
        if "naive" in conditions:
            self._off_of_naive.append(self.waves["off"][-1])
        self.rounds += 1

    def is_narrow(self) -> bool:
        """Say whether the intervals of on and control are narrow."""
        return all(self.interval(c, "wave_us").half_width <= STOP_HALF_WIDTH for c in ("on", "control"))

    def interval(self, condition: str, field: str) -> Interval:
        """Return how much more it takes than when off: on against both such waves of its round, which scatters less."""
        off = [getattr(wave, field) for wave in (self._off_of_naive if condition == "naive" else self.waves["off"])]
        if condition == "on":
            off = [(one + getattr(wave, field)) / 2 for one, wave in zip(off, self.waves["control"], strict=True)]
        return paired_interval([getattr(w, field) / o for w, o in zip(self.waves[condition], off, strict=True)])

    def hand_overs(self, name: str) -> Row:
        """Return the row of the time that the engine's thread was lent to the shipper, which is in that of the waves."""
        took_us = sorted(ns / 1e3 for ns in self._took_ns)
        on_us = sum(wave.wave_us for wave in self.waves["on"])
        return Row(
            name=name,
            ours=f"median {median(took_us):.0f}, p99 {quantile(took_us, 0.99):.0f} us",
            peer=f"{len(took_us) / on_us * 1e6:.0f} a second",
            peer_name="of a recorded wave",
            ratio=f"{sum(took_us) / on_us:.2%}",
            target="(printed)",
            met=True,
        )

    def _timed(self) -> int:
        before_ns = time.perf_counter_ns()
        due_ns = self._ship_here()
        self._took_ns.append(time.perf_counter_ns() - before_ns)
        return due_ns

    def _wave(self, condition: str) -> Wave:
        self._switch(condition, on=True)
        before_ns = time.perf_counter_ns()
        self._load.fill()
        took_ns = self._load.wave()
        wave_ns = time.perf_counter_ns() - before_ns
        self._switch(condition, on=False)
        time.sleep(PAUSE_S)
        return Wave(wave_ns / 1e3, median(took_ns) / 1e3)

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


if __name__ == "__main__":
    say_rows(run(*map(float, sys.argv[1:])))
