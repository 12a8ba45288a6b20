from __future__ import annotations

import os
import resource
from contextlib import contextmanager

import pytest

from axonize_core.export.batch import Batch, pack, unpacked
from axonize_core.export.disk_queue import DiskQueue
from axonize_core.export.segment import SUFFIX, Segment


def batch(n, size=100):
    return Batch(bytes([n % 256]) * size, n + 1, 1_000 + n, gzipped=bool(n % 2))


def make(path, max_bytes=1 << 20, **more):
    return DiskQueue(path / "traces", max_bytes, reserved_bytes=0, **more)


def drain(queue):
    found = []
    while (head := queue.head()) is not None:
        found.append(head)
        queue.settle(head)
    return found


def files(path):
    return sorted((path / "traces").glob(f"*{SUFFIX}"))


@contextmanager
def file_limit(size):
    """A real limit of the kernel: writes beyond it are cut short, then fail."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_batches_come_back_in_order_and_unchanged(tmp_path):
    """First in, first out, over many segments, while others are added."""
    queue, expected = make(tmp_path, 8_000), [batch(n) for n in range(50)]
    for one in expected[:30]:
        assert queue.append(one)
    assert len(files(tmp_path)) > 2
    assert (queue.batches, queue.items) == (30, sum(range(31)))
    first = queue.head()
    queue.settle(first)
    for one in expected[30:]:
        assert queue.append(one)
    assert [first, *drain(queue)] == expected
    assert (queue.batches, queue.items, queue.waiting_bytes) == (0, 0, 0)


def test_a_restart_goes_on_where_the_last_settled_batch_ended(tmp_path):
    """Nothing is closed, as after kill -9: what was settled is gone, the rest is there, in order."""
    queue, expected = make(tmp_path, 8_000), [batch(n) for n in range(40)]
    for one in expected:
        queue.append(one)
    for _ in range(17):
        queue.settle(queue.head())
    again = make(tmp_path, 8_000)
    assert again.items == sum(n + 1 for n in range(17, 40))
    again.append(batch(99))
    assert drain(again) == [*expected[17:], batch(99)]
    assert again.torn_bytes == 0


def test_a_torn_tail_is_cut_off_wherever_it_tore(tmp_path):
    """A write that death cut short, at any byte, costs that record only; the bytes are reported."""
    segment = Segment(tmp_path / f"1-1{SUFFIX}", create=True)
    segment.append(batch(0))
    whole = segment.end
    segment.append(batch(1))
    data = segment.path.read_bytes()
    for length in range(whole + 1, len(data)):
        directory = tmp_path / str(length) / "traces"
        directory.mkdir(parents=True)
        (directory / segment.path.name).write_bytes(data[:length])
        queue = make(directory.parent)
        assert queue.torn_bytes == length - whole
        queue.append(batch(2))
        assert drain(queue) == [batch(0), batch(2)]


def test_a_tail_of_the_right_length_and_the_wrong_bytes_is_cut_off(tmp_path):
    """What a power failure leaves is no data: zeroes or noise behind the last whole record."""
    for name, tail in (("zeroes", bytes(300)), ("noise", os.urandom(300))):
        (tmp_path / name).mkdir()
        queue = make(tmp_path / name)
        queue.append(batch(0))
        with files(tmp_path / name)[0].open("ab") as file:
            file.write(tail)
        again = make(tmp_path / name)
        assert again.torn_bytes == 300
        assert drain(again) == [batch(0)]


def test_the_last_record_is_checked_and_cut_when_its_body_is_not_what_was_written(tmp_path):
    """A length that fits proves nothing; the checksum decides."""
    queue = make(tmp_path)
    queue.append(batch(0))
    queue.append(batch(1))
    data = bytearray(files(tmp_path)[0].read_bytes())
    data[-1] ^= 1
    files(tmp_path)[0].write_bytes(data)
    again = make(tmp_path)
    assert again.torn_bytes == len(data) // 2
    assert again.items == 1
    assert drain(again) == [batch(0)]


def test_a_damaged_record_costs_the_rest_of_its_segment_and_is_counted(tmp_path):
    """Later segments are sent all the same."""
    queue = make(tmp_path, 8_000)
    for n in range(20):
        queue.append(batch(n))
    first = files(tmp_path)[0]
    data = bytearray(first.read_bytes())
    data[40] ^= 1
    first.write_bytes(data)
    lost = Segment(first, create=False).items
    found = drain(queue)
    assert found
    assert sum(b.items for b in found) + queue.unreadable_items == sum(range(21))
    assert queue.unreadable_items == lost
    assert queue.torn_bytes == len(data)


def test_a_deleted_file_is_noticed_when_it_is_needed(tmp_path):
    """Somebody who empties the directory under a running agent breaks nothing; open files are still read."""
    queue = make(tmp_path)
    queue.append(batch(0))
    files(tmp_path)[0].unlink()
    assert drain(queue) == [batch(0)]
    queue.append(batch(1))
    assert drain(queue) == [batch(1)]


def test_full_says_no_and_room_comes_back(tmp_path):
    """The bound holds for the bytes on disk, and settling makes room."""
    queue = make(tmp_path, 2_000)
    taken = 0
    while queue.append(batch(taken)):
        taken += 1
    assert 10 < taken < 20
    assert sum(f.stat().st_size for f in files(tmp_path)) <= 2_000 + 30
    for _ in range(5):
        queue.settle(queue.head())
    assert queue.append(batch(1))


def test_an_append_that_fails_leaves_the_queue_as_it_was(tmp_path):
    """A write cut short by the kernel raises, is taken back, and the next one succeeds."""
    queue = make(tmp_path)
    queue.append(batch(0))
    size = files(tmp_path)[0].stat().st_size
    with file_limit(size + 50):
        for _ in range(2):
            with pytest.raises(OSError):
                queue.append(batch(1))
    assert files(tmp_path)[0].stat().st_size == size
    queue.append(batch(2))
    assert drain(make(tmp_path)) == [batch(0), batch(2)]


def test_the_disk_keeps_some_room_for_others(tmp_path):
    """A queue does not take the last free bytes of the inference server's disk."""
    queue = DiskQueue(tmp_path / "traces", 1 << 20, reserved_bytes=1 << 60)
    with pytest.raises(OSError, match="MiB are free"):
        queue.append(batch(0))


