"""Poison: what the store refuses is found and set aside, and everything beside it counts once in every table."""

from __future__ import annotations

import threading
import time

import pytest

from axonize_core.errors import StoreError
from axonize_server import migrate, sifting
from axonize_server import writer as writer_module
from axonize_server.health import Counters
from axonize_server.inspect_spool import list_spool, verify
from axonize_server.migrate import migrate_store
from axonize_server.poison import UNDECIDED
from axonize_server.refused import put_back, refused_segments
from axonize_server.spool import sealed_segments
from axonize_server.store.clickhouse import StoreUnreachableError
from axonize_server.writer import Writer
from gpu_reports import gpu_info, samples
from own_spans import as_requests, own_span

_PICKY = """-- A table behind a view that refuses what the table before it has taken.
-- statement
CREATE TABLE IF NOT EXISTS {database}.picky (span_id FixedString(8), number UInt32) ENGINE = MergeTree
ORDER BY span_id SETTINGS non_replicated_deduplication_window = 100
-- statement
CREATE MATERIALIZED VIEW IF NOT EXISTS {database}.picky_mv TO {database}.picky AS
SELECT span_id, toUInt32(attrs_string['number']) AS number FROM {database}.spans
-- statement
CREATE TABLE IF NOT EXISTS {database}.picky_metrics (name String, number UInt32) ENGINE = MergeTree
ORDER BY name SETTINGS non_replicated_deduplication_window = 100
-- statement
CREATE MATERIALIZED VIEW IF NOT EXISTS {database}.picky_metrics_mv TO {database}.picky_metrics AS
SELECT name, toUInt32(if(attrs_string['number'] = '', '0', attrs_string['number'])) AS number FROM {database}.metrics
"""


def spans(count, bad=(), **attributes):
    """Spans of one minute; a bad one has an id the store has no room for."""
    now = time.time_ns()
    made = [own_span("queue", now + n, now + n + 5, {"number": str(n), **attributes}) for n in range(count)]
    for index in bad:
        made[index].trace_id += b"!"
    return made


def requests_of(*groups):
    return [request for group in groups for request in as_requests(group, {"service.name": "chat"})]


def counted(store, table="spans"):
    return store.query(f"SELECT count() AS n FROM {store.database}.{table}")[0]["n"]


def spans_in_traces(store):
    return store.query(f"SELECT sum(spans) AS n FROM {store.database}.traces")[0]["n"]


class Stored(Writer):
    """A writer whose loop ran once."""

    def __init__(self, store, settings):
        self.counters = Counters()
        super().__init__(store, settings, self.counters, threading.Event())

    def once(self):
        self.store_sealed()
        return self


@pytest.fixture(params=["store", "http_store"])
def any_store(request):
    """The engine in this process, and as a server."""
    return request.getfixturevalue(request.param)


def test_a_bad_span_is_set_aside_and_all_others_stored(any_store, settings, write_segment):
    """One of sixty spans in three requests cannot be stored: 59 can, once, and the one waits with its reason."""
    segment = write_segment(*requests_of(spans(20), spans(20, bad=[7]), spans(20)))
    counters = Stored(any_store, settings).once().counters
    assert (counted(any_store), spans_in_traces(any_store)) == (59, 59)
    assert (counters.stored_segments, counters.refused_segments, counters.partings) == (1, 1, 1)
    assert sealed_segments(settings.spool_dir) == []
    (piece,) = list_spool(settings.spool_dir)
    assert (piece.state, piece.requests, piece.records) == ("refused", 1, 1)
    assert (piece.id, piece.refusal.part_of, piece.refusal.cause) == (f"{segment.id}-0", segment.id, "data")
    assert "1 of 20 records" in piece.refusal.reason
    assert "too long" in piece.refusal.reason.lower()
    assert not piece.refusal.stored_in_part
    assert [checked.problem for checked in verify(settings.spool_dir)] == [None]
    databases = any_store.query("SELECT name FROM system.databases WHERE name LIKE '%_trial_%'")
    assert databases == [], "what it was tried in is gone"


