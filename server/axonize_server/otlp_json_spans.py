"""Usual OTLP/JSON trace bodies into protobuf bytes, without a protobuf object per span or attribute.

msgspec reads the JSON into typed structs in C; what is left per attribute is to put the bytes of a KeyValue
together, most of which its key and the length of its value decide: those heads are kept. Anything unusual (an
unknown field, original instead of JSON names, a null) is left to `otlp_json`, which a test holds this against.
"""

from __future__ import annotations

import base64
import struct

import msgspec
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

__all__ = ["usual_trace_body"]

_KEYS_KEPT = 2048
_SIZES_KEPT = 128
_INT_BYTES = 11  # of the longest AnyValue that is an integer


def _varint(number: int) -> bytes:
    if number < len(_VARINTS):
        return _VARINTS[number]
    out = bytearray()
    while number > 0x7F:  # noqa: PLR2004 - seven bits a byte
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


_VARINTS: list[bytes] = []
_VARINTS = [_varint(number) for number in range(1 << 12)]
_pack_double = struct.Struct("<d").pack
_pack_time = struct.Struct("<Q").pack
_pack_flags = struct.Struct("<I").pack
_pack_times = struct.Struct("<BQBQ").pack
_number_value = AnyValue()  # upb makes a varint faster than Python can


class _Message(msgspec.Struct, gc=False, rename="camel", forbid_unknown_fields=True):
    """A message under OTLP/JSON's names; it cannot be part of a cycle."""


class _Array(_Message):
    values: list[_AnyValue] = []


class _KvList(_Message):
    values: list[_KeyValue] = []


class _AnyValue(_Message):
    string_value: str | None = None
    int_value: int | None = None
    double_value: float | None = None
    bool_value: bool | None = None
    array_value: _Array | None = None
    kvlist_value: _KvList | None = None
    bytes_value: str | None = None


class _KeyValue(_Message):
    key: str = ""
    value: _AnyValue | None = None


class _Event(_Message):
    time_unix_nano: int = 0
    name: str = ""
    attributes: list[_KeyValue] = []
    dropped_attributes_count: int = 0


class _Link(_Message):
    trace_id: str = ""
    span_id: str = ""
    trace_state: str = ""
    attributes: list[_KeyValue] = []
    dropped_attributes_count: int = 0
    flags: int = 0


class _Status(_Message):
    message: str = ""
    code: int = 0


class _Span(_Message):
    trace_id: str = ""
    span_id: str = ""
    trace_state: str = ""
    parent_span_id: str = ""
    flags: int = 0
    name: str = ""
    kind: int = 0
    start_time_unix_nano: int = 0
    end_time_unix_nano: int = 0
    attributes: list[_KeyValue] = []
    dropped_attributes_count: int = 0
    events: list[_Event] = []
    dropped_events_count: int = 0
    links: list[_Link] = []
    dropped_links_count: int = 0
    status: _Status | None = None


class _Scope(_Message):
    name: str = ""
    version: str = ""
    attributes: list[_KeyValue] = []
    dropped_attributes_count: int = 0


class _ScopeSpans(_Message):
    scope: _Scope | None = None
    spans: list[msgspec.Raw] = []
    schema_url: str = ""


class _Resource(_Message):
    attributes: list[_KeyValue] = []
    dropped_attributes_count: int = 0


class _ResourceSpans(_Message):
    resource: _Resource | None = None
    scope_spans: list[_ScopeSpans] = []
    schema_url: str = ""


class _Request(_Message):
    resource_spans: list[_ResourceSpans] = []


_decode = msgspec.json.Decoder(_Request, strict=False).decode
# One by one, so that a span is written while it still is in the processor's cache.
_decode_span = msgspec.json.Decoder(_Span, strict=False).decode


def usual_trace_body(body: bytes | memoryview) -> bytes | None:
    """The protobuf bytes of an ExportTraceServiceRequest in JSON; None when it needs a closer look, or is none."""
    try:
        request = _decode(body)
        return b"".join([_field(b"\x0a", _resource_spans(part)) for part in request.resource_spans])
    except (msgspec.MsgspecError, ValueError, struct.error, RecursionError):
        return None


def _resource_spans(part: _ResourceSpans) -> bytes:
    resource = b""
    if part.resource is not None:
        dropped = _number(b"\x10", part.resource.dropped_attributes_count)
        resource = _field(b"\x0a", b"".join(_attributes(0x0A, part.resource.attributes)) + dropped)
    scopes = b"".join([_field(b"\x12", _scope_spans(scope)) for scope in part.scope_spans])
    return resource + scopes + _text(b"\x1a", part.schema_url)


def _scope_spans(part: _ScopeSpans) -> bytes:
    scope = b""
    if (of := part.scope) is not None:
        dropped = _number(b"\x20", of.dropped_attributes_count)
        named = _text(b"\x0a", of.name) + _text(b"\x12", of.version)
        scope = _field(b"\x0a", named + b"".join(_attributes(0x1A, of.attributes)) + dropped)
    return b"".join([scope, *[_span(_decode_span(span)) for span in part.spans], _text(b"\x1a", part.schema_url)])


def _span(span: _Span) -> bytes:
    parts = [_ids(span.trace_id, span.span_id)]
    if span.trace_state:
        parts.append(_text(b"\x1a", span.trace_state))
    if span.parent_span_id:
        parts.append(_field(b"\x22", bytes.fromhex(span.parent_span_id)))
    times = _pack_times(0x39, span.start_time_unix_nano, 0x41, span.end_time_unix_nano)
    parts += (_text(b"\x2a", span.name), _number(b"\x30", span.kind), times)
    parts += _attributes(0x4A, span.attributes)
    if span.dropped_attributes_count:
        parts.append(_number(b"\x50", span.dropped_attributes_count))
    if span.events:
        parts += map(_event, span.events)
    if span.dropped_events_count:
        parts.append(_number(b"\x60", span.dropped_events_count))
    if span.links:
        parts += map(_link, span.links)
    if span.dropped_links_count:
        parts.append(_number(b"\x70", span.dropped_links_count))
    if (status := span.status) is not None:
        parts.append(_field(b"\x7a", _text(b"\x12", status.message) + _number(b"\x18", status.code)))
    if span.flags:
        parts.append(b"\x85\x01" + _pack_flags(span.flags))
    return _field(b"\x12", b"".join(parts))


