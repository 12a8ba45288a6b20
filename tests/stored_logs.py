"""Log records read back from the store, in the shape of the oracle's walk."""

from __future__ import annotations

import struct

from axonize_server.store.raw import key_values, merged

MAPS = ("string", "int", "float", "bool")
COLUMNS = """
    time, toUnixTimestamp64Nano(time) AS time_ns, time_unknown, toUnixTimestamp64Nano(observed_time) AS observed_ns,
    hex(trace_id) AS trace, hex(span_id) AS span, flags, severity_number, severity_text, event_name,
    body, hex(body_raw) AS raw_body, attrs_string, attrs_int, attrs_float, attrs_bool,
    mapApply((k, v) -> (k, hex(v)), attrs_raw) AS a_raw, attrs_dropped,
    scope_name, scope_version, scope_schema_url, scope_dropped, arrayMap(v -> hex(v), scope_attrs) AS s_attrs,
    resource_string, resource_int, resource_float, resource_bool,
    mapApply((k, v) -> (k, hex(v)), resource_raw) AS r_raw, resource_dropped, resource_schema_url
"""


def logs_of(store, tenant="default"):
    """All log records of a tenant, oldest first."""
    rows = store.query(
        f"SELECT {COLUMNS} FROM {store.database}.logs WHERE tenant = {{tenant:String}} ORDER BY time, severity_number",
        {"tenant": tenant},
    )
    return [_record(row) for row in rows]


def _record(row):
    return {
        "time_unix_nano": 0 if row["time_unknown"] else row["time_ns"],
        "observed_time_unix_nano": row["observed_ns"],
        "trace_id": _id(row["trace"]),
        "span_id": _id(row["span"]),
        "flags": row["flags"],
        "severity_number": row["severity_number"],
        "severity_text": row["severity_text"],
        "event_name": row["event_name"],
        "body": _body(row["body"], bytes.fromhex(row["raw_body"])),
        "attributes": merged([row[f"attrs_{kind}"] for kind in MAPS], row["a_raw"]),
        "dropped_attributes_count": row["attrs_dropped"],
        "scope": {
            "name": row["scope_name"],
            "version": row["scope_version"],
            "attributes": key_values(row["s_attrs"]),
            "dropped_attributes_count": row["scope_dropped"],
            "schema_url": row["scope_schema_url"],
        },
        "resource": {
            "attributes": merged([row[f"resource_{kind}"] for kind in MAPS], row["r_raw"]),
            "dropped_attributes_count": row["resource_dropped"],
            "schema_url": row["resource_schema_url"],
        },
    }


def _id(text):
    found = bytes.fromhex(text)
    return found if any(found) else b""


def _body(text, raw):
    kind, value = raw[:1], raw[1:]
    if not kind:
        return text
    if kind in (b"t", b"f"):
        return kind == b"t"
    if kind == b"i":
        return int(value)
    if kind == b"d":
        return struct.unpack("<d", value)[0]
    return merged([], {"": raw.hex()})[""]
