"""The process that is measured: ``python -m axonize_core.bench.engine``; one JSON object per line on stdout.

A round is six segments of the same work, in one of three conditions: ``off``, ``on``, and ``control``, which is off
again. The order is mirrored (off on control control on off) and changes from round to round, so that a drift of the
machine falls on all alike. After each segment the recorder is flushed and the agent left alone for a moment. After each
round a line is read: ``stop`` ends it early.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import sys
import time
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from axonize_core.bench.emit_cost import emit_cost
from axonize_core.bench.workload import find_workload
from axonize_core.errors import AxonizeError
from axonize_core.recorder import get_recorder

if TYPE_CHECKING:
    from axonize_core.bench.workload import Workload

__all__ = ["CONDITIONS", "main"]

CONDITIONS = ("off", "on", "control")
_SETTLE_S = 0.03
_WARM_UP_SEGMENTS = 8
_FLUSH_S = 10.0


class Segment(NamedTuple):
    """The same work in one condition: tokens, wall time, CPU time of this process, and of each call its time."""

    tokens: int
    wall_s: float
    cpu_s: float
    latencies_ms: list[float]


def main(arguments: list[str] | None = None) -> None:
    """Measure and say so."""
    parser = argparse.ArgumentParser(prog="python -m axonize_core.bench.engine", description=__doc__)
    parser.add_argument("--engine")
    parser.add_argument("--model")
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--segment-s", type=float, required=True)
    parser.add_argument("--cpu", type=int, help="pin this process to it")
    options = parser.parse_args(arguments)
    if options.cpu is not None:
        # Before any thread exists, so that all inherit it.
        os.sched_setaffinity(0, {options.cpu})
    try:
        workload = find_workload(options.engine, options.model)
    except AxonizeError as e:
        sys.exit(str(e))
    _say(workload=workload.description, device=workload.device, versions=dict(workload.versions), **emit_cost())
    calls = _warm_up(workload, options.segment_s)
    _say(calls_per_segment=calls)
    for number, order in zip(range(options.rounds), itertools.cycle(itertools.permutations(CONDITIONS)), strict=False):
        _say(round=number, segments=_round(workload, calls, order))
        if sys.stdin.readline().strip() == "stop":
            break
    flushed = get_recorder().close(_FLUSH_S)
    _say(flushed=flushed, errors=dict(get_recorder().errors))


def _warm_up(workload: Workload, segment_s: float) -> int:
    """Run both ways until nothing is done for the first time any more; return the calls that fill a segment."""
    for on in (False, True, False):
        workload.switch(on=on)
        took_s: list[float] = []
        until = time.perf_counter() + _WARM_UP_SEGMENTS * segment_s
        while time.perf_counter() < until:
            took_s.append(_segment(workload, 1).wall_s)
    get_recorder().flush(_FLUSH_S)
    # What is alive now stays: a collection of it during one segment and not another would be noise.
    gc.collect()
    gc.freeze()
    return max(1, round(segment_s / median(took_s)))


def _round(workload: Workload, calls: int, order: tuple[str, ...]) -> dict[str, list[Any]]:
    segments: dict[str, list[Any]] = {condition: [] for condition in CONDITIONS}
    for condition in (*order, *reversed(order)):
        workload.switch(on=condition == "on")
        cpu_s = time.process_time()
        segment = _segment(workload, calls)
        get_recorder().flush(_FLUSH_S)
        time.sleep(_SETTLE_S)
        # What the shipper does afterwards is paid for here, as it would be during the next segment.
        segments[condition].append(segment._replace(cpu_s=time.process_time() - cpu_s)._asdict())
    return segments


def _segment(workload: Workload, calls: int) -> Segment:
    run, clock, tokens, latencies = workload.run, time.perf_counter, 0, []
    cpu_s, started = time.process_time(), clock()
    before = started
    for _ in range(calls):
        tokens += run()
        now = clock()
        latencies.append((now - before) * 1e3)
        before = now
    return Segment(tokens, clock() - started, time.process_time() - cpu_s, latencies)


def _say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)  # noqa: T201 - stdout is the interface


if __name__ == "__main__":
    main()
