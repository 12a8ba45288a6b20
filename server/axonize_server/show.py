"""Requests and batches as tables that fit the terminal.

On a terminal, columns that say the same in every row move to the line above the table, and the least needed
columns go first when the width does not suffice. Piped, everything is printed and nothing is cut.
"""

from __future__ import annotations

import sys
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any, NamedTuple

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from axonize_server import units

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from axonize_server.client import Batch, Member, Request

__all__ = [
    "make_console",
    "print_batch",
    "print_batches",
    "print_facts",
    "print_requests",
    "resource_text",
    "short_ids",
]

_PIPED_WIDTH = 100_000
_DOT = " · "
_SHORTEST_ID = 8
_NAME_SHOWN = 18
_UUID_SHOWN = 13
_VALUES_LISTED = 3
_NEVER_DROPPED = 0
_CUT_SHORT = ("abort", "cancelled")

Row = Any


class Column(NamedTuple):
    """One column: its title, what a row shows in it, and how early it gives way (0 never, high first)."""

    title: str
    cell: Callable[[Row], Text]
    gives_way: int = _NEVER_DROPPED
    right: bool = False
    shared: bool = False


def make_console(*, stderr: bool = False) -> Console:
    """Return the console for stdout or stderr; piped it neither wraps nor colours."""
    stream = sys.stderr if stderr else sys.stdout
    if isinstance(stream, TextIOWrapper):
        stream.reconfigure(errors="replace")
    console = Console(highlight=False, stderr=stderr)
    return console if console.is_terminal else Console(highlight=False, stderr=stderr, width=_PIPED_WIDTH)


def print_requests(console: Console, requests: Sequence[Request], *, most: int | None = None) -> None:
    """Print requests as one table in the order given; with ``most``, no more than so many of them."""
    if not requests:
        console.print("no requests")
        return
    shown = requests[:most]
    title = units.plural(len(requests), "request")
    if len(shown) < len(requests):
        title = f"{len(shown)} of {title}"
    _print_table(console, title, _request_columns(console, shown), shown)


def print_batches(console: Console, batches: Sequence[Batch]) -> None:
    """Print engine steps as one table, without their members."""
    if not batches:
        console.print("no batches")
        return
    _print_table(console, units.plural(len(batches), "batch", "batches"), _batch_columns(console, batches), batches)


def print_batch(console: Console, batch: Batch) -> None:
    """Print one engine step and the requests that shared it."""
    parts = (
        Text(f"batch {units.count(batch['step_seq'])}", "bold magenta"),
        Text(units.clock(batch["start_time"], date=True)),
        Text(units.duration(batch["duration_ms"])),
        Text(_step_parts(batch)),
        Text(units.plural(batch["size"], "request")),
        Text(_step_tokens(batch)),
        *_engine_facts(batch),
        _device_fact(console, batch),
    )
    print_facts(console, parts)
    table = _table(_member_columns(console, batch["members"]), batch["members"])
    console.print(table)


def print_facts(console: Console, parts: Iterable[Text]) -> None:
    """Print the non-empty parts parted by middle dots; a line breaks between parts only."""
    line = Text()
    for part in parts:
        if line and part and len(line) + len(part) + len(_DOT) > console.width:
            console.print(line, soft_wrap=True)
            line = Text()
        if part:
            line = Text(_DOT, "dim").join([line, part]) if line else part
    console.print(line, soft_wrap=True)


def resource_text(console: Console, compute_resource: str | None, provenance: str | None) -> Text:
    """Return a device with how it is known; ``simulated`` stands out, long uuids are cut on a terminal."""
    if not compute_resource:
        return Text(units.UNKNOWN, "dim")
    name = compute_resource
    if console.is_terminal and len(name) > _NAME_SHOWN:
        name = f"{name[:_UUID_SHOWN]}…"
    text = Text(name)
    if provenance and provenance != "measured":
        text.append(f" ({provenance})", "yellow" if provenance == "simulated" else "dim")
    return text


def short_ids(console: Console, ids: Iterable[str | None]) -> Callable[[str | None], str]:
    """Return how to print ids: in full when piped, else cut to the shortest prefix that tells them apart."""
    distinct = {one for one in ids if one}
    length = _SHORTEST_ID if console.is_terminal else _PIPED_WIDTH
    while len({one[:length] for one in distinct}) < len(distinct):
        length += 1
    return lambda one: one[:length] if one else units.UNKNOWN


