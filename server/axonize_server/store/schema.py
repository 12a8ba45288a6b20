"""What a segment looks like to ClickHouse: the protobuf schema, and the columns derived from it.

`traces.proto`, `metrics.proto` and `logs.proto` are OTLP's own messages with liberties, all wire-compatible: the value
of an attribute is declared as bytes, which the statement decodes (`attributes.py`); arrays and key-value lists too,
so that nesting of any depth survives; and attributes that are only ever read back (of scopes, events, links,
exemplars) are repeated bytes, one per KeyValue. Spans are stored as they came, so what OTLP declares as bool or 32
bits is 64 bits wide in `traces.proto`: protobuf cuts a longer number off, ClickHouse's parser refuses its whole
segment; the statement cuts it off. Metrics and logs come rewritten.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from pathlib import Path

__all__ = ["MESSAGE", "proto", "proto_path", "structure"]

MESSAGE = "Segment"
"""What a segment is a stream of, in every schema."""

_SCALARS = {
    "string": "String",
    "bytes": "String",
    "bool": "Bool",
    "int32": "Int32",
    "sint32": "Int32",
    "uint32": "UInt32",
    "fixed32": "UInt32",
    "int64": "Int64",
    "sfixed64": "Int64",
    "uint64": "UInt64",
    "fixed64": "UInt64",
    "double": "Float64",
}
_FIELD = re.compile(r"\s*(repeated |optional )?(\w+) (\w+) = \d+;")


@cache
def proto(signal: str) -> str:
    """Give the protobuf schema of a signal's segments, as text."""
    return proto_path(signal).read_text("utf-8")


def proto_path(signal: str) -> Path:
    """Give the file of a signal's schema."""
    return Path(str(files("axonize_server.store").joinpath(f"{signal}.proto")))


@cache
def structure(signal: str) -> str:
    """Give the columns of the signal's `Segment` message, as ClickHouse's `file` and `input` want them."""
    messages: dict[str, str] = {}
    for block in re.split(r"^message ", proto(signal), flags=re.MULTILINE)[1:]:
        messages[block.split(" ", 1)[0]] = _columns(block, messages)
    return messages[MESSAGE]


def _columns(block: str, messages: dict[str, str]) -> str:
    """Give the columns of one message; the messages it is made of stand before it."""
    columns = []
    in_oneof = False
    for line in block.splitlines():
        in_oneof = ("oneof" in line) or (in_oneof and "}" not in line)
        if field := _FIELD.match(line):
            label, field_type, name = field.groups()
            sql = _SCALARS.get(field_type) or f"Tuple({messages[field_type]})"
            columns.append(f"{name} {_labelled(sql, label, in_oneof=in_oneof)}")
    return ", ".join(columns)


def _labelled(sql: str, label: str | None, *, in_oneof: bool) -> str:
    """Give the type of a field: presence (0, "" and false against not set) is what Nullable keeps."""
    if label == "repeated ":
        return f"Array({sql})"
    return f"Nullable({sql})" if in_oneof or label == "optional " else sql
