from __future__ import annotations

from axonize_core.export.backlog import Backlog
from axonize_core.export.batch import Batch
from axonize_core.export.disk_queue import DiskQueue


def batch(n, size=100):
    return Batch(bytes([n]) * size, 2, n * 10**9, gzipped=False)


def disk(path, max_bytes=1 << 20, reserved_bytes=0):
    return DiskQueue(path / "traces", max_bytes, reserved_bytes=reserved_bytes)


def make(queue, *, now_s=0.0, **more):
    return Backlog(queue, **{"max_age_s": 3600, "clock": lambda: int(now_s * 1e9), **more})


def drain(backlog):
    found = []
    while (head := backlog.head()) is not None:
        found.append(head)
        backlog.settle(head)
    return found


def test_what_the_disk_refuses_waits_in_memory_in_order(tmp_path, caplog):
    """No space: batches stay in memory, said once; when the disk works again they move there, order kept."""
    queue = disk(tmp_path)
    backlog = make(queue)
    backlog.append(batch(0))
    queue._segment_bytes, queue._reserved_bytes = 1, 1 << 60
    backlog.append(batch(1))
    backlog.append(batch(2))
    facts = backlog.facts()
    assert (facts["waiting_batches"], facts["waiting"], facts["memory_bytes"]) == (3, 6, 200)
    assert "MiB are free" in facts["fallback"]
    assert facts["disk_failures"] == 2
    assert len([r for r in caplog.records if "stay in memory" in r.message]) == 1
    queue._reserved_bytes = 0
    backlog.append(batch(3))
    assert backlog.facts()["fallback"] == ""
    assert backlog.facts()["memory_bytes"] == 0
    assert drain(backlog) == [batch(n) for n in range(4)]
    assert backlog.items == 0


def test_a_batch_in_flight_may_move_to_disk_meanwhile(tmp_path):
    """The sender settles what it holds, wherever it lies by then."""
    queue = disk(tmp_path, reserved_bytes=1 << 60)
    backlog = make(queue)
    backlog.append(batch(0))
    in_flight = backlog.head()
    queue._reserved_bytes = 0
    backlog.append(batch(1))
    assert backlog.facts()["memory_bytes"] == 0
    backlog.settle(in_flight)
    assert drain(backlog) == [batch(1)]


def test_a_batch_in_flight_that_found_no_room_takes_no_other_with_it(tmp_path):
    """It is counted as dropped although the collector got it; what is behind it stays."""
    queue = disk(tmp_path, max_bytes=150, reserved_bytes=1 << 60)
    backlog = make(queue)
    backlog.append(batch(0, size=200))
    in_flight = backlog.head()
    queue._reserved_bytes = 0
    backlog.append(batch(1))
    backlog.settle(in_flight)
    assert drain(backlog) == [batch(1)]
    assert backlog.dropped == {"full": 2}


def test_full_drops_the_newest_and_counts_it(tmp_path):
    """On disk and in memory alike; what waited longer is kept."""
    for backlog in (make(disk(tmp_path, max_bytes=300)), make(None, memory_bytes=300)):
        for n in range(5):
            backlog.append(batch(n))
        kept = drain(backlog)
        assert kept == [batch(n) for n in range(len(kept))]
        assert 0 < len(kept) < 5
        assert backlog.facts()["dropped"] == {"full": 2 * (5 - len(kept))}


def test_what_is_too_old_is_dropped_and_counted(tmp_path):
    """The age bound takes the oldest; the rest is sent."""
    backlog = make(disk(tmp_path), now_s=3605.0)
    for n in range(10):
        backlog.append(batch(n))
    assert backlog.facts()["oldest_age_s"] == 3605.0
    assert drain(backlog) == [batch(n) for n in range(5, 10)]
    assert backlog.facts()["dropped"] == {"age": 10}
    assert backlog.facts()["oldest_age_s"] is None


def test_closing_keeps_what_is_on_disk_and_counts_what_is_not(tmp_path):
    """What stays is said; what was only in memory is dropped, visibly."""
    backlog = make(disk(tmp_path))
    backlog.append(batch(0))
    assert backlog.close() == 2
    backlog.append(batch(1))
    assert backlog.facts()["dropped"] == {"shutdown": 2}
    assert drain(make(disk(tmp_path))) == [batch(0)]
    lost = make(None, fallback="no disk")
    lost.append(batch(1))
    assert lost.close() == 0
    assert lost.facts()["dropped"] == {"shutdown": 2}
    assert lost.facts()["directory"] is None


def test_what_cannot_be_read_back_is_a_drop(tmp_path):
    """A damaged file shows as dropped, by cause."""
    backlog = make(disk(tmp_path))
    backlog.append(batch(1))
    (path,) = (tmp_path / "traces").iterdir()
    path.write_bytes(b"\0" * path.stat().st_size)
    assert backlog.head() is None
    assert backlog.facts()["dropped"] == {"unreadable": 2}
    assert backlog.facts()["torn_bytes"] > 100
