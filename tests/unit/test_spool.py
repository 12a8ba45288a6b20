"""Segments: what is acknowledged can be read back, what is torn is cut off, what is full is refused."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import time

import pytest
from google.protobuf.unknown_fields import UnknownFieldSet
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from axonize_server import appender as appender_module
from axonize_server import spool
from axonize_server.appender import Appender, Limits, Usage
from axonize_server.spool import (
    INSERT_SETTINGS,
    SpoolFullError,
    SpoolUnavailableError,
    messages,
    read_header,
    recover,
    remove,
    sealed_segments,
)
from otlp_bodies import trace_body

DAY = 20_000
PATIENT = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def make(spool_dir, *, max_bytes=1 << 30, signal="traces", **limits):
    return Appender(spool_dir, signal, Usage(spool_dir, max_bytes), Limits(**limits))


def put(appender, body=b"body", *, records=1, tenant="default", received_ns=7, days=frozenset({DAY})):
    return appender.append(body, records=records, tenant=tenant, received_ns=received_ns, days=days)


def bodies(path):
    """The requests in a segment, without header and trailing fields of the tenant 'default'."""
    whole = [bytes(message) for message, _ in messages(memoryview(path.read_bytes()))]
    own = len(spool.request_frame(b"", tenant="default", received_ns=0)[1])
    return [message[:-own] for message in whole[1:]]


def die(appender):
    """Leave the files as a killed receiver does: open, without their locks."""
    for segment in [*appender._closing, *([appender._current] if appender._current else [])]:
        if segment.fd >= 0:
            os.close(segment.fd)


@contextlib.contextmanager
def no_file_larger_than(size):
    """The kernel refuses to write further, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


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


def test_a_full_disk_refuses_and_keeps_what_was_synced(tmp_path):
    """What was durable before stays readable, the rest says that it is not, and later requests go on."""
    appender = make(tmp_path)
    kept = put(appender, b"kept" * 100)
    appender.sync()
    lost = put(appender, os.urandom(100_000))
    with no_file_larger_than(20_000), pytest.raises(SpoolUnavailableError, match="cannot write"):
        appender.sync()
    assert kept.durable
    assert not lost.durable
    after = put(appender, b"after")
    appender.close()
    assert after.durable
    assert [bodies(segment.path) for segment in sealed_segments(tmp_path)] == [[b"kept" * 100], [b"after"]]


def test_a_full_disk_at_the_first_write_leaves_no_file(tmp_path):
    """A segment that got nothing durable is removed."""
    appender = make(tmp_path)
    lost = put(appender, os.urandom(100_000))
    with no_file_larger_than(0), pytest.raises(SpoolUnavailableError):
        appender.close()
    assert not lost.durable
    assert list((tmp_path / "traces").iterdir()) == []


def test_a_directory_that_cannot_be_written_refuses(tmp_path):
    """When not even the file can be made, the request is not durable and the next one may be."""
    appender = make(tmp_path)
    (tmp_path / "traces").rename(tmp_path / "away")
    lost = put(appender)
    with pytest.raises(SpoolUnavailableError):
        appender.sync()
    (tmp_path / "away").rename(tmp_path / "traces")
    assert not lost.durable
    again = put(appender)
    appender.close()
    assert again.durable


def test_a_failed_sync_is_never_trusted_again(tmp_path, monkeypatch):
    """Requests that came in meanwhile are not durable either: the file is cut to what was synced before."""
    appender = make(tmp_path)
    put(appender, b"first")
    appender.sync()
    put(appender, b"second")
    meanwhile = []

    def broken(fd):
        monkeypatch.undo()
        meanwhile.append(put(appender, b"third"))
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", broken)
    with pytest.raises(SpoolUnavailableError, match="Input/output"):
        appender.sync()
    appender.sync()
    assert not meanwhile[0].durable
    (segment,) = sealed_segments(tmp_path)
    assert bodies(segment.path) == [b"first"]


def test_a_seal_that_fails_is_left_to_recovery(tmp_path, monkeypatch):
    """The request is durable all the same; the file keeps its open name until someone recovers it."""
    appender = make(tmp_path)
    ticket = put(appender)
    monkeypatch.setattr(os, "ftruncate", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "no")))
    with pytest.raises(SpoolUnavailableError):
        appender.close()
    monkeypatch.undo()
    assert ticket.durable
    assert sealed_segments(tmp_path) == []
    assert [found.kept_messages for found in recover(tmp_path)] == [1]


