"""A stored span, read back: every value as it was sent, and as JSON."""

from __future__ import annotations

import base64
import math
from datetime import datetime, timezone
from typing import Any, TypedDict

from axonize_server.store.raw import Value, key_values, merged

__all__ = ["COLUMNS", "TypedSpan", "json_span", "typed_span"]


class TypedStatus(TypedDict):
    """A status, its code as OTLP numbers it."""

    code: int
    message: str


class TypedEvent(TypedDict):
    """An event; its time is in ns since the epoch."""

    time_unix_nano: int
    name: str
    attributes: dict[str, Value]
    dropped_attributes_count: int


class TypedLink(TypedDict):
    """A link to another span."""

    trace_id: bytes
    span_id: bytes
    trace_state: str
    attributes: dict[str, Value]
    dropped_attributes_count: int
    flags: int


class TypedScope(TypedDict):
    """What made the span."""

    name: str
    version: str
    attributes: dict[str, Value]
    dropped_attributes_count: int
    schema_url: str


class TypedResource(TypedDict):
    """Where the span was made."""

    attributes: dict[str, Value]
    dropped_attributes_count: int
    schema_url: str


class TypedSpan(TypedDict):
    """A span as OTLP carries it; ids are bytes (a root's parent is empty), times are in ns since the epoch."""

    trace_id: bytes
    span_id: bytes
    parent_span_id: bytes
    trace_state: str
    flags: int
    name: str
    kind: int
    start_time_unix_nano: int
    end_time_unix_nano: int
    status: TypedStatus
    attributes: dict[str, Value]
    dropped_attributes_count: int
    events: list[TypedEvent]
    dropped_events_count: int
    links: list[TypedLink]
    dropped_links_count: int
    scope: TypedScope
    resource: TypedResource


_MAPS = ("string", "int", "float", "bool")
_HEX = "arrayMap(v -> hex(v), {})"
_HEX_LISTS = "arrayMap(l -> arrayMap(v -> hex(v), l), {})"
_HEX_MAP = "mapApply((k, v) -> (k, hex(v)), {})"
_EXPRESSIONS = {
    **{name: f"hex({name})" for name in ("trace_id", "span_id", "parent_span_id")},
    "start_ns": "toUnixTimestamp64Nano(start_time)",
    **{name: name for name in ("duration_ns", "trace_state", "flags", "name", "kind", "status_code", "status_message")},
    **{f"{level}_{kind}": f"{level}_{kind}" for level in ("attrs", "resource") for kind in _MAPS},
    **{f"{level}_raw": _HEX_MAP.format(f"{level}_raw") for level in ("attrs", "resource")},
    **{
        name: name for name in ("attrs_dropped", "events_dropped", "links_dropped", "resource_dropped", "scope_dropped")
    },
    "event_time": "arrayMap(t -> toUnixTimestamp64Nano(t), events.time)",
    "event_name": "events.name",
    "event_attrs": _HEX_LISTS.format("events.attrs"),
    "event_dropped": "events.dropped",
    "link_trace_id": _HEX.format("links.trace_id"),
    "link_span_id": _HEX.format("links.span_id"),
    "link_trace_state": "links.trace_state",
    "link_attrs": _HEX_LISTS.format("links.attrs"),
    "link_dropped": "links.dropped",
    "link_flags": "links.flags",
    **{name: name for name in ("scope_name", "scope_version", "scope_schema_url", "resource_schema_url")},
    "scope_attrs": _HEX.format("scope_attrs"),
}
COLUMNS = ", ".join(f"{sql} AS {name}" for name, sql in _EXPRESSIONS.items())
"""What `typed_span` needs of a row of `spans`; raw bytes travel in hexadecimal."""
_KINDS = ("unspecified", "internal", "server", "client", "producer", "consumer")
_STATUSES = {1: "ok", 2: "error"}


