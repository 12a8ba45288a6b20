"""The report of ``axonize bench overhead`` as Markdown that also reads well in a terminal."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from axonize_core.bench.intervals import Interval

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["overhead_markdown"]

TOO_NOISY = 0.02
"""Half the width of the off/off interval above which nothing is claimed."""
_UNKNOWN = "–"


def overhead_markdown(report: Mapping[str, Any], command: str) -> str:
    """Return the report; ``command`` is how to repeat it."""
    return "\n".join([*_head(report, command), *_results(report), *_agent(report), *_method(report)]) + "\n"


def _head(report: Mapping[str, Any], command: str) -> Iterator[str]:
    machine, design = report["machine"], report["design"]
    memory = f"{machine['memory_bytes'] / 2**30:.0f} GiB" if machine["memory_bytes"] else _UNKNOWN
    yield "# Overhead of Axonize"
    yield ""
    yield f"Measured with `{command}`."
    yield ""
    yield verdict(report)
    yield ""
    yield f"- machine: {machine['cpu'] or _UNKNOWN}, {machine['cores']} cores, {memory}, {machine['system']}"
    yield f"- workload: {design['workload']}, on {design['device']}"
    yield f"- versions: {', '.join(f'{name} {version}' for name, version in machine['versions'].items())}"
    yield f"- load average before: {_number(design['load_average_before'], '.1f')}"
    yield ""


def verdict(report: Mapping[str, Any]) -> str:
    """Return the result in a sentence."""
    found, control = _interval(report["difference"]), _interval(report["control"])
    if control.half_width > TOO_NOISY or not control.low <= 0 <= control.high:
        what = "too noisy here to tell, as off against off shows; measure again while nothing else runs"
    elif found.low <= 0 <= found.high:
        what = "no difference in tokens/s can be seen"
    else:
        what = f"{abs(found.share) * 100:.2f} % {'fewer' if found.share < 0 else 'more'} tokens/s"
    return f"With Axonize on: {what}: {found.text()}. Off against off, same design: {control.text()}."


def _results(report: Mapping[str, Any]) -> Iterator[str]:
    rate, latency = report["tokens_per_s"], report["latency_ms"]
    yield from _table(
        ("", "off", "on", "off again"),
        [
            ("tokens/s", *(f"{rate[c]:.0f}" for c in rate)),
            *((f"{q} of a call, ms", *(f"{latency[c][q]:.1f}" for c in latency)) for q in latency["off"]),
        ],
    )
    yield ""
    yield from _table(
        ("against off", "on", "off again"),
        [
            ("tokens/s", _interval(report["difference"]).text(), _interval(report["control"]).text()),
            ("p50 of a call", _interval(report["p50_difference"]).text(), _interval(report["p50_control"]).text()),
            ("CPU per token", _interval(report["cpu_difference"]).text(), _interval(report["cpu_control"]).text()),
        ],
    )
    yield ""


def _agent(report: Mapping[str, Any]) -> Iterator[str]:
    agent, emit = report["agent"], report["emit"]
    rss = f"{agent['rss_bytes'] / 2**20:.0f} MiB" if agent["rss_bytes"] else _UNKNOWN
    cpu = f"{agent['cpu_share'] * 100:.1f} % of a core" if agent["cpu_share"] is not None else _UNKNOWN
    lost = ", ".join(f"{name} {count}" for name, count in agent["lost"].items() if count)
    wrong = ", ".join(f"{name} {count}" for name, count in {**report["errors"], **agent["failures"]}.items())
    yield from _table(
        ("beside it", ""),
        [
            ("`emit()`", f"{emit['emit_ns']:.0f} ns; a reading of the clock: {emit['clock_ns']:.0f} ns"),
            ("agent, CPU while on", cpu),
            ("agent, memory", rss),
            ("records", f"{agent['records_per_s']:.0f}/s"),
            ("spans", f"{agent['spans_per_s']:.0f}/s, all requests sampled"),
            ("lost", lost or "nothing"),
            ("failures", wrong or "none"),
        ],
    )
    yield ""


def _method(report: Mapping[str, Any]) -> Iterator[str]:
    design = report["design"]
    pinned = f"on core {design['pinned_to_cpu']} alone" if design["pinned_to_cpu"] is not None else "on any core"
    yield "## Method"
    yield ""
    text = (
        f"One process ({pinned}) does the same work in segments of {_calls(design['calls_per_segment'])} "
        f"({design['segment_s']:.2f} s), instrumented and not: {design['rounds']} rounds of six segments, off, on and "
        "off again, each twice, in mirrored and changing order. A round gives one ratio; stated is the geometric mean "
        "without the outer fifths, with the percentile bootstrap over blocks of rounds. While off, the shipper's "
        "thread looks at an empty queue ten times a second. After each segment the queue is flushed and 0.03 s pass: "
        "not part of the time, but of the CPU time, which covers all threads. The agent is a process of its own, on "
        f"any core, and exports to {design['endpoint']}. Its CPU time is that of the whole run, related to the time "
        "on. All requests are sampled; one that its caller does not sample costs the engine as much, and the agent "
        "less."
    )
    yield textwrap.fill(text, 118)


def _calls(count: int) -> str:
    return f"{count} call{'s' * (count != 1)}"


def _interval(found: Mapping[str, float]) -> Interval:
    return Interval(found["share"], found["low"], found["high"])


def _number(value: float | None, form: str) -> str:
    return _UNKNOWN if value is None else format(value, form)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(3, *(len(row[i]) for row in (head, *rows))) for i in range(len(head))]
    for row in (head, ["-" * width for width in widths], *rows):
        yield "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