def test_a_file_system_without_direct_io_is_written_through_the_cache(tmp_path, monkeypatch):
    """EINVAL for the flag is answered by opening without it; any other refusal stands."""
    real = os.open

    def picky(path, flags, *args):
        fd = real(path, flags & ~os.O_DIRECT, *args)
        if flags & os.O_DIRECT:
            os.close(fd)
            raise OSError(errno.EINVAL, "Invalid argument")
        return fd

    monkeypatch.setattr(os, "open", picky)
    appender = make(tmp_path)
    assert not put(appender).durable
    appender.close()
    assert bodies(sealed_segments(tmp_path)[0].path) == [b"body"]


def test_a_recovery_that_is_faster_than_the_lock_is_noticed(tmp_path, monkeypatch):
    """A file deleted between its creation and its lock must not take requests to the grave."""
    real = fcntl.flock

    def late(fd, operation):
        recover(tmp_path)
        real(fd, operation)

    appender = make(tmp_path)
    lost = put(appender)
    monkeypatch.setattr(appender_module.fcntl, "flock", lambda *a: (monkeypatch.undo(), late(*a)))
    with pytest.raises(SpoolUnavailableError):
        appender.sync()
    assert not lost.durable
    assert list((tmp_path / "traces").iterdir()) == []


def test_recovery_seals_what_a_dead_receiver_left(tmp_path):
    """Synced requests survive; the half message behind them is cut off and reported."""
    appender = make(tmp_path)
    put(appender, b"one")
    put(appender, b"two")
    appender.sync()
    path = appender._current.path
    die(appender)
    with path.open("r+b") as file:
        end = appender._current.synced
        file.seek(end)
        file.write(b"\x7fhalf a message")
    (found,) = recover(tmp_path)
    assert (found.kept_messages, found.cut_bytes) == (2, len(b"\x7fhalf a message"))
    (segment,) = sealed_segments(tmp_path)
    assert segment.id == path.stem
    assert bodies(segment.path) == [b"one", b"two"]
    assert segment.size_bytes == end
    assert recover(tmp_path) == []


def test_padding_is_not_reported_as_cut(tmp_path):
    """Direct I/O writes whole blocks; the zeros behind the last message were never data."""
    appender = make(tmp_path)
    put(appender)
    appender.sync()
    die(appender)
    assert [found.cut_bytes for found in recover(tmp_path)] == [0]


def test_recovery_deletes_what_holds_no_request(tmp_path):
    """An empty file, and one with a header alone, are no segments."""
    (tmp_path / "traces").mkdir()
    (tmp_path / "traces" / "1-empty.open").touch()
    (tmp_path / "traces" / "2-header.open").write_bytes(spool.header_message("traces"))
    (tmp_path / "traces" / "3-torn.open").write_bytes(spool.header_message("traces")[:-1])
    assert [found.kept_messages for found in recover(tmp_path)] == [0, 0, 0]
    assert list((tmp_path / "traces").iterdir()) == []


def test_recovery_leaves_the_living_alone(tmp_path):
    """A locked file belongs to a receiver, and one that was sealed meanwhile to nobody."""
    appender = make(tmp_path)
    put(appender)
    appender.sync()
    assert recover(tmp_path) == []
    put(appender, b"more")
    appender.close()
    assert bodies(sealed_segments(tmp_path)[0].path) == [b"body", b"more"]
    assert spool._recover_file(tmp_path / "traces" / "1-gone.open") is None


def test_recovery_notices_a_file_sealed_between_open_and_lock(tmp_path, monkeypatch):
    """The receiver renames and lets go just before recovery locks: the segment is left as it is."""
    appender = make(tmp_path)
    put(appender)
    appender.sync()
    real = fcntl.flock

    def late(fd, operation):
        monkeypatch.undo()
        appender.close()
        real(fd, operation)

    monkeypatch.setattr(spool.fcntl, "flock", late)
    assert recover(tmp_path) == []
    assert len(sealed_segments(tmp_path)) == 1


