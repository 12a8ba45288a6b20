"""Bodies made to hurt: each is refused with a reason or stored, nothing else is lost by it, and memory is bounded."""

from __future__ import annotations

import contextlib
import gzip
import json
import secrets
import struct
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from axonize_server import otlp
from axonize_server.inflate import InflatedTooLargeError, inflate
from axonize_server.otlp import VALIDATORS, InvalidRequestError, validate_traces
from axonize_server.otlp_json import to_protobuf
from axonize_server.otlp_rules import Window
from axonize_server.query import spans_of
from oracle import same, walk
from otlp_bodies import logs_body, metrics_body, trace_body

JSON = "application/json"
MIB = 1 << 20
WAIT_S = 240
TRACE = b"t" * 16


def varint(number):
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def field(tag, content):
    return bytes([tag]) + varint(len(content)) + content


def attribute(value, key=b"k"):
    return field(0x4A, field(0x0A, key) + field(0x12, value))


def request(span, *, scope=b"", resource=b""):
    """A trace request of one span: valid ids and time, then these bytes."""
    start = b"\x39" + struct.pack("<Q", time.time_ns())
    whole = field(0x0A, TRACE) + field(0x12, secrets.token_bytes(8)) + start + span
    return field(0x0A, resource + field(0x12, scope + field(0x12, whole)))


def nested(depth):
    value = b"\x18\x01"
    for _ in range(depth):
        value = field(0x2A, field(0x0A, value))
    return value


LARGE, HUGE = varint(1 << 40 | 5), varint((1 << 64) - 5)
LINK = field(0x0A, TRACE) + field(0x12, b"s" * 8)
ODD = {
    "a bool of 2": (attribute(b"\x10\x02"), {}),
    "a bool of 64 bits": (attribute(b"\x10" + HUGE), {}),
    "a kind of 41 bits": (b"\x30" + LARGE, {}),
    "a negative kind": (b"\x30" + HUGE, {}),
    "a status code of 41 bits": (field(0x7A, b"\x18" + LARGE), {}),
    "41 bits of dropped attributes": (b"\x50" + LARGE, {}),
    "41 bits of dropped events": (b"\x60" + LARGE, {}),
    "41 bits of dropped links": (b"\x70" + LARGE, {}),
    "41 bits dropped of an event": (field(0x5A, b"\x20" + LARGE), {}),
    "41 bits dropped of a link": (field(0x6A, LINK + b"\x28" + LARGE), {}),
    "41 bits dropped of a scope": (b"", {"scope": field(0x0A, b"\x20" + LARGE)}),
    "41 bits dropped of a resource": (b"", {"resource": field(0x0A, b"\x10" + LARGE)}),
    "not a number": (attribute(b"\x21" + struct.pack("<d", float("nan"))), {}),
    "infinite": (attribute(b"\x21" + struct.pack("<d", float("-inf"))), {}),
    "nested 40 levels": (attribute(nested(40)), {}),
    "control characters": (attribute(field(0x0A, b"\x00\x01\x7f"), b"\x00"), {}),
    "no key and no value": (field(0x4A, b""), {}),
    "10,000 attributes": (b"".join(attribute(b"\x18\x01", b"k%d" % number) for number in range(10_000)), {}),
}


def window():
    return Window.around(time.time_ns(), 7)


@pytest.mark.parametrize("name", ODD)
def test_an_odd_span_is_stored_as_protobuf_reads_it(store, write_segment, name):
    """Numbers wider than their type are cut as the official parser cuts them; what is legal comes back equal."""
    span, around = ODD[name]
    body = request(span, **around)
    segment = write_segment(bytes(validate_traces(body, window()).body))
    store.insert(segment.path, segment.signal, segment.id)
    (expected,) = walk(ExportTraceServiceRequest.FromString(body))
    (found,) = spans_of(store, tenant="default", trace_id=TRACE)
    for what, value in expected.items():
        assert same(found[what], value), (what, found[what], value)


