"""The writer as a process of its own, and its loop against stores that fail."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import re
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from axonize_server import writer as writer_module
from axonize_server.client import ApiClient, ApiError, ApiUnreachableError
from axonize_server.health import Counters, Health
from axonize_server.refused import read_refusal
from axonize_server.registry.address import open_registry
from axonize_server.spool import sealed_segments
from axonize_server.store.clickhouse import StoreUnreachableError
from axonize_server.writer import Writer
from clickhouse_faults import held, lost_answer
from own_spans import OwnLoad, as_requests, own_span

if TYPE_CHECKING:
    from collections.abc import Iterator

RUN = """
import json, sys
from axonize_server.settings import load_settings
from axonize_server.writer import run
run(load_settings(**json.loads(sys.argv[1])), ready=lambda port: print("port", port, flush=True))
"""


class WriterProcess:
    """`axonize_server.writer.run` in a process, its output in a file."""

    def __init__(self, settings, drain_s) -> None:
        options = {"data_dir": str(settings.data_dir), "store": settings.store, "api_port": 0, "drain_s": drain_s}
        self.log = settings.data_dir / "writer.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([sys.executable, "-c", RUN, json.dumps(options)], stdout=log, stderr=log)
        self.client = ApiClient(f"http://127.0.0.1:{self._port()}")

    def _port(self) -> int:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if found := re.findall(r"^port (\d+)$", self.log.read_text(), flags=re.MULTILINE):
                return int(found[-1])
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.05)
        raise TimeoutError(self.log.read_text())

    def rows(self) -> dict[str, int]:
        return self.client.health()["store"]["rows"]

    def wait_for_rows(self, table: str, count: int, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while (found := self.rows()[table]) != count:
            assert time.monotonic() < deadline, (found, count)
            time.sleep(0.05)

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(40)


@contextlib.contextmanager
def writer_process(settings, drain_s=20) -> Iterator[WriterProcess]:
    started = WriterProcess(settings, drain_s)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.process.kill()
            started.process.wait()


def some_spans(count):
    now = time.time_ns()
    return [own_span("queue", now, now + 5, {}) for _ in range(count)]


def test_segments_become_rows_and_are_deleted(settings, write_segment):
    """What was sealed before and after the start is stored, can be asked for, and leaves the spool; SIGTERM ends well."""
    made = OwnLoad(1, start_ns=time.time_ns() - 30 * 10**9, slots=4, mean_output=10)
    served, steps = made.run(10)
    write_segment(*as_requests(served, made.resource))
    with writer_process(settings) as writer:
        writer.wait_for_rows("spans", len(served))
        write_segment(*as_requests(steps, made.resource))
        writer.wait_for_rows("batches", len(steps))
        assert len(writer.client.requests(since="1h")) == 10
        members = [m for b in writer.client.batches(since="1h", limit=1000) for m in b["members"]]
        assert len(members) == made.members
        assert all(member["trace_id"] for member in members)
        health = writer.client.health()
        assert (health["status"], health["spool"]["segments"]) == ("ok", 0)
        assert health["counters"]["writer"]["stored_segments"] == 2
        assert writer.stop() == 0
    assert sealed_segments(settings.spool_dir) == []


def test_killed_again_and_again_each_span_counts_once(settings, write_segment):
    """Killed with -9 in the middle of its work five times, the writer neither loses a segment nor stores one twice."""
    total = 0
    for round_number in range(5):
        for _ in range(6):
            write_segment(*as_requests(some_spans(200), {"round": round_number}))
            total += 200
        with writer_process(settings) as writer:
            time.sleep(0.05 * round_number)
            writer.stop(signal.SIGKILL)
    with writer_process(settings) as writer:
        writer.wait_for_rows("spans", total)
        time.sleep(0.3)
        assert writer.rows()["spans"] == total
        assert sealed_segments(settings.spool_dir) == []
        assert writer.stop() == 0


def test_acknowledged_to_visible(settings, write_segment):
    """From the sealed segment to the answer of the API it takes well under the second that sealing leaves of two."""
    delays = []
    with writer_process(settings) as writer:
        for _ in range(15):
            span = some_spans(1)[0]
            sealed = time.monotonic()
            write_segment(*as_requests([span], {}))
            while True:
                with contextlib.suppress(ApiError):
                    writer.client.trace(span.trace_id.hex())
                    break
                assert time.monotonic() < sealed + 10
                time.sleep(0.01)
            delays.append(time.monotonic() - sealed)
    assert sorted(delays)[13] < 1.0, delays


def test_two_writers_on_one_directory(settings):
    """The second says who is in the way and ends."""
    with writer_process(settings):
        second = subprocess.run(
            [sys.executable, "-c", RUN, json.dumps({"data_dir": str(settings.data_dir), "api_port": 0})],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert second.returncode == 1
    assert "another writer works in" in second.stderr


def test_what_cannot_be_stored_is_set_aside(settings, write_segment):
    """A bad segment moves to spool/refused with its reason and does not hold up the good ones."""
    bad = write_segment(b"\x0a\xff\xff")
    alien = settings.spool_dir / "traces" / "1-alien.pb"
    alien.write_bytes(b"no segment at all")
    write_segment(*as_requests(some_spans(3), {}))
    with writer_process(settings) as writer:
        writer.wait_for_rows("spans", 3)
        health = writer.client.health()
        assert (health["status"], health["spool"]["refused_segments"]) == ("degraded", 2)
        assert health["counters"]["writer"]["refused_segments"] == 2
        assert writer.stop() == 0
    refused = settings.spool_dir / "refused" / "traces"
    assert {path.name for path in refused.iterdir()} == {
        bad.path.name,
        f"{bad.id}.reason.json",
        "1-alien.pb",
        "1-alien.reason.json",
    }
    alien_refusal, bad_refusal = (read_refusal(refused / name) for name in ("1-alien.pb", bad.path.name))
    assert ("no header" in alien_refusal.reason, alien_refusal.cause, bad_refusal.cause) == (True, "header", "data")
    assert sealed_segments(settings.spool_dir) == []


class Loop:
    """The writer's loop on a thread, over a given store."""

    def __init__(self, store, settings) -> None:
        self.stop, self.counters = threading.Event(), Counters()
        self.writer = Writer(store, settings, self.counters, self.stop)
        self.thread = threading.Thread(target=self.writer.run, args=(5.0,))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join(30)
        assert not self.thread.is_alive()

    def wait_until(self, condition, seconds=30):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, vars(self.counters)
            time.sleep(0.02)


