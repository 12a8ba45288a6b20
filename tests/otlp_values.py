"""Python values as OTLP encodes them, and one of every kind."""

from __future__ import annotations

from typing import Any

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue


def value_of(value: Any) -> AnyValue:
    """Encode a Python value as OTLP does; None is a value that was never set."""
    encoded = AnyValue()
    if isinstance(value, bool):
        encoded.bool_value = value
    elif isinstance(value, int):
        encoded.int_value = value
    elif isinstance(value, float):
        encoded.double_value = value
    elif isinstance(value, str):
        encoded.string_value = value
    elif isinstance(value, bytes):
        encoded.bytes_value = value
    elif isinstance(value, list):
        encoded.array_value.SetInParent()
        encoded.array_value.values.extend(map(value_of, value))
    elif isinstance(value, dict):
        encoded.kvlist_value.SetInParent()
        encoded.kvlist_value.values.extend(pairs_of(value))
    return encoded


def pairs_of(attributes: dict[str, Any]) -> list[KeyValue]:
    return [KeyValue(key=key, value=value_of(value)) for key, value in attributes.items()]


EVERYTHING = {
    "text": "plain",
    "unicode": "naïve 漢字 🙂 \u202eright to left",
    "control": "tab\tnewline\nquote'double\"back\\slash\x00nul",
    "empty": "",
    "zero": 0,
    "one": 1,
    "least": -(2**63),
    "most": 2**63 - 1,
    "false": False,
    "true": True,
    "float_zero": 0.0,
    "float_minus_zero": -0.0,
    "float": 0.1,
    "tiny": 5e-324,
    "nan": float("nan"),
    "infinite": float("inf"),
    "minus_infinite": float("-inf"),
    "bytes": bytes(range(256)),
    "no_bytes": b"",
    "unset": None,
    "array": ["a", 1, 2.5, False, b"\x00\xff", None],
    "no_array": [],
    "nested": [[1, [2, [3, []]]], {"k": [{"deep": b"\x01"}]}],
    "map": {"a": 1, "b": {"c": [], "d": {}}, "": ""},
    "no_map": {},
    "": "an empty key",
    "ai.phase": 7,
    "gen_ai.response.finish_reasons": "not an array",
}