def _event(event: _Event) -> bytes:
    parts = [
        b"\x09",
        _pack_time(event.time_unix_nano),
        _text(b"\x12", event.name),
        *_attributes(0x1A, event.attributes),
    ]
    if event.dropped_attributes_count:
        parts.append(_number(b"\x20", event.dropped_attributes_count))
    return _field(b"\x5a", b"".join(parts))


def _link(link: _Link) -> bytes:
    content = _ids(link.trace_id, link.span_id)
    if link.trace_state:
        content += _text(b"\x1a", link.trace_state)
    if link.attributes:
        content += b"".join(_attributes(0x22, link.attributes))
    if link.dropped_attributes_count:
        content += _number(b"\x28", link.dropped_attributes_count)
    return _field(b"\x6a", content + b"\x35" + _pack_flags(link.flags) if link.flags else content)


def _ids(trace_id: str, span_id: str) -> bytes:
    if len(trace_id) == 32 and len(span_id) == 16:  # noqa: PLR2004 - the hexadecimal digits of 16 and 8 bytes
        return b"\x0a\x10%b\x12\x08%b" % (bytes.fromhex(trace_id), bytes.fromhex(span_id))
    return _field(b"\x0a", bytes.fromhex(trace_id)) + _field(b"\x12", bytes.fromhex(span_id))


def _text(tag: bytes, text: str) -> bytes:
    return _field(tag, text.encode()) if text else b""


def _number(tag: bytes, number: int) -> bytes:
    """A number that is not negative and fits 31 bits; any other is unusual."""
    if not number:
        return b""
    if not 0 < number < 1 << 31:
        raise ValueError(number)
    return tag + _varint(number)


def _field(tag: bytes, content: bytes) -> bytes:
    return tag + _varint(len(content)) + content


class _Heads(dict[str, list[bytes]]):
    """What stands before a value, by its key and size: tag, length, key, and the beginning of its AnyValue."""

    def __init__(self, tag: int, beginnings: list[tuple[bytes, int]]) -> None:
        super().__init__()
        self._tag, self._beginnings = bytes([tag]), beginnings

    def __missing__(self, key: str) -> list[bytes]:
        if len(self) >= _KEYS_KEPT:
            self.clear()
        encoded = _text(b"\x0a", key)
        self[key] = heads = [self._head(encoded, beginning, size) for beginning, size in self._beginnings]
        return heads

    def _head(self, key: bytes, beginning: bytes, size: int) -> bytes:
        value = b"\x12" + _varint(len(beginning) + size) + beginning
        return self._tag + _varint(len(key) + len(value) + size) + key + value


def _heads_of(tag: int) -> tuple[_Heads, _Heads, _Heads]:
    texts = [(b"\x0a" + _varint(size), size) for size in range(_SIZES_KEPT)]
    numbers = [(b"", size) for size in range(_INT_BYTES + 1)]
    return _Heads(tag, texts), _Heads(tag, numbers), _Heads(tag, [(b"\x21", 8)])


_heads = {tag: _heads_of(tag) for tag in (0x0A, 0x1A, 0x22, 0x4A)}


def _attributes(tag: int, pairs: list[_KeyValue]) -> list[bytes]:
    """The pieces of a list of KeyValues."""
    texts, numbers, doubles = _heads[tag]
    parts: list[bytes] = []
    append = parts.append
    for pair in pairs:
        value = pair.value
        if value is None:
            append(_key_value(bytes([tag]), pair))
        elif (text := value.string_value) is not None:
            data = text.encode()
            if len(data) < _SIZES_KEPT:
                append(texts[pair.key][len(data)])
                append(data)
            else:
                append(_key_value(bytes([tag]), pair))
        elif (number := value.int_value) is not None:
            _number_value.int_value = number
            data = _number_value.SerializeToString()
            append(numbers[pair.key][len(data)])
            append(data)
        elif (double := value.double_value) is not None:
            append(doubles[pair.key][0])
            append(_pack_double(double))
        else:
            append(_key_value(bytes([tag]), pair))
    return parts


def _key_value(tag: bytes, pair: _KeyValue) -> bytes:
    value = b"" if pair.value is None else _field(b"\x12", _any_value(pair.value))
    return _field(tag, _text(b"\x0a", pair.key) + value)


def _any_value(value: _AnyValue) -> bytes:  # noqa: PLR0911 - one for each kind of value
    if value.string_value is not None:
        return _field(b"\x0a", value.string_value.encode())
    if value.bool_value is not None:
        return b"\x10\x01" if value.bool_value else b"\x10\x00"
    if value.int_value is not None:
        return AnyValue(int_value=value.int_value).SerializeToString()
    if value.double_value is not None:
        return b"\x21" + _pack_double(value.double_value)
    if value.array_value is not None:
        return _field(b"\x2a", b"".join([_field(b"\x0a", _any_value(item)) for item in value.array_value.values]))
    if value.kvlist_value is not None:
        return _field(b"\x32", b"".join([_key_value(b"\x0a", pair) for pair in value.kvlist_value.values]))
    if value.bytes_value is not None:
        return _field(b"\x3a", base64.b64decode(value.bytes_value, validate=True))
    return b""
