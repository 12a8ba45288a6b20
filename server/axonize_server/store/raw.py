"""Attribute values that have no scalar type, decoded from the bytes they are stored as."""

from __future__ import annotations

from typing import TYPE_CHECKING, Union

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["Value", "attributes_of", "key_values", "merged"]

Value = Union[str, int, float, bool, bytes, None, "list[Value]", "dict[str, Value]"]
"""An attribute's value in Python; None is a value that was sent unset."""


def merged(scalars: Iterable[Mapping[str, Value]], raw: Mapping[str, str]) -> dict[str, Value]:
    """Put the five maps of a level together; the fifth has hexadecimal values."""
    attributes: dict[str, Value] = {}
    for part in scalars:
        attributes.update(part)
    attributes.update({key: _raw(bytes.fromhex(value)) for key, value in raw.items()})
    return attributes


def key_values(raw: Iterable[str]) -> dict[str, Value]:
    """Decode attributes kept as one encoded KeyValue each, in hexadecimal."""
    return attributes_of(KeyValue.FromString(bytes.fromhex(value)) for value in raw)


def attributes_of(pairs: Iterable[KeyValue]) -> dict[str, Value]:
    """Give attributes as a dict; of a repeated key the last value stays."""
    return {pair.key: _value(pair.value) for pair in pairs}


def _raw(data: bytes) -> Value:
    """Decode a letter and its bytes, as the explode writes them."""
    kind, body = data[:1], data[1:]
    if kind == b"a":
        return [_value(value) for value in ArrayValue.FromString(body).values]
    if kind == b"k":
        return attributes_of(KeyValueList.FromString(body).values)
    return body if kind == b"b" else None


def _value(value: AnyValue) -> Value:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return attributes_of(value.kvlist_value.values)
    if kind in ("string_value", "int_value", "double_value", "bool_value", "bytes_value"):
        scalar: Value = getattr(value, kind)
        return scalar
    return None
