"""``axonize bench overhead``: the same work with and without recording, in pairs, and what the agent used meanwhile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from axonize_core.bench.agent_process import BenchError, counters, running_agent, running_sink
from axonize_core.bench.intervals import paired_interval, quantile
from axonize_core.bench.machine import describe_machine, load_average
from axonize_core.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from axonize_core.bench.agent_process import MeasuredAgent
    from axonize_core.bench.intervals import Interval

__all__ = ["OverheadOptions", "measure_overhead"]

SEGMENTS_PER_ROUND = 6
LEAST_ROUNDS = 3
TRUSTED_ROUNDS = 30
"""An interval of fewer rounds is not trusted to be narrow."""
_SETTLE_S = 0.03
_QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
_LOST = ("records_dropped", "records_orphaned", "records_unknown")


@dataclass(frozen=True)
class OverheadOptions:
    """What to measure with, and for how long.

    At most so many rounds and seconds, but three rounds, and only until both intervals' half widths are ``precision``
    (0: never mind).
    """

    engine: str | None = None
    model: str | None = None
    rounds: int = 40
    seconds: float = float("inf")
    precision: float = 0.0
    segment_s: float = 0.1
    pin: bool = True
    endpoint: str | None = None

    @classmethod
    def lasting(cls, seconds: float, **given: Any) -> OverheadOptions:
        """Return options with as many rounds as fit into this time, at least three."""
        segment_s = cls.segment_s
        rounds = int(seconds / SEGMENTS_PER_ROUND / (segment_s + _SETTLE_S))
        return cls(rounds=max(LEAST_ROUNDS, rounds), seconds=seconds, **given)


def measure_overhead(
    options: OverheadOptions, progress: Callable[[int, int], None] = lambda *_: None
) -> dict[str, Any]:
    """Measure and return the report as JSON values; ``progress`` is told rounds done and to do.

    Raises:
        BenchError: Axonize is switched off, or a process of the measurement failed.
    """
    if switch := Settings.from_env().disabled_by:
        raise BenchError(f"Axonize is switched off by {switch}: there is nothing to measure")
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="axonize-bench-")))
        endpoint = options.endpoint or stack.enter_context(running_sink())
        environment = _environment(directory, endpoint)
        agent = stack.enter_context(running_agent(directory / "agent.sock", environment))
        before, cpu_before, load = agent.facts(), agent.cpu_s(), load_average()
        said = list(_engine(options, environment, progress))
        facts, cpu_after = agent.drained(), agent.cpu_s()
        rounds = [line["segments"] for line in said if "round" in line]
        about = {key: value for line in said if "round" not in line for key, value in line.items()}
        cpu_s = None if cpu_before is None or cpu_after is None else cpu_after - cpu_before
        return {
            "machine": describe_machine(about),
            "design": _design(options, about, rounds, load),
            **_differences(rounds),
            "emit": {"emit_ns": about["emit_ns"], "clock_ns": about["clock_ns"]},
            "agent": _agent(agent, before, facts, cpu_s, _seconds(rounds, "on")),
            "errors": about["errors"],
            "flushed": about["flushed"],
        }


def _environment(directory: Path, endpoint: str) -> dict[str, str]:
    """Return the user's environment, plugins included, with an agent and an endpoint of the measurement's own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_EXPORTER_OTLP_")}
    return {
        **kept,
        "AXONIZE_AGENT": f"unix://{directory / 'agent.sock'}",
        "AXONIZE_RUNTIME_DIR": str(directory),
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "TOKENIZERS_PARALLELISM": "false",
    }


def _engine(
    options: OverheadOptions, environment: Mapping[str, str], progress: Callable[[int, int], None]
) -> Iterator[dict[str, Any]]:
    """Run the measured process and yield what it says."""
    command = [sys.executable, "-m", "axonize_core.bench.engine"]
    command += ["--rounds", str(options.rounds), "--segment-s", str(options.segment_s)]
    for flag, value in (("--engine", options.engine), ("--model", options.model), ("--cpu", _cpu(options))):
        command += [flag, str(value)] if value is not None else []
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        assert process.stdin is not None and process.stdout is not None  # noqa: S101, PT018 - asked for above
        rounds, until = list[Any](), time.monotonic() + options.seconds
        try:
            for line in process.stdout:
                said = json.loads(line)
                if "round" in said:
                    rounds.append(said["segments"])
                    late = len(rounds) >= LEAST_ROUNDS and time.monotonic() > until
                    done = late or _is_narrow(rounds, options.precision)
                    progress(options.rounds if done else len(rounds), options.rounds)
                    process.stdin.write("stop\n" if done else "go\n")
                    process.stdin.flush()
                yield said
        finally:
            process.terminate()
        if process.wait():
            errors.seek(0)
            raise BenchError(f"the measured process failed: {errors.read()[-2000:].strip()}")


