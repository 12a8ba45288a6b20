"""`axonize spool`: what it lists, what it finds damaged, and what it puts back."""

from __future__ import annotations

import io
import json
import os
import time

import pytest
from click.testing import CliRunner
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.metrics.v1.metrics_pb2 import HistogramDataPoint
from rich.console import Console

from axonize_server.appender import Appender, Usage
from axonize_server.commands_spool import spool as command
from axonize_server.inspect_spool import list_spool, verify
from axonize_server.refused import Refusal, read_refusal, refused_segments, set_aside
from axonize_server.show_spool import print_listing, print_verified
from axonize_server.spool import sealed_segments
from otlp_bodies import trace_body

SIGNAL = "traces"


@pytest.fixture
def spool_dir(tmp_path):
    return tmp_path / "spool"


@pytest.fixture
def run(tmp_path):
    """Run `axonize spool …` on the test's data directory."""

    def run_it(name, *args):
        return CliRunner().invoke(command, [name, "--data-dir", str(tmp_path), *args])

    return run_it


def appended(spool_dir, *bodies, signal=SIGNAL):
    appender = Appender(spool_dir, signal, Usage(spool_dir, 1 << 30))
    for body in bodies:
        appender.append(body, records=1, tenant="default", received_ns=7)
    appender.sync()
    return appender


def sealed(spool_dir, *bodies):
    before = set(sealed_segments(spool_dir))
    appended(spool_dir, *bodies).close()
    (segment,) = set(sealed_segments(spool_dir)) - before
    return segment


def refused(spool_dir, reason="no rows", **facts):
    segment = sealed(spool_dir, trace_body(spans=2))
    set_aside(spool_dir, segment, Refusal(reason, "data", **facts))
    return segment


def files(spool_dir):
    return {path: path.read_bytes() for path in spool_dir.rglob("*") if path.is_file()}


def test_ls_tells_the_states_apart(spool_dir, run):
    """Open, sealed and refused segments stand in the listing with what they hold and why they are there."""
    set_aside_one = refused(spool_dir)
    waiting = sealed(spool_dir, trace_body(1, spans=3), trace_body(2, spans=4))
    written = appended(spool_dir, trace_body(3, spans=5))
    result = run("ls", "--json")
    found = {row["state"]: row for row in json.loads(result.output)["segments"]}
    assert {state: (row["requests"], row["records"]) for state, row in found.items()} == {
        "open": (1, 5),
        "sealed": (2, 7),
        "refused": (1, 2),
    }
    assert (found["sealed"]["id"], found["sealed"]["size_bytes"]) == (waiting.id, waiting.size_bytes)
    assert (found["refused"]["id"], found["refused"]["refusal"]["reason"]) == (set_aside_one.id, "no rows")
    written.close()


def test_the_listing_fits_80_columns(spool_dir):
    """On a terminal every line fits, ids are cut to what tells them apart, and the reason is told."""
    one = refused(spool_dir, reason="Cannot parse string 'x' as UInt32: " + "long " * 40)
    two = sealed(spool_dir, trace_body(spans=3))
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    print_listing(console, list_spool(spool_dir), now_ns=time.time_ns() + 90 * 60 * 10**9)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert one.id.partition("-")[2][:8] in text
    assert one.id not in text
    assert two.id.partition("-")[2][:8] in text
    assert "90 min" in text
    assert "(data): Cannot parse string 'x'" in text


@pytest.mark.parametrize(("minutes", "text"), [(119, "119 min"), (120, "2 h"), (47 * 60, "47 h"), (48 * 60, "2 d")])
def test_ages_read_well(spool_dir, minutes, text):
    """Minutes, hours and days, each as long as they are few."""
    sealed(spool_dir, b"x")
    (listed,) = list_spool(spool_dir)
    console = Console(file=io.StringIO(), width=200)
    print_listing(console, [listed], now_ns=listed.created_ns + minutes * 60 * 10**9)
    assert text in console.file.getvalue()