@pytest.mark.parametrize(
    "span",
    [
        attribute(nested(200)),
        attribute(b"\x18\x01", b"\xff"),
        attribute(field(0x0A, b"\xc3\x28")),
        attribute(field(0x2A, field(0x0A, field(0x0A, b"\xff")))),
        field(0x2A, b"\xed\xa0\x80"),
        b"\x2a\x7fshort",
    ],
    ids=["200 levels", "key", "text", "text in an array", "surrogate", "cut short"],
)
def test_what_no_parser_should_see_is_refused(span):
    """Nesting beyond the official parser's hundred levels, and text that is not UTF-8, wherever it is."""
    with pytest.raises(InvalidRequestError, match="no valid ExportTraceServiceRequest"):
        validate_traces(request(span), window())


def test_a_million_attributes_are_stored(store, write_segment):
    """One span with a million attributes is one row."""
    body = request(b"".join(attribute(b"\x18\x01", b"k%d" % number) for number in range(10**6)))
    segment = write_segment(bytes(validate_traces(body, window()).body))
    store.insert(segment.path, segment.signal, segment.id)
    assert store.query(f"SELECT length(attrs_int) AS n FROM {store.database}.spans") == [{"n": 10**6}]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(seed=st.integers(0, 20), data=st.data())
def test_whatever_passes_the_door_can_be_stored(store, write_segment, seed, data):
    """Bodies changed at random: ClickHouse makes rows of all that validation lets pass, as many as it said."""
    body = bytearray(trace_body(seed, spans=2))
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(body) - 1))
        body[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    try:
        accepted = validate_traces(bytes(body), window())
    except InvalidRequestError:
        return
    tenant = secrets.token_hex(8)
    segment = write_segment(bytes(accepted.body), tenant=tenant)
    store.insert(segment.path, segment.signal, segment.id)
    rows = store.query(f"SELECT count() AS n FROM {store.database}.spans WHERE tenant = {{t:String}}", {"t": tenant})
    assert rows == [{"n": accepted.records}]


def dense(tag, *around):
    """Millions of empty messages in one another's place: 16 MiB."""
    body = tag * (8 * MIB)
    for outer in around:
        body = field(outer, body)
    return body


def within(body, *tags):
    """A field in others, the innermost first."""
    for tag in tags:
        body = field(tag, body)
    return body


MANY = 9 * MIB
RECORD = (0x12, 0x12, 0x0A)
SPAN_WITHOUT_IDS = b"\x0a\x01x"
NESTED = {
    "empty values": ("logs", lambda: within(b"\x0a\x00" * MANY, 0x2A, 0x2A, *RECORD)),
    "values of an attribute": ("logs", lambda: within(b"\x0a\x00" * MANY, 0x2A, 0x12, 0x32, *RECORD)),
    "pairs": ("logs", lambda: within(b"\x0a\x00" * MANY, 0x32, 0x2A, *RECORD)),
    "numbers": ("logs", lambda: within(b"\x0a\x02\x18\x01" * MANY, 0x2A, 0x2A, *RECORD)),
    "many small arrays": ("logs", lambda: within(within(b"\x0a\x00" * 500, 0x2A, 0x2A) * (MANY // 500), *RECORD)),
    "arrays by turns with pairs": ("logs", lambda: within(b"\x2a\x00\x32\x00" * MANY, 0x2A, *RECORD)),
    "resource": ("logs", lambda: within(b"\x0a\x00" * MANY, 0x0A, 0x0A)),
    "scope": ("logs", lambda: within(b"\x1a\x00" * MANY, 0x0A, 0x12, 0x0A)),
    "packed counts": ("metrics", lambda: within(b"\x7f" * (5 * MANY), 0x12, 0x42, 0x0A, 0x52, *RECORD)),
    "counts": ("metrics", lambda: within(b"\x10\x00" * MANY, 0x42, 0x0A, 0x52, *RECORD)),
    "exemplar": ("metrics", lambda: within(b"\x3a\x00" * MANY, 0x2A, 0x0A, 0x2A, *RECORD)),
    "event": ("traces", lambda: within(within(b"\x1a\x00" * MANY, 0x5A) + SPAN_WITHOUT_IDS, *RECORD)),
    "unknown field beside": ("traces", lambda: request(attribute(within(b"\x0a\x00" * MANY, 0x2A))) + b"\xf8\x7f\x01"),
    "entities": (
        "traces",
        lambda: within(within(b"\x1a\x00" * MANY, 0x1A, 0x0A) + within(SPAN_WITHOUT_IDS, 0x12, 0x12), 0x0A),
    ),
}


@pytest.mark.parametrize("name", NESTED)
def test_millions_of_nested_values_are_refused_unparsed(name, monkeypatch):
    """Wherever the schema lets values repeat, they are counted before an object is made of each."""
    monkeypatch.setattr(otlp, "_parsed", lambda *_: pytest.fail("parsed"))
    signal, make = NESTED[name]
    with pytest.raises(InvalidRequestError, match="too many records or attributes"):
        VALIDATORS[signal](make(), window())


@pytest.mark.parametrize(
    "value",
    [b"\x18\x80\x80\x01", b"\x10\x01", b"\x21" + bytes(8), field(0x0A, b"x" * 40), b"", field(0x2A, b"\x0a\x00" * 3)],
    ids=["integer", "bool", "double", "text", "nothing", "array"],
)
def test_a_large_honest_body_is_taken(value):
    """A hundred thousand records with some attributes each are within all limits, whatever kind those are."""
    pairs = within(field(0x0A, b"k" * 12) + field(0x12, value), 0x32) * 4
    start = b"\x09" + struct.pack("<Q", time.time_ns())
    record = field(0x12, start + within(b"line" * 30, 0x0A, 0x2A) + pairs)
    accepted = VALIDATORS["logs"](within(record * 100_000, 0x12, 0x0A), window())
    assert (accepted.records, accepted.rejected) == (100_000, {})


@pytest.mark.parametrize(
    ("body", "error", "why"),
    [
        (gzip.compress(b"") * 5000, InvalidRequestError, "4096 members"),
        (gzip.compress(b"ok") + gzip.compress(bytes(2 * MIB)), InflatedTooLargeError, "once inflated"),
        (gzip.compress(b"ok") + gzip.compress(b"cut")[:-3], InvalidRequestError, "cut short"),
        (gzip.compress(b"ok")[:3] + b"\x80" + gzip.compress(b"ok")[4:], InvalidRequestError, "reserved flags"),
        (gzip.compress(b"ok") + bytes(100), InvalidRequestError, "no gzip"),
    ],
    ids=["members", "second too large", "second cut", "flags", "padding"],
)
def test_a_gzip_body_made_to_hurt_is_refused(body, error, why):
    """However many members it has, which of them is the bomb, and what stands behind."""
    with pytest.raises(error, match=why):
        inflate(body, MIB)


def test_large_members_are_put_together():
    """Of several members each may be larger than what is looked at in one step."""
    parts = [secrets.token_bytes(200_000), b"", secrets.token_bytes(70_000), b"end"]
    assert inflate(b"".join(map(gzip.compress, parts)), MIB) == b"".join(parts)


NUMBERS = ["NaN", "Infinity", "-Infinity"]


@pytest.mark.parametrize("value", NUMBERS)
def test_numbers_that_are_none_are_taken_in_json(value):
    """NaN and the infinities, as protobuf writes them in JSON, arrive as such."""
    span = {"traceId": TRACE.hex(), "spanId": "73" * 8, "startTimeUnixNano": str(time.time_ns())}
    span["attributes"] = [{"key": "k", "value": {"doubleValue": value}}]
    body = json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}).encode()
    accepted = validate_traces(to_protobuf("traces", body), window())
    (found,) = walk(ExportTraceServiceRequest.FromString(bytes(accepted.body)))
    assert struct.pack("<d", float(value)) in bytes(accepted.body)
    assert found["trace_id"] == TRACE


@pytest.mark.parametrize("signal", VALIDATORS)
def test_a_body_cut_anywhere_is_refused_or_whole(signal):
    """Wherever a body ends, it is no request, or one of the whole parts before; never an exception of another kind."""
    body = {"traces": trace_body, "metrics": metrics_body, "logs": logs_body}[signal]()
    for end in range(len(body)):
        with contextlib.suppress(InvalidRequestError):
            assert VALIDATORS[signal](body[:end], window()).records == 0


def peak_bytes(receiver):
    """The most memory the receiver ever held."""
    status = Path(f"/proc/{receiver.child.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) << 10


@pytest.mark.timeout(900)  # large bodies on a machine that may be busy
def test_a_receiver_survives_them_all(make_receiver):
    """Each answer has its reason, memory stays bounded, and honest requests are taken before, between and after."""
    receiver = make_receiver()
    receiver.wait_ready()
    client = receiver.client(WAIT_S)
    deep = b'{"resourceSpans":' + b"[" * 200_000
    objects = b'{"resourceSpans":[' + b"{}," * (4 * MIB) + b"{}]}"
    values = b'{"resourceLogs":[{"resource":{"attributes":[{"value":{"arrayValue":{"values":[' + b"{}," * (16 * MIB)
    floats = json.dumps({"resourceMetrics": []}).encode()[:-2] + b"1.5," * (12 * MIB) + b"1]}"
    hostile = [
        (dense(b"\x0a\x00"), "/v1/traces", {}, 400),
        (dense(b"\x12\x00", 0x12, 0x0A), "/v1/traces", {}, 400),
        (dense(b"\x12\x00", 0x12, 0x0A), "/v1/logs", {}, 400),
        (dense(b"\x0a\x00", 0x2A, 0x12, 0x12, 0x0A), "/v1/metrics", {}, 400),
        (dense(b"\x32\x00", 0x12, 0x12, 0x0A), "/v1/logs", {}, 400),
        (dense(b"\x3a\x00", 0x0A, 0x2A, 0x12, 0x12, 0x0A), "/v1/metrics", {}, 400),
        (dense(b"\x4a\x00", 0x12, 0x12, 0x0A), "/v1/traces", {}, 400),
        (dense(b"\xf8\x7f\x01"), "/v1/traces", {}, 400),
        (within(b"\x0a\x00" * (31 * MIB), 0x2A, 0x2A, *RECORD), "/v1/logs", {}, 400),
        (within(b"\x0a\x00" * (8 * MIB - 40), 0x2A, 0x2A, *RECORD), "/v1/logs", {}, 200),
        (within(b"\x2a\x00\x32\x00" * (15 * MIB), 0x12, 0x4A, *RECORD), "/v1/traces", {}, 400),
        (b"\x80" * (32 * MIB), "/v1/traces", {}, 400),
        (deep, "/v1/traces", {"content_type": JSON}, 400),
        (objects, "/v1/traces", {"content_type": JSON}, 400),
        (floats, "/v1/metrics", {"content_type": JSON}, 400),
        (gzip.compress(b"") * (900_000), "/v1/traces", {"content_encoding": "gzip"}, 400),
        (values, "/v1/logs", {"content_type": JSON}, 400),
        (gzip.compress(bytes(256 * MIB)), "/v1/traces", {"content_encoding": "gzip"}, 413),
        (gzip.compress(dense(b"\x12\x00", 0x12, 0x0A)), "/v1/traces", {"content_encoding": "gzip"}, 400),
        (request(attribute(field(0x0A, b"x" * (63 * MIB)))), "/v1/traces", {}, 200),
        (bytes(65 * MIB), "/v1/traces", {}, 413),
    ]
    for body, path, headers, expected in hostile:
        with contextlib.closing(receiver.client(WAIT_S)) as hostile_client:
            status, _, answer = receiver.post(body, path, client=hostile_client, **headers)
        assert (status, bool(answer)) == (expected, expected != 200), (body[:30], path, answer)
        for honest, honest_path in ((trace_body(), "traces"), (metrics_body(), "metrics"), (logs_body(), "logs")):
            assert receiver.post(honest, f"/v1/{honest_path}", client=client)[0] == 200
    client.close()
    assert peak_bytes(receiver) < 700 * MIB
    assert receiver.stop() == 0
