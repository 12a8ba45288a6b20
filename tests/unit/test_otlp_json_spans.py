"""The short way of OTLP/JSON reads what the long way reads, and nothing that the long way refuses."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from axonize_server import otlp_json, otlp_json_attributes, otlp_json_spans
from axonize_server.otlp import InvalidRequestError
from axonize_server.otlp_json import to_protobuf
from axonize_server.otlp_json_attributes import Heads
from axonize_server.otlp_json_spans import usual_trace_body
from otlp_bodies import trace_request
from otlp_json_bodies import as_json

HELD_TOGETHER = settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
SOME = as_json(trace_request(3, spans=2))


def long_way(body):
    """What a body is read as without the short way; None when it is refused."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(otlp_json, "usual_trace_body", lambda _: None)
        try:
            return canonical(to_protobuf("traces", body))
        except InvalidRequestError:
            return None


def canonical(found):
    return ExportTraceServiceRequest.FromString(found).SerializeToString(deterministic=True)


def short_way(body):
    """What the short way reads, None when it leaves the body to the other; they agree."""
    found = usual_trace_body(body)
    assert found is None or canonical(found) == long_way(body)
    return found


def in_span(inside):
    return b'{"resourceSpans":[{"scopeSpans":[{"spans":[%b]}]}]}' % inside


def in_value(inside):
    return in_span(b'{"attributes":[{"key":"k","value":%b}]}' % inside)


def in_every_place(pairs):
    """A body that has these attributes wherever attributes can be."""
    span = b'{"attributes":%b,"events":[{"attributes":%b}],"links":[{"attributes":%b}]}' % (pairs, pairs, pairs)
    scope = b'{"scope":{"attributes":%b},"spans":[%b]}' % (pairs, span)
    return b'{"resourceSpans":[{"resource":{"attributes":%b},"scopeSpans":[%b]}]}' % (pairs, scope)


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=200) | st.sampled_from(
    ["", "null", "true", "0", " "]
)
INTS = st.integers(-(2**63), 2**63 - 1) | st.sampled_from(
    [sign * 2**power + step for sign in (1, -1) for power in (7, 12, 14, 28, 35, 56) for step in (-1, 0, 1)]
)
IDS = st.binary(max_size=17).map(bytes.hex) | st.sampled_from(["", "AB" * 16, "cD" * 8, "ab " * 10 + "cd", "a"])
INT_FORMS = st.one_of(INTS, INTS.map(str), st.integers(-9, 9).map(float))
SCALARS = st.one_of(
    st.fixed_dictionaries({"stringValue": TEXTS}),
    st.fixed_dictionaries({"intValue": INT_FORMS}),
    st.fixed_dictionaries({"doubleValue": st.one_of(st.floats(allow_nan=False, allow_infinity=False), INTS)}),
    st.fixed_dictionaries({"doubleValue": st.sampled_from(["NaN", "-Infinity", "1e3", "1e400", "2", " 2", "1_0"])}),
    st.fixed_dictionaries({"boolValue": st.booleans()}),
    st.fixed_dictionaries({"bytesValue": st.sampled_from(["", "YQ==", "YQ", "-_8"])}),
    st.just({}),
)
LISTED = st.lists(SCALARS, max_size=3)
ANY_VALUES = SCALARS | LISTED.map(lambda values: {"arrayValue": {"values": values}})
KEYS = st.sampled_from(["a", "gen_ai.request.model", "é" * 31, "k" * 61, "k" * 62, "k" * 300, "", '"\\']) | TEXTS
PAIRS = st.lists(st.fixed_dictionaries({}, optional={"key": KEYS, "value": ANY_VALUES}), max_size=5)
COUNTS = st.sampled_from([0, 1, 127, 128, 4095, 4096, 2**31 - 1, "5"])
TIMES = st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1).map(str))
EVENTS = st.fixed_dictionaries(
    {}, optional={"name": TEXTS, "timeUnixNano": TIMES, "attributes": PAIRS, "droppedAttributesCount": COUNTS}
)
LINKS = st.fixed_dictionaries(
    {"traceId": IDS, "spanId": IDS},
    optional={"attributes": PAIRS, "traceState": TEXTS, "flags": COUNTS, "droppedAttributesCount": COUNTS},
)
SPANS = st.fixed_dictionaries(
    {},
    optional={
        "traceId": IDS,
        "spanId": IDS,
        "parentSpanId": IDS,
        "traceState": TEXTS,
        "name": TEXTS,
        "kind": COUNTS,
        "startTimeUnixNano": TIMES,
        "endTimeUnixNano": TIMES,
        "attributes": PAIRS,
        "events": st.lists(EVENTS, max_size=2),
        "links": st.lists(LINKS, max_size=2),
        "droppedEventsCount": COUNTS,
        "droppedLinksCount": COUNTS,
        "flags": COUNTS,
        "status": st.fixed_dictionaries({}, optional={"code": COUNTS, "message": TEXTS}),
        "written": TEXTS,
    },
)
LAYOUTS = st.fixed_dictionaries(
    {
        "ensure_ascii": st.booleans(),
        "indent": st.sampled_from([None, 0, "\t", " \r\n"]),
        "separators": st.sampled_from([(",", ":"), (", ", ": "), ("\t,\r", " \n:")]),
        "sort_keys": st.booleans(),
    }
)


@HELD_TOGETHER
@given(st.lists(SPANS, max_size=3), LAYOUTS)
def test_any_spans_in_any_layout(spans, layout):
    """Fields in any order, numbers as numbers or text, escapes or UTF-8, whitespace where JSON has it."""
    body = json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]}, **layout).encode()
    found = short_way(body)
    assert short_way(memoryview(bytearray(body))) == found