def test_an_empty_spool_says_so(spool_dir, run):
    """And a directory without one is an error that names it."""
    spool_dir.mkdir()
    assert run("ls").output == "the spool is empty: everything acknowledged is in the store\n"
    assert run("verify").output == "0 segments checked: 0 sound, 0 damaged\n"
    spool_dir.rmdir()
    gone = run("ls")
    assert (gone.exit_code, str(spool_dir) in gone.output) == (1, True)


def test_data_points_and_log_records_are_counted(spool_dir):
    """A metric counts by its points, whatever its type."""
    points = ExportMetricsServiceRequest()
    metrics = points.resource_metrics.add().scope_metrics.add().metrics
    metrics.add(name="a").gauge.data_points.add(as_int=1)
    metrics.add(name="b").histogram.data_points.extend([HistogramDataPoint(), HistogramDataPoint()])
    metrics.add(name="none")
    logs = ExportLogsServiceRequest()
    logs.resource_logs.add().scope_logs.add().log_records.extend([LogRecord(), LogRecord()])
    appended(spool_dir, points.SerializeToString(), signal="metrics").close()
    appended(spool_dir, logs.SerializeToString(), signal="logs").close()
    assert {listed.signal: listed.records for listed in list_spool(spool_dir)} == {"metrics": 3, "logs": 2}


def test_what_is_not_otlp_is_listed_without_records(spool_dir):
    """A request that does not parse, or a signal nobody counts, leaves the number of records unknown."""
    sealed(spool_dir, b"\x0a\xff\xff")
    appended(spool_dir, b"x", signal="profiles").close()
    assert [listed.records for listed in list_spool(spool_dir)] == [None, None]


def test_a_sound_spool_verifies(spool_dir, run):
    """All states are sound, the padding of an open segment is no damage, and nothing is changed."""
    refused(spool_dir)
    sealed(spool_dir, trace_body(spans=1), trace_body(spans=2))
    written = appended(spool_dir, b"x")
    before = files(spool_dir)
    result = run("verify")
    assert (result.exit_code, result.output) == (0, "3 segments checked: 3 sound, 0 damaged\n")
    assert files(spool_dir) == before
    written.close()


def damage(path, kind):
    data = bytearray(path.read_bytes())
    if kind == "empty":
        data = bytearray()
    elif kind == "header":
        data[8] ^= 1
    elif kind == "request":
        data[-1] ^= 1
    elif kind == "torn":
        del data[-3:]
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("empty", "it is empty"),
        ("header", "the header, bytes 0 to"),
        ("request", "request 2, bytes"),
        ("torn", "no whole message"),
    ],
)
def test_damage_is_named_and_the_exit_code_is_1(spool_dir, run, kind, said):
    """Each fault of a sealed segment is found, told with its place, and left as it is."""
    segment = sealed(spool_dir, b"one", b"two")
    sealed(spool_dir, b"other")
    damage(segment.path, kind)
    before = files(spool_dir)
    result = run("verify")
    assert result.exit_code == 1
    assert "2 segments checked: 1 sound, 1 damaged" in result.output
    assert said in result.output
    assert segment.id in result.output
    assert files(spool_dir) == before


def test_a_newer_version_is_damage_to_this_one(spool_dir, monkeypatch):
    """What cannot be read by this version is reported, though its checksums hold."""
    monkeypatch.setattr("axonize_server.spool.SEGMENT_VERSION", 2)
    sealed(spool_dir, b"from the future")
    monkeypatch.undo()
    (checked,) = verify(spool_dir)
    assert "segment version 2" in checked.problem