def test_the_store_goes_away_and_comes_back(http_store, clickhouse_front, settings, write_segment):
    """While the store is away segments wait and nothing is set aside; when it is back all are stored, once."""
    clickhouse_front.away = True
    segments = [write_segment(*as_requests(some_spans(10), {})) for _ in range(4)]
    with Loop(http_store, settings) as loop:
        loop.wait_until(lambda: loop.counters.insert_retries >= 4)
        assert loop.counters.last_error is not None
        assert len(sealed_segments(settings.spool_dir)) == len(segments)
        clickhouse_front.away = False
        loop.wait_until(lambda: loop.counters.stored_segments == 4)
    assert http_store.rows()["spans"] == 40
    assert (loop.counters.refused_segments, loop.counters.last_error) == (0, None)


def test_the_answer_to_an_insert_is_lost(http_store, clickhouse_front, settings, write_segment):
    """An insert that succeeded but whose answer never came is repeated and still counts once."""
    clickhouse_front.insert_faults = iter([lost_answer] * 3)
    write_segment(*as_requests(some_spans(10), {}))
    with Loop(http_store, settings) as loop:
        loop.wait_until(lambda: loop.counters.stored_segments == 1)
    assert len(clickhouse_front.inserts) == 4
    assert loop.counters.insert_retries == 3
    assert http_store.rows()["spans"] == 10


