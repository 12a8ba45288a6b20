"""A server that is away, slow or half-hearted for an hour: nothing acknowledged is lost, nothing is doubled.

The hour passes at once: whatever the writer waits for moves a clock, and what is due by then happens.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import threading
import time

import pytest

from axonize_server.appender import Appender, Usage
from axonize_server.health import Counters, Health
from axonize_server.migrate import migrate_store
from axonize_server.registry.address import open_registry
from axonize_server.spool import SpoolFullError, header_message, sealed_segments
from axonize_server.store.clickhouse import ClickHouseStore
from axonize_server.writer import Writer
from clickhouse_faults import lost_answer, refused
from exactly_once import look
from own_spans import as_requests, own_span

HOUR_S = 3600
LONGEST_WAIT_S = 10.0


class Clock(threading.Event):
    """What the writer waits on: a wait moves the time and returns at once."""

    def __init__(self, tick):
        super().__init__()
        self.now_s, self.began_ns = 0.0, time.time_ns()
        self.waits = []
        self._tick = tick

    def wait(self, timeout=None):
        self.waits.append(timeout)
        self.move(timeout)
        return self.is_set()

    def move(self, seconds):
        self.now_s += seconds
        self._tick(self.now_s)

    def now_ns(self):
        return self.began_ns + int(self.now_s * 10**9)


class Senders:
    """One request every so many seconds into a real spool of a bounded size; what it acknowledged is on the ledger."""

    def __init__(self, settings, max_bytes, every_s):
        self._spool_dir, self._every_s, self._next_s = settings.spool_dir, every_s, 0.0
        self._appender = Appender(settings.spool_dir, "traces", Usage(settings.spool_dir, max_bytes, refresh_s=0))
        self.acknowledged, self.refused, self.most_bytes = set(), 0, 0
        self.open = True

    def tick(self, now_s):
        while self.open and self._next_s <= now_s:
            self._next_s += self._every_s
            self._send()

    def _send(self):
        now = time.time_ns()
        spans = [own_span(phase, now, now + 5, {"ai.batch.size": 1}) for phase in ("request", "queue", "batch")]
        (request,) = as_requests(spans, {"service.name": "chat"})
        try:
            ticket = self._appender.append(request.SerializeToString(), records=3, tenant="default", received_ns=now)
        except SpoolFullError:
            self.refused += 1
            return
        self._appender.close()
        assert ticket.durable
        self.acknowledged |= {span.span_id.hex().upper() for span in spans}
        sizes = [path.stat().st_size for path in self._spool_dir.glob("traces/*")]
        self.most_bytes = max(self.most_bytes, sum(sizes))


def check_ledger(store, senders):
    """Every acknowledged span has one row, nothing else has one, and every rollup says what its source says."""
    stored = look(store)
    assert stored.rows["spans"].keys() == senders.acknowledged
    assert not any(stored.doubled.values())
    assert not stored.unequal


@pytest.fixture
def no_retries(http_store):
    """The store, asked once: the client's own repetitions of a query take real time."""
    with contextlib.closing(
        ClickHouseStore(http_store.dsn._replace(url=f"{http_store.dsn.url}?query_retries=0"))
    ) as store:
        yield store


@pytest.fixture
def status(settings, no_retries):
    """Say what the health answer says, for given counters."""
    with contextlib.closing(open_registry(settings.registry)) as registry:
        yield lambda counters: Health(settings, no_retries, registry, counters).report()["status"]