def test_a_piece_put_back_is_refused_again_or_stored(store, settings, write_segment):
    """While the cause is there it comes back under its own id; nothing else is touched."""
    write_segment(*requests_of(spans(5, bad=[2])))
    Stored(store, settings).once()
    (piece,) = refused_segments(settings.spool_dir)
    put_back(settings.spool_dir, piece)
    Stored(store, settings).once()
    assert [segment.id for segment in refused_segments(settings.spool_dir)] == [piece.id]
    assert counted(store) == 4


def test_several_bad_records_in_several_requests(store, settings, write_segment):
    """Each bad request leaves its good records behind; one that is no OTLP is set aside whole."""
    held = requests_of(spans(10, bad=[0, 9]), spans(10), spans(10, bad=[4]))
    write_segment(*held, b"\x0a\xff\xff", *requests_of(spans(3)))
    Stored(store, settings).once()
    assert counted(store) == 30
    found = [(piece.records, piece.refusal.cause) for piece in list_spool(settings.spool_dir)]
    assert sorted(found, key=str) == [(1, "data"), (2, "data"), (None, "data")]


def test_where_nothing_is_good_the_segment_keeps_its_id(store, settings, write_segment):
    """There is no rest, so the segment itself is set aside."""
    segment = write_segment(*requests_of(spans(2, bad=[0, 1])))
    Stored(store, settings).once()
    assert [found.id for found in refused_segments(settings.spool_dir)] == [segment.id]
    assert counted(store) == 0


@pytest.fixture
def picky_store(empty_store, settings, monkeypatch):
    """A store one of whose views refuses what its source has taken."""
    known = migrate.load("clickhouse")
    more = migrate.Migration(len(known) + 1, f"{len(known) + 1:04d}_picky.sql", "0" * 64, _PICKY)
    monkeypatch.setattr(migrate, "load", lambda kind: [*known, more] if kind == "clickhouse" else [])
    migrate_store(empty_store, settings)
    return empty_store


def poison_for_the_view(count, bad):
    made = spans(count)
    for attribute in made[bad].attributes:
        if attribute.key == "number":
            attribute.value.string_value = "not a number"
    return made


def test_what_a_view_refuses_does_not_double_what_its_source_took(picky_store, settings, write_segment):
    """The first attempt's block is in `spans` and its other views when the view refuses: each row stays there once."""
    store = picky_store
    segment = write_segment(*requests_of(spans(20), poison_for_the_view(20, 7), spans(20)))
    with pytest.raises(StoreError):
        store.insert(segment.path, "traces", segment.id)
    half = counted(store), spans_in_traces(store), counted(store, "picky")
    assert (half[0], half[2]) == (60, 0), "the attempt was taken in part, or this test is about nothing"
    counters = Stored(store, settings).once().counters
    assert (counted(store), counted(store, "picky")) == (60, 59)
    assert spans_in_traces(store) == (half[1] or 59), "a view either took the first attempt's block or takes the rest's"
    assert counters.repeated_inserts == 1
    (piece,) = list_spool(settings.spool_dir)
    assert (piece.records, piece.refusal.stored_in_part) == (1, True), "who puts it back is told"


def test_metrics_are_parted_too(picky_store, settings, write_segment):
    """By metric; the rest reaches the table and every view behind it, once."""
    store = picky_store
    gpu = gpu_info("node-a", 0)
    request = samples([(gpu, {"hw.power": 300.5, "hw.energy": 10_000, "hw.temperature": 40.0})], time_ns=time.time_ns())
    broken = request.resource_metrics[0].scope_metrics[0].metrics.add(name="broken")
    point = broken.gauge.data_points.add(time_unix_nano=time.time_ns(), as_int=1)
    point.attributes.add(key="number").value.string_value = "not a number"
    write_segment(request, signal="metrics")
    Stored(store, settings).once()
    (piece,) = list_spool(settings.spool_dir)
    assert (piece.signal, piece.records, piece.refusal.stored_in_part) == ("metrics", 1, True)
    assert [counted(store, table) for table in ("metrics", "gpu_metrics", "picky_metrics")] == [4, 1, 3]


