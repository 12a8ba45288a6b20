"""Spans to OTLP bytes by hand, for those that hold nothing but what ours hold; the others by OpenTelemetry's encoder.

That one makes three protobuf objects of each attribute, 1.8 us, which was most of what the agent does: on a machine
that is full, an agent at work is what an engine waits for. Here an attribute is joined from bytes (docs/adr/0008).
The numbers of fields are those of opentelemetry/proto/trace/v1/trace.proto and common/v1/common.proto.
"""

from __future__ import annotations

from functools import lru_cache
from struct import Struct
from typing import TYPE_CHECKING, Any

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.trace import SpanKind

from axonize_core.cpus import yielding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import Link, Status

__all__ = ["encode_traces"]

_KINDS = {
    kind: bytes((0x30, number))
    for number, kind in enumerate(
        (SpanKind.INTERNAL, SpanKind.SERVER, SpanKind.CLIENT, SpanKind.PRODUCER, SpanKind.CONSUMER), start=1
    )
}
_TIMES = Struct("<cQcQ").pack
_FLAGS = Struct("<2sI").pack
_DOUBLE = Struct("<cd").pack
_HAS_IS_REMOTE, _IS_REMOTE = 0x100, 0x200
_SMALL = [bytes((number,)) for number in range(128)]
_INT64 = 1 << 63
_MOST_AROUND = 128
_kept_around: dict[Any, tuple[bytes, bytes]] = {}
"""By resource and scope, of which a machine has a few."""
_KEPT_LENGTH = 256
"""Longer texts are encoded each time: a plugin's may be of any length, and what is kept must not be."""


class _Unusual(Exception):  # noqa: N818 - no error: another way is taken
    """A span that OpenTelemetry's own encoder is to take."""


def encode_traces(spans: Sequence[ReadableSpan]) -> bytes:
    """Return one ExportTraceServiceRequest, in which spans of one resource and scope stand together."""
    groups: dict[Any, tuple[ReadableSpan, list[bytes]]] = {}
    for span in yielding(spans):
        key = (span.resource, span.instrumentation_scope)
        group = groups.get(key)
        if group is None:
            group = groups[key] = (span, [])
        try:
            body = _span(span)
        except Exception:  # noqa: BLE001 - whatever it is, what the official encoder makes of it is right
            body = _by_official(span).SerializeToString()
        group[1].append(b"\x12" + _varint(len(body)) + body)  # ScopeSpans.spans
    return b"".join(_resource_spans(*_around(key, first), bodies) for key, (first, bodies) in groups.items())


def _by_official(span: ReadableSpan) -> Any:
    return encode_spans([span]).resource_spans[0].scope_spans[0].spans[0]


def _around(key: Any, span: ReadableSpan) -> tuple[bytes, bytes]:
    """Return what stands around spans of this resource and scope: OpenTelemetry's own bytes of either."""
    if key not in _kept_around:
        if len(_kept_around) >= _MOST_AROUND:
            _kept_around.clear()
        around = encode_spans([span]).resource_spans[0]
        scope = around.scope_spans[0]
        del around.scope_spans[:], scope.spans[:]
        _kept_around[key] = around.SerializeToString(), scope.SerializeToString()
    return _kept_around[key]


def _resource_spans(around: bytes, scope: bytes, bodies: Iterable[bytes]) -> bytes:
    """Return a ResourceSpans as a field of the request."""
    scope_spans = b"".join((scope, *bodies))
    start = b"\x12" + _varint(len(scope_spans))
    length = len(around) + len(start) + len(scope_spans)
    return b"".join((b"\x0a", _varint(length), around, start, scope_spans))


