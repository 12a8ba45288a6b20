"""Segments outlive the code that wrote them: today's format is frozen here, and what is newer is not guessed at."""

from __future__ import annotations

import base64
import threading
from pathlib import Path

import pytest

from axonize_server.health import Counters
from axonize_server.inspect_spool import list_spool, verify
from axonize_server.migrate import migrate_store
from axonize_server.refused import put_back, refused_segments
from axonize_server.settings import Settings
from axonize_server.spool import INSERT_SETTINGS, UnknownVersionError, header_message, read_header, sealed_segments
from axonize_server.writer import Writer

DATA = Path(__file__).resolve().parents[1] / "data"
SIGNALS = ("traces", "metrics", "logs")
TABLES = {"traces": "spans", "metrics": "metrics", "logs": "logs"}
NAME = "01795000000000000000-0123456789abcdef0123456789abcdef.pb"


@pytest.fixture
def settings(tmp_path):
    """Settings under which rows of the frozen segments' time are kept."""
    days = {f"ttl_{what}_days": 3650 for what in ("spans", "traces", "batches", "metrics", "logs")}
    return Settings(data_dir=tmp_path, api_port=0, **days)


def frozen(settings, signal):
    """Put the frozen segment of version 1 into the spool."""
    path = settings.spool_dir / signal / NAME
    path.parent.mkdir(parents=True)
    path.write_bytes(base64.b64decode((DATA / f"segment_v1_{signal}.b64").read_bytes()))
    return path


def write_all(store, settings):
    counters = Counters()
    Writer(store, settings, counters, threading.Event()).store_sealed()
    return counters


@pytest.mark.parametrize("signal", SIGNALS)
def test_a_segment_of_version_1_is_read_and_stored(empty_store, settings, signal):
    """Every record of the frozen file becomes a row, by the settings frozen in it."""
    migrate_store(empty_store, settings)
    path = frozen(settings, signal)
    facts = read_header(path)
    assert (facts["version"], facts["signal"]) == (1, signal)
    assert set(facts["settings"]) == set(INSERT_SETTINGS)
    (listed,) = list_spool(settings.spool_dir)
    assert (listed.requests, [checked.problem for checked in verify(settings.spool_dir)]) == (2, [None])
    assert write_all(empty_store, settings).stored_segments == 1
    assert empty_store.rows()[TABLES[signal]] == listed.records > 0
    assert sealed_segments(settings.spool_dir) == []


def test_a_newer_version_is_set_aside_until_it_can_be_read(store, settings):
    """It is not guessed at, the reason says what to install, and it can be put back then."""
    path = settings.spool_dir / "traces" / NAME
    path.parent.mkdir(parents=True)
    path.write_bytes(header_message("traces", version=2))
    with pytest.raises(UnknownVersionError, match=r"version 2.*reads 1"):
        read_header(path)
    assert write_all(store, settings).refused_segments == 1
    (listed,) = list_spool(settings.spool_dir)
    assert (listed.state, listed.refusal.cause) == ("refused", "version")
    assert "install the version that wrote it" in listed.refusal.reason
    (segment,) = refused_segments(settings.spool_dir)
    put_back(settings.spool_dir, segment)
    assert [found.id for found in sealed_segments(settings.spool_dir)] == [segment.id]


@pytest.mark.parametrize("facts", [{"version": "1"}, {"version": None}, {"version": 0}])
def test_a_version_that_is_none_is_unknown(tmp_path, facts):
    """Only the number itself is taken for it."""
    path = tmp_path / NAME
    path.write_bytes(header_message("traces", **facts))
    with pytest.raises(UnknownVersionError):
        read_header(path)
