"""What a dead receiver left, and files that are no longer what they were."""

from __future__ import annotations

import fcntl

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appending import bodies, die, make, put
from axonize_server import spool
from axonize_server.spool import messages, read_header, recover, sealed_segments
from otlp_bodies import trace_body

PATIENT = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])


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