def typed_span(row: dict[str, Any]) -> TypedSpan:
    """Give the span in a row that has `COLUMNS`."""
    parent = bytes.fromhex(row["parent_span_id"])
    return {
        "trace_id": bytes.fromhex(row["trace_id"]),
        "span_id": bytes.fromhex(row["span_id"]),
        "parent_span_id": parent if any(parent) else b"",
        "trace_state": row["trace_state"],
        "flags": row["flags"],
        "name": row["name"],
        "kind": row["kind"],
        "start_time_unix_nano": row["start_ns"],
        "end_time_unix_nano": row["start_ns"] + row["duration_ns"],
        "status": {"code": row["status_code"], "message": row["status_message"]},
        "attributes": _level(row, "attrs"),
        "dropped_attributes_count": row["attrs_dropped"],
        "events": _events(row),
        "dropped_events_count": row["events_dropped"],
        "links": _links(row),
        "dropped_links_count": row["links_dropped"],
        "scope": {
            "name": row["scope_name"],
            "version": row["scope_version"],
            "attributes": key_values(row["scope_attrs"]),
            "dropped_attributes_count": row["scope_dropped"],
            "schema_url": row["scope_schema_url"],
        },
        "resource": {
            "attributes": _level(row, "resource"),
            "dropped_attributes_count": row["resource_dropped"],
            "schema_url": row["resource_schema_url"],
        },
    }


def _level(row: dict[str, Any], level: str) -> dict[str, Value]:
    return merged([row[f"{level}_{kind}"] for kind in _MAPS], row[f"{level}_raw"])


def _events(row: dict[str, Any]) -> list[TypedEvent]:
    parts = zip(row["event_time"], row["event_name"], row["event_attrs"], row["event_dropped"], strict=True)
    return [
        {"time_unix_nano": at, "name": name, "attributes": key_values(attrs), "dropped_attributes_count": dropped}
        for at, name, attrs, dropped in parts
    ]


def _links(row: dict[str, Any]) -> list[TypedLink]:
    names = ("trace_id", "span_id", "trace_state", "attrs", "dropped", "flags")
    return [
        {
            "trace_id": bytes.fromhex(trace_id),
            "span_id": bytes.fromhex(span_id),
            "trace_state": state,
            "attributes": key_values(attrs),
            "dropped_attributes_count": dropped,
            "flags": flags,
        }
        for trace_id, span_id, state, attrs, dropped, flags in zip(*(row[f"link_{n}"] for n in names), strict=True)
    ]


def json_span(span: TypedSpan) -> dict[str, Any]:
    """Give a span as the API shows it."""
    resource = span["resource"]["attributes"]
    return {
        "span_id": span["span_id"].hex(),
        "parent_span_id": span["parent_span_id"].hex() or None,
        "name": span["name"],
        "kind": _KINDS[span["kind"]] if 0 <= span["kind"] < len(_KINDS) else str(span["kind"]),
        "phase": span["attributes"].get("ai.phase"),
        "start_time": rfc3339(span["start_time_unix_nano"]),
        "duration_ms": (span["end_time_unix_nano"] - span["start_time_unix_nano"]) / 1e6,
        "status": _STATUSES.get(span["status"]["code"], "unset"),
        "status_message": span["status"]["message"],
        "service": resource.get("service.name", ""),
        "scope": span["scope"]["name"],
        "attributes": _json(span["attributes"]),
        "resource": _json(resource),
        "events": [
            {"time": rfc3339(e["time_unix_nano"]), "name": e["name"], "attributes": _json(e["attributes"])}
            for e in span["events"]
        ],
        "links": [
            {
                "trace_id": link["trace_id"].hex(),
                "span_id": link["span_id"].hex(),
                "attributes": _json(link["attributes"]),
            }
            for link in span["links"]
        ],
    }


def rfc3339(nanoseconds: int) -> str:
    """Give a time since the epoch as RFC 3339 text with all nine digits."""
    seconds, fraction = divmod(nanoseconds, 10**9)
    return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%dT%H:%M:%S}.{fraction:09d}Z"


def _json(value: Value) -> Any:
    """Give a value as JSON; what JSON has no word for becomes an object with one `$` key."""
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode()}
    if isinstance(value, float) and not math.isfinite(value):
        return {"$double": str(value)}
    if isinstance(value, list):
        return [_json(item) for item in value]
    if isinstance(value, dict):
        return {key: _json(item) for key, item in value.items()}
    return value
