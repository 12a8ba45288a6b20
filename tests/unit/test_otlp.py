"""What bodies are taken, and that the shortcut never takes one that the rules refuse."""

from __future__ import annotations

import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from axonize_server import otlp
from axonize_server.inflate import InflatedTooLargeError, inflate
from axonize_server.otlp import Accepted, InvalidRequestError, validate_logs, validate_metrics, validate_traces
from axonize_server.otlp_check import check_traces
from axonize_server.otlp_rules import MAX_DAYS, MAX_RECORDS, Sieve, Window, span_fault
from axonize_server.otlp_shortcut import usual_spans
from otlp_bodies import metrics_body, trace_body, trace_request

DAY_NS = 86_400 * 10**9
NOW = 1_790_000_000 * 10**9
EVER = Window(1, (1 << 63) - 1, NOW)
WEEK = Window.around(NOW, 7)
GOOD = {"trace_id": b"t" * 16, "span_id": b"s" * 8, "start_time_unix_nano": NOW}


def one(*spans):
    """A request of these spans in one scope."""
    request = ExportTraceServiceRequest()
    request.resource_spans.add().scope_spans.add().spans.extend(spans)
    return request.SerializeToString()


def fine(**fields):
    return one(Span(**{**GOOD, **fields}))


def test_a_usual_body_is_counted_without_a_walk(monkeypatch):
    """The shortcut proves it valid, so no span becomes a Python object."""
    monkeypatch.setattr(otlp, "_parsed", lambda *_: pytest.fail("walked"))
    accepted = validate_traces(trace_body(spans=7), Window.around(time.time_ns(), 7))
    assert accepted.records == 7
    today = trace_request(spans=1).resource_spans[0].scope_spans[0].spans[0].start_time_unix_nano // DAY_NS
    assert today in accepted.days
    assert len(accepted.days) <= 5


@pytest.mark.parametrize(
    "fields",
    [
        {"trace_id": b""},
        {"trace_id": b"t" * 15},
        {"trace_id": b"t" * 17},
        {"trace_id": bytes(16)},
        {"span_id": b""},
        {"span_id": b"s" * 7},
        {"span_id": bytes(8)},
        {"parent_span_id": b"p"},
        {"start_time_unix_nano": 0, "reason": "no_time"},
        {"start_time_unix_nano": 1 << 63, "reason": "ahead"},
        {"start_time_unix_nano": NOW - 8 * DAY_NS, "reason": "too_old"},
        {"start_time_unix_nano": WEEK.oldest_ns - 1, "reason": "too_old"},
        {"start_time_unix_nano": WEEK.newest_ns + 1, "reason": "ahead"},
        {"end_time_unix_nano": 1 << 63, "reason": "bad_time"},
        {"links": [Span.Link(trace_id=b"t" * 16, span_id=b"s" * 4)]},
        {"links": [Span.Link(trace_id=bytes(16), span_id=b"s" * 8)]},
        {"links": [Span.Link(trace_id=b"t" * 16, span_id=b"s" * 8), Span.Link()]},
    ],
    ids=str,
)
def test_a_span_that_breaks_a_rule_is_left_out(fields):
    """Ids of a wrong length or of zeros, and times outside the window: that span is refused, the others are stored."""
    reason = fields.get("reason", "bad_id")
    bad = Span(**{**GOOD, **{name: value for name, value in fields.items() if name != "reason"}})
    good = Span(**GOOD, name="good")
    for spans in ((bad,), (good, bad), (bad, good, bad)):
        body = one(*spans)
        assert usual_spans(body, WEEK) is None
        accepted = validate_traces(body, WEEK)
        assert accepted.rejected == {reason: spans.count(bad)}
        assert accepted.message.startswith(f"not stored: {spans.count(bad)} span")
        assert (accepted.records, accepted.body) == ((1, one(good)) if good in spans else (0, one(*spans[:0])))


