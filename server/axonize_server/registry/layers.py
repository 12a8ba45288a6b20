"""The three layers as rows: what reports say about a thing, and what is kept of it in PostgreSQL or SQLite.

Unknown is null. Times become RFC 3339 text in UTC with nine digits, which sorts as time does.
"""

from __future__ import annotations

from datetime import datetime, timezone
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from axonize_server.registry.sightings import GAP_NS, Sightings, Span, spans_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["LAYERS", "Layer", "Thing", "rfc3339", "rows_of", "text_of", "thing_of"]

Row = dict[str, Any]
_NS = 10**9


class Thing(NamedTuple):
    """What a report is about; `tenant` is empty but for contexts: the hardware belongs to all."""

    layer: str
    tenant: str
    id: str


class Layer(NamedTuple):
    """One table: its key, its columns, and where each attribute goes."""

    table: str
    key: tuple[str, ...]
    columns: tuple[str, ...]
    order: str
    """The last of the key: which of a thing's rows this is, by time; empty where a thing has one row."""
    rows: Callable[[Thing, list[Span], int], list[Row]]
    variant: Callable[[str], str]


_GPU = {
    "vendor": "hw.vendor",
    "architecture": "gpu.architecture",
    "pci_bus_id": "gpu.pci.bus_id",
    "memory_bytes": "gpu.memory.total_bytes",
    "driver_version": "hw.driver_version",
    "provenance": "gpu.provenance",
}
_RESOURCE = {
    "gpu_uuid": "hw.id",
    "kind": "gpu.compute_resource.kind",
    "mig_profile": "gpu.mig.profile",
    "gpu_instance_id": "gpu.mig.gi_id",
    "compute_instance_id": "gpu.mig.ci_id",
    "placement_start": "gpu.mig.placement.start",
    "placement_size": "gpu.mig.placement.size",
    "memory_bytes": "gpu.memory.total_bytes",
    "sm_share": "gpu.sm.share",
    "provenance": "gpu.provenance",
}
_CONTEXT = {
    "compute_resource": "gpu.compute_resource.id",
    "gpu_uuid": "hw.id",
    "device": "gpu.device",
    "host": "host.name",
    "pid": "process.pid",
    "instance_id": "service.instance.id",
    "service": "service.name",
    "engine": "ai.engine",
    "rank": "ai.rank",
    "container": "container.id",
    "pod": "k8s.pod.name",
    "namespace": "k8s.namespace.name",
    "node": "k8s.node.name",
    "sharing": "gpu.sharing",
    "provenance": "gpu.provenance",
}
_ATTRIBUTES = {"gpu": _GPU, "compute_resource": _RESOURCE, "context": _CONTEXT}
_SEEN = ("first_seen_at", "last_seen_at", "gone_at")
_INT64 = {"memory_bytes", "pid"}
_INT32 = {"gpu_instance_id", "compute_instance_id", "placement_start", "placement_size", "rank"}


def text_of(attributes: Mapping[str, Any]) -> str:
    """Give attributes as a look: JSON with sorted keys."""
    return msgspec.json.encode(attributes, order="sorted").decode()


def _attributes(look: str) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode(look)
    return found


def thing_of(layer: str, tenant: str, identity: str) -> Thing:
    """Give what a report of this layer is about."""
    return Thing(layer, tenant if layer == "context" else "", identity)


def rows_of(thing: Thing, known: Sightings, now_ns: int) -> list[Row]:
    """Give a thing's rows, in order of time."""
    layer = LAYERS[thing.layer]
    return layer.rows(thing, spans_of(known, layer.variant), now_ns)


def _gpu_rows(thing: Thing, spans: list[Span], _: int) -> list[Row]:
    """Hardware is one row, however often it went and came."""
    if not spans:
        return []
    return [{"gpu_uuid": thing.id, **_said("gpu", _looks(spans)), **_seen(spans)}]


def _resource_rows(thing: Thing, spans: list[Span], _: int) -> list[Row]:
    """A resource is a row per generation: it is another one once it was gone; silence is no end of it."""
    generations: list[list[Span]] = []
    for span in spans:
        if not generations or generations[-1][-1].ended_ns is not None:
            generations.append([])
        generations[-1].append(span)
    return [
        {"uuid": thing.id, "generation": number, **_said("compute_resource", _looks(found)), **_seen(found)}
        for number, found in enumerate(generations, 1)
    ]


