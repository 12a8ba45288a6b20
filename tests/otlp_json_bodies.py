"""OTLP requests as JSON, made by protobuf's own encoder with ids in hexadecimal: the reference for ours."""

from __future__ import annotations

import base64
import json

from google.protobuf import json_format

IDS = {"traceId", "spanId", "parentSpanId", "trace_id", "span_id", "parent_span_id"}


def as_json(request, **options):
    """A request's JSON; `options` are those of protobuf's `MessageToDict`."""
    options = {"use_integers_for_enums": True, **options}
    return json.dumps(_hexadecimal(json_format.MessageToDict(request, **options))).encode()


def _hexadecimal(value):
    if isinstance(value, list):
        return [_hexadecimal(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        name: base64.b64decode(inner).hex() if name in IDS else _hexadecimal(inner) for name, inner in value.items()
    }