class Picky:
    """A store that always fails on one segment, with an error that is not about the data."""

    def __init__(self, store, unwanted) -> None:
        self.store, self.unwanted = store, unwanted
        self.ping = store.ping

    def insert(self, path, signal, token, settings=None):
        if token == self.unwanted:
            raise StoreUnreachableError("no good reason")
        self.store.insert(path, signal, token, settings)


def test_one_segment_fails_while_others_succeed(store, settings, write_segment, monkeypatch):
    """A segment that keeps failing without a clear reason lets others pass, and is set aside after some rounds."""
    monkeypatch.setattr("axonize_server.writer._FIRST_WAIT_S", 0.001)
    unwanted = write_segment(*as_requests(some_spans(1), {}))
    write_segment(*as_requests(some_spans(5), {}))
    with Loop(Picky(store, unwanted.id), settings) as loop:
        loop.wait_until(lambda: loop.counters.refused_segments == 1)
    assert store.rows()["spans"] == 5
    assert (settings.spool_dir / "refused" / "traces" / unwanted.path.name).exists()


def test_alone_it_is_never_set_aside(store, settings, write_segment, monkeypatch):
    """As long as nothing else succeeds, a failing segment waits: it may be the store."""
    monkeypatch.setattr("axonize_server.writer._FIRST_WAIT_S", 0.001)
    unwanted = write_segment(*as_requests(some_spans(1), {}))
    with Loop(Picky(store, unwanted.id), settings) as loop:
        loop.wait_until(lambda: loop.counters.insert_retries > 40)
    assert loop.counters.refused_segments == 0
    assert [segment.id for segment in sealed_segments(settings.spool_dir)] == [unwanted.id]


def test_what_is_left_is_drained_at_the_end(store, settings, write_segment):
    """Told to stop before it began, the loop still stores what is sealed."""
    for _ in range(3):
        write_segment(*as_requests(some_spans(2), {}))
    with Loop(store, settings) as loop:
        loop.stop.set()
    assert store.rows()["spans"] == 6
    assert loop.counters.stored_segments == 3


def test_a_drain_is_bounded(http_store, clickhouse_front, settings, write_segment):
    """With the store away the end comes when the time is over, and the segment stays."""
    clickhouse_front.away = True
    write_segment(*as_requests(some_spans(2), {}))
    stop = threading.Event()
    stop.set()
    began = time.monotonic()
    Writer(http_store, settings, Counters(), stop).run(drain_s=1.0)
    clickhouse_front.away = False
    assert time.monotonic() - began < 15
    assert len(sealed_segments(settings.spool_dir)) == 1


def test_the_end_does_not_wait_for_a_store_that_says_nothing(http_store, clickhouse_front, settings, write_segment):
    """SIGTERM while an insert has no answer: the writer ends in order, and what it left comes again and counts once."""
    dsn = f"{clickhouse_front.url}/{http_store.database}"
    served = settings.model_copy(update={"store": dsn})
    answer = threading.Event()
    clickhouse_front.insert_faults = itertools.repeat(held(answer))
    write_segment(*as_requests(some_spans(3), {}))
    try:
        with writer_process(served, drain_s=0.5) as writer:
            deadline = time.monotonic() + 30
            while not clickhouse_front.inserts:
                assert time.monotonic() < deadline, writer.log.read_text()
                time.sleep(0.02)
            assert writer.stop() == 0
            assert "drain_over" in writer.log.read_text()
    finally:
        answer.set()
    assert len(sealed_segments(settings.spool_dir)) == 1
    clickhouse_front.insert_faults = iter(())
    Writer(http_store, settings, Counters(), threading.Event()).store_sealed()
    assert (sealed_segments(settings.spool_dir), http_store.rows()["spans"]) == ([], 3)


