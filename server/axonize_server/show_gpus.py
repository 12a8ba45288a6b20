"""GPUs, their slices and who holds them, as a tree whose readings stand in columns.

On a terminal no line is wider than it: what does not fit is cut at the end of the name, never in a number. Uuids are
whole where they fit. Piped, everything is printed and nothing is cut.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from rich.text import Text

from axonize_server import units
from axonize_server.show import print_facts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rich.console import Console

    from axonize_server.client import ComputeResource, Context, Gpu, GpuTree, Reading

__all__ = [
    "NOTHING",
    "Line",
    "context_text",
    "fitted",
    "gpu_text",
    "is_whole",
    "overview",
    "print_gpus",
    "reading_cells",
    "slice_text",
    "tree_lines",
]

NOTHING = (
    "no GPU has been reported to this collector in the last day\n\n"
    "An agent reports the GPUs of its machine as soon as something instrumented runs there; `axonize doctor` shows "
    "the agents of this machine and where they send. Without a GPU, AXONIZE_GPU_PROVIDER=simulated in the environment "
    "of what is instrumented reports a simulated one, labelled so wherever it appears."
)
_UUID_SHOWN = 13
_UNREPORTED_NS = 180 * 10**9
_NS_PER_S = 10**9
_BUSY_FROM = 0.9
_IDLE_BELOW = 0.05
_WIDTHS = (5, 13, 7, 6)
_TITLES = ("busy", "memory", "power", "temp")


class Line(NamedTuple):
    """One line of the tree: what it is, and the cells of its columns, if it has any."""

    name: Text
    cells: Sequence[Text] = ()


def print_gpus(console: Console, found: GpuTree, *, at: str | None = None) -> None:
    """Print the tree; ``at`` is the time that was asked for, None for now."""
    when = [Text(f"as of {units.clock(found['at'], date=True)}", "yellow")] if at else []
    if not found["gpus"]:
        console.print(Text("no GPU was known then") if at else Text(NOTHING))
        return
    print_facts(console, [*overview(found["gpus"]), *when])
    now_ns = units.epoch_ns(found["at"])
    lines = list(tree_lines(found["gpus"], lambda gpu: gpu_lines(console, gpu, now_ns)))
    for text in fitted(console, [Line(Text(""), [Text(title, "dim") for title in _TITLES]), *lines], _WIDTHS):
        console.print(text, soft_wrap=True)


def overview(gpus: Sequence[Gpu]) -> list[Text]:
    """Give how much there is, for the heading."""
    resources = [resource for gpu in gpus for resource in gpu["compute_resources"]]
    slices = sum(resource["kind"] == "mig" for resource in resources)
    contexts = sum(len(resource["contexts"]) for resource in resources)
    watts = [gpu["reading"]["power_w"] for gpu in gpus if gpu["reading"]]
    known = [power for power in watts if power is not None]
    facts = [
        Text(units.plural(len({gpu["node"] for gpu in gpus}), "machine")),
        Text(units.plural(len(gpus), "GPU"), "bold"),
        Text(units.plural(slices, "slice") if slices else ""),
        Text(units.plural(contexts, "process", "processes") if contexts else ""),
        Text(f"{sum(known):,.0f} W" if known else ""),
    ]
    kinds = sorted({gpu["provenance"] for gpu in gpus if gpu["provenance"] not in (None, "measured")} - {None})
    return [*facts, *(Text(str(kind), "yellow") for kind in kinds)]


def tree_lines(gpus: Sequence[Gpu], lines_of: Callable[[Gpu], list[tuple[int, Line]]]) -> Iterator[Line]:
    """Give the machines and their GPUs as lines with the tree's branches before them; lines come with their depth."""
    for node, members in groupby(gpus, key=lambda gpu: gpu["node"]):
        yield Line(Text(node or "unknown machine", "bold"))
        found = [line for gpu in members for line in lines_of(gpu)]
        for at, (depth, line) in enumerate(found):
            yield Line(
                Text(_branch([later for later, _ in found[at + 1 :]], depth), "dim").append_text(line.name), line.cells
            )


def _branch(later: Sequence[int], depth: int) -> str:
    """Draw the branches before a line, from the depths of the lines below it."""
    parts = []
    for level in range(depth + 1):
        following = next((other for other in later if other <= level), None)
        more = following == level
        if level == depth:
            parts.append("├─ " if more else "└─ ")
        else:
            parts.append("│  " if more else "   ")
    return "".join(parts)


def gpu_lines(console: Console, gpu: Gpu, now_ns: int) -> list[tuple[int, Line]]:
    """Give a GPU, its slices and the processes on them; a GPU that is one resource is one line with it."""
    lines = [(0, Line(gpu_text(gpu), reading_cells(gpu["reading"], gpu["last_seen_at"], now_ns)))]
    for resource in gpu["compute_resources"]:
        depth = 1
        if not is_whole(gpu, resource):
            lines.append(
                (1, Line(slice_text(resource), reading_cells(resource["reading"], resource["last_seen_at"], now_ns)))
            )
            depth = 2
        lines += [(depth, Line(context_text(console, context))) for context in resource["contexts"]]
    return lines


def is_whole(gpu: Gpu, resource: ComputeResource) -> bool:
    """Say whether a resource is the whole GPU and needs no line of its own."""
    return resource["compute_resource"] == gpu["gpu_uuid"]


