"""One trace as a waterfall: spans as a tree, bars on a shared time axis, and what the spans say."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

from rich.table import Table
from rich.text import Text

from axonize_core import attributes as names
from axonize_server import units
from axonize_server.show import print_facts, resource_text
from axonize_server.span_notes import span_notes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from axonize_server.client import Span, Trace

__all__ = ["print_trace"]

_COLOURS = {
    "request": "blue",
    "queue": "yellow",
    "prefill": "cyan",
    "decode": "green",
    "preempted": "bright_yellow",
    "batch": "magenta",
}
_WIDEST = 140
_NARROWEST_BAR = 12
_GAPS = 4
_NS_PER_MS = 1e6
_TICKS_FROM = 40


class _Line(NamedTuple):
    """One span in its place in the tree; times in ns since the trace began."""

    branch: str
    span: Span
    start_ns: int
    end_ns: int


def print_trace(console: Console, trace: Trace) -> None:
    """Print one trace; spans whose parent is not stored stand at the top level."""
    lines = list(_lines(trace["spans"]))
    if not lines:
        console.print(f"trace {trace['trace_id']} has no spans")
        return
    total_ns = max(line.end_ns for line in lines)
    print_facts(console, _heading(console, trace, total_ns))
    console.print()
    console.print(_bars(lines, total_ns, min(console.width, _WIDEST)))
    details = _details(lines)
    if details.row_count:
        console.print()
        console.print(details)


def _lines(spans: list[Span]) -> Iterator[_Line]:
    """Yield the spans depth first, children in start order."""
    known = {span["span_id"] for span in spans}
    children: dict[str | None, list[Span]] = defaultdict(list)
    for span in spans:
        parent = span["parent_span_id"]
        children[parent if parent in known else None].append(span)
    began_ns = min((units.epoch_ns(span["start_time"]) for span in spans), default=0)

    def below(parent: str | None, trunk: str) -> Iterator[_Line]:
        siblings = sorted(children[parent], key=lambda span: units.epoch_ns(span["start_time"]))
        for span in siblings:
            last = span is siblings[-1]
            knee, stem = ("", "") if parent is None else ("└─ ", "   ") if last else ("├─ ", "│  ")
            start_ns = units.epoch_ns(span["start_time"]) - began_ns
            yield _Line(trunk + knee, span, start_ns, start_ns + round(span["duration_ms"] * _NS_PER_MS))
            yield from below(span["span_id"], trunk + stem)

    yield from below(None, "")


def _heading(console: Console, trace: Trace, total_ns: int) -> list[Text]:
    first = next((span for span in trace["spans"] if span["phase"] == "request"), trace["spans"][0])
    failed = any(span["status"] == "error" for span in trace["spans"])
    where = next((span for span in trace["spans"] if span["attributes"].get(names.GPU_COMPUTE_RESOURCE)), first)
    device = where["attributes"].get(names.GPU_COMPUTE_RESOURCE)
    provenance = where["attributes"].get(names.GPU_PROVENANCE)
    others = len(where["attributes"].get(names.GPU_COMPUTE_RESOURCES) or ()) - 1
    more = f" and {others} more" if others > 0 else ""
    return [
        Text.assemble("trace ", (trace["trace_id"], "bold")),
        Text(str(first["attributes"].get(names.REQUEST_ID) or "")),
        Text(str(first["attributes"].get(names.MODEL) or first["service"])),
        Text(units.clock(first["start_time"], date=True)),
        Text("error", "bold red") if failed else Text("ok", "green"),
        Text(units.duration(total_ns / _NS_PER_MS)),
        Text.assemble("on ", resource_text(console, device, provenance), more) if device else Text(),
    ]


def _bars(lines: list[_Line], total_ns: int, width: int) -> Table:
    label_width = max(len(line.branch) + len(line.span["name"]) for line in lines)
    took = [units.duration(line.span["duration_ms"]) for line in lines]
    bar_width = max(_NARROWEST_BAR, width - label_width - max(map(len, took)) - _GAPS)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("", no_wrap=True)
    table.add_column(_axis(total_ns, bar_width), no_wrap=True, width=bar_width)
    table.add_column("", justify="right", no_wrap=True)
    for line, text in zip(lines, took, strict=True):
        failed = line.span["status"] == "error"
        colour = "red" if failed else _COLOURS.get(line.span["phase"] or "", "blue")
        label = Text.assemble((line.branch, "dim"), (line.span["name"], "bold red" if failed else ""))
        table.add_row(label, Text(_bar(line, total_ns, bar_width), colour), text)
    return table


def _axis(total_ns: int, width: int) -> str:
    """Return the tick labels of the time axis: start, (quarters,) and end."""
    parts = 4 if width >= _TICKS_FROM else 1
    axis = "0"
    for part in range(1, parts + 1):
        label = units.duration(total_ns / _NS_PER_MS * part / parts)
        axis = axis.ljust(round(width * part / parts) - len(label)) + label
    return axis


def _bar(line: _Line, total_ns: int, width: int) -> str:
    """Return the bar in half-cell steps; even the shortest span is seen."""
    halves = width * 2
    start = min(round(halves * line.start_ns / total_ns), halves - 1) if total_ns else 0
    end = max(round(halves * line.end_ns / total_ns) if total_ns else 0, start + 1)
    cells = []
    for cell in range(width):
        left, right = start <= cell * 2 < end, start <= cell * 2 + 1 < end
        cells.append("━" if left and right else "╸" if left else "╺" if right else " ")
    return "".join(cells).rstrip()


def _details(lines: list[_Line]) -> Table:
    """Return what the spans say beyond their times, errors in red."""
    table = Table.grid(padding=(0, 2, 0, 0))
    for line in lines:
        note = Text(" · ", "dim").join(span_notes(line.span))
        if note:
            table.add_row(Text(line.span["name"], "dim"), note)
    return table
