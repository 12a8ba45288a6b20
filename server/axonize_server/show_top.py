"""`axonize top`: GPUs, slices and the engines on them, with what they do per second."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from rich.text import Text

from axonize_server import units
from axonize_server.show_gpus import (
    NOTHING,
    Line,
    context_text,
    fitted,
    gpu_text,
    is_whole,
    overview,
    reading_cells,
    slice_text,
    tree_lines,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import Console

    from axonize_server.client import ComputeResource, Context, Engine, Engines, Gpu, GpuTree

__all__ = ["top_lines"]

_WIDTHS = (5, 13, 7, 6, 7)
_TITLES = ("busy", "memory", "power", "req/s", "tok/s")
_DOT = " · "
_WHOLE_FROM = 100
_TENTHS_FROM = 9.95


class _Rates(NamedTuple):
    """Engines by the process they are, and those no context names, by the resource they say they run on."""

    by_instance: dict[str, list[Engine]]
    by_resource: dict[str, list[Engine]]
    elsewhere: list[Engine]


def top_lines(console: Console, tree: GpuTree, rates: Engines, *, height: int | None = None) -> list[Text]:
    """Give the screen, of at most ``height`` lines: a heading, then GPUs, slices and engines."""
    known = _placed(tree["gpus"], rates["engines"])
    now_ns = units.epoch_ns(tree["at"])
    lines = list(tree_lines(tree["gpus"], lambda gpu: _gpu_lines(console, gpu, known, now_ns)))
    if known.elsewhere:
        lines.append(Line(Text("on no known GPU", "bold")))
        lines += [
            Line(Text("   ").append_text(_engine_text(engine)), _engine_cells([engine])) for engine in known.elsewhere
        ]
    if not lines:
        return [*_heading(console, tree, rates), Text(), *Text(NOTHING).wrap(console, console.width)]
    titles = Line(Text(), [Text(title, "dim") for title in _TITLES])
    shown = [*_heading(console, tree, rates), *fitted(console, [titles, *lines], _WIDTHS)]
    if height is not None and len(shown) > height:
        left = len(shown) - height + 1
        shown = [*shown[: height - 1], Text(f"{units.plural(left, 'more line')}; --node shows one machine", "yellow")]
    return shown


def _heading(console: Console, tree: GpuTree, rates: Engines) -> list[Text]:
    """Give time, the totals of all engines, and how much there is; in two lines where one is too narrow."""
    engines = rates["engines"]
    failed = sum(engine["errors_per_s"] for engine in engines)
    does = [
        Text(units.clock(tree["at"])[:8], "bold"),
        Text(f"{_rate(sum(engine['requests_per_s'] for engine in engines))} req/s", "bold"),
        Text(f"{_rate(_total(engine['output_tokens_per_s'] for engine in engines))} tok/s", "bold"),
        Text(f"{_rate(failed)} errors/s" if failed else "", "bold red"),
        Text(f"over {rates['window_s']:g} s", "dim"),
    ]
    there = overview(tree["gpus"]) if tree["gpus"] else []
    one, two = (Text(_DOT, "dim").join([fact for fact in facts if fact]) for facts in (does, there))
    if not two or not console.is_terminal or len(one) + len(_DOT) + len(two) <= console.width:
        return [Text(_DOT, "dim").join([part for part in (one, two) if part])]
    return [one, two]


def _placed(gpus: Sequence[Gpu], engines: Sequence[Engine]) -> _Rates:
    """Find where each engine runs: by its process's contexts, else by what its spans say."""
    resources = [resource for gpu in gpus for resource in gpu["compute_resources"]]
    there = {context["instance_id"] for resource in resources for context in resource["contexts"]}
    uuids = {resource["compute_resource"] for resource in resources} | {gpu["gpu_uuid"] for gpu in gpus}
    known = _Rates({}, {}, [])
    for engine in engines:
        if engine["instance_id"] in there:
            known.by_instance.setdefault(str(engine["instance_id"]), []).append(engine)
            continue
        named = uuids.intersection(engine["compute_resources"])
        for uuid in named:
            known.by_resource.setdefault(uuid, []).append(engine)
        if not named:
            known.elsewhere.append(engine)
    return known


def _gpu_lines(console: Console, gpu: Gpu, known: _Rates, now_ns: int) -> list[tuple[int, Line]]:
    whole = [resource for resource in gpu["compute_resources"] if is_whole(gpu, resource)]
    cells = reading_cells(gpu["reading"], gpu["last_seen_at"], now_ns)
    lines = [(0, Line(gpu_text(gpu), _load_cells(cells)))]
    lines += _on(
        console, gpu["gpu_uuid"], [context for resource in whole for context in resource["contexts"]], known, 1
    )
    for resource in gpu["compute_resources"]:
        if resource not in whole:
            lines += _slice_lines(console, resource, known, now_ns)
    return lines


def _slice_lines(console: Console, resource: ComputeResource, known: _Rates, now_ns: int) -> list[tuple[int, Line]]:
    cells = reading_cells(resource["reading"], resource["last_seen_at"], now_ns)
    held = _on(console, resource["compute_resource"], resource["contexts"], known, 2)
    return [(1, Line(slice_text(resource), _load_cells(cells))), *held]


def _on(console: Console, uuid: str, contexts: Sequence[Context], known: _Rates, depth: int) -> list[tuple[int, Line]]:
    """Give the processes on a resource with their rates, then the engines that say they run on it."""
    lines = []
    for context in contexts:
        engines = known.by_instance.get(str(context["instance_id"]), [])
        name = context_text(console, context)
        for model in sorted({engine["model"] for engine in engines if engine["model"]}):
            name.append(f" {model}", "dim")
        lines.append((depth, Line(name, _engine_cells(engines))))
    lines += [
        (depth, Line(_engine_text(engine), _engine_cells([engine]))) for engine in known.by_resource.get(uuid, [])
    ]
    return lines


def _engine_text(engine: Engine) -> Text:
    parts = (engine["service"], engine["engine"], engine["model"])
    return Text(" ".join(filter(None, parts)) or "unnamed service")


def _load_cells(cells: list[Text]) -> list[Text]:
    """Give busy, memory and power, and leave the rates to the engines below."""
    return [*cells[:3], Text(), Text()] if len(cells) > 1 else cells


def _engine_cells(engines: Sequence[Engine]) -> list[Text]:
    requests = sum(engine["requests_per_s"] for engine in engines)
    tokens = _total(engine["output_tokens_per_s"] for engine in engines)
    return [Text(), Text(), Text(), *(Text(_rate(value), "" if value else "dim") for value in (requests, tokens))]


def _total(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _rate(value: float | None) -> str:
    if value is None:
        return units.UNKNOWN
    if value >= _WHOLE_FROM or not value:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= _TENTHS_FROM else f"{value:.2f}"