def test_edges_of_the_rules_are_inside():
    """No parent, no end, the first and last time stamp, and ids with eight zeros in them are valid."""
    assert validate_traces(fine(), WEEK).records == 1
    assert validate_traces(fine(start_time_unix_nano=1, end_time_unix_nano=(1 << 63) - 1), EVER).days >= {0}
    assert validate_traces(fine(trace_id=bytes(15) + b"\1"), WEEK).days == {NOW // DAY_NS}
    for edge in (WEEK.oldest_ns, WEEK.newest_ns):
        assert validate_traces(fine(start_time_unix_nano=edge), WEEK).records == 1


@pytest.mark.parametrize("days", [1, 7, 400])
def test_the_shortcut_knows_the_window(days):
    """Whenever now is, spans of just now pass by the shortcut for nearly all the time, and none outside the window."""
    passed = 0
    for now in range(NOW, NOW + 8 * DAY_NS, DAY_NS // 24):
        window = Window.around(now, days)
        passed += usual_spans(fine(start_time_unix_nano=now - 1), window) is not None
        for outside in (window.oldest_ns - 1, window.newest_ns + 1):
            assert usual_spans(fine(start_time_unix_nano=outside), window) is None
    assert passed >= 190  # of 192


def test_days_are_bounded():
    """A request over 64 days is stored; what lies in a 65th is not: a segment must stay one insert."""
    spans = [Span(**{**GOOD, "start_time_unix_nano": day * DAY_NS + 1}) for day in range(1, MAX_DAYS + 2)]
    accepted = validate_traces(one(*spans[:-1]), EVER)
    assert (accepted.days, accepted.rejected) == (set(range(1, 65)), {})
    accepted = validate_traces(one(*spans, spans[0]), EVER)
    assert (accepted.records, accepted.rejected) == (65, {"too_many_days": 1})
    assert "64 days" in accepted.message


def test_records_are_bounded():
    """What is beyond the number of records that one insert may bring is left out."""
    sieve = Sieve("span", span_fault, WEEK)
    sieve.records = MAX_RECORDS - 1
    scope = ExportTraceServiceRequest().resource_spans.add().scope_spans.add()
    scope.spans.extend([Span(**GOOD, name=str(number)) for number in range(3)])
    sieve.sift(scope.spans)
    assert ([span.name for span in scope.spans], sieve.rejected) == (["0"], {"too_many_records": 2})


def test_what_is_no_otlp_is_refused():
    """Broken structure and broken UTF-8 are caught by the parser, in both signals."""
    bad_text = fine(name="naïve").replace("ï".encode(), b"\xc3\x28")
    for body in (b"\xff\xff", trace_body()[:-1], bad_text):
        with pytest.raises(InvalidRequestError, match="ExportTraceServiceRequest"):
            validate_traces(body, WEEK)
    with pytest.raises(InvalidRequestError, match="ExportMetricsServiceRequest"):
        validate_metrics(b"\x0a\x05", WEEK)
    with pytest.raises(InvalidRequestError, match="ExportLogsServiceRequest"):
        validate_logs(b"\x0a\x05", WEEK)


def test_nothing_and_the_unknown_are_fine():
    """An empty request has no records; unknown fields do not disturb."""
    assert validate_traces(b"", WEEK) == Accepted(0, set(), b"")
    assert validate_metrics(b"", WEEK) == validate_logs(b"", WEEK) == Accepted(0, set(), b"")
    assert validate_traces(ExportTraceServiceRequest(resource_spans=[{}]).SerializeToString(), WEEK).records == 0
    unknown = b"\xca\x3e\x04evil"  # field 1001
    assert validate_traces(trace_body(spans=2) + unknown, EVER).records == 2


def wrapped(span_tail=b"", tail=b""):
    """A request of one span with bytes behind its fields, and bytes behind its own."""
    span = Span(**GOOD).SerializeToString() + span_tail
    for tag in (b"\x12", b"\x12", b"\x0a"):
        span = tag + bytes([len(span)]) + span
    return span + tail


@pytest.mark.parametrize(
    "body",
    [
        wrapped(tail=b"\x08\x05"),
        wrapped(tail=b"\xc8\x3e\x05"),
        wrapped(tail=b"\xca\x3e\x04evil"),
        wrapped(span_tail=b"\x28\x05"),
        wrapped(span_tail=b"\x38\x05"),
        wrapped(span_tail=b"\x9b\x06\x08\x05\x9c\x06"),
        wrapped(span_tail=b"\x9d\x06abcd"),
    ],
    ids=[
        "resource_spans as a number",
        "our tenant as a number",
        "our tenant",
        "a name as a number",
        "a start as a varint",
        "a group",
        "new field",
    ],
)
def test_what_otlp_does_not_know_is_left_out(body):
    """Valid, and ignored as OTLP demands: ClickHouse would refuse some of it, and the whole segment with it."""
    assert validate_traces(body, WEEK).body == wrapped() != body


def test_a_plain_body_is_stored_as_it_came():
    """The same object, not a copy."""
    body = trace_body()
    assert validate_traces(body, EVER).body is body


def test_metrics_are_counted_over_all_kinds_of_points():
    """Every kind of data point counts, and its days are known."""
    request = ExportMetricsServiceRequest()
    metrics = request.resource_metrics.add().scope_metrics.add().metrics
    for kind in ("gauge", "sum", "histogram", "exponential_histogram", "summary"):
        getattr(metrics.add(name=kind), kind).data_points.add(time_unix_nano=2 * DAY_NS)
    metrics.add(name="empty")
    assert validate_metrics(request.SerializeToString(), EVER) == Accepted(5, {2}, request.SerializeToString())
    assert validate_metrics(metrics_body(points=4), EVER).records == 4


@pytest.mark.parametrize(
    ("times", "reason"),
    [
        ({"time_unix_nano": NOW, "start_time_unix_nano": 1 << 63}, "bad_time"),
        ({"time_unix_nano": 1 << 63}, "ahead"),
        ({"time_unix_nano": WEEK.newest_ns + 1}, "ahead"),
        ({"time_unix_nano": WEEK.oldest_ns - 1}, "too_old"),
        ({"start_time_unix_nano": NOW}, "no_time"),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["gauge", "sum", "histogram", "exponential_histogram", "summary"])
def test_a_data_point_out_of_time_is_left_out(kind, times, reason):
    """The other points of its metric are stored, and a point may have begun before the window."""
    request = ExportMetricsServiceRequest()
    points = getattr(request.resource_metrics.add().scope_metrics.add().metrics.add(name="m"), kind).data_points
    points.add(time_unix_nano=NOW, start_time_unix_nano=1)
    good = request.SerializeToString()
    points.add(**times)
    accepted = validate_metrics(request.SerializeToString(), WEEK)
    assert (accepted.records, accepted.body, accepted.rejected) == (1, good, {reason: 1})
    assert "1 data point " in accepted.message


@pytest.mark.parametrize(
    ("times", "reason"),
    [
        ({"time_unix_nano": NOW, "observed_time_unix_nano": 1 << 63}, "bad_time"),
        ({"time_unix_nano": WEEK.newest_ns + 1}, "ahead"),
        ({"time_unix_nano": WEEK.oldest_ns - 1}, "too_old"),
        ({"observed_time_unix_nano": 1}, "too_old"),
    ],
    ids=str,
)
def test_a_log_record_out_of_time_is_left_out(times, reason):
    """The time that counts is when it happened, or else when it was observed."""
    request = ExportLogsServiceRequest()
    records = request.resource_logs.add().scope_logs.add().log_records
    records.add(time_unix_nano=NOW, observed_time_unix_nano=1)
    good = request.SerializeToString()
    records.add(**times)
    accepted = validate_logs(request.SerializeToString(), WEEK)
    assert (accepted.records, accepted.body, accepted.rejected) == (1, good, {reason: 1})


def test_a_log_record_loses_an_id_of_a_wrong_length():
    """OTLP has such a record belong to no trace; its sender is warned, nothing is rejected."""
    request = ExportLogsServiceRequest()
    records = request.resource_logs.add().scope_logs.add().log_records
    records.add(time_unix_nano=NOW, trace_id=b"t" * 16, span_id=b"s" * 8)
    records.add(time_unix_nano=NOW, trace_id=b"short", span_id=b"s" * 8)
    records.add(time_unix_nano=NOW, span_id=b"s" * 9)
    accepted = validate_logs(request.SerializeToString(), WEEK)
    (scope,) = ExportLogsServiceRequest.FromString(accepted.body).resource_logs[0].scope_logs
    assert [(r.trace_id, r.span_id) for r in scope.log_records] == [(b"t" * 16, b"s" * 8), (b"", b""), (b"", b"")]
    assert (accepted.records, accepted.rejected) == (3, {})
    assert "2 log records kept without their ids" in accepted.message


PATIENT = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
IDS = st.one_of(
    st.sampled_from([b"", bytes(8), bytes(16), b"t" * 16, b"s" * 8, b"\x12\x08" + b"x" * 6, b"\x39" * 8]),
    st.binary(max_size=40),
)
TIMES = st.one_of(
    st.sampled_from([0, 1, 1 << 63, (1 << 63) - 1]),
    st.integers(NOW - 9 * DAY_NS, NOW + DAY_NS),
    st.integers(0, (1 << 64) - 1),
)
MOSTLY_GOOD = st.builds(
    Span,
    trace_id=st.one_of(st.just(b"t" * 16), st.binary(min_size=16, max_size=16), IDS),
    span_id=st.one_of(st.just(b"s" * 8), st.binary(min_size=8, max_size=8), IDS),
    parent_span_id=st.one_of(st.just(b""), st.binary(min_size=8, max_size=8), IDS),
    start_time_unix_nano=st.one_of(st.just(GOOD["start_time_unix_nano"]), TIMES),
    end_time_unix_nano=st.one_of(st.just(GOOD["start_time_unix_nano"]), TIMES),
    links=st.lists(
        st.one_of(
            st.just(Span.Link(trace_id=b"t" * 16, span_id=b"s" * 8)), st.builds(Span.Link, trace_id=IDS, span_id=IDS)
        ),
        max_size=2,
    ),
    name=st.text(max_size=5),
)


@PATIENT
@given(st.lists(st.lists(MOSTLY_GOOD, max_size=3), max_size=3), st.sampled_from([WEEK, EVER, Window.around(NOW, 1)]))
def test_the_shortcut_agrees_with_the_rules(scopes, window):
    """Whatever the shortcut lets pass, the walk lets pass, in no other days."""
    request = ExportTraceServiceRequest()
    for spans in scopes:
        request.resource_spans.add().scope_spans.add().spans.extend(spans)
    agrees(request.SerializeToString(), window)


def agrees(body, window):
    usual = usual_spans(body, window)
    if usual is not None:
        sieve = Sieve("span", span_fault, window)
        for resource in ExportTraceServiceRequest.FromString(bytes(body)).resource_spans:
            for scope in resource.scope_spans:
                sieve.sift(scope.spans)
        assert not sieve.rejected
        assert usual[0] == sieve.records
        assert usual[1] >= sieve.days


@PATIENT
@given(st.integers(0, 3), st.data())
def test_mutated_bodies_agree_too(seed, data):
    """Bytes changed at random: the shortcut still takes only what the walk takes."""
    body = bytearray(trace_body(seed, spans=2))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    assert well_formed(check_traces, body) == well_formed(ExportTraceServiceRequest.FromString, body)
    if well_formed(check_traces, body):
        agrees(body, Window.around(time.time_ns(), 7))


def well_formed(parse, body):
    try:
        parse(bytes(body))
    except otlp.DecodeError:
        return False
    return True


@PATIENT
@given(st.recursive(st.binary(max_size=12), lambda inner: st.lists(inner, max_size=3), max_leaves=8), st.data())
def test_the_check_accepts_what_the_official_classes_accept(tree, data):
    """Nested fields of any number and type, twice and merged, well-formed or not: both parsers say the same."""
    body = fields(tree, data)
    assert well_formed(check_traces, body) == well_formed(ExportTraceServiceRequest.FromString, body)


def fields(tree, data):
    """A message of length-delimited fields whose numbers OTLP knows."""
    if isinstance(tree, bytes):
        return tree
    inner = [fields(branch, data) for branch in tree]
    numbers = [data.draw(st.sampled_from([1, 2, 3, 5, 6, 7, 9, 11, 13, 15])) for _ in inner]
    kinds = [data.draw(st.sampled_from([2, 2, 2, 2, 0, 3, 4])) for _ in inner]
    return b"".join(
        bytes([number << 3 | kind, len(content) & 0x7F]) + content
        for number, kind, content in zip(numbers, kinds, inner, strict=True)
    )


def test_inflation_stops_at_the_limit():
    """Several members are one body; a bomb, garbage and a torn end are told apart."""
    import gzip

    body = gzip.compress(b"a" * 600) + gzip.compress(b"b" * 400)
    assert inflate(body, 1000) == b"a" * 600 + b"b" * 400
    with pytest.raises(InflatedTooLargeError):
        inflate(body, 999)
    with pytest.raises(InvalidRequestError, match="cut short"):
        inflate(body[:-1], 1000)
    for broken in (b"", b"no gzip", body + b"tail"):
        with pytest.raises(InvalidRequestError):
            inflate(broken, 1000)
