"""The writer dies at every step of its way, and in the middle of inserts: each record is in each table once."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time

import pytest

import stored
from axonize_server.inspect_spool import list_spool, verify
from axonize_server.spool import sealed_segments
from gpu_reports import gpu_info, samples
from own_spans import OwnLoad, as_requests

# A writer that stores what is sealed and ends; told where, it dies there as by a power switch.
_WRITER = """
import json, os, sys, threading, time
from pathlib import Path
from axonize_server import parting, sifting, writer
from axonize_server.health import Counters
from axonize_server.migrate import migrate_store
from axonize_server.settings import Settings
from axonize_server.store.clickhouse import ClickHouseStore
from axonize_server.store.trial import Trial

directory, where, number = sys.argv[1], sys.argv[2], float(sys.argv[3])
settings = Settings(data_dir=Path(directory))
store = ClickHouseStore(writer._repaired(settings.store))
migrate_store(store, settings)

def die(owner, name, *, before, at=1):
    whole, calls = getattr(owner, name), []
    def dies(*args, **kwargs):
        if before and len(calls) + 1 == at:
            os._exit(9)
        found = whole(*args, **kwargs)
        calls.append(name)
        if len(calls) == at:
            os._exit(9)
        return found
    setattr(owner, name, dies)

def die_later(owner, name, seconds):
    whole = getattr(owner, name)
    def dies(*args, **kwargs):
        threading.Timer(seconds, os._exit, (9,)).start()
        return whole(*args, **kwargs)
    setattr(owner, name, dies)