def _request_columns(console: Console, requests: Sequence[Request]) -> list[Column]:
    short = short_ids(console, [request["trace_id"] for request in requests])
    dated = _dated(console, requests)
    return [
        Column("time", lambda r: Text(units.clock(r["start_time"], date=dated))),
        Column("trace", lambda r: Text(short(r["trace_id"]), "bold")),
        Column("request", lambda r: _plain(r["request_id"]), gives_way=3),
        Column("service", lambda r: _plain(r["service"]), gives_way=9, shared=True),
        Column("model", lambda r: _plain(r["model"]), gives_way=4, shared=True),
        Column("status", _status),
        Column("queue", _queue, right=True),
        Column("TTFT", lambda r: _duration(r["ttft_ms"]), right=True),
        Column("TPOT", lambda r: _duration(r["tpot_ms"]), right=True),
        Column("in", lambda r: _count(r["input_tokens"]), gives_way=1, right=True),
        Column("out", lambda r: _count(r["output_tokens"]), gives_way=1, right=True),
        Column("total", lambda r: _duration(r["duration_ms"]), right=True),
        _device_column(console, gives_way=2),
    ]


def _queue(request: Request) -> Text:
    """Return the time in the queue, and who says so where that is not the engine itself."""
    text = _duration(request["queue_ms"])
    provenance = request.get("queue_provenance")
    if provenance and provenance != "engine":
        text = Text.assemble(text, (f" ({provenance})", "dim"))
    return text


def _batch_columns(console: Console, batches: Sequence[Batch]) -> list[Column]:
    short = short_ids(console, [batch["instance_id"] for batch in batches])
    dated = _dated(console, batches)
    columns = [
        Column("time", lambda b: Text(units.clock(b["start_time"], date=dated))),
        Column("instance", lambda b: Text(short(b["instance_id"])), gives_way=1, shared=True),
        Column("service", lambda b: _plain(b["service"]), gives_way=9, shared=True),
        Column("model", lambda b: _plain(b["model"]), gives_way=6, shared=True),
        Column("step", lambda b: _count(b["step_seq"]), right=True),
        Column("requests", lambda b: _count(b["size"]), right=True),
        Column("prefill", lambda b: _count(b["prefill_tokens"]), right=True),
        Column("decode", lambda b: _count(b["decode_tokens"]), right=True),
        Column("took", lambda b: _duration(b["duration_ms"]), right=True),
    ]
    # On a terminal, those of the engine's own that it says.
    said_by_engine = {
        "schedule_ms": Column("schedule", lambda b: _duration(b["schedule_ms"]), gives_way=7, right=True),
        "execute_ms": Column("execute", lambda b: _duration(b["execute_ms"]), gives_way=7, right=True),
        "update_ms": Column("update", lambda b: _duration(b["update_ms"]), gives_way=7, right=True),
        "device_ms": Column("device", lambda b: _duration(b["device_ms"]), gives_way=8, right=True),
        "running": Column("run", lambda b: _count(b["running"]), gives_way=4, right=True),
        "waiting": Column("wait", lambda b: _count(b["waiting"]), gives_way=2, right=True),
        "kv_cache_usage": Column("KV", lambda b: _share(b["kv_cache_usage"]), gives_way=3, right=True),
    }
    for name, column in said_by_engine.items():
        if not console.is_terminal or any(row[name] is not None for row in batches):  # type: ignore[literal-required]
            columns.append(column)
    return [*columns, _device_column(console, gives_way=5)]


def _member_columns(console: Console, members: Sequence[Member]) -> list[Column]:
    short = short_ids(console, [member["trace_id"] for member in members])
    return [
        Column("seq", lambda m: _count(m["request_seq"]), right=True),
        Column("trace", lambda m: Text(short(m["trace_id"]), "bold")),
        Column("request", lambda m: _plain(m["request_id"])),
        Column("prefill", lambda m: _count(m["prefill_tokens"]), right=True),
        Column("decode", lambda m: _count(m["decode_tokens"]), right=True),
        Column("context", lambda m: _count(m["context_tokens"]), right=True),
    ]


def _device_column(console: Console, *, gives_way: int) -> Column:
    return Column(
        "on",
        lambda r: resource_text(console, r["compute_resource"], r["gpu_provenance"]),
        gives_way=gives_way,
        shared=True,
    )


