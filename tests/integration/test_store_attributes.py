"""Attribute values in every encoding that protobuf allows: what is stored is what its own library reads."""

from __future__ import annotations

import struct
import time

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from axonize_server.spool import INSERT_SETTINGS, header_message, request_frame
from axonize_server.store.raw import attributes_of
from axonize_server.store.spans import COLUMNS, typed_span

NUMBERS = sorted({sign * ((1 << bit) + more) for bit in range(63) for more in (-1, 0, 1) for sign in (1, -1)})
NUMBERS += [-(2**63), -(2**63) + 1, 2**63 - 1]
LENGTHS = sorted({max(edge + more, 0) for edge in (1, 1 << 7, 1 << 14, 1 << 21) for more in (-3, -2, -1, 0, 1, 2)})
FLOATS = [0.0, -0.0, 1.5, float("inf"), 1e-310]

ODD = {
    "a length with a leading zero": b"\x0a\x82\x00hi",
    "a long length with a leading zero": b"\x0a\xc8\x81\x00" + 200 * b"x",
    "a first byte with a leading zero": b"\x8a\x00\x02hi",
    "a number with a leading zero": b"\x18\x85\x80\x00",
    "a truth of 2": b"\x10\x02",
    "a truth of two bytes": b"\x10\x81\x00",
    "a text, then a number": b"\x0a\x02hi\x18\x07",
    "a number, then a text": b"\x18\x07\x0a\x02hi",
    "two texts": b"\x0a\x02ho\x0a\x02hi",
    "two numbers": b"\x18\x07\x18\x08",
    "two long numbers": b"\x18" + 9 * b"\xff" + b"\x01\x18" + 9 * b"\xfe" + b"\x01",
    "two floats": b"\x21" + struct.pack("<d", 1.0) + b"\x21" + struct.pack("<d", 2.0),
    "a list with a leading zero": b"\x2a\x80\x00",
    "a field that nobody knows": b"\x0a\x02hi\xa0\x06\x01",
}
HARMLESS = [ODD["a number with a leading zero"]]
"""The statement decodes it all the same."""


@pytest.fixture
def inserted(store, tmp_path, monkeypatch):
    """Insert one request; gives back its only span's attributes as stored, and how many statements that took."""

    def insert(body):
        statements = []
        insert_once = store._insert

        def counted(*given):
            statements.append(given)
            return insert_once(*given)

        monkeypatch.setattr(store, "_insert", counted)
        length, trailer = request_frame(body, tenant="theirs", received_ns=time.time_ns())
        segment = tmp_path / "segment.pb"
        segment.write_bytes(header_message("traces") + length + body + trailer)
        store.insert(segment, "traces", "token", INSERT_SETTINGS)
        rows = store.query(f"SELECT {COLUMNS} FROM {store.database}.spans WHERE tenant = 'theirs'")
        return typed_span(rows[0]), len(statements)

    return insert


def request_with_a_span():
    request = ExportTraceServiceRequest()
    resource = request.resource_spans.add()
    now_ns = time.time_ns()
    span = resource.scope_spans.add().spans.add(
        trace_id=bytes(range(16)), span_id=bytes(range(8)), start_time_unix_nano=now_ns, end_time_unix_nano=now_ns
    )
    return request, resource.resource.attributes, span.attributes


def test_values_of_every_size_come_back(inserted):
    """Numbers and texts beside each size at which their encoding changes, of spans and resources, in one statement."""
    request, *levels = request_with_a_span()
    for attributes in levels:
        for number in NUMBERS:
            attributes.add(key=f"int {number}").value.int_value = number
        for length in LENGTHS:
            attributes.add(key=f"text {length}").value.string_value = "é" * (length // 2) + "x" * (length % 2)
            attributes.add(key=f"bytes {length}").value.bytes_value = bytes(length)
        for number in FLOATS:
            attributes.add(key=f"float {number}").value.double_value = number
        for truth in (True, False):
            attributes.add(key=f"bool {truth}").value.bool_value = truth
        attributes.add(key="unset")
        attributes.add(key="empty").value.SetInParent()
        attributes.add(key="empty list").value.array_value.SetInParent()
        attributes.add(key="empty pairs").value.kvlist_value.SetInParent()
        attributes.add(key="list").value.array_value.values.add().string_value = "x" * 300
        attributes.add(key="pairs").value.kvlist_value.values.add(key="k").value.int_value = -1
    span, statements = inserted(request.SerializeToString())
    assert repr(span["resource"]["attributes"]) == repr(in_order(levels[0], span["resource"]["attributes"]))
    assert repr(span["attributes"]) == repr(in_order(levels[1], span["attributes"]))
    assert len(span["attributes"]) == len(levels[1]) > 400
    assert statements == 1


def in_order(sent, stored):
    """What was sent, in the order of what was stored: repr then tells 0.0 from -0.0, and True from 1."""
    values = attributes_of(sent)
    assert set(values) == set(stored)
    return {key: values[key] for key in stored}


@pytest.mark.parametrize("value", ODD.values(), ids=ODD.keys())
def test_an_unusual_encoding_is_stored_as_protobuf_reads_it(inserted, value):
    """The statement that takes what every encoder writes ends; the segment is encoded anew, and that is stored."""
    pair = b"\x0a\x01k\x12" + varint(len(value)) + value
    request, *_ = request_with_a_span()
    span = request.resource_spans[0].scope_spans[0].spans[0].SerializeToString() + b"\x4a" + varint(len(pair)) + pair
    scope = b"\x12" + varint(len(span)) + span
    resource = b"\x12" + varint(len(scope)) + scope
    body = b"\x0a" + varint(len(resource)) + resource
    official = ExportTraceServiceRequest.FromString(body).resource_spans[0].scope_spans[0].spans[0].attributes
    assert len(official) == 1
    stored, statements = inserted(body)
    assert stored["attributes"] == attributes_of(official)
    assert statements == (1 if value in HARMLESS else 2)


def test_an_unusual_segment_counts_once(store, tmp_path):
    """Asked for again, under the token of the first time, it is known: in the table and in those behind it."""
    request, _, attributes = request_with_a_span()
    attributes.add(key="k").value.bool_value = True
    body = request.SerializeToString().replace(b"\x10\x01", b"\x10\x02")
    assert body != request.SerializeToString()
    length, trailer = request_frame(body, tenant="theirs", received_ns=time.time_ns())
    segment = tmp_path / "segment.pb"
    segment.write_bytes(header_message("traces") + length + body + trailer)
    assert [store.insert(segment, "traces", "token", INSERT_SETTINGS) for _ in range(3)] == [False, True, True]
    assert store.query(f"SELECT count() AS n FROM {store.database}.spans")[0]["n"] == 1
    assert store.query(f"SELECT sum(spans) AS n FROM {store.database}.traces")[0]["n"] == 1


def varint(number):
    low = [number >> shift & 127 | 128 for shift in range(0, max(number.bit_length(), 1), 7)]
    return bytes([*low[:-1], low[-1] & 127])