def test_a_queue_that_keeps_up_leaves_no_bytes_and_no_files(tmp_path):
    """When all is sent the file is emptied at once, and goes when the queue is closed."""
    queue = make(tmp_path)
    queue.append(batch(0))
    queue.settle(queue.head())
    assert [f.stat().st_size for f in files(tmp_path)] == [0]
    queue.append(batch(1))
    queue.close()
    assert len(files(tmp_path)) == 1
    drain(again := make(tmp_path))
    again.close()
    assert files(tmp_path) == []


def test_order_survives_a_clock_that_steps_back(tmp_path):
    """Names of segments rise even when time does not."""
    times = iter([5_000, 4_000, 3_000, 2_000, 1_000])
    queue = make(tmp_path, 1_600, clock=lambda: next(times))
    expected = [batch(n) for n in range(8)]
    for one in expected:
        assert queue.append(one)
    assert len(files(tmp_path)) > 2
    assert drain(make(tmp_path)) == expected


def test_files_of_another_version_are_left_alone(tmp_path):
    """An older or newer Axonize can still send them."""
    (tmp_path / "traces").mkdir()
    other = tmp_path / "traces" / "1-1.q9"
    other.write_bytes(b"x" * 99)
    queue = make(tmp_path)
    assert queue.head() is None
    queue.close()
    assert other.read_bytes() == b"x" * 99


def test_bodies_are_compressed_from_the_threshold_on():
    """Below it, and with None, they stay as they are; either way they come back."""
    body = b"span " * 300
    assert pack(body, 1, 0, len(body)).gzipped
    assert not pack(body, 1, 0, len(body) + 1).gzipped
    assert not pack(body, 1, 0, None).gzipped
    assert len(pack(body, 1, 0, 0).body) < len(body) / 10
    assert {unpacked(pack(body, 1, 0, limit)) for limit in (0, None)} == {body}
