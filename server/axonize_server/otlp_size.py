"""Refuses a large body made of very many small records before an object is made of each.

An empty span takes two bytes on the wire and a hundred in memory, and some microseconds to look at; an empty
attribute takes thirty, an empty value in an array fifty. The fields around the records, inside them, and in what
they hold are counted on the wire itself, no further than the limits.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Final

from google.protobuf.descriptor import FieldDescriptor
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from axonize_server.otlp_rules import MAX_RECORDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.descriptor import Descriptor

__all__ = ["too_many_fields"]

_MAX_AROUND: Final = 4 * MAX_RECORDS
_MAX_INSIDE: Final = 1 << 22
_MAX_NESTED: Final = 1 << 22
_LOOKED_AT_BYTES = 1 << 20
_LOOKED_INTO_BYTES = 16 << 20  # what is nested in a smaller body takes no more memory than the limits above allow
_MAX_DEPTH = 128  # deeper than the parser goes
_PACKED_BYTES = 8  # numbers of a byte each that take as much memory as a field
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_FIXED: Final = {_FIXED64: 8, _FIXED32: 4}
# The fields that lead from a request to its records: resources, scopes, records; of a metric its points.
_TO_RECORDS: Final = ({1}, {2}, {2})
_PATHS: Final = {
    "traces": (ExportTraceServiceRequest.DESCRIPTOR, _TO_RECORDS),
    "logs": (ExportLogsServiceRequest.DESCRIPTOR, _TO_RECORDS),
    "metrics": (ExportMetricsServiceRequest.DESCRIPTOR, (*_TO_RECORDS, {5, 7, 9, 10, 11}, {1})),
}


def too_many_fields(signal: str, body: bytes | bytearray | memoryview, *, inside: bool) -> bool:
    """Say whether a body holds more fields around its records, or also `inside` them, than any honest one would.

    Counting inside takes longer than parsing, so it is for bodies that become objects. What is not well-formed
    ends the count; the parser refuses it.
    """
    if len(body) <= _LOOKED_AT_BYTES:
        return False
    data, (request, path) = memoryview(body), _PATHS[signal]
    records = len(path)
    deepest = (_MAX_DEPTH if len(body) > _LOOKED_INTO_BYTES else records) if inside else records - 1
    left = [_MAX_AROUND, _MAX_INSIDE, _MAX_NESTED]
    stack = [(0, request, _fields(data, 0, len(data)))]
    while stack:
        depth, kind, fields = stack[-1]
        counted = max(depth - records + 1, 0)
        nested = _nested(kind)
        for number, start, stop in fields:
            packed = nested.get(number, kind) is None
            left[counted] -= (stop - start) // _PACKED_BYTES if packed else 1
            if left[counted] <= 0:
                return True
            if len(stack) > deepest or (inner := nested.get(number)) is None:
                continue
            if depth < records and number in path[depth]:
                stack.append((depth + 1, inner, _fields(data, start, stop)))
                break
            if deepest > records and not _is_plain(data, start, stop):
                stack.append((records + 1, inner, _fields(data, start, stop)))
                break
        else:
            stack.pop()
    return False


@cache
def _nested(kind: Descriptor) -> dict[int, Descriptor | None]:
    """The fields of a message that hold others, by number; None for packed numbers, which grow when they are read."""
    grow = (FieldDescriptor.TYPE_UINT64, FieldDescriptor.TYPE_INT64, FieldDescriptor.TYPE_UINT32)
    return {
        field.number: field.message_type
        for field in kind.fields
        if field.message_type is not None or (field.is_repeated and field.type in grow)
    }


def _is_plain(data: memoryview, at: int, end: int) -> bool:
    """Whether a message is empty, or a usual KeyValue: a short key, then a text or a number and nothing behind it."""
    if at == end:
        return True
    value = at + 2 + data[at + 1] if at + 1 < end else end
    if value + 3 >= end or data[at] != 0x0A or data[value] != 0x12 or data[value + 1] != end - value - 2:  # noqa: PLR2004
        return False
    kind, size = data[value + 2], end - value - 4
    if kind == 0x0A:  # noqa: PLR2004 - a text
        return data[value + 3] == size
    if kind in (0x10, 0x18):
        return size <= 0 or min(data[value + 3 : end - 1]) > 0x7F  # noqa: PLR2004 - one varint
    return kind == 0x21 and size == _FIXED[_FIXED64] - 1  # noqa: PLR2004


def _fields(data: memoryview, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, start and end of each field of a message; those without a length of their own are empty."""
    try:
        while at < end:
            tag, at = _varint(data, at)
            kind = tag & 7
            start = at
            if kind == _LENGTH:
                size, start = _varint(data, at)
                at = start + size
            elif kind == _VARINT:
                _, at = _varint(data, at)
            elif kind in _FIXED:
                at += _FIXED[kind]
            yield (tag >> 3, start, at) if kind == _LENGTH else (0, start, start)
    except IndexError:
        return


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """A number and where it ends; one of more than ten bytes counts as cut short."""
    byte = data[at]
    if byte < 0x80:  # noqa: PLR2004 - the last byte of a varint
        return byte, at + 1
    value = byte & 0x7F
    for shift in range(7, 64, 7):
        at += 1
        byte = data[at]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:  # noqa: PLR2004
            return value, at + 1
    raise IndexError(at)
