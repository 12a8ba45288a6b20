"""The shipper's sleep: others put it off and end it, and it ends where a host takes its timer away."""

from __future__ import annotations

import os
import sys
import threading
import time

import pytest

from axonize_core import alarm
from axonize_core.alarm import Alarm


@pytest.fixture
def clock():
    made = Alarm()
    yield made
    made.close()


def asleep(clock, period_s):
    """Let a thread sleep; return it and the event it sets when it is awake."""
    awake = threading.Event()
    thread = threading.Thread(target=lambda: (clock.sleep(period_s), awake.set()), daemon=True)
    thread.start()
    return awake


def test_a_sleep_ends_by_itself(clock):
    """Not before its time."""
    started_s = time.monotonic()
    clock.sleep(0.05)
    assert 0.05 <= time.monotonic() - started_s < 5


def test_a_sleep_that_is_put_off_again_and_again_goes_on(clock):
    """The sleeper is not woken in between, and ends when nobody puts it off any more."""
    awake = asleep(clock, 1.5)
    for _ in range(20):
        time.sleep(0.1)
        assert clock.put_off(1.5)
        assert not awake.is_set()
    assert awake.wait(5)


def test_a_sleep_can_be_ended(clock):
    """At once, and put off no more."""
    awake = asleep(clock, 60)
    clock.ring()
    assert clock.put_off(60)
    assert awake.wait(5)


def test_to_be_rung_before_it_sleeps_counts(clock):
    """The next sleep ends at once, the one after it does not."""
    clock.ring()
    clock.sleep(60)
    assert not asleep(clock, 60).wait(0.1)
    clock.ring()


def test_no_sleep_is_put_off_for_ever(clock, monkeypatch):
    """What else the sleeper looks after is not left alone."""
    monkeypatch.setattr(alarm, "LONGEST_S", 0.1)
    assert asleep(clock, 60).wait(5)


def test_a_host_that_closed_the_timer_gets_plain_sleeps(clock):
    """Whatever has its number now is left alone: it is asked nothing that it could answer."""
    read, write = os.pipe()
    os.dup2(read, clock._fd)
    os.write(write, b"the host's own bytes")
    assert clock.put_off(60) is False
    started_s = time.monotonic()
    clock.sleep(0.05)
    assert 0.05 <= time.monotonic() - started_s < 5
    assert os.read(read, 100) == b"the host's own bytes"
    os.close(read)
    os.close(write)


@pytest.mark.parametrize("lacking", ["function", "ctypes"])
def test_where_no_timer_can_be_had_sleeps_are_plain(monkeypatch, lacking):
    """And calls to put them off say so; one that was ended before it began is none."""
    if lacking == "ctypes":
        monkeypatch.setitem(sys.modules, "ctypes", None)
    else:
        monkeypatch.setattr(alarm, "_function", lambda *_: (_ for _ in ()).throw(AttributeError("timerfd_settime")))
    plain = Alarm()
    assert plain.put_off(1) is False
    plain.ring()
    plain.sleep(60)
    started_s = time.monotonic()
    plain.sleep(0.05)
    assert time.monotonic() - started_s >= 0.05
    plain.close()


def test_the_timer_keeps_clear_of_the_standard_streams_and_of_children(clock):
    """Its number is above theirs, and it is closed where a program is started."""
    assert clock._fd > 2
    assert not os.get_inheritable(clock._fd)
    fd = clock._fd
    os.close(fd)
    clock.close()
    clock.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