MAX_BYTES = 60_000
BOUND = range(MAX_BYTES * 9 // 10, MAX_BYTES + len(header_message("traces")))
"""A segment's own header comes on top of what is counted before it is written."""


def test_a_store_that_is_away_for_an_hour(no_retries, clickhouse_front, settings, status):
    """The spool fills up to its bound and no further, the store is asked ever more seldom, and then all is stored once."""
    random.seed(5)
    senders, counters, seen = Senders(settings, MAX_BYTES, every_s=20), Counters(), {}
    back_s = 25 + HOUR_S

    def tick(now_s):
        clickhouse_front.away = 25 <= now_s < back_s
        senders.tick(now_s)
        for name, at_s in {"before": 20, "in the middle": back_s / 2, "after": back_s + 30}.items():
            if now_s >= at_s and name not in seen:
                seen[name] = status(counters)
        senders.open = now_s < back_s + 20
        if now_s > back_s + 30:
            clock.set()

    clock = Clock(tick)
    Writer(no_retries, settings, counters, clock, clock.now_ns).run(drain_s=5)
    assert seen == {"before": "ok", "in the middle": "degraded", "after": "ok"}
    assert senders.refused > 0, "the bound was not reached, or this is about nothing"
    assert senders.most_bytes in BOUND
    assert counters.refused_segments == counters.dropped_segments == 0
    assert sealed_segments(settings.spool_dir) == []
    check_ledger(no_retries, senders)


def test_how_often_a_store_that_is_away_is_asked(no_retries, clickhouse_front, settings, write_segment):
    """An hour is one round of inserts and then a question every 10 s at most, at times nobody can foresee."""
    random.seed(6)
    write_segment(*as_requests([own_span("queue", time.time_ns(), time.time_ns(), {})], {}))
    counters = Counters()
    clickhouse_front.away = True
    clock = Clock(lambda now_s: clock.set() if now_s > HOUR_S else None)
    Writer(no_retries, settings, counters, clock, clock.now_ns).run(drain_s=0)
    clickhouse_front.away = False
    assert counters.insert_retries == 5, "one round: more would send the segment again"
    questions = len(clock.waits) - counters.insert_retries
    assert HOUR_S / LONGEST_WAIT_S <= questions < 1.2 * HOUR_S / (LONGEST_WAIT_S / 2), "5 s apart on average"
    assert max(clock.waits) <= LONGEST_WAIT_S
    late = clock.waits[20:]
    assert min(late) < 0.2 * LONGEST_WAIT_S < 0.8 * LONGEST_WAIT_S < max(late), "no jitter"


def test_a_store_a_hundred_times_slower_than_what_comes_in(no_retries, clickhouse_front, settings):
    """Each insert takes as long as a hundred requests: senders are refused, and what was acknowledged is stored once."""
    senders, counters = Senders(settings, MAX_BYTES, every_s=1), Counters()

    def tick(now_s):
        senders.open = now_s < 2_000
        senders.tick(now_s)
        if now_s > 2_000 and not sealed_segments(settings.spool_dir):
            clock.set()

    def slow(exchange):
        clock.move(100)
        exchange.send(exchange.work(exchange.read()))

    clock = Clock(tick)
    clickhouse_front.insert_faults = itertools.chain([slow] * 20, itertools.repeat(None))
    Writer(no_retries, settings, counters, clock, clock.now_ns).run(drain_s=5)
    assert senders.refused > 1_000
    assert senders.most_bytes in BOUND
    assert counters.insert_retries == counters.refused_segments == 0
    check_ledger(no_retries, senders)


def test_a_store_that_takes_every_other_insert(no_retries, clickhouse_front, settings):
    """Every second insert fails after it was done and every third before: nothing is set aside, lost or doubled."""
    senders, counters = Senders(settings, MAX_BYTES, every_s=1), Counters()

    def tick(now_s):
        senders.open = now_s < 40
        senders.tick(now_s)
        if now_s > 40 and not sealed_segments(settings.spool_dir):
            clock.set()

    clock = Clock(tick)
    clickhouse_front.insert_faults = itertools.cycle([None, lost_answer, refused(503), lost_answer, None, lost_answer])
    Writer(no_retries, settings, counters, clock, clock.now_ns).run(drain_s=5)
    assert len(senders.acknowledged) == 3 * 40
    assert counters.insert_retries == len(clickhouse_front.inserts) - counters.stored_segments > 40
    assert counters.refused_segments == 0
    check_ledger(no_retries, senders)


def test_an_outage_is_held_against_no_segment(no_retries, clickhouse_front, settings, write_segment):
    """Rounds that failed while nobody answered do not count toward setting a segment aside."""
    segments = [
        write_segment(*as_requests([own_span("queue", time.time_ns(), time.time_ns(), {})], {})) for _ in range(2)
    ]
    counters = Counters()
    clock = Clock(lambda _: None)
    writer = Writer(no_retries, settings, counters, clock, clock.now_ns)
    clickhouse_front.away = True
    for _ in range(5):
        assert not writer.store_sealed()
    clickhouse_front.away = False
    clickhouse_front.insert_faults = itertools.chain([refused(503)] * 6, [None], [refused(503)] * 6)
    assert writer.store_sealed()
    assert writer.store_sealed()
    assert (counters.refused_segments, counters.stored_segments) == (0, 1)
    assert [segment.id for segment in sealed_segments(settings.spool_dir)] == [segments[0].id]


def test_several_collectors_in_front_of_one_store(no_retries, clickhouse_front, settings, tmp_path):
    """Each has a spool and a writer of its own, and begins by bringing the schema up to date: together they count once."""
    places = [settings.model_copy(update={"data_dir": tmp_path / name}) for name in ("one", "two", "three")]
    everyone = [Senders(place, MAX_BYTES, 1) for place in places]
    for senders in everyone:
        senders.tick(20)
    clickhouse_front.insert_faults = iter([None, lost_answer, None, lost_answer])  # done, and asked for again
    failures = []

    def collect(place):
        try:
            with contextlib.closing(ClickHouseStore(no_retries.dsn)) as store:
                assert migrate_store(store, place) == []
                Writer(store, place, Counters(), threading.Event()).store_sealed()
        except BaseException as e:
            failures.append(e)
            raise

    threads = [threading.Thread(target=collect, args=(place,)) for place in places]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert [list(sealed_segments(place.spool_dir)) for place in places] == [[], [], []]
    everyone[0].acknowledged |= everyone[1].acknowledged | everyone[2].acknowledged
    check_ledger(no_retries, everyone[0])
