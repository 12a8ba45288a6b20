from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from axonize_core.frames import Kind, count_events
from axonize_core.recorder import MANY_EVENTS, Recorder, get_recorder


class Drainer:
    """Stands for a shipper that takes nothing."""

    def __init__(self, recorder):
        self.started = 0

    def start(self):
        self.started += 1

    def flush(self, timeout_s):
        return True

    def stop(self, timeout_s):
        return True

    def forget(self):
        pass


def drain(recorder):
    records = []
    while recorder.queued():
        records.append(recorder.take())
    return records


def test_records_come_out_in_order_with_their_time():
    """What is emitted comes out in order, stamped with the recorder's clock."""
    recorder = Recorder(10, Drainer)
    before = recorder.clock()
    recorder.emit(2, 7, ("a", None))
    recorder.emit(3, 8)
    first, second = drain(recorder)
    assert (first.kind, first.handle, first.payload) == (2, 7, ("a", None))
    assert (second.kind, second.handle, second.payload) == (3, 8, 0)
    assert before <= first.t_ns <= second.t_ns <= recorder.clock()


def test_full_buffer_drops_the_newest_and_counts_it():
    """A full queue keeps what it has, and every record it refused is counted."""
    recorder = Recorder(3, Drainer)
    for handle in range(5):
        recorder.emit(2, handle)
    assert [r.handle for r in drain(recorder)] == [0, 1, 2]
    assert recorder.dropped_total() == 2
    assert recorder.dropped_total() == 2, "reading does not count"
    recorder.emit(2, 9)
    assert [r.handle for r in drain(recorder)] == [9], "room again after a drain"


def test_events_of_one_instant_are_one_record():
    """Members of one step share a clock reading and a slot of the queue."""
    recorder = Recorder(10_000, Drainer)
    recorder.emit_many(6, [1, 2, 3], ["a", "b", "c"])
    recorder.emit_many(6, (4,))
    recorder.emit_many(6, ())
    first, second = drain(recorder)
    assert (first.kind, first.handle, first.payload) == (Kind.MANY, 3, (6, (1, 2, 3), ("a", "b", "c")))
    assert (second.kind, second.handle, second.payload) == (Kind.MANY, 1, (6, (4,), None))


def test_many_events_are_single_records_when_the_queue_fills_or_they_are_too_many():
    """A full queue never holds more than about twice its slots in events."""
    recorder = Recorder(512, Drainer)
    recorder.emit_many(6, range(MANY_EVENTS + 1))
    assert [r.handle for r in drain(recorder)] == list(range(MANY_EVENTS + 1))
    for _ in range(600):
        recorder.emit_many(6, [1, 2], ["a", "b"])
    records = drain(recorder)
    assert len(records) == 512
    assert count_events(records) + recorder.dropped_total() == 1200
    assert count_events(records) <= 1024
    assert {(r.kind, r.handle, r.payload) for r in records if r.kind != Kind.MANY} == {(6, 1, "a"), (6, 2, "b")}


def test_a_dropped_record_of_many_counts_as_its_events():
    """Events that find no drainer are dropped one and all, and counted one and all."""

    def unable(_):
        raise OSError("no threads left")

    recorder = Recorder(1000, unable)
    recorder.emit_many(6, [1, 2, 3])
    recorder.emit_many(6, [4, 5])
    assert recorder.dropped_total() == 5


def test_every_record_of_eight_threads_is_kept_or_counted():
    """Under contention drained + dropped = produced, exactly."""
    recorder = Recorder(1000, Drainer)
    taken = 0

    def produce():
        for handle in range(5000):
            recorder.emit(2, handle)

    threads = [threading.Thread(target=produce) for _ in range(8)]
    for thread in threads:
        thread.start()
    while any(t.is_alive() for t in threads) or recorder.queued():
        taken += len(drain(recorder))
    assert taken + recorder.dropped_total() == 8 * 5000