@pytest.mark.parametrize("drop", [False, True])
def test_what_waits_too_long_is_reported_and_dropped_only_if_told_to(
    http_store, clickhouse_front, settings, write_segment, monkeypatch, drop
):
    """While the store is away: by default an old segment stays and is stored later; told to drop it, that is counted."""
    old, young = (write_segment(*as_requests(some_spans(2), {})) for _ in range(2))
    aged = old.path.with_name(old.path.name.replace(str(old.created_ns), str(old.created_ns - 10**13)))
    old.path.rename(aged)
    limited = settings.model_copy(update={"spool_max_age_s": 3600.0, "spool_drop_old": drop})
    counters = Counters()
    writer = Writer(http_store, limited, counters, threading.Event())
    clickhouse_front.away = True
    monkeypatch.setattr(writer_module, "_FIRST_WAIT_S", 0.001)
    writer.store_sealed()
    left = {segment.path.name for segment in sealed_segments(settings.spool_dir)}
    assert left == {young.path.name} if drop else {aged.name, young.path.name}
    assert counters.dropped_segments == drop
    with contextlib.closing(open_registry(settings.registry)) as registry:
        health = Health(limited, http_store, registry, counters).report()
    assert health["spool"]["too_old_segments"] == (not drop)
    assert (counters.dropped_bytes == old.size_bytes) is drop
    clickhouse_front.away = False
    writer.store_sealed()
    assert http_store.rows()["spans"] == (2 if drop else 4)


def test_with_the_store_there_nothing_is_too_old(store, settings, write_segment):
    """However old: what can be stored is stored."""
    old = write_segment(*as_requests(some_spans(2), {}))
    old.path.rename(old.path.with_name("1-" + old.path.name.partition("-")[2]))
    limited = settings.model_copy(update={"spool_max_age_s": 1.0, "spool_drop_old": True})
    counters = Counters()
    Writer(store, limited, counters, threading.Event()).store_sealed()
    assert (store.rows()["spans"], counters.dropped_segments) == (2, 0)


def test_a_segment_the_disk_does_not_give_holds_up_no_other(store, settings, write_segment, monkeypatch):
    """It stays where it is and is tried again."""
    bad, _ = (write_segment(*as_requests(some_spans(2), {})) for _ in range(2))
    real = writer_module.read_header

    def broken(path):
        if path == bad.path:
            raise OSError(errno.EIO, "Input/output error")
        return real(path)

    counters = Counters()
    writer = Writer(store, settings, counters, threading.Event())
    with monkeypatch.context() as patched:
        patched.setattr(writer_module, "read_header", broken)
        writer.store_sealed()
    assert store.rows()["spans"] == 2
    assert [segment.id for segment in sealed_segments(settings.spool_dir)] == [bad.id]
    writer.store_sealed()
    assert store.rows()["spans"] == 4


def test_a_segment_that_cannot_be_set_aside_stays(store, settings, write_segment, monkeypatch):
    """The disk refuses the move: nothing is lost, others are stored, and health says why."""
    bad = write_segment(b"\x0a\xff\xff")
    write_segment(*as_requests(some_spans(2), {}))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    counters = Counters()
    writer = Writer(store, settings, counters, threading.Event())
    with monkeypatch.context() as patched:
        patched.setattr(writer_module, "set_aside", full)
        writer.store_sealed()
        assert [segment.id for segment in sealed_segments(settings.spool_dir)] == [bad.id]
        assert store.rows()["spans"] == 2
    writer.store_sealed()
    assert counters.refused_segments == 1
    assert sealed_segments(settings.spool_dir) == []


def test_nobody_answers_after_the_end(settings):
    """After SIGTERM the API is gone and the directory can be opened again."""
    with writer_process(settings) as first:
        assert first.client.health()["status"] == "ok"
        assert first.stop() == 0
        with pytest.raises(ApiUnreachableError):
            first.client.health()
    with writer_process(settings) as second:
        assert second.client.health()["status"] == "ok"
        assert (settings.data_dir / "writer.lock").stat().st_mode & 0o777 == 0o600