@HELD_TOGETHER
@given(st.integers(0, len(SOME) - 1), st.binary(max_size=3), st.integers(0, 4))
def test_a_damaged_body(at, instead, left_out):
    """Whatever stands in place of some bytes: control characters, half of a character, a quote, nothing."""
    short_way(SOME[:at] + instead + SOME[at + left_out :])


@pytest.mark.parametrize(
    "body",
    [
        in_value(b'{"intValue":"null"}'),
        in_value(b'{"intValue":"1_0"}'),
        in_value(b'{"intValue":9223372036854775808}'),
        in_value(b'{"doubleValue":"null"}'),
        in_value(b'{"doubleValue":1%b}' % (b"0" * 400)),
        in_value(b'{"boolValue":"true"}'),
        in_value(b'{"boolValue":1}'),
        in_value(b'{"boolValue":[]}'),
        in_value(b'{"arrayValue":"null"}'),
        in_value(b'{"stringValue":1}'),
        in_value(b'{"stringValue":"\x01"}'),
        in_value(b'{"stringValue":"\xff"}'),
        in_value(b'{"stringValue":"\xed\xa0\x80"}'),
        in_value(b'{"stringValue":"\xc0\x80"}'),
        in_value(b'{"stringValue":"\\ud800"}'),
        in_value(b'{"stringValue":"\\x"}'),
        in_value(b'"null"'),
        in_span(b'{"status":"null"}'),
        in_span(b'{"name":"null"} x'),
        in_span(b'{"name":"a",}'),
        in_span(b'{"kind":-2147483649}'),
        in_span('{"parentSpanId":"éé"}'.encode()),
        b'{"resourceSpans":[{"resource":"null"}]}',
        b'{"resourceSpans":[{"scopeSpans":[{"scope":"null"}]}]}',
    ],
    ids=lambda body: str(body[-50:]),
)
def test_what_is_refused_either_way(body):
    """Text that is no text, numbers and truth values that are none, and "null", which is not null."""
    assert usual_trace_body(body) is None
    with pytest.raises(InvalidRequestError):
        to_protobuf("traces", body)


@pytest.mark.parametrize(
    "body",
    [
        in_span(b'{"name":"a","name":"b","kind":1,"kind":0}'),
        in_span(b'{"attributes":[{"key":"k","value":{"intValue":1},"value":{"stringValue":"x"},"key":"l"}]}'),
        in_value(b'{"intValue":1,"intValue":2}'),
        in_value(b'{"intValue":1,"stringValue":"both"}'),
        in_value(b'{"doubleValue":1,"boolValue":true,"intValue":3,"arrayValue":{}}'),
        in_value(b'{"arrayValue":{"values":[{"boolValue":true,"intValue":3}]}}'),
        in_value(b'{"stringValue":"\\u00e9\\ud83d\\ude42\\/\\u0000"}'),
        in_value(b'{"boolValue":null}'),
        in_span(b'{"written":"QUJD","name":"a"}'),
        b'{"resourceSpans":[{"scopeSpans":[{"spans":[{"name":"a"}],"scope":{"name":"s"},"spans":[{"name":"b"}]}]}]}',
        b' \n{"resourceSpans" : [ ] }\t\r',
    ],
    ids=lambda body: str(body[-50:]),
)
def test_what_is_read_either_way(body):
    """Fields given twice, several values in one, escapes, whitespace; the long way agrees on all of them."""
    assert short_way(body) is not None


@pytest.mark.parametrize("field", ["traceId", "spanId", "parentSpanId"])
def test_an_id_with_a_space(field):
    """Python skips it; the id is shorter than its digits say, here and in a link, and is taken or left as such."""
    ids = {"traceId": "ab" * 16, "spanId": "cd" * 8, "parentSpanId": "ef" * 8}
    ids[field] = f"{ids[field][:-2]}  "
    link = {name: ids[name] for name in ("traceId", "spanId")}
    for span in (ids, {"links": [link]}):
        body = in_span(json.dumps(span).encode())
        assert canonical(to_protobuf("traces", body)) == long_way(body) is not None


@pytest.mark.parametrize("key", ["k", "k" * 62, "k" * 63, "é" * 40, ""])
def test_a_key_is_written_alike_before_and_after_it_is_known(key, monkeypatch):
    """With a value of each kind and of sizes around all that is kept, in all places."""
    monkeypatch.setattr(otlp_json_spans, "_heads", {tag: Heads(tag) for tag in otlp_json_spans._heads})
    values = [{"stringValue": "é" * (size // 2) + "x" * (size % 2)} for size in (0, 1, 125, 126, 127, 128, 129, 20_000)]
    values += [{"intValue": 2**power - 1} for power in (0, 7, 12, 13, 14, 63)] + [{"intValue": -1}, {"doubleValue": 1}]
    body = in_every_place(json.dumps([{"key": key, "value": value} for value in values]).encode())
    assert short_way(body) == short_way(body) is not None
    assert (key in otlp_json_spans._heads[0x0A].texts) == (len(key.encode()) <= 62)


def test_no_more_keys_are_kept_than_there_is_room_for(monkeypatch):
    """A body of nothing but new keys has as many learnt; the next one finds room again."""
    heads = {tag: Heads(tag) for tag in otlp_json_spans._heads}
    monkeypatch.setattr(otlp_json_spans, "_heads", heads)
    monkeypatch.setattr(otlp_json_attributes, "_KEYS_KEPT", 3)

    def pairs(keys):
        return json.dumps([{"key": key, "value": {"intValue": "5"}} for key in keys]).encode()

    assert short_way(in_every_place(pairs("abcdef"))) is not None
    assert list(heads[0x0A].texts) == list("abc")
    assert short_way(in_every_place(pairs("fed"))) is not None
    assert list(heads[0x0A].numbers) == list("fed")
