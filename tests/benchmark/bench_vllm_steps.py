"""Where in a step of vLLM the time goes that recording takes; runs in the environment that has vLLM.

Waves as in bench_vllm_paired, but with a clock reading before and after each call that the engine makes in a step, the same
in all conditions. So what stands between these calls, which is our hooks and a little of vLLM's, is told from what stands in
them: half-widths were 0.2 to 0.4 us there, 5 to 8 us in the calls. ``bench_vllm_steps.py [ROUNDS]``, per batch size.
"""

from __future__ import annotations

import sys
import time
from functools import wraps
from statistics import median
from typing import NamedTuple

from bench_table import Row
from bench_vllm_engine import TINY, say_rows, scheduler_of
from bench_vllm_paired import BATCHES, Paired, recorded_engine

from axonize_core.bench.intervals import Interval, paired_interval

ROUNDS = 60
HOOKED = (1, 5, 7, 9)
"""Of the ten stretches of a step, those that hooks are in: after schedule, around update_from_output, after process_outputs."""


class Parts(NamedTuple):
    """Medians of the steps of a wave: between the calls, and in them."""

    between_us: float
    inside_us: float


class Marks:
    """Clock readings before and after each call of a step, on the classes: hooks, which are on instances, are around them."""

    def __init__(self, engine) -> None:
        self.ns: list[int] = []
        executor = type(engine.engine_core.engine_core.model_executor)
        scheduler, processor = type(scheduler_of(engine)), type(engine.output_processor)
        self._calls = [(scheduler, "schedule"), (executor, "execute_model"), (executor, "sample_tokens")]
        self._calls += [(scheduler, "update_from_output"), (processor, "process_outputs")]
        for owner, name in self._calls:
            setattr(owner, name, self._marked(getattr(owner, name)))

    def _marked(self, original):
        clock, add = time.perf_counter_ns, self.ns.append

        @wraps(original)
        def call(*args, **kwargs):
            add(clock())
            result = original(*args, **kwargs)
            add(clock())
            return result

        return call

    def parts(self) -> Parts:
        """Return what the steps since the last call took; the last step has no end, the next one's beginning."""
        ns, per_step = self.ns[:], 2 * len(self._calls)
        self.ns.clear()
        assert not len(ns) % per_step, f"{len(ns)} readings are not {per_step} a step: another order of calls"
        steps = [
            [after - before for before, after in zip(ns[at : at + per_step], ns[at + 1 :], strict=False)]
            for at in range(0, len(ns) - per_step, per_step)
        ]
        between = [sum(step[k] for k in HOOKED) for step in steps]
        inside = [sum(step) - those for step, those in zip(steps, between, strict=True)]
        return Parts(median(between) / 1e3, median(inside) / 1e3)


class PairedParts(Paired):
    """The rounds of one batch size, each wave told by its parts."""

    def __init__(self, engine, batch: int, marks: Marks) -> None:
        self._marks = marks
        super().__init__(engine, batch, TINY)

    def _wave(self, condition: str) -> Parts:
        self._marks.ns.clear()
        super()._wave(condition)
        return self._marks.parts()

    def more(self, condition: str, field: str) -> Interval:
        """Return how much more a part takes than when off, as a share of the whole step."""
        found = []
        for wave, off, control in zip(*(self.waves[name] for name in (condition, "off", "control")), strict=True):
            against = [off, control] if condition == "on" else [off]
            before_us = sum(getattr(one, field) for one in against) / len(against)
            found.append(1 + (getattr(wave, field) - before_us) / sum(off))
        return paired_interval(found)


def run(rounds: int = ROUNDS) -> list[Row]:
    """Return the rows of each batch size: between the calls and in them."""
    with recorded_engine(TINY) as engine:
        marks = Marks(engine)
        return [row for batch in BATCHES for row in _rows(PairedParts(engine, batch, marks), batch, rounds)]


def _rows(bench: PairedParts, batch: int, rounds: int) -> list[Row]:
    while bench.rounds < rounds:
        bench.round()
    step_us = median(sum(wave) for wave in bench.waves["off"])
    return [
        _row(bench, batch, step_us, "between_us", "hooks, and what is between the calls of a step"),
        _row(bench, batch, step_us, "inside_us", "vLLM's own calls of a step"),
    ]


def _row(bench: PairedParts, batch: int, step_us: float, field: str, name: str) -> Row:
    on, control = bench.more("on", field), bench.more("control", field)
    return Row(
        name=f"vLLM, {name}, batch {batch}",
        ours=f"{on.share * step_us:+.2f} us ({on.low * step_us:+.2f} … {on.high * step_us:+.2f})",
        peer=f"{control.share * step_us:+.2f} us ({control.low * step_us:+.2f} … {control.high * step_us:+.2f})",
        peer_name=f"off/off, {bench.rounds} pairs, steps of {step_us:.0f} us",
        ratio=f"{on.share:+.2%}",
        target="(printed)",
        met=True,
    )


if __name__ == "__main__":
    say_rows(run(*map(int, sys.argv[1:])))
