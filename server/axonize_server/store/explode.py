"""The one statement per signal that turns a segment of OTLP requests into rows.

ClickHouse parses the protobuf and opens it level by level. Each level is made into columns before the next one
multiplies its rows: the maps of a resource are built once per resource, not once per span.
"""
# ruff: noqa: S608  - every name in these statements is ours, or a checked identifier

from __future__ import annotations

from axonize_server.store.attributes import maps, named
from axonize_server.store.points import POINT, POINTS
from axonize_server.store.schema import structure

__all__ = ["TABLES", "insert"]

TABLES = {"traces": "spans", "metrics": "metrics", "logs": "logs"}
"""The table each signal's segments go to; also what OTLP calls a resource's and a scope's part of a request."""

_NOT_SCALAR = ("array_value", "kvlist_value", "bytes_value")
# What has no scalar type: a letter for its kind, then its bytes as they came.
_RAW = (
    "multiIf(isNotNull({array_value}), concat('a', assumeNotNull({array_value})),"
    " isNotNull({kvlist_value}), concat('k', assumeNotNull({kvlist_value})),"
    " isNotNull({bytes_value}), concat('b', assumeNotNull({bytes_value})), 'u')"
)


def insert(signal: str, database: str, source: str, settings: str) -> str:
    """Give the INSERT … SELECT of a signal.

    Args:
        signal: `traces`, `metrics` or `logs`.
        database: where the tables are; a checked identifier.
        source: the table function to read, with `{structure}` where its columns go.
        settings: `name = value, …`.
    """
    records, attributes, opening = _RECORDS[signal]
    columns = {**_ENVELOPE, **records}
    return (
        f"INSERT INTO {database}.{TABLES[signal]} ({', '.join(columns)}) SETTINGS {settings}\n"
        f"{named('attrs', attributes)}\n"
        f"SELECT {', '.join(columns.values())}\n"
        f"FROM ({_scopes(signal, source)})\n{opening}"
    )


def _scopes(signal: str, source: str) -> str:
    """Give one row per scope, with its resource's maps beside it and its records as an array."""
    kind = TABLES[signal]
    reader = source.replace("{structure}", structure(signal))
    resource = ", ".join(f"{sql} AS {name}" for name, sql in maps("resource").items())
    requests = f"SELECT tenant[-1] AS tenant, resource_{kind} AS resources FROM {reader}"
    resources = (
        f"{named('resource', 'r.resource.attributes')} SELECT tenant, {resource}, r.schema_url AS resource_schema_url,"
        f" toUInt32(r.resource.dropped_attributes_count) AS resource_dropped, r.scope_{kind} AS scopes"
        f" FROM ({requests}) ARRAY JOIN resources AS r"
    )
    return (
        f"SELECT {', '.join(_RESOURCE)}, c.scope AS scope, c.schema_url AS scope_schema_url,"
        f" c.{_RECORDS_OF_SCOPE.get(kind, kind)} AS records FROM ({resources}) ARRAY JOIN scopes AS c"
    )


def _time(nanoseconds: str) -> str:
    return f"fromUnixTimestamp64Nano(toInt64({nanoseconds}), 'UTC')"


_RESOURCE = ("tenant", "resource_schema_url", "resource_dropped", *maps("resource"))
_ENVELOPE = {
    **{name: name for name in _RESOURCE},
    "scope_name": "scope.name",
    "scope_version": "scope.version",
    "scope_attrs": "scope.attributes",
    "scope_dropped": "toUInt32(scope.dropped_attributes_count)",
    "scope_schema_url": "scope_schema_url",
}
_SPAN = {
    "trace_id": "toFixedString(s.trace_id, 16)",
    "span_id": "toFixedString(s.span_id, 8)",
    "parent_span_id": "toFixedString(s.parent_span_id, 8)",
    "trace_state": "s.trace_state",
    "flags": "s.flags",
    "name": "s.name",
    "kind": "toInt32(s.kind)",
    "start_time": _time("s.start_time_unix_nano"),
    "duration_ns": "toInt64(s.end_time_unix_nano - s.start_time_unix_nano)",
    "status_code": "toInt32(s.status.code)",
    "status_message": "s.status.message",
    **maps("attrs"),
    "attrs_dropped": "toUInt32(s.dropped_attributes_count)",
    "events.time": f"arrayMap(t -> {_time('t')}, s.events.time_unix_nano)",
    "events.name": "s.events.name",
    "events.attrs": "s.events.attributes",
    "events.dropped": "arrayMap(n -> toUInt32(n), s.events.dropped_attributes_count)",
    "events_dropped": "toUInt32(s.dropped_events_count)",
    "links.trace_id": "arrayMap(id -> toFixedString(id, 16), s.links.trace_id)",
    "links.span_id": "arrayMap(id -> toFixedString(id, 8), s.links.span_id)",
    "links.trace_state": "s.links.trace_state",
    "links.attrs": "s.links.attributes",
    "links.dropped": "arrayMap(n -> toUInt32(n), s.links.dropped_attributes_count)",
    "links.flags": "s.links.flags",
    "links_dropped": "toUInt32(s.dropped_links_count)",
}
_METRIC = {
    "name": "m.name",
    "unit": "m.unit",
    "description": "m.description",
    "metadata": "m.metadata",
    **{name: f"p.{position}" for position, name in enumerate(POINT, 1) if name not in ("attributes", "start", "time")},
    **maps("attrs"),
    "start_time": _time(f"p.{POINT.index('start') + 1}"),
    "time": _time(f"p.{POINT.index('time') + 1}"),
}
_LOG = {
    # When it happened; what does not say so is placed by when it was observed.
    "time": _time("if(g.time_unix_nano = 0, g.observed_time_unix_nano, g.time_unix_nano)"),
    "time_unknown": "g.time_unix_nano = 0",
    "observed_time": _time("g.observed_time_unix_nano"),
    "trace_id": "toFixedString(g.trace_id, 16)",
    "span_id": "toFixedString(g.span_id, 8)",
    "flags": "g.flags",
    "severity_number": "g.severity_number",
    "severity_text": "g.severity_text",
    "event_name": "g.event_name",
    "body": "ifNull(g.body.string_value, '')",
    "body_raw": (
        "multiIf(isNotNull(g.body.string_value), '',"
        " isNotNull(g.body.int_value), concat('i', toString(assumeNotNull(g.body.int_value))),"
        " isNotNull(g.body.double_value), concat('d', reinterpretAsFixedString(assumeNotNull(g.body.double_value))),"
        " isNotNull(g.body.bool_value), if(assumeNotNull(g.body.bool_value), 't', 'f'),"
        f" {_RAW.format(**{field: f'g.body.{field}' for field in _NOT_SCALAR})})"
    ),
    **maps("attrs"),
    "attrs_dropped": "g.dropped_attributes_count",
}
_RECORDS_OF_SCOPE = {"logs": "log_records"}
_RECORDS = {
    "traces": (_SPAN, "s.attributes", "ARRAY JOIN records AS s"),
    "metrics": (
        _METRIC,
        f"p.{POINT.index('attributes') + 1}",
        f"ARRAY JOIN records AS m ARRAY JOIN {POINTS} AS p",
    ),
    "logs": (_LOG, "g.attributes", "ARRAY JOIN records AS g"),
}
