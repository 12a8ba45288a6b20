"""The schema handed to ClickHouse, against OTLP's own."""

from __future__ import annotations

import re

import pytest
from google.protobuf.descriptor import FieldDescriptor
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from axonize_server.store import explode
from axonize_server.store.schema import proto, structure

OFFICIAL = {
    "traces": ExportTraceServiceRequest.DESCRIPTOR,
    "metrics": ExportMetricsServiceRequest.DESCRIPTOR,
    "logs": ExportLogsServiceRequest.DESCRIPTOR,
}
RENAMED = {"Segment", "Scope", "Event", "Link"}
# Read back only, or of any depth: kept as bytes, or belonging to profiles (the string tables).
AS_BYTES = {"array_value", "kvlist_value", "exemplars", "metadata"}
# Decoded by the statement itself.
VALUE = ("KeyValue", "value")
LEFT_OUT = {"entity_refs", "key_strindex", "string_value_strindex"}
FIELD = re.compile(r"(repeated |optional )?(\w+) (\w+) = (\d+);")


def ours(signal: str) -> dict[str, dict[str, tuple[str, int]]]:
    """Message → field → (type, number), as our schema says."""
    blocks = re.findall(r"^message (\w+) \{(.*?)^\}", proto(signal), flags=re.MULTILINE | re.DOTALL)
    return {name: {f[2]: (f[1], int(f[3])) for f in FIELD.findall(body)} for name, body in blocks}


def official(descriptor, found=None):
    """Message name → descriptor, of all messages in reach."""
    found = {} if found is None else found
    if descriptor.name not in found:
        found[descriptor.name] = descriptor
        for field in descriptor.fields:
            if field.message_type:
                official(field.message_type, found)
    return found


@pytest.mark.parametrize("signal", ["traces", "metrics", "logs"])
def test_numbers_and_types_are_those_of_otlp(signal):
    """Every field of OTLP is in our schema under its number, and with its type unless it is kept as bytes."""
    messages = ours(signal)
    names = {"InstrumentationScope": "Scope", OFFICIAL[signal].name: "Segment"}
    kept_whole = {"ArrayValue", "KeyValueList", "Exemplar", "EntityRef", *({"AnyValue"} - messages.keys())}
    checked = 0
    for name, descriptor in official(OFFICIAL[signal]).items():
        if name in kept_whole:
            continue
        fields = messages[names.get(name, name)]
        for field in descriptor.fields:
            if field.name in LEFT_OUT:
                continue
            kind, number = fields[field.name]
            assert number == field.number, (name, field.name)
            assert kind in accepted(field, name, wide=signal == "traces"), (name, field.name, kind)
            checked += 1
    assert checked > 30


WIDE = {"bool": "uint64", "uint32": "uint64", "int32": "int64"}


def accepted(field: FieldDescriptor, message: str, *, wide: bool) -> set[str]:
    names = {getattr(FieldDescriptor, n): n[5:].lower() for n in dir(FieldDescriptor) if n.startswith("TYPE_")}
    if field.type == FieldDescriptor.TYPE_ENUM:
        return {"int64" if wide else "int32"}
    if field.type != FieldDescriptor.TYPE_MESSAGE:
        return {WIDE.get(names[field.type], names[field.type]) if wide else names[field.type]}
    raw = (
        field.name in AS_BYTES
        or (message, field.name) == VALUE
        or (field.name == "attributes" and message in {"InstrumentationScope", "Event", "Link"})
    )
    return {"bytes"} if raw else {field.message_type.name, "Scope"}


def test_presence_is_nullable():
    """What OTLP tells apart from a default, a value of 0 from none, is nullable in the columns."""
    columns = structure("traces")
    body = "body Tuple(string_value Nullable(String), bool_value Nullable(Bool), int_value Nullable(Int64)"
    assert body in structure("logs")
    assert "tenant Array(String)" in columns
    assert "sum Nullable(Float64)" in structure("metrics")


@pytest.mark.parametrize("signal", ["traces", "metrics", "logs"])
def test_as_many_expressions_as_columns(signal):
    """The statement fills the columns it names."""
    statement = explode.insert(signal, "d", "file('x', Protobuf, '{structure}')", "a = '1'")
    head = re.match(r"INSERT INTO d\.(\w+) \(([^)]*)\) SETTINGS a = '1'\n", statement)
    assert head is not None
    assert head[1] == explode.TABLES[signal]
    assert "{" not in statement
    columns = head[2].split(", ")
    assert len(set(columns)) == len(columns) >= 30
