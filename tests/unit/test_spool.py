"""Segments: what is acknowledged can be read back, in order, within the bound and whatever the clock says."""

from __future__ import annotations

import os
import time

import pytest
from google.protobuf.unknown_fields import UnknownFieldSet
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from appending import bodies, die, make, put
from axonize_server import spool
from axonize_server.appender import Appender, Limits, Usage
from axonize_server.spool import INSERT_SETTINGS, SpoolFullError, messages, read_header, remove, sealed_segments
from otlp_bodies import trace_body


def test_requests_come_back_in_order(tmp_path):
    """A sealed segment holds a header with the frozen settings, then the requests as they were sent."""
    appender = make(tmp_path)
    sent = [trace_body(seed, spans=20) for seed in range(5)]
    tickets = []
    for body in sent:
        tickets.append(put(appender, body))
        appender.sync()
    appender.close()
    assert all(ticket.durable for ticket in tickets)
    (segment,) = sealed_segments(tmp_path)
    assert bodies(segment.path) == sent
    assert read_header(segment.path) == {"version": 1, "signal": "traces", "settings": INSERT_SETTINGS}
    assert (segment.id, segment.signal) == (segment.path.stem, "traces")
    assert segment.size_bytes == segment.path.stat().st_size
    assert abs(segment.created_ns - time.time_ns()) < 60e9


def test_a_request_is_durable_only_after_a_sync(tmp_path):
    """The ticket says no until the bytes are on disk, and one sync serves all that waited."""
    appender = make(tmp_path)
    first, second = put(appender), put(appender)
    assert not first.durable
    appender.sync()
    assert first.durable
    assert second.durable
    third = put(appender)
    assert not third.durable
    appender.sync()
    assert third.durable
    appender.sync()  # nothing to do
    die(appender)


def test_our_trailing_fields_win_over_a_senders(tmp_path):
    """A tenant, time and checksum of the sender's own stand before ours, and the last value counts."""
    spoofed = trace_body(spans=1) + spool.request_frame(b"", tenant="victim", received_ns=1)[1]
    appender = make(tmp_path)
    put(appender, spoofed, tenant="honest", received_ns=42)
    appender.close()
    (segment,) = sealed_segments(tmp_path)
    _, message = [bytes(message) for message, _ in messages(memoryview(segment.path.read_bytes()))]
    fields = [(f.field_number, f.data) for f in UnknownFieldSet(ExportTraceServiceRequest.FromString(message))]
    assert [data for number, data in fields if number == 1001] == [b"victim", b"honest"]
    assert [data for number, data in fields if number == 1002] == [1, 42]


@pytest.mark.parametrize(
    ("limits", "request_"),
    [
        ({"records": 10}, {"records": 4}),
        ({"size_bytes": 3000}, {"body": b"x" * 1000}),
        ({"days": 4}, {}),
    ],
    ids=["records", "bytes", "days"],
)
def test_a_segment_is_sealed_at_its_limits(tmp_path, limits, request_):
    """Two requests fit, the third begins a new segment; nothing is lost between them."""
    appender = make(tmp_path, **limits)
    for number in range(4):
        put(appender, **{"days": {2 * number, 2 * number + 1}, **request_})
    appender.sync()
    (first,) = sealed_segments(tmp_path)
    assert len(bodies(first.path)) == 2
    appender.close()
    assert [len(bodies(segment.path)) for segment in sealed_segments(tmp_path)] == [2, 2]


def test_a_segment_is_due_when_old(tmp_path):
    """Age counts from the first record; an appender without a segment is never due."""
    appender = make(tmp_path, age_s=0.05)
    assert not appender.seal_due()
    put(appender)
    assert not appender.seal_due()
    time.sleep(0.06)
    assert appender.seal_due()
    appender.close()
    assert not appender.seal_due()
    appender.close()  # nothing is open
    assert len(sealed_segments(tmp_path)) == 1


def test_a_large_request_gets_room(tmp_path):
    """A request larger than the staging memory and the limits still goes through, alone."""
    appender = make(tmp_path, size_bytes=1 << 20)
    large = os.urandom(6 << 20)
    put(appender)
    put(appender, large)
    put(appender, large[:100])
    appender.close()
    assert [bodies(segment.path) for segment in sealed_segments(tmp_path)] == [[b"body"], [large], [large[:100]]]


def test_segments_of_all_signals_come_oldest_first(tmp_path):
    """The writer sees both signals in the order of creation; strangers' files are no segments."""
    for signal in ("traces", "metrics", "traces"):
        appender = make(tmp_path, signal=signal)
        put(appender)
        appender.close()
    for stranger in ("notes.pb", "x-y.pb"):
        (tmp_path / "traces" / stranger).write_bytes(b"?")
    segments = sealed_segments(tmp_path)
    assert [segment.signal for segment in segments] == ["traces", "metrics", "traces"]
    assert segments == sorted(segments, key=lambda segment: segment.created_ns)
    remove(segments[0])
    remove(segments[0])
    assert sealed_segments(tmp_path) == segments[1:]