def test_the_first_emit_starts_the_drainer_once():
    """Nothing runs before the first record, and one drainer serves all threads."""
    made = []

    def make(recorder):
        made.append(Drainer(recorder))
        return made[-1]

    recorder = Recorder(1000, make)
    assert made == []
    threads = [threading.Thread(target=recorder.emit, args=(2, i)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    recorder._start()
    assert [d.started for d in made] == [1], "a thread that comes late finds it started"
    assert len(drain(recorder)) + recorder.dropped_total() == 16


def test_a_drainer_that_cannot_start_is_counted_and_never_raises():
    """A process that may not start threads loses records, visibly, and nothing else."""

    def make(recorder):
        raise RuntimeError("can't start new thread")

    recorder = Recorder(10, make)
    recorder.emit(2, 1)
    recorder.emit(2, 2)
    assert recorder.errors["recorder.start"] == 1
    assert recorder.dropped_total() == 2
    assert recorder.flush() is False
    assert recorder.close() is False


def test_the_nowhere_drainer_starts_without_doing_anything():
    """The drainer of last resort keeps the drainers' contract."""
    from axonize_core.recorder import _Nowhere

    assert _Nowhere().start() is None
    assert _Nowhere().forget() is None


def test_sources_are_the_same_for_the_same_values():
    """A source is registered once, whatever the number of calls."""
    recorder = Recorder(10, Drainer)
    first = recorder.source("transformers", "svc", "m", "p", ("cpu", 0, None))
    assert recorder.source("transformers", "svc", "m", "p", ("cpu", 0, None)) == first
    assert recorder.source("transformers", "svc", "other", "p", ("cpu", 0, None)) != first
    assert len(recorder.sources) == 2
    assert recorder.queued() == 0, "sources do not pass through the queue"


def test_lost_records_and_errors_are_counted():
    """What is lost after the queue counts as dropped, our own failures by place."""
    recorder = Recorder(10, Drainer)
    recorder.count_dropped(3)
    recorder.count_error("hf.generate")
    assert recorder.dropped_total() == 3
    assert recorder.errors == {"hf.generate": 1}


def test_flush_and_close_without_a_record_are_done_at_once():
    """A process that recorded nothing has nothing to wait for."""
    recorder = Recorder(10, Drainer)
    assert recorder.flush() is True
    assert recorder.close() is True


def test_close_ends_the_drainer_and_the_next_emit_starts_another():
    """After close the recorder begins anew."""
    made = []

    def make(recorder):
        made.append(Drainer(recorder))
        return made[-1]

    recorder = Recorder(10, make)
    recorder.emit(2, 1)
    assert recorder.flush() is True
    assert recorder.close() is True
    recorder.emit(2, 2)
    assert len(made) == 2


def test_redirect_returns_where_records_went_before():
    """A redirected recorder can be put back."""
    recorder = Recorder(10, Drainer)
    assert recorder.redirect(Drainer) is Drainer


def test_the_recorder_of_a_process_is_one():
    """All integrations of a process share one queue."""
    assert get_recorder() is get_recorder()
    from axonize_core.recorder import _make_shipper

    shipper = _make_shipper(get_recorder())
    assert type(shipper).__name__ == "Shipper"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_a_forked_child_begins_anew():
    """The child has its own instance id and none of the parent's records; the parent keeps its own."""
    code = """
import os, sys
from axonize_core.recorder import get_recorder, Recorder
class D:
    def __init__(self, r): pass
    def start(self): pass
    def flush(self, t): return True
    def stop(self, t): return True
    def forget(self): pass
r = get_recorder(); r.redirect(D); r.emit(2, 1)
parent = r.instance_id
pid = os.fork()
if pid == 0:
    ok = r.queued() == 0 and r.instance_id != parent and r.pid == os.getpid()
    r.emit(2, 2)
    os._exit(0 if ok and r.queued() == 1 else 1)
_, status = os.waitpid(pid, 0)
sys.exit(status or (0 if r.queued() == 1 and r.instance_id == parent else 2))
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_after_a_fork_the_parents_drainer_is_let_go():
    """The child keeps nothing of its parent's: no records, no id, no connection; a failure there is counted."""
    forgotten = []

    class Forgetful(Drainer):
        def forget(self):
            forgotten.append(self)
            raise OSError("bad descriptor")

    recorder = Recorder(10, Forgetful)
    recorder._after_fork()
    assert forgotten == [], "a process that recorded nothing has none"
    recorder.emit(2, 1)
    parent = recorder.instance_id
    recorder._after_fork()
    assert len(forgotten) == 1
    assert recorder.queued() == 0
    assert recorder.instance_id != parent
    assert recorder.errors["recorder.fork"] == 1


def test_start_is_for_who_has_sources_only():
    """The shipper is started once, and what fails is counted and drops what comes, as with emit."""
    drainers = []
    recorder = Recorder(4, lambda recorder: drainers.append(Drainer(recorder)) or drainers[-1])
    recorder.start()
    recorder.start()
    assert [drainer.started for drainer in drainers] == [1]
    recorder.emit(Kind.REQUEST, 1)
    assert recorder.queued() == 1
    failing = Recorder(4, lambda recorder: 1 / 0)
    failing.start()
    failing.emit(Kind.REQUEST, 1)
    assert failing.errors == {"recorder.start": 1}
    assert failing.dropped_total() == 1