steps = {
    "nowhere": lambda: None,
    "before an insert": lambda: die(ClickHouseStore, "insert", before=True),
    "within an insert": lambda: die_later(ClickHouseStore, "insert", number),
    "after an insert": lambda: die(ClickHouseStore, "insert", before=False),
    "after a removal": lambda: die(writer, "remove", before=False),
    "while looking for the bad": lambda: die(Trial, "refusal", before=False, at=int(number)),
    "before a piece is written": lambda: die(parting, "write_segment", before=True),
    "with one piece written": lambda: die(parting, "write_segment", before=False),
    "with all written and none named": lambda: die(parting, "sync_directory", before=True),
    "with the rest named": lambda: die(parting, "sync_directory", before=False, at=2),
    "before the pieces are named": lambda: die(parting, "finish_parting", before=True),
    "with the pieces named": lambda: die(parting, "finish_parting", before=False),
}
steps[where]()
stop = threading.Event()
stop.set()
counters = Counters()
writer.Writer(store, settings, counters, stop).run(60)
store.close()
print(json.dumps(counters.numbers()))
"""
STEPS = (
    ("before an insert", 0),
    ("after an insert", 0),
    ("after a removal", 0),
    ("while looking for the bad", 1),
    ("while looking for the bad", 5),
    ("before a piece is written", 0),
    ("with one piece written", 0),
    ("with all written and none named", 0),
    ("with the rest named", 0),
    ("before the pieces are named", 0),
    ("with the pieces named", 0),
)


def write(settings, where="nowhere", number=0.0):
    """Run the writer; whether it ended by itself."""
    command = [sys.executable, "-c", _WRITER, str(settings.data_dir), where, str(number)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=settings.data_dir)
    assert done.returncode in (0, 9), done.stderr
    return done.returncode == 0


def served(seed, requests, *, days_ago=0):
    load = OwnLoad(seed, start_ns=time.time_ns() - days_ago * 86_400 * 10**9, mean_output=4)
    spans, steps = load.run(requests)
    return [*spans, *steps], load.resource


def fill(write_segment, *, bad=1, requests=8):
    """Two segments of traces, of today and yesterday, and one of metrics; `bad` spans cannot be stored."""
    good = []
    for seed in range(2):
        days = [served(random.randrange(1 << 30), requests, days_ago=ago) for ago in (0, 1)]
        spans = [span for made, _ in days for span in made]
        if seed == 0:
            for span in spans[:bad]:
                span.trace_id += b"!"
        good += spans[bad if seed == 0 else 0 :]
        write_segment(*(request for made, resource in days for request in as_requests(made, resource)))
    gpu = gpu_info("node-a", 0)
    report = samples([(gpu, {"hw.power": 300.5, "axonize.gpu.info": 1})])
    for number, metric in enumerate(report.resource_metrics[0].scope_metrics[0].metrics):
        metric.gauge.data_points[0].attributes.add(key="test.id").value.string_value = str(number)
    write_segment(report, signal="metrics")
    return {span.span_id.hex().upper() for span in good}


def check(settings, good):
    found = stored.everything(settings.data_dir / "clickhouse")
    assert set(found.rows["spans"]) == good, "none is lost, and none is there that could not be stored"
    assert set(found.rows["metrics"]) == {"0", "1"}
    assert found.doubled == dict.fromkeys(found.rows, 0)
    assert found.unequal == {}


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("where", "number"), STEPS)
def test_a_crash_at_any_step_ends_in_the_same_rows(settings, write_segment, where, number):
    """Dead at that step and started again: every good record once, the bad one set aside, nothing left over."""
    good = fill(write_segment)
    assert not write(settings, where, number), "it died there"
    assert write(settings)
    check(settings, good)
    listed = list_spool(settings.spool_dir)
    assert [(one.state, one.requests, one.records) for one in listed] == [("refused", 1, 1)]
    assert [checked.problem for checked in verify(settings.spool_dir)] == [None]
    names = {path.suffix for path in settings.spool_dir.rglob("*") if path.is_file()}
    assert names == {".pb", ".json"}, "no draft is left"


@pytest.mark.timeout(180)
def test_crashes_in_the_middle_of_inserts(settings, write_segment):
    """Killed at random moments while ClickHouse writes parts, tables and views: each record in each table once."""
    good = fill(write_segment, bad=0, requests=150)
    died = sum(not write(settings, "within an insert", random.uniform(0.001, 0.15)) for _ in range(8))
    assert died >= 2, "or nothing was tried"
    assert write(settings)
    check(settings, good)
    assert sealed_segments(settings.spool_dir) == []


@pytest.mark.timeout(120)
def test_a_removal_that_a_power_failure_undoes(settings, write_segment):
    """The names of removed segments are back: their ids make all of it no-ops, the parted one included."""
    good = fill(write_segment)
    before = settings.data_dir / "before"
    shutil.copytree(settings.spool_dir, before)
    assert write(settings)
    (piece,) = (one.id for one in list_spool(settings.spool_dir))
    for path in before.glob("*/*.pb"):
        shutil.copy(path, settings.spool_dir / path.parent.name / path.name)
    assert write(settings)
    check(settings, good)
    assert [one.id for one in list_spool(settings.spool_dir)] == [piece]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("table", ["spans", "batches", "traces", "requests_1m", "metrics", "gpu_inventory"])
def test_a_token_without_its_rows_is_forgotten(settings, write_segment, table):
    """ClickHouse notes the token, is killed, and never names the part: the segment comes again and is taken, once."""
    good = fill(write_segment, bad=0)
    before = settings.data_dir / "before"
    shutil.copytree(settings.spool_dir, before)
    assert write(settings)
    signal_name = "metrics" if table in ("metrics", "gpu_inventory") else "traces"
    (log,) = stored.table_directory(settings.data_dir / "clickhouse", table).glob("deduplication_logs/*.txt")
    part = log.read_text().splitlines()[-1].split("\t")[1]
    shutil.rmtree(log.parents[1] / part)
    last = max(before.glob(f"{signal_name}/*.pb"), key=lambda path: path.name)
    shutil.copy(last, settings.spool_dir / signal_name / last.name)
    assert write(settings)
    check(settings, good)
