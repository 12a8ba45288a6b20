from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from axonize_core.errors import ConfigurationError
from axonize_core.export.batch import Batch
from axonize_core.export.disk_queue import DiskQueue
from axonize_core.export.queue_directory import QueueDirectory, leftovers

ABOUT = {"endpoints": {"traces": "http://c/v1/traces"}}


def fill(directory, *marks):
    queue = DiskQueue(directory.path / "traces", 1 << 20, reserved_bytes=0)
    for mark in marks:
        queue.append(Batch(mark, 1, 0, gzipped=False))
    queue.close()


def bodies(directory):
    queue = DiskQueue(directory.path / "traces", 1 << 20, reserved_bytes=0)
    found = []
    while (head := queue.head()) is not None:
        found.append(head.body)
        queue.settle(head)
    queue.close()
    return found


def die(directory):
    """End as SIGKILL ends: the lock goes, the files stay."""
    os.close(directory._lock_fd)


def test_two_agents_never_share_a_directory(tmp_path):
    """The second one takes the next slot; a slot is free again when its owner ended."""
    first, second = (QueueDirectory(tmp_path, "key", ABOUT) for _ in range(2))
    assert first.path != second.path
    assert first.path.stat().st_mode & 0o777 == 0o700
    path = first.path
    first.release()
    assert not path.exists()
    third = QueueDirectory(tmp_path, "key", ABOUT)
    assert third.path == path
    third.release()
    second.release()
    assert list((tmp_path / "queue").iterdir()) == []


def test_a_dead_agents_queue_is_taken_over_by_the_next_with_the_same_settings(tmp_path):
    """All slots of the key, oldest first; what other settings left stays where it is."""
    first, second, other = (QueueDirectory(tmp_path, key, ABOUT) for key in ("key", "key", "other"))
    fill(first, b"a", b"b")
    fill(second, b"c")
    fill(other, b"x")
    for dead in (first, second, other):
        die(dead)
    heir = QueueDirectory(tmp_path, "key", ABOUT)
    assert heir.adopted_segments == 1
    assert bodies(heir) == [b"a", b"b", b"c"]
    assert [left.path for left in leftovers(tmp_path)] == [other.path]
    heir.release()
    assert [p.name for p in (tmp_path / "queue").iterdir()] == ["other.0"]


def test_what_a_living_agent_holds_is_neither_taken_nor_called_left_over(tmp_path):
    """Its lock says that it lives."""
    alive = QueueDirectory(tmp_path, "key", ABOUT)
    fill(alive, b"a")
    other = QueueDirectory(tmp_path, "key", ABOUT)
    assert other.adopted_segments == 0
    assert leftovers(tmp_path) == []
    die(alive)
    (left,) = leftovers(tmp_path)
    assert (left.path, left.segments, left.about) == (alive.path, 1, ABOUT)
    assert left.file_bytes > 0
    other.release()


def test_a_queue_with_segments_outlives_its_release(tmp_path):
    """A clean end keeps what could not be sent."""
    directory = QueueDirectory(tmp_path, "key", ABOUT)
    fill(directory, b"a")
    directory.release()
    assert bodies(QueueDirectory(tmp_path, "key", ABOUT)) == [b"a"]


def test_no_place_to_write_is_an_error_with_a_reason(tmp_path):
    """A file in the way, a directory of the kernel's: OSError, and the caller falls back to memory."""
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", Path("/proc/axonize")):
        with pytest.raises((OSError, ConfigurationError)):
            QueueDirectory(place, "key", ABOUT)
    assert leftovers(tmp_path / "nothing") == []


def test_a_state_directory_of_somebody_else_is_not_used(tmp_path):
    """It may be a trap; the message says what to set."""
    if os.getuid() != 0:
        pytest.skip("only root can give a directory away")
    (tmp_path / "state").mkdir()
    os.chown(tmp_path / "state", 12345, 12345)
    with pytest.raises(ConfigurationError, match="AXONIZE_STATE_DIR"):
        QueueDirectory(tmp_path / "state", "key", ABOUT)


def test_slots_are_bounded(tmp_path, monkeypatch):
    """Beyond them an agent is told, and queues in memory."""
    monkeypatch.setattr("axonize_core.export.queue_directory.SLOTS", 2)
    held = [QueueDirectory(tmp_path, "key", ABOUT) for _ in range(2)]
    with pytest.raises(OSError, match="2 agents hold queues"):
        QueueDirectory(tmp_path, "key", ABOUT)
    for directory in held:
        directory.release()


def test_a_queue_on_a_full_disk_is_still_sent(tmp_path):
    """Nothing new can be written there, not even what the queue is about; what waits is read all the same."""
    dead = QueueDirectory(tmp_path, "key", ABOUT)
    fill(dead, b"a")
    die(dead)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        heir = QueueDirectory(tmp_path, "key", ABOUT)
        queue = DiskQueue(heir.path / "traces", 1 << 20, reserved_bytes=0)
        head = queue.head()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert head.body == b"a"
    queue.close()
    heir.release()


def test_empty_queues_of_killed_agents_are_swept_up(tmp_path):
    """Whatever their settings; what holds anything to send, or files of another version, stays."""
    dead = [QueueDirectory(tmp_path, key, ABOUT) for key in ("empty", "emptied", "full", "newer", "alive")]
    for directory in dead:
        (directory.path / "traces").mkdir()
    (dead[1].path / "traces" / "1-1.q1").touch()
    fill(dead[2], b"a")
    (dead[3].path / "traces" / "1-1.q9").write_bytes(b"x")
    for directory in dead[:4]:
        die(directory)
    QueueDirectory(tmp_path, "key", ABOUT).release()
    assert sorted(p.name for p in (tmp_path / "queue").iterdir()) == ["alive.0", "full.0", "newer.0"]
    assert bodies(dead[2]) == [b"a"]