def gpu_text(gpu: Gpu) -> Text:
    """Give a GPU's name and what kind of thing it is; its uuid is cut by `fitted`."""
    text = Text(gpu["gpu_uuid"] or "unknown GPU", "bold cyan")
    text.append_text(_label(gpu["provenance"]))
    if gpu["model"]:
        text.append(f" {gpu['model'].removeprefix('NVIDIA ')}", "default not bold")
    if gpu["mig_enabled"]:
        text.append(" MIG", "magenta not bold")
    return text


def slice_text(resource: ComputeResource) -> Text:
    """Give a slice's uuid, profile and place; from the second on also its generation."""
    text = Text(resource["compute_resource"] or "unknown", "cyan")
    text.append_text(_label(resource["provenance"]))
    if resource["mig_profile"]:
        text.append(f" {resource['mig_profile']}", "default")
    if resource["gpu_instance_id"] is not None:
        text.append(f" gi {resource['gpu_instance_id']}", "dim")
    if (resource["generation"] or 1) > 1:
        text.append(f" generation {resource['generation']}", "dim")
    return text


def context_text(console: Console, context: Context) -> Text:
    """Give what a process calls its device, who it is, and how it shares."""
    place = context["pod"] and "/".join(filter(None, (context["namespace"], context["pod"])))
    container = context["container"] or ""
    host = context["host"] or ""
    short = container[:12] if console.is_terminal else container
    facts = [place or short or host, context["engine"] or context["service"] or ""]
    facts += [f"pid {context['pid']}" if context["pid"] is not None else ""]
    facts += [f"rank {context['rank']}" if context["rank"] else ""]
    facts += [context["sharing"] or "" if context["sharing"] in ("time-slicing", "mps") else ""]
    text = Text(context["device"] or "?", "green")
    for fact in filter(None, facts):
        text.append(f" {fact}", "default")
    return text


def _label(provenance: str | None) -> Text:
    if provenance in (None, "measured"):
        return Text("")
    return Text(f" ({provenance})", "yellow not bold")


def reading_cells(reading: Reading | None, last_seen_at: str | None, now_ns: int) -> list[Text]:
    """Give busy, memory, power and temperature; of what is not reported any more, since when instead."""
    if reading is None:
        silent_ns = now_ns - units.epoch_ns(last_seen_at) if last_seen_at else 0
        if silent_ns > _UNREPORTED_NS:
            return [Text(f"not reported for {_rough(silent_ns // _NS_PER_S)}", "yellow")]
        return [Text(units.UNKNOWN, "dim") for _ in _WIDTHS]
    return [
        busy_text(reading["utilization"]),
        memory_text(reading["memory_used_bytes"], reading["memory_total_bytes"]),
        _number(reading["power_w"], "W"),
        _number(reading["temperature_c"], "°C"),
    ]


def busy_text(utilization: float | None) -> Text:
    """Give a share as percent; little is dim, nearly all stands out."""
    if utilization is None:
        return Text(units.UNKNOWN, "dim")
    style = "dim" if utilization < _IDLE_BELOW else "bold green" if utilization >= _BUSY_FROM else "green"
    return Text(f"{utilization:.0%}".replace("%", " %"), style)


def memory_text(used: int | None, total: int | None) -> Text:
    """Give memory in use, of what there is where that is known."""
    if used is None:
        return Text(units.UNKNOWN, "dim")
    if total is None:
        return Text(units.bytes_text(used))
    return Text(f"{used / 2**30:.1f}/{total / 2**30:.0f} GiB")


def _number(value: float | None, unit: str) -> Text:
    return Text(units.UNKNOWN, "dim") if value is None else Text(f"{value:,.0f} {unit}")


def _rough(seconds: int) -> str:
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def fitted(console: Console, lines: Sequence[Line], widths: Sequence[int]) -> list[Text]:
    """Give the lines with their cells in columns at the right; uuids are cut only if they do not fit."""
    right = sum(widths) + 2 * len(widths)
    names = [line.name for line in lines]
    full = [bool(line.cells) and bool(line.cells[0]) for line in lines]
    room = console.width - right if console.is_terminal else max(map(len, names), default=0)
    if any(len(name) > room for name, is_full in zip(names, full, strict=True) if is_full):
        names = [_cut_uuids(name) for name in names]
    column = min(room, max((len(name) for name, is_full in zip(names, full, strict=True) if is_full), default=0))
    return [_joined(console, name, line.cells, column, widths) for name, line in zip(names, lines, strict=True)]


def _joined(console: Console, name: Text, cells: Sequence[Text], column: int, widths: Sequence[int]) -> Text:
    if not cells:
        if console.is_terminal:
            name.truncate(console.width, overflow="ellipsis")
        return name
    padded = list(widths) if len(cells) == len(widths) else [sum(widths) + 2 * (len(widths) - 1)]
    empty = next((at for at, cell in enumerate(cells) if cell), len(cells))
    column += sum(padded[:empty]) + 2 * empty
    if console.is_terminal:
        name.truncate(column, overflow="ellipsis")
    line = name + Text(" " * (column - len(name)))
    for cell, width in zip(cells[empty:], padded[empty:], strict=True):
        line.append("  ").append(" " * (width - len(cell))).append_text(cell)
    line.rstrip()
    return line


def _cut_uuids(name: Text) -> Text:
    """Cut the uuid in a name to its beginning."""
    at = max(name.plain.find("GPU-"), name.plain.find("MIG-"))
    if at < 0:
        return name.copy()
    uuid = name.plain[at:].split(" ", 1)[0]
    if len(uuid) <= _UUID_SHOWN + 1:
        return name.copy()
    return Text.assemble(name[: at + _UUID_SHOWN], "…", name[at + len(uuid) :])