def test_a_token_is_known_whatever_rows_come_with_it(store, write_segment):
    """What the parting rests on: a table that took a block drops any other block of the same token."""
    whole, rest = (write_segment(*requests_of(spans(count))) for count in (9, 4))
    assert store.insert(whole.path, "traces", whole.id) is False
    assert store.insert(rest.path, "traces", whole.id) is True
    assert (counted(store), spans_in_traces(store)) == (9, 9)
    assert store.insert(rest.path, "traces", rest.id) is False
    assert (counted(store), spans_in_traces(store)) == (13, 13)


@pytest.mark.parametrize("signal", ["traces", "metrics", "logs"])
def test_rows_stored_already_are_seen(store, settings, write_segment, signal):
    """A segment's own rows in the store are counted, those of others are not."""
    from otlp_bodies import logs_body, metrics_body, trace_body

    make = {"traces": trace_body, "metrics": metrics_body, "logs": logs_body}[signal]
    one, other = (write_segment(make(seed), signal=signal) for seed in (1, 2))
    store.insert(other.path, signal, other.id)
    seen = []
    for _ in range(2):
        with sifting.trial(store, settings) as tried:
            assert tried.refusal(one.path, signal, {}) is None
            seen.append(tried.stored_rows(signal))
        store.insert(one.path, signal, one.id)
    assert seen[0] == 0
    assert seen[1] > 0


def test_the_search_is_bounded_and_loses_nothing(store, settings, write_segment, monkeypatch):
    """With few attempts for many bad spans, what was not decided is set aside too, and all of it is somewhere."""
    monkeypatch.setattr(sifting.sift, "__defaults__", (6,))
    write_segment(*requests_of(*(spans(8, bad=[n % 8] if n >= 8 else []) for n in range(16))))
    Stored(store, settings).once()
    pieces = list_spool(settings.spool_dir)
    assert {piece.refusal.reason for piece in pieces} >= {UNDECIDED}
    assert counted(store) == 8 * 8
    assert counted(store) + sum(piece.records for piece in pieces) == 16 * 8


def test_a_store_that_goes_away_meanwhile_is_waited_for(store, settings, write_segment, monkeypatch):
    """Nothing is set aside for a reason that passes."""
    segment = write_segment(*requests_of(spans(5, bad=[1])))
    looking = Stored(store, settings)

    def away(*_, **__):
        raise StoreUnreachableError("away")

    with monkeypatch.context() as patched:
        patched.setattr(writer_module, "sift", away)
        looking.once()
    assert [found.id for found in sealed_segments(settings.spool_dir)] == [segment.id]
    looking.once()
    assert counted(store) == 4


@pytest.mark.parametrize("alive", [True, False])
def test_without_a_copy_of_the_tables_all_of_it_is_set_aside(store, settings, write_segment, monkeypatch, alive):
    """A user who may make no database: the segment goes aside whole and says so, unless the store is away."""
    segment = write_segment(*requests_of(spans(5, bad=[1])))
    looking = Stored(store, settings)

    def refused(*_, **__):
        raise StoreError("not enough privileges")

    monkeypatch.setattr(writer_module, "sift", refused)
    monkeypatch.setattr(type(store), "ping", lambda _: alive)
    looking.once()
    (found,) = list_spool(settings.spool_dir)
    assert (found.id, found.state) == (segment.id, "refused" if alive else "sealed")
    assert not alive or "not enough privileges" in found.refusal.reason


def test_a_disk_that_is_full_leaves_the_segment_where_it_is(store, settings, write_segment, monkeypatch):
    """The pieces cannot be written: nothing is cut out, nothing is lost, and later it is done."""
    segment = write_segment(*requests_of(spans(5, bad=[1])))
    before = segment.path.read_bytes()
    looking = Stored(store, settings)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("axonize_server.parting.os.fdatasync", full)
        looking.once()
    assert segment.path.read_bytes() == before
    assert refused_segments(settings.spool_dir) == []
    assert "No space left" in looking.counters.last_error
    looking.once()
    assert counted(store) == 4
    assert looking.counters.last_error is None