@pytest.mark.parametrize("content", [b"", b"\x03abc", spool.request_frame(b"x", tenant="t", received_ns=1)[0]])
def test_a_file_without_a_header_is_no_segment(tmp_path, content):
    """Whoever reads a header is told so, with the file's name."""
    (tmp_path / "1-a.pb").write_bytes(content)
    with pytest.raises(ValueError, match=r"1-a\.pb"):
        read_header(tmp_path / "1-a.pb")


def test_a_first_message_that_is_no_header_is_noticed(tmp_path):
    """A whole message in the header's place does not pass for one."""
    prefix, trailer = spool.request_frame(b"x", tenant="t", received_ns=1)
    (tmp_path / "1-a.pb").write_bytes(prefix + b"x" + trailer)
    with pytest.raises(ValueError, match="no header"):
        read_header(tmp_path / "1-a.pb")


@pytest.fixture(scope="module")
def segment_bytes(tmp_path_factory):
    """A segment of six requests of different sizes, with the offset behind each."""
    tmp_path = tmp_path_factory.mktemp("segment")
    appender = make(tmp_path)
    sent = [trace_body(seed, spans=seed % 3) + b"" for seed in range(6)]
    for body in sent:
        put(appender, body)
    appender.close()
    data = sealed_segments(tmp_path)[0].path.read_bytes()
    return data, [end for _, end in messages(memoryview(data))], sent


@PATIENT
@given(data=st.data())
def test_a_truncated_segment_yields_exactly_the_whole_messages(segment_bytes, data):
    """Wherever the file ends, all that was whole before is kept and nothing else is."""
    whole, ends, _ = segment_bytes
    length = data.draw(st.integers(0, len(whole)))
    kept = [end for _, end in messages(memoryview(whole)[:length])]
    assert kept == [end for end in ends if end <= length]


@PATIENT
@given(data=st.data())
def test_corruption_never_yields_a_wrong_message(segment_bytes, data):
    """Bytes changed anywhere, padding zeroed or garbage behind: only true messages come out, from the start."""
    whole, ends, _ = segment_bytes
    broken = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(broken) - 1))
        broken[at] ^= data.draw(st.integers(1, 255))
    broken += data.draw(st.sampled_from([b"", bytes(100), b"\xff" * 20]))
    same = [a == b for a, b in zip(broken, whole, strict=False)]
    first_damage = same.index(False) if False in same else len(whole)
    found = [(bytes(message), end) for message, end in messages(memoryview(broken))]
    true = [(bytes(message), end) for message, end in messages(memoryview(whole))]
    assert found == true[: len(found)]
    assert len(found) >= sum(end <= first_damage for end in ends)


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


def test_a_disk_that_fills_in_the_middle_of_a_write(tmp_path, monkeypatch):
    """A short write and then ENOSPC: the requests are refused, what was durable stays, and later ones go on."""
    appender = make(tmp_path)
    kept = put(appender, b"kept")
    appender.sync()
    lost = put(appender, b"lost" * 5000)
    real, calls = os.pwrite, []

    def full(fd, data, offset):
        calls.append(len(data))
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data[:4096], offset)

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        with pytest.raises(SpoolUnavailableError, match="No space left"):
            appender.sync()
    assert calls[1] == calls[0] - 4096, "what a short write left was tried again"
    after = put(appender, b"after")
    appender.close()
    assert (kept.durable, lost.durable, after.durable) == (True, False, True)
    assert [bodies(segment.path) for segment in sealed_segments(tmp_path)] == [[b"kept"], [b"after"]]


def test_a_directory_that_cannot_be_synced_refuses(tmp_path, monkeypatch):
    """Without its name on disk a file would be gone after a power failure: nothing in it is acknowledged."""
    appender = make(tmp_path)
    lost = put(appender)

    def broken(_):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", broken)
        with pytest.raises(SpoolUnavailableError, match="Input/output"):
            appender.sync()
    assert not lost.durable
    appender.close()
    assert sealed_segments(tmp_path) == []
    assert list((tmp_path / "traces").iterdir()) == []


def test_refused_segments_count_toward_the_bound(tmp_path):
    """What is set aside takes the disk's room as well; directories are no bytes."""
    folder = tmp_path / "refused" / "traces"
    folder.mkdir(parents=True)
    (folder / "1-a.pb").write_bytes(b"x" * 80)
    Usage(tmp_path, 100).reserve(20)
    with pytest.raises(SpoolFullError, match="80 of at most 100"):
        Usage(tmp_path, 100).reserve(30)
