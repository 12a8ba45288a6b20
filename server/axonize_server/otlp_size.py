"""Refuses a large body made of very many small records before an object is made of each.

An empty span takes two bytes on the wire and a hundred in memory, and some microseconds to look at; an empty
attribute takes thirty. The fields around and inside the records are counted on the wire itself, no further than
the limits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from axonize_server.otlp_rules import MAX_RECORDS

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["too_many_fields"]

_MAX_AROUND: Final = 4 * MAX_RECORDS
_MAX_INSIDE: Final = 1 << 22
_LOOKED_AT_BYTES = 1 << 20
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_FIXED: Final = {_FIXED64: 8, _FIXED32: 4}
# The fields that lead from a request to its records: resources, scopes, records; of a metric its points.
_TO_RECORDS: Final = ({1}, {2}, {2})
_PATHS: Final = {
    "traces": _TO_RECORDS,
    "logs": _TO_RECORDS,
    "metrics": (*_TO_RECORDS, {5, 7, 9, 10, 11}, {1}),
}


def too_many_fields(signal: str, body: bytes | bytearray | memoryview, *, inside: bool) -> bool:
    """Say whether a body holds more fields around its records, or also `inside` them, than any honest one would.

    Counting inside takes longer than parsing, so it is for bodies that become objects. What is not well-formed
    ends the count; the parser refuses it.
    """
    if len(body) <= _LOOKED_AT_BYTES:
        return False
    data, path = memoryview(body), _PATHS[signal]
    left = {False: _MAX_AROUND, True: _MAX_INSIDE}
    deepest = len(path) if inside else len(path) - 1
    waiting = [(0, 0, len(data))]
    while waiting:
        depth, at, end = waiting.pop()
        within = depth == len(path)
        for number, start, stop in _fields(data, at, end):
            left[within] -= 1
            if not left[within]:
                return True
            if depth < deepest and number in path[depth]:
                waiting.append((depth + 1, start, stop))
    return False


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