def _span(span: ReadableSpan) -> bytes:
    context, parent, attributes = span.context, span.parent, span.attributes
    if context is None or context.trace_state or span.events or span.start_time is None or span.end_time is None:
        raise _Unusual
    if span.dropped_attributes or span.dropped_events or span.dropped_links or span.kind not in _KINDS:
        raise _Unusual
    flags = _HAS_IS_REMOTE
    parts = [b"\x0a\x10", context.trace_id.to_bytes(16, "big"), b"\x12\x08", context.span_id.to_bytes(8, "big")]
    if parent is not None:
        parts += (b"\x22\x08", parent.span_id.to_bytes(8, "big"))
        if parent.is_remote:
            flags |= _IS_REMOTE
    parts += (_name(span.name), _KINDS[span.kind], _TIMES(b"\x39", span.start_time, b"\x41", span.end_time))
    for key, value in attributes.items() if attributes else ():
        encode = _VALUES.get(type(value))
        if encode is None:
            raise _Unusual
        if type(value) is str and len(value) <= _KEPT_LENGTH:
            parts.append(_string(key, value))
        else:
            both = _key(key) + encode(value)
            parts.append(b"\x4a" + _varint(len(both)) + both)
    for link in span.links or ():
        parts.append(_link(link))
    parts += (_status(span.status), _FLAGS(b"\x85\x01", flags))
    return b"".join(parts)


def _link(link: Link) -> bytes:
    context = link.context
    if link.attributes or link.dropped_attributes:
        raise _Unusual
    flags = _HAS_IS_REMOTE | (_IS_REMOTE if context.is_remote else 0)
    ids = context.trace_id.to_bytes(16, "big") + b"\x12\x08" + context.span_id.to_bytes(8, "big")
    body = b"\x0a\x10" + ids + b"\x35" + flags.to_bytes(4, "little")
    return b"\x6a" + _SMALL[len(body)] + body


def _status(status: Status) -> bytes:
    if status is None:
        raise _Unusual
    code = status.status_code.value
    message = _text(b"\x12", status.description) if status.description else b""
    body = message + (b"\x18" + _SMALL[code] if code else b"")
    return b"\x7a" + _varint(len(body)) + body


@lru_cache(maxsize=256)
def _name(name: str) -> bytes:
    return _text(b"\x2a", name)


@lru_cache(maxsize=1024)
def _key(key: str) -> bytes:
    """Return the name of an attribute with the tag of its value."""
    return _text(b"\x0a", key) + b"\x12"


@lru_cache(maxsize=4096)
def _string(key: str, value: str) -> bytes:
    """Return a whole attribute: most texts are the same in each span, as the device's name."""
    both = _key(key) + _of_str(value)
    return b"\x4a" + _varint(len(both)) + both


def _text(tag: bytes, text: str) -> bytes:
    data = text.encode()
    return tag + _varint(len(data)) + data


def _varint(number: int) -> bytes:
    if number < 128:  # noqa: PLR2004 - seven bits fit into one byte
        return _SMALL[number]
    found = bytearray()
    while number > 0x7F:  # noqa: PLR2004 - same
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


def _of_str(value: str) -> bytes:
    data = value.encode()
    size = len(data)
    if size < 126:  # noqa: PLR2004 - both lengths fit into one byte
        return _SMALL[size + 2] + b"\x0a" + _SMALL[size] + data
    inner = b"\x0a" + _varint(size) + data
    return _varint(len(inner)) + inner


def _of_int(value: int) -> bytes:
    if 0 <= value < 128:  # noqa: PLR2004 - same
        return b"\x02\x18" + _SMALL[value]
    if not -_INT64 <= value < _INT64:
        raise _Unusual
    inner = b"\x18" + _varint(value & 0xFFFFFFFFFFFFFFFF)
    return _SMALL[len(inner)] + inner


def _of_float(value: float) -> bytes:
    return b"\x09" + _DOUBLE(b"\x21", value)


def _of_bool(value: bool) -> bytes:
    return b"\x02\x10\x01" if value else b"\x02\x10\x00"


def _of_bytes(value: bytes) -> bytes:
    inner = b"\x3a" + _varint(len(value)) + value
    return _varint(len(inner)) + inner


def _of_sequence(values: Sequence[Any]) -> bytes:
    items = []
    for value in values:
        encode = _VALUES.get(type(value))
        if encode is None:
            raise _Unusual
        items.append(b"\x0a" + encode(value))
    array = b"".join(items)
    inner = b"\x2a" + _varint(len(array)) + array
    return _varint(len(inner)) + inner


_VALUES: dict[type, Callable[[Any], bytes]] = {
    str: _of_str,
    int: _of_int,
    float: _of_float,
    bool: _of_bool,
    bytes: _of_bytes,
    list: _of_sequence,
    tuple: _of_sequence,
}
"""By the very type: the length of an AnyValue and what it holds."""