def _print_table(console: Console, title: str, columns: list[Column], rows: Sequence[Row]) -> None:
    """Print a heading with what all rows share or what the width does not let us show, then the table."""
    shown = _fitting(console, columns, rows)
    hidden = [_values(column, rows) for column in columns if column.shared and column not in shown]
    print_facts(console, [Text(title, "bold"), *hidden])
    console.print(_table(shown, rows))


def _fitting(console: Console, columns: Sequence[Column], rows: Sequence[Row]) -> list[Column]:
    """Return the columns to show: those that never give way, then as many of the others as fit."""
    if not console.is_terminal:
        return list(columns)
    chosen = [column for column in columns if not column.gives_way]
    for column in sorted(columns, key=lambda column: column.gives_way):
        if column in chosen or _same(column, rows):
            continue
        tried = [one for one in columns if one in chosen or one is column]
        if _fits(console, _table(tried, rows)):
            chosen = tried
    return chosen


def _same(column: Column, rows: Sequence[Row]) -> bool:
    return column.shared and len({column.cell(row).plain for row in rows}) == 1


def _fits(console: Console, table: Table) -> bool:
    options = console.options.update(width=_PIPED_WIDTH)
    return Measurement.get(console, options, table).maximum <= console.width


def _values(column: Column, rows: Sequence[Row]) -> Text:
    """Return the column's title and its distinct values, for the heading."""
    distinct = list({column.cell(row).plain: column.cell(row) for row in rows}.values())
    distinct.sort(key=lambda text: text.plain == units.UNKNOWN)
    values = Text(", ").join(distinct[:_VALUES_LISTED])
    if len(distinct) > _VALUES_LISTED:
        values.append(f" and {len(distinct) - _VALUES_LISTED} more")
    return Text.assemble((f"{column.title} ", "dim"), values)


def _table(columns: Sequence[Column], rows: Iterable[Row]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    for column in columns:
        table.add_column(column.title, justify="right" if column.right else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(column.cell(row) for column in columns))
    return table


def _status(request: Request) -> Text:
    if request["status"] == "error":
        return Text(request["error_type"] or "error", "bold red")
    if request["incomplete"]:
        return Text("incomplete", "yellow")
    reason = request["finish_reason"] or request["status"]
    return Text(reason, "yellow" if reason in _CUT_SHORT else "green")


def _step_tokens(batch: Batch) -> str:
    prefill, decode = units.count(batch["prefill_tokens"]), units.count(batch["decode_tokens"])
    return f"{prefill} prefill + {decode} decode tokens"


def _step_parts(batch: Batch) -> str:
    """Return where a step's time went, as far as its engine says so."""
    parts = [("schedule", batch["schedule_ms"]), ("execute", batch["execute_ms"]), ("update", batch["update_ms"])]
    if batch["device_ms"] is not None:
        parts.append(("on the device", batch["device_ms"]))
    return " | ".join(f"{name} {units.duration(ms)}" for name, ms in parts if ms is not None)


def _engine_facts(batch: Batch) -> list[Text]:
    """Return what the engine said of itself after the step."""
    counts = [(batch["running"], "running"), (batch["waiting"], "waiting")]
    usage = batch["kv_cache_usage"]
    return [
        Text(", ".join(f"{count:,} {what}" for count, what in counts if count is not None)),
        Text("" if usage is None else f"KV cache {units.share(usage)}"),
    ]


def _device_fact(console: Console, row: Batch) -> Text:
    if not row["compute_resource"]:
        return Text("")
    return Text("on ").append_text(resource_text(console, row["compute_resource"], row["gpu_provenance"]))


def _dated(console: Console, rows: Iterable[Mapping[str, Any]]) -> bool:
    """Return whether the times need their date: piped, or when the rows are of several days."""
    return not console.is_terminal or len({units.clock(row["start_time"], date=True)[:10] for row in rows}) > 1


def _duration(ms: float | None) -> Text:
    return Text(units.duration(ms), "" if ms is not None else "dim")


def _share(value: float | None) -> Text:
    return Text(units.share(value), "" if value is not None else "dim")


def _count(value: int | None) -> Text:
    return Text(units.count(value), "" if value is not None else "dim")


def _plain(value: str | None) -> Text:
    return Text(value) if value else Text(units.UNKNOWN, "dim")
