"""Whether bytes are a well-formed, plain ExportTraceServiceRequest, found out without building one.

upb, the C parser of the official protobuf package, checks structure and UTF-8 while it parses. It is given
OTLP's own schema with two changes: a repeated message or text is declared singular, and no message excludes
another. Protobuf then merges the second span into the first, so that all is read and checked, but nothing is
allocated per span or attribute: a sixth less time, and no garbage. What it accepts is what the official classes
accept; a test compares them.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

if TYPE_CHECKING:
    from google.protobuf.descriptor import FileDescriptor

__all__ = ["check_traces"]

_REQUEST = "opentelemetry.proto.collector.trace.v1.ExportTraceServiceRequest"


def check_traces(body: bytes | bytearray | memoryview) -> bool:
    """Say whether a well-formed body holds nothing that OTLP does not know.

    What upb does not know, be it a field of a newer OTLP or one of the wrong type, it keeps aside; merging
    gathers that of all spans in a few messages. ClickHouse's parser gives up on some of it.

    Raises:
        DecodeError: The body is not well-formed.
    """
    merged = _merging().FromString(body)
    size = merged.ByteSize()
    merged.DiscardUnknownFields()
    return bool(merged.ByteSize() == size)


@cache
def _merging() -> type[Any]:
    pool = descriptor_pool.DescriptorPool()
    _add(trace_service_pb2.DESCRIPTOR, pool, set())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(_REQUEST))


def _add(file: FileDescriptor, pool: descriptor_pool.DescriptorPool, added: set[str]) -> None:
    """Add a file behind those it imports."""
    if file.name in added:
        return
    added.add(file.name)
    for imported in file.dependencies:
        _add(imported, pool, added)
    changed = descriptor_pb2.FileDescriptorProto()
    file.CopyToProto(changed)
    for message in changed.message_type:
        _make_singular(message)
    pool.Add(changed)


def _make_singular(message: descriptor_pb2.DescriptorProto) -> None:
    kind = descriptor_pb2.FieldDescriptorProto
    for field in message.field:
        if field.type in (kind.TYPE_MESSAGE, kind.TYPE_STRING) and field.label == kind.LABEL_REPEATED:
            field.label = kind.LABEL_OPTIONAL
        if field.type == kind.TYPE_MESSAGE:
            field.ClearField("oneof_index")  # or each turn from an array to a list of pairs allocates anew
    for nested in message.nested_type:
        _make_singular(nested)
