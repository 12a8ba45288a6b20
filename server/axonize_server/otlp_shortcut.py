"""Proves a usual trace body valid without a Python object per span.

Walking 512 spans with a link each costs about as much as parsing them did. Here upb parses the body a second
time with a schema of ids and times only, drops all else, and writes each scope back in canonical form (known
fields once, in ascending order). One regular expression then reads that whole.

Why a match is a proof: a match can only begin where a span begins, and every piece of the pattern fixes a
field's tag, its length and its payload, so that it ends where a field ends. The start time, which is
required, comes after the ids and has a tag that no span header has, so a span cannot borrow bytes of its
successor. `otlp.validate_traces` walks the spans whenever there is no match; a test holds the two together.

Whether the spans are in the window is read off the high bytes of their start times: whole buckets of 78 h are in
it but the first and the last; of the last, in which now usually is, a pattern made anew every 18 min takes a part.
"""

from __future__ import annotations

import re
import sys
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from axonize_server.otlp_rules import DAY_NS

if TYPE_CHECKING:
    from axonize_server.otlp_rules import Window

__all__ = ["usual_spans"]

# Spans of a scope share the two high bytes of their start times unless they are days apart.
_BUCKET_BITS: Final = 48
# How exactly the newest bucket is held against the clock: 256 slices of 18 min.
_SLICE_BITS: Final = 40

_NOUGHT = bytes(8)  # an id of zeros, or by chance two fields that touch: a closer look decides
_ID16 = rb"\x0a\x10.{16}"
_ID8 = rb"\x12\x08.{8}"
_LENGTH = rb"[\x80-\xff]{0,4}[\x00-\x7f]"
_HEAD = rb"\x12" + _LENGTH + _ID16 + _ID8 + rb"(?:\x22\x08.{8})?"
_START = rb"\x39.{5}"
_END = rb"(?:\x41.{7}[\x00-\x7f])?"
# Nothing in it can match in two ways; possessive repeats (Python 3.11) save the memory of where one could go back.
_ANY = rb"*+" if sys.version_info >= (3, 11) else rb"*"
_LINKS = rb"(?:\x6a\x1c" + _ID16 + _ID8 + rb")" + _ANY
_SPAN = _HEAD + _START + rb"%s" + _END + _LINKS


def _scopes_of(first: bytes, further: bytes) -> re.Pattern[bytes]:
    return re.compile(_SPAN % first + rb"(?:" + _SPAN % further + rb")" + _ANY, re.DOTALL)


_NOTHING = re.compile(rb"(?!)")
_ANY_BUCKET = _scopes_of(rb".(?P<bucket>.[\x00-\x7f])", rb".(?P=bucket)")


def usual_spans(body: bytes | bytearray | memoryview, window: Window) -> tuple[int, set[int]] | None:
    """How many spans a well-formed body has and the days they may lie in; None when they need a closer look.

    Said of spans only that all began within the window.
    """
    request = _schema().FromString(body)
    request.DiscardUnknownFields()
    oldest, newest = window.oldest_ns >> _BUCKET_BITS, window.newest_ns >> _BUCKET_BITS
    in_newest = _newest_bucket(max((window.oldest_ns >> _SLICE_BITS) + 1, newest << 8), window.newest_ns >> _SLICE_BITS)
    records, buckets = 0, set()
    for resource in request.resources:
        for scope in resource.scopes:
            if count := len(scope.spans):
                canonical = scope.SerializeToString(deterministic=True)
                if _NOUGHT in canonical:
                    return None
                bucket = newest if in_newest.fullmatch(canonical) else _bucket_between(oldest, newest, canonical)
                if bucket is None:
                    return None
                records += count
                buckets.add(bucket)
    return records, set().union(*map(_days_of_bucket, buckets))


def _bucket_between(oldest: int, newest: int, canonical: bytes) -> int | None:
    """The bucket in which all spans of a scope began, if it is the only one and neither the first nor the last."""
    if (match := _ANY_BUCKET.fullmatch(canonical)) is None:
        return None
    bucket = int.from_bytes(match["bucket"], "little")
    return bucket if oldest < bucket < newest else None


@lru_cache(maxsize=2)
def _newest_bucket(begin: int, end: int) -> re.Pattern[bytes]:
    """Spans that began in these slices, `end` excluded, all of which are of one bucket."""
    if begin >= end or begin >> 8 != end >> 8:
        return _NOTHING
    slices = rb"[" + re.escape(bytes([begin & 0xFF])) + rb"-" + re.escape(bytes([end - 1 & 0xFF])) + rb"]"
    bucket = re.escape((end >> 8).to_bytes(2, "little"))
    return _scopes_of(slices + bucket, slices + bucket)


@cache
def _days_of_bucket(bucket: int) -> frozenset[int]:
    first, last = bucket << _BUCKET_BITS, ((bucket + 1) << _BUCKET_BITS) - 1
    return frozenset(range(first // DAY_NS, last // DAY_NS + 1))


@cache
def _schema() -> type[Any]:
    """ExportTraceServiceRequest (opentelemetry-proto v1) with nothing but ids and times."""
    kind = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="axonize/ids.proto", package="axonize.ids", syntax="proto3")
    ids = {"trace_id": (1, kind.TYPE_BYTES), "span_id": (2, kind.TYPE_BYTES)}
    times = {"start": (7, kind.TYPE_FIXED64), "end": (8, kind.TYPE_FIXED64)}
    _message(file, "Link", ids)
    _message(file, "Span", {**ids, "parent": (4, kind.TYPE_BYTES), **times}, links=(13, "Link"))
    _message(file, "Scope", {}, spans=(2, "Span"))
    _message(file, "Resource", {}, scopes=(2, "Scope"))
    _message(file, "Request", {}, resources=(1, "Resource"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("axonize.ids.Request"))


def _message(
    file: descriptor_pb2.FileDescriptorProto,
    name: str,
    scalars: dict[str, tuple[int, descriptor_pb2.FieldDescriptorProto.Type.ValueType]],
    **repeated: tuple[int, str],
) -> None:
    kind = descriptor_pb2.FieldDescriptorProto
    message = file.message_type.add(name=name)
    for field, (number, type_) in scalars.items():
        message.field.add(name=field, number=number, type=type_, label=kind.LABEL_OPTIONAL)
    for field, (number, of) in repeated.items():
        message.field.add(
            name=field, number=number, type=kind.TYPE_MESSAGE, label=kind.LABEL_REPEATED, type_name=f".axonize.ids.{of}"
        )
