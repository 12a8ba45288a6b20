"""Attributes of OTLP/JSON into protobuf bytes, and what any message takes for it.

msgspec reads them into typed structs in C; what is left is to put the bytes of each KeyValue together, most of
which its key and the length of its value decide: those heads are kept. A text or a double takes 75 ns, a large
integer 210. One thread at a time may use this.
"""

from __future__ import annotations

import base64
import struct
from typing import TYPE_CHECKING, Any

import msgspec
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

if TYPE_CHECKING:
    from collections.abc import Callable, MutableSequence

__all__ = ["SHORT", "UNSET", "Heads", "KeyValue", "attributes", "field", "number", "starts", "text"]

UNSET: Any = None  # what is not given; types that allow None would also allow null, which is unusual, and "null"
SHORT = 128  # contents of fewer bytes than this have a kept head
_KEYS_KEPT = 512
_KEY_BYTES = 64  # of the longest key kept: 33 MB hold the heads of all keys of all tags, at worst
_VARINTS_KEPT = 4096  # tables of 16384 do not stay in the processor's cache: with them a body takes a sixth longer
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
_VARINTS = [_varint(number) for number in range(_VARINTS_KEPT)]
_INTS = [b"\x18" + varint for varint in _VARINTS]  # small integers as AnyValues
_pack_double = struct.Struct("<d").pack


def _int_writer() -> tuple[MutableSequence[int], Callable[[], bytes]]:
    """A list of one integer, and what writes that integer as the content of an AnyValue.

    upb makes the varint of a large one faster than Python can: in 100 ns like this, in 125 if it is to be set by the
    name of its field, in 200 if the method is looked up each time too.
    """
    kind = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="axonize/ints.proto", package="axonize.ints", syntax="proto2")
    fields = file.message_type.add(name="Ints").field
    fields.add(name="ints", number=3, type=kind.TYPE_INT64, label=kind.LABEL_REPEATED)  # as AnyValue.int_value
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    message: Any = message_factory.GetMessageClass(pool.FindMessageTypeByName("axonize.ints.Ints"))()
    message.ints.append(0)
    return message.ints, message.SerializeToString


_int_to_write, _write_int = _int_writer()


class _Message(msgspec.Struct, gc=False, rename="camel", forbid_unknown_fields=True):
    """A message under OTLP/JSON's names; it cannot be part of a cycle."""


class _Array(_Message):
    values: list[_AnyValue] = []


class _KvList(_Message):
    values: list[KeyValue] = []


class _AnyValue(_Message):
    string_value: str = UNSET
    int_value: int = UNSET
    double_value: float = UNSET
    bool_value: Any = UNSET  # of which msgspec, as lenient as it is for numbers, would take 1 and "true" too
    array_value: _Array = UNSET
    kvlist_value: _KvList = UNSET
    bytes_value: str = UNSET


class KeyValue(_Message):
    """An attribute, as msgspec reads it."""

    key: str = ""
    value: _AnyValue = UNSET


def text(tag: bytes, string: str) -> bytes:
    """A field that is left out when it is empty."""
    return field(tag, string.encode()) if string else b""


def number(tag: bytes, integer: int) -> bytes:
    """A field that is left out when it is 0.

    Raises:
        ValueError: It is negative or has more than 31 bits, which is unusual.
    """
    if not integer:
        return b""
    if not 0 < integer < 1 << 31:
        raise ValueError(integer)
    return tag + _varint(integer)


def field(tag: bytes, content: bytes) -> bytes:
    """A field with a length, be it 0."""
    size = len(content)
    return tag + (_VARINTS[size] if size < _VARINTS_KEPT else _varint(size)) + content


def starts(tag: bytes) -> list[bytes]:
    """What stands before a content that is left out when it is empty, by its size."""
    return [b"", *[tag + _varint(size) for size in range(1, SHORT)]]


class Heads:
    """What stands before a value, by its key and size: tag, length, key, and the beginning of its AnyValue.

    In plain dicts: to look one up in a dict with a `__missing__` takes 20 ns more.
    """

    def __init__(self, tag: int) -> None:
        self.tag = bytes([tag])
        self.texts: dict[str, list[bytes]] = {}
        self.numbers: dict[str, list[bytes]] = {}
        self.doubles: dict[str, bytes] = {}

    def learn(self, key: str) -> None:
        """Keep those of another key if it is short and there is room."""
        if key in self.texts or len(self.texts) >= _KEYS_KEPT or len(encoded := text(b"\x0a", key)) > _KEY_BYTES:
            return
        self.texts[key] = [self._head(encoded, b"\x0a" + _varint(size), size) for size in range(SHORT)]
        self.numbers[key] = [self._head(encoded, b"", size) for size in range(_INT_BYTES + 1)]
        self.doubles[key] = self._head(encoded, b"\x21", 8)

    def _head(self, key: bytes, beginning: bytes, size: int) -> bytes:
        value = b"\x12" + _varint(len(beginning) + size) + beginning
        return self.tag + _varint(len(key) + len(value) + size) + key + value

    def forget_if_full(self) -> None:
        """Make room; done between bodies, because a body of nothing but new keys must not have them all learnt."""
        if len(self.texts) >= _KEYS_KEPT:
            for kept in (self.texts, self.numbers, self.doubles):
                kept.clear()


def attributes(parts: list[bytes], heads: Heads, pairs: list[KeyValue]) -> None:
    """Append the pieces of a list of KeyValues."""
    texts, numbers, doubles = heads.texts, heads.numbers, heads.doubles
    for pair in pairs:
        value = pair.value
        try:
            if (string := value.string_value) is not None:
                data = string.encode()
                parts.append(texts[pair.key][len(data)])
                parts.append(data)
            elif (integer := value.int_value) is not None:
                if integer < _VARINTS_KEPT and integer >= 0:
                    data = _INTS[integer]
                else:
                    _int_to_write[0] = integer
                    data = _write_int()
                parts.append(numbers[pair.key][len(data)])
                parts.append(data)
            elif (double := value.double_value) is not None:
                parts.append(doubles[pair.key])
                parts.append(_pack_double(double))
            else:
                parts.append(_key_value(heads.tag, pair))
        except (LookupError, AttributeError):  # a new key, a long text, or no value
            parts.append(_key_value(heads.tag, pair))
            heads.learn(pair.key)


def _key_value(tag: bytes, pair: KeyValue) -> bytes:
    value = b"" if pair.value is None else field(b"\x12", _any_value(pair.value))
    return field(tag, text(b"\x0a", pair.key) + value)


def _any_value(value: _AnyValue) -> bytes:  # noqa: PLR0911 - one for each kind of value
    if value.string_value is not None:
        return field(b"\x0a", value.string_value.encode())
    if value.int_value is not None:
        return AnyValue(int_value=value.int_value).SerializeToString()
    if value.double_value is not None:
        return b"\x21" + _pack_double(value.double_value)
    if value.bool_value is not None:
        if not isinstance(value.bool_value, bool):
            raise ValueError(value.bool_value)
        return b"\x10\x01" if value.bool_value else b"\x10\x00"
    if value.array_value is not None:
        return field(b"\x2a", b"".join([field(b"\x0a", _any_value(item)) for item in value.array_value.values]))
    if value.kvlist_value is not None:
        return field(b"\x32", b"".join([_key_value(b"\x0a", pair) for pair in value.kvlist_value.values]))
    if value.bytes_value is not None:
        return field(b"\x3a", base64.b64decode(value.bytes_value, validate=True))
    return b""
