from __future__ import annotations

import logging
import threading
import time
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

import pytest

from axonize_core.export.answer import Answer, Backoff, retry_after_s
from axonize_core.export.backlog import Backlog
from axonize_core.export.batch import Batch
from axonize_core.export.disk_queue import DiskQueue
from axonize_core.export.encoder import encoded
from axonize_core.export.endpoint import Endpoint
from axonize_core.export.lane import Lane

ACCEPTED = Answer(settled=True)
LATER = Answer(settled=False, reason="HTTP 503")


class Script:
    """A collector that gives the scripted answers, then accepts; notes what it was sent."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.bodies = []
        self.timeouts_s = []
        self.closed = False

    def send(self, batch, timeout_s):
        self.bodies.append(batch.body)
        self.timeouts_s.append(timeout_s)
        answer = self.answers.pop(0) if self.answers else ACCEPTED
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self):
        self.closed = True


def make(sender, disk=None, wait_s=0.0):
    backlog = Backlog(disk, max_age_s=3600)
    lane = Lane(Endpoint.from_env("traces", {}), backlog, sender, Backoff(uniform=lambda low, high: wait_s))
    lane.start()
    return lane


def put(lane, *bodies):
    for body in bodies:
        lane.put(Batch(body, 3, time.time_ns(), gzipped=False))


def wait_for(condition):
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_batch_is_retried_until_it_is_taken_and_order_is_kept(caplog):
    """An answer for later, an exception of any kind: the same batch again, then the next; said once per reason."""
    sender = Script(LATER, ConnectionError("refused"), ValueError("a bug"), LATER)
    lane = make(sender)
    put(lane, b"a", b"b")
    wait_for(lambda: lane.sent == 6)
    assert sender.bodies == [b"a"] * 5 + [b"b"]
    facts = lane.facts()
    assert (facts["retries"], facts["sent_batches"], facts["waiting"]) == (4, 2, 0)
    assert len(caplog.records) == 3
    assert lane.stop(time.monotonic() + 1)
    assert sender.closed


def test_what_is_refused_for_good_is_counted_by_reason_and_does_not_block(caplog):
    """The batch behind it goes out; a partial success counts what was rejected of it."""
    bad = Answer(settled=True, refused=3, reason="HTTP 400", detail="bad id")
    partly = Answer(settled=True, refused=1, reason="partial success", detail="one too old")
    lane = make(Script(bad, partly, bad))
    put(lane, b"a", b"b", b"c", b"d")
    wait_for(lambda: lane.facts()["waiting"] == 0)
    facts = lane.facts()
    assert facts["refused"] == {"HTTP 400": 6, "partial success": 1}
    assert (facts["sent"], facts["retries"]) == (5, 0)
    assert facts["last_error"] == "HTTP 400: bad id"
    assert [r.levelno for r in caplog.records] == [logging.WARNING] * 2
    lane.stop(time.monotonic() + 1)


def test_stopping_sends_what_the_collector_takes(tmp_path):
    """With a collector that answers, nothing stays behind."""
    gate = threading.Event()

    class Slow(Script):
        def send(self, batch, timeout_s):
            gate.wait(5)
            return super().send(batch, timeout_s)

    sender = Slow()
    lane = make(sender, DiskQueue(tmp_path / "q", 1 << 20, reserved_bytes=0))
    put(lane, b"a", b"b", b"c")
    threading.Timer(0.05, gate.set).start()
    assert lane.stop(time.monotonic() + 3)
    assert sender.bodies == [b"a", b"b", b"c"]
    assert list((tmp_path / "q").iterdir()) == []


def test_stopping_keeps_on_disk_what_the_collector_does_not_take(tmp_path, caplog):
    """One more attempt, then the rest waits for the next agent, and the log says where."""
    sender = Script(*[LATER] * 9)
    lane = make(sender, DiskQueue(tmp_path / "q", 1 << 20, reserved_bytes=0), wait_s=60)
    put(lane, b"a", b"b")
    wait_for(lambda: lane.facts()["retries"] == 1)
    assert 59 < lane.facts()["next_try_s"] <= 60
    before = time.monotonic()
    assert lane.stop(time.monotonic() + 3)
    assert time.monotonic() - before < 1
    assert sender.bodies == [b"a", b"a"]
    assert f"6 spans stay in {tmp_path / 'q'}" in caplog.text
    again = DiskQueue(tmp_path / "q", 1 << 20)
    assert again.items == 6
    assert again.head().body == b"a"


def test_stopping_takes_no_longer_than_it_was_given():
    """A request under way is cut to the time that is left; a thread that hangs is left to the process's end."""
    gate = threading.Event()

    class Hanging(Script):
        def send(self, batch, timeout_s):
            gate.wait(5)
            return super().send(batch, timeout_s)

    lane = make(sender := Hanging(LATER))
    put(lane, b"a")
    before = time.monotonic()
    assert not lane.stop(time.monotonic() + 0.1)
    assert time.monotonic() - before < 1
    gate.set()
    wait_for(lambda: sender.closed)
    assert lane.facts()["dropped"] == {"shutdown": 3}