def _is_narrow(rounds: Sequence[Any], precision: float) -> bool:
    if len(rounds) < TRUSTED_ROUNDS or not precision:
        return False
    return max(_interval(rounds, c, "wall_s")["half_width"] for c in ("on", "control")) <= precision


def _cpu(options: OverheadOptions) -> int | None:
    """Return the core to pin the measured process to: the last, where the rest of the machine has another."""
    if not options.pin or not hasattr(os, "sched_getaffinity"):
        return None
    cores = sorted(os.sched_getaffinity(0))
    return cores[-1] if len(cores) > 1 else None


def _design(
    options: OverheadOptions, about: Mapping[str, Any], rounds: Sequence[Any], load: tuple[float, float, float] | None
) -> dict[str, Any]:
    return {
        "workload": about["workload"],
        "device": about["device"],
        "rounds": len(rounds),
        "segments_per_round": SEGMENTS_PER_ROUND,
        "calls_per_segment": about["calls_per_segment"],
        "segment_s": _seconds(rounds, "off") / (2 * len(rounds)),
        "pinned_to_cpu": _cpu(options),
        "load_average_before": load[0] if load else None,
        "endpoint": options.endpoint or "a local one that keeps nothing",
        "sampled": 1.0,
    }


def _differences(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return tokens/s, latencies and CPU per token of each condition, and how on and control differ from off."""
    return {
        "tokens_per_s": {c: _tokens(rounds, c) / _seconds(rounds, c) for c in ("off", "on", "control")},
        "difference": _interval(rounds, "on", "wall_s"),
        "control": _interval(rounds, "control", "wall_s"),
        "cpu_difference": _interval(rounds, "on", "cpu_s"),
        "cpu_control": _interval(rounds, "control", "cpu_s"),
        "p50_difference": _interval(rounds, "on", "p50_ms"),
        "p50_control": _interval(rounds, "control", "p50_ms"),
        "latency_ms": {c: _latencies(rounds, c) for c in ("off", "on", "control")},
    }


def _interval(rounds: Sequence[Mapping[str, Any]], condition: str, field: str) -> dict[str, float]:
    """Compare with off, round by round: tokens/s for ``wall_s``, CPU per token for ``cpu_s``, a call for ``p50_ms``."""
    value = _median_ms if field == "p50_ms" else partial(_sum, field=field)
    ratios = [value(r[condition]) / value(r["off"]) for r in rounds]
    found: Interval = paired_interval([1 / ratio for ratio in ratios] if field == "wall_s" else ratios)
    return {**found._asdict(), "half_width": found.half_width}


def _median_ms(segments: Sequence[Mapping[str, Any]]) -> float:
    return float(median(ms for segment in segments for ms in segment["latencies_ms"]))


def _sum(segments: Sequence[Mapping[str, Any]], field: str) -> float:
    return float(sum(segment[field] for segment in segments))


def _seconds(rounds: Sequence[Mapping[str, Any]], condition: str) -> float:
    return sum(_sum(r[condition], "wall_s") for r in rounds)


def _tokens(rounds: Sequence[Mapping[str, Any]], condition: str) -> float:
    return sum(_sum(r[condition], "tokens") for r in rounds)


def _latencies(rounds: Sequence[Mapping[str, Any]], condition: str) -> dict[str, float]:
    ordered = sorted(ms for r in rounds for segment in r[condition] for ms in segment["latencies_ms"])
    return {name: quantile(ordered, share) for name, share in _QUANTILES.items()}


def _agent(
    agent: MeasuredAgent, before: Mapping[str, Any], after: Mapping[str, Any], cpu_s: float | None, on_s: float
) -> dict[str, Any]:
    counts, spans = after["counts"], counters(after)
    records = counts.get("records", 0) - before["counts"].get("records", 0)
    lost = {name: counts.get(name, 0) for name in _LOST}
    lost |= {name: spans[name] for name in spans if name.endswith(("_dropped", "_refused"))}
    return {
        "cpu_share": None if cpu_s is None else cpu_s / on_s,
        "rss_bytes": agent.rss_bytes(),
        "records_per_s": records / on_s,
        "spans_per_s": spans.get("spans_exported", 0) / on_s,
        "spans_exported": spans.get("spans_exported", 0),
        "lost": lost,
        "plugins": after["plugins"],
        "failures": after["failures"],
    }