def test_a_torn_end_counts_only_when_its_receiver_is_dead(spool_dir):
    """A living receiver may be in the middle of a write; what a dead one left torn is reported."""
    written = appended(spool_dir, b"whole")
    path = written._current.path
    with path.open("r+b") as file:
        file.seek(written._current.synced)
        file.write(b"\x7fhalf")
    assert [checked.problem for checked in verify(spool_dir)] == [None]
    os.close(written._current.fd)
    (checked,) = verify(spool_dir)
    assert checked.requests == 1
    assert "5 bytes" in checked.problem
    assert "never acknowledged" in checked.problem


def test_segments_that_vanish_are_no_error(spool_dir, monkeypatch):
    """The writer deletes while others look."""
    segment = sealed(spool_dir, b"x")
    files_ = [("sealed", segment.path), ("open", segment.path.with_suffix(".open"))]
    segment.path.unlink()
    monkeypatch.setattr("axonize_server.inspect_spool._files", lambda _: files_)
    assert (list_spool(spool_dir), verify(spool_dir)) == ([], [])


def test_replay_puts_back_by_part_of_an_id_or_all(spool_dir, run):
    """The segment is where the writer looks, under its own id, and its reason is gone."""
    first, second, third = refused(spool_dir), refused(spool_dir), refused(spool_dir)
    assert run("replay", first.id.partition("-")[2][:8]).output == "put back: 1 segment\n"
    assert [segment.id for segment in sealed_segments(spool_dir)] == [first.id]
    result = run("replay", "--all", "--json")
    assert json.loads(result.output) == {"put_back": [second.id, third.id], "kept": []}
    assert [segment.id for segment in sealed_segments(spool_dir)] == [first.id, second.id, third.id]
    assert list((spool_dir / "refused" / SIGNAL).iterdir()) == []


def test_replay_keeps_what_may_count_twice(spool_dir, run):
    """A segment whose rows may be stored is put back only when that is asked for."""
    segment = refused(spool_dir, stored_in_part=True)
    assert "kept: 1 segment" in run("replay", "--all").output
    assert sealed_segments(spool_dir) == []
    assert run("replay", "--all", "--stored-in-part").output == "put back: 1 segment\n"
    assert [found.id for found in sealed_segments(spool_dir)] == [segment.id]


@pytest.mark.parametrize(
    ("args", "said"),
    [((), "give --all"), (("--all", "x"), "give --all"), (("nobody",), "no refused segment"), (("-",), "2 refused")],
)
def test_replay_wants_to_know_which(spool_dir, run, args, said):
    """Nothing named, too much, nothing that fits, and more than one that fits are errors."""
    refused(spool_dir), refused(spool_dir)
    result = run("replay", *args)
    assert result.exit_code
    assert said in result.output
    assert len(refused_segments(spool_dir)) == 2


def test_replay_never_overwrites(spool_dir, run):
    """A segment of that id that waits already is left alone, and so is the refused one."""
    segment = refused(spool_dir)
    segment.path.write_bytes(b"waits already")
    result = run("replay", "--all")
    assert result.exit_code == 1
    assert "there already" in result.output
    assert segment.path.read_bytes() == b"waits already"
    assert len(refused_segments(spool_dir)) == 1


def test_a_reason_that_is_gone_is_said(spool_dir):
    """A file somebody put there by hand is still listed."""
    segment = refused(spool_dir)
    (reason,) = spool_dir.glob("refused/*/*.reason.json")
    reason.unlink()
    assert read_refusal(spool_dir / "refused" / SIGNAL / segment.path.name).cause == "unknown"
    (spool_dir / "refused" / SIGNAL / "by-hand.pb").touch()
    assert [listed.created_ns for listed in list_spool(spool_dir)][-1] == 0


def test_verified_says_what_is_left(spool_dir):
    """The number of whole requests beside the damage tells how much could be saved by hand."""
    segment = sealed(spool_dir, b"one", b"two")
    damage(segment.path, "request")
    console = Console(file=io.StringIO(), width=80)
    print_verified(console, verify(spool_dir))
    assert "1 whole request in it" in " ".join(console.file.getvalue().split())