def test_waits_grow_with_jitter_and_are_never_shorter_than_asked():
    """Full jitter below 1, 2, 4, 8, 10, 10 s; what the collector asked for comes on top, within an hour."""
    asked = []
    backoff = Backoff(uniform=lambda low, high: asked.append((low, high)) or high)
    assert [backoff.wait_s(None) for _ in range(6)] == [1, 2, 4, 8, 10, 10]
    assert {low for low, _ in asked} == {0}
    backoff.reset()
    assert backoff.wait_s(7.0) == 8.0
    assert backoff.wait_s(1e9) == 3602.0


def test_retry_after_is_seconds_or_a_date():
    """Both forms of RFC 9110; nonsense is no wish."""
    at = datetime(2026, 3, 1, tzinfo=timezone.utc)
    assert retry_after_s("120") == 120
    assert retry_after_s("-5") == 0
    assert retry_after_s(format_datetime(at + timedelta(seconds=90), usegmt=True), at.timestamp) == 90
    assert retry_after_s(format_datetime(at - timedelta(seconds=90), usegmt=True), at.timestamp) == 0
    assert retry_after_s("soon") is None
    assert retry_after_s(None) is None


@pytest.mark.parametrize("bad", [[], [0], [3], [0, 1, 5]])
def test_an_item_that_cannot_be_encoded_takes_no_other_with_it(bad):
    """The body is halved until the culprit stands alone."""

    def encode(items):
        if set(items) & set(bad):
            raise TypeError("no such type")
        return bytes(items)

    found = list(encoded(list(range(6)), encode))
    assert b"".join(body for body, _ in found if body is not None) == bytes(set(range(6)) - set(bad))
    assert sum(count for body, count in found if body is None) == len(bad)
    assert sum(count for _, count in found) == 6


def test_a_body_over_the_limit_is_halved():
    """What a collector would refuse by size is sent in parts; a single item is sent as it is."""
    found = list(encoded(list(range(8)), lambda items: bytes(100 * len(items)), 250))
    assert found == [(bytes(200), 2)] * 4
    assert list(encoded([1], lambda _: bytes(999), 250)) == [(bytes(999), 1)]


def test_an_error_of_ours_does_not_end_the_export(caplog):
    """A bug in the queue is counted and shown, and sending goes on when it is over."""
    lane = make(Script())
    real, broken = lane.backlog.head, [True, True]

    def head():
        if broken:
            raise RuntimeError(f"bug {broken.pop()}")
        return real()

    lane.backlog.head = head
    put(lane, b"a")
    wait_for(lambda: lane.sent == 3)
    assert lane.facts()["retries"] == 2
    assert lane.last_error == "RuntimeError: bug True"
    assert "sending failed" in caplog.text
    lane.stop(time.monotonic() + 1)
