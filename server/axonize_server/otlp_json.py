"""OTLP/JSON into protobuf bytes, at the door: behind it there is one encoding.

OTLP's mapping is protobuf's own but for ids, which are hexadecimal: names in lowerCamelCase or as in the schema,
enums as numbers or names, 64-bit numbers as text or numbers, bytes in base64, null for what is not set; unknown
fields are ignored. Protobuf's `json_format` reads ids as base64, and a hundred times slower.
"""

from __future__ import annotations

import base64
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec
from google.protobuf.descriptor import FieldDescriptor
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from axonize_server.otlp import InvalidRequestError
from axonize_server.otlp_json_spans import usual_trace_body

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.descriptor import Descriptor

__all__ = ["to_protobuf"]

_REQUESTS: Final[dict[str, Any]] = {
    "traces": ExportTraceServiceRequest,
    "metrics": ExportMetricsServiceRequest,
    "logs": ExportLogsServiceRequest,
}
_HEXADECIMAL = {"trace_id", "span_id", "parent_span_id"}
# Of several values, against OTLP in one AnyValue, the short way takes the first of these, and protobuf the last given.
_VALUES = ("string_value", "int_value", "double_value", "bool_value", "array_value", "kvlist_value", "bytes_value")
# What the objects of a body take in memory is many times what they take as text; in a small one it does not matter.
_LOOKED_AT_BYTES = 4 << 20
_MAX_OBJECTS = 1 << 20
_MAX_ITEMS = 1 << 23


def to_protobuf(signal: str, body: bytes | memoryview) -> bytes:
    """The bytes of an Export*ServiceRequest that came as JSON.

    Raises:
        InvalidRequestError: It is no JSON, no such message, or made of more objects than there is memory for.
    """
    if len(body) > _LOOKED_AT_BYTES and _is_too_much(bytes(body)):
        raise InvalidRequestError(f"the body holds more than {_MAX_OBJECTS} objects; send fewer at once")
    if signal == "traces" and (usual := usual_trace_body(body)) is not None:
        return usual
    kind = _REQUESTS[signal]
    try:
        fields = _reader(kind.DESCRIPTOR)(msgspec.json.decode(body))
        return bytes(kind(**fields).SerializeToString())
    except (msgspec.MsgspecError, TypeError, ValueError, RecursionError) as error:
        raise InvalidRequestError(f"the body is no valid {kind.__name__} in JSON: {error}") from error


def _is_too_much(text: bytes) -> bool:
    return _count(text, b"{[") > _MAX_OBJECTS or _count(text, b",") > _MAX_ITEMS


def _count(text: bytes, characters: bytes) -> int:
    return len(text) - len(text.translate(None, characters))


class _Reader:
    """Reads the JSON of one kind of message into what its class takes: a dict of fields, nested ones as dicts too."""

    def __init__(self, descriptor: Descriptor) -> None:
        self._name = descriptor.name
        self._fields = {
            name: _field(field) for field in descriptor.fields for name in (field.name, field.camelcase_name)
        }

    def __call__(self, given: object) -> dict[str, Any]:
        """Give the fields that are set.

        Raises:
            TypeError, ValueError: The message or something in it cannot be what it is.
        """
        if not isinstance(given, dict):
            raise TypeError(f"{self._name} must be an object, not {given!r:.100}")
        fields, found = self._fields, {}
        for name, value in given.items():
            if value is not None and (field := fields.get(name)) is not None:
                try:
                    found[field[0]] = field[1](value)
                except (TypeError, ValueError) as error:
                    raise ValueError(f"{name}: {error}") from error
        return dict(sorted(found.items(), key=_first_last)) if len(found) > 1 and self._name == "AnyValue" else found


class _Nested:
    """The reader of a field's message, made when it is first used: messages may hold themselves."""

    def __init__(self, descriptor: Descriptor) -> None:
        self._descriptor = descriptor
        self._reader: _Reader | None = None

    def __call__(self, value: object) -> dict[str, Any]:
        if self._reader is None:
            self._reader = _reader(self._descriptor)
        return self._reader(value)


def _first_last(field: tuple[str, Any]) -> int:
    return -_VALUES.index(field[0]) if field[0] in _VALUES else -len(_VALUES)


_readers: dict[str, _Reader] = {}


def _reader(descriptor: Descriptor) -> _Reader:
    if descriptor.full_name not in _readers:
        _readers[descriptor.full_name] = _Reader(descriptor)
    return _readers[descriptor.full_name]


def _field(field: FieldDescriptor) -> tuple[str, Callable[[Any], Any]]:
    """A field's name, and what reads its value."""
    single = _scalar(field) if field.message_type is None else _Nested(field.message_type)
    return field.name, partial(_each, single) if field.is_repeated else single


def _each(read: Callable[[Any], Any], values: object) -> list[Any]:
    if not isinstance(values, list):
        raise TypeError(f"expected an array, not {values!r:.100}")
    return [read(value) for value in values]


def _scalar(field: FieldDescriptor) -> Callable[[Any], Any]:
    if field.enum_type is not None:
        return partial(_enum, {value.name: value.number for value in field.enum_type.values})
    if field.cpp_type in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return _float
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return _bool
    if field.cpp_type != FieldDescriptor.CPPTYPE_STRING:
        return _int
    if field.type != FieldDescriptor.TYPE_BYTES:
        return _text
    return bytes.fromhex if field.name in _HEXADECIMAL else _base64


def _enum(numbers: dict[str, int], value: Any) -> int:
    """The number of an enum value; a name of a newer OTLP is an unknown one, and is not set."""
    if isinstance(value, str) and not value.lstrip("-").isdigit():
        return numbers.get(value, 0)
    return _int(value)


def _int(value: Any) -> int:
    """As msgspec reads one, which the short way leaves it to."""
    if isinstance(value, bool):
        raise TypeError("not an integer")
    try:
        return msgspec.convert(value, int, strict=False)
    except msgspec.ValidationError as error:
        raise ValueError("not an integer") from error


def _float(value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError("not a number")
    try:
        return float(value)
    except OverflowError as error:  # an integer beyond all doubles
        raise ValueError("not a number that fits a double") from error


def _bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError("not true or false")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("not text")
    return value


def _base64(value: str) -> bytes:
    """Standard or URL-safe, padded or not."""
    plain = value.translate({ord("-"): "+", ord("_"): "/"}).rstrip("=")
    return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