def test_a_segment_that_vanishes_is_no_error(tmp_path, monkeypatch):
    """The writer may delete a segment while another process lists them."""
    appender = make(tmp_path)
    put(appender)
    appender.close()
    (segment,) = sealed_segments(tmp_path)
    assert spool._segment(segment.path.with_name("1-gone.pb")) is None


def test_the_spool_is_bounded(tmp_path):
    """Beyond its bytes, over all receivers and signals, requests are refused; room comes with deletion."""
    first, second = make(tmp_path, max_bytes=3000), make(tmp_path, max_bytes=3000, signal="metrics")
    put(first, b"x" * 1200)
    first.close()
    put(second, b"x" * 1000)
    with pytest.raises(SpoolFullError, match="AXONIZE_SPOOL_MAX_BYTES"):
        put(second, b"x" * 1000)
    second.close()
    for segment in sealed_segments(tmp_path):
        remove(segment)
    put(second, b"x" * 1000)
    second.close()


def test_a_bound_counts_without_looking_each_time(tmp_path):
    """Between two looks at the directory, what this process adds is counted."""
    usage = Usage(tmp_path, 100, refresh_s=60)
    usage.reserve(60)
    usage.reserve(30)
    usage.written(90)
    (tmp_path / "traces").mkdir()
    (tmp_path / "traces" / "1-a.pb").write_bytes(b"x" * 80)
    with pytest.raises(SpoolFullError, match="80 of at most 100"):
        usage.reserve(30)


def test_the_bound_survives_a_file_that_vanishes(tmp_path):
    """A dangling name is what a deletion between listing and stat looks like."""
    (tmp_path / "traces").mkdir()
    (tmp_path / "traces" / "1-a.pb").symlink_to(tmp_path / "gone")
    Usage(tmp_path, 100).reserve(100)


class Clock:
    """Tells the times it was given, then goes on from the last."""

    def __init__(self, *times_ns):
        self.times_ns = list(times_ns)

    def __call__(self):
        return self.times_ns.pop(0) if len(self.times_ns) > 1 else self.times_ns[0]


HOUR_NS = 3600 * 10**9


def test_a_clock_that_is_set_back_breaks_neither_order_nor_ids(tmp_path):
    """Segments keep the order they were made in, with ids of their own, also over a restart of the receiver."""
    times_ns = [10 * HOUR_NS, 10 * HOUR_NS + 1, 7 * HOUR_NS, 7 * HOUR_NS, 11 * HOUR_NS, 2 * HOUR_NS]
    sent = [f"body {number}".encode() for number in range(len(times_ns) + 1)]
    appender = Appender(tmp_path, "traces", Usage(tmp_path, 1 << 30), Limits(), Clock(*times_ns))
    for body in sent[:-1]:
        put(appender, body)
        appender.close()
    later = Appender(tmp_path, "traces", Usage(tmp_path, 1 << 30), Limits(), Clock(HOUR_NS))
    put(later, sent[-1])
    later.close()
    segments = sealed_segments(tmp_path)
    assert [bodies(segment.path) for segment in segments] == [[body] for body in sent]
    assert len({segment.created_ns for segment in segments}) == len({segment.id for segment in segments}) == len(sent)


def test_ages_stay_true_when_the_clock_was_put_right(tmp_path):
    """A name from the future says nothing: then the age counts from the file's own time, and is never negative."""
    now_ns = time.time_ns()
    appender = Appender(tmp_path, "traces", Usage(tmp_path, 1 << 30), Limits(), Clock(now_ns + 1000 * HOUR_NS))
    put(appender)
    appender.close()
    (segment,) = sealed_segments(tmp_path)
    assert 59 <= segment.age_s(now_ns + 60 * 10**9) <= 61
    assert segment.age_s(now_ns - HOUR_NS) == 0


def test_names_of_strangers_do_not_set_the_clock(tmp_path):
    """Only a name with a time in front counts."""
    (tmp_path / "traces").mkdir()
    (tmp_path / "traces" / "notes-99.pb").touch()
    appender = make(tmp_path)
    put(appender)
    appender.close()
    (segment,) = sealed_segments(tmp_path)
    assert abs(segment.created_ns - time.time_ns()) < 60e9


def test_refused_segments_count_toward_the_bound(tmp_path):
    """What is set aside takes the disk's room as well; directories are no bytes."""
    folder = tmp_path / "refused" / "traces"
    folder.mkdir(parents=True)
    (folder / "1-a.pb").write_bytes(b"x" * 80)
    Usage(tmp_path, 100).reserve(20)
    with pytest.raises(SpoolFullError, match="80 of at most 100"):
        Usage(tmp_path, 100).reserve(30)