def _context_rows(thing: Thing, spans: list[Span], now_ns: int) -> list[Row]:
    """A context is a row per time it was held; one that fell silent ended when it was last seen."""
    rows = []
    for number, span in enumerate(spans, 1):
        silent = number < len(spans) or now_ns - span.last_ns > GAP_NS
        ended_ns = span.ended_ns or (span.last_ns if silent else None)
        rows.append(
            {
                "tenant_id": thing.tenant,
                "context_id": thing.id,
                "holding": number,
                **_said("context", span.looks),
                "valid_from": rfc3339(span.first_ns),
                "valid_to": rfc3339(ended_ns) if ended_ns is not None else None,
                "last_seen_at": rfc3339(span.last_ns),
            }
        )
    return rows


def _looks(spans: list[Span]) -> tuple[str, ...]:
    return spans[0].looks if len(spans) == 1 else tuple(look for span in spans for look in span.looks)


@lru_cache(maxsize=65_536)
def _said(layer: str, looks: tuple[str, ...]) -> Row:
    """Give the columns that all looks together say: the newest word on each attribute. Not to be changed."""
    known: dict[str, Any] = {}
    for look in looks:
        known.update(_attributes(look))
    row = {column: _typed(column, known.get(name)) for column, name in _ATTRIBUTES[layer].items()}
    if layer == "gpu":
        sliced = known.get("gpu.mig.enabled")
        row["model"] = _text(known.get("hw.model")) or _text(known.get("hw.name"))
        row["node"] = _text(known.get("k8s.node.name")) or _text(known.get("host.name"))
        row["mig_enabled"] = int(sliced) if isinstance(sliced, bool) else None
    return row


def _typed(column: str, value: Any) -> Any:
    """Give a value of the column's type; any other is unknown, so that no report can stop those after it."""
    if column in _INT64 or column in _INT32:
        bits = 63 if column in _INT64 else 31
        return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << bits else None
    if column == "sm_share":
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
    return _text(value)


def _text(value: Any) -> str | None:
    return value.replace("\0", "") or None if isinstance(value, str) else None


def _seen(spans: list[Span]) -> Row:
    last = spans[-1]
    gone = rfc3339(last.ended_ns) if last.ended_ns is not None else None
    return {"first_seen_at": rfc3339(spans[0].first_ns), "last_seen_at": rfc3339(last.last_ns), "gone_at": gone}


@lru_cache(maxsize=1024)
def _second(epoch_s: int) -> str:
    return f"{datetime.fromtimestamp(epoch_s, tz=timezone.utc):%Y-%m-%dT%H:%M:%S}"


@lru_cache(maxsize=16_384)
def rfc3339(epoch_ns: int) -> str:
    """Give a time as RFC 3339 text in UTC with nine digits; all that an agent reports at once has one."""
    seconds, ns = divmod(epoch_ns, _NS)
    return f"{_second(seconds)}.{ns:09d}Z"


@lru_cache(maxsize=65_536)
def _holder(look: str) -> str:
    """Give what makes a context another one under the same name: its resource, or another process with its pid."""
    known = _attributes(look)
    return f"{known.get('gpu.compute_resource.id')}|{known.get('service.instance.id')}"


LAYERS = {
    "gpu": Layer(
        "physical_gpus",
        ("gpu_uuid",),
        ("gpu_uuid", "model", "node", "mig_enabled", *_GPU, *_SEEN),
        "",
        _gpu_rows,
        lambda _: "",
    ),
    "compute_resource": Layer(
        "compute_resources",
        ("uuid", "generation"),
        ("uuid", "generation", *_RESOURCE, *_SEEN),
        "generation",
        _resource_rows,
        lambda _: "",
    ),
    "context": Layer(
        "resource_contexts",
        ("tenant_id", "context_id", "holding"),
        ("tenant_id", "context_id", "holding", *_CONTEXT, "valid_from", "valid_to", "last_seen_at"),
        "holding",
        _context_rows,
        _holder,
    ),
}
