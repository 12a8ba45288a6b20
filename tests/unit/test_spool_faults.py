"""Disks that are full, broken or odd: what cannot be made durable is refused, and nothing else is lost."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource

import pytest

from appending import bodies, make, put
from axonize_server import appender as appender_module
from axonize_server.spool import SpoolUnavailableError, recover, sealed_segments


@contextlib.contextmanager
def no_file_larger_than(size):
    """The kernel refuses to write further, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_refuses_and_keeps_what_was_synced(tmp_path):
    """What was durable before stays readable, the rest says that it is not, and later requests go on."""
    appender = make(tmp_path)
    kept = put(appender, b"kept" * 100)
    appender.sync()
    lost = put(appender, os.urandom(100_000))
    with no_file_larger_than(20_000), pytest.raises(SpoolUnavailableError, match="cannot write"):
        appender.sync()
    assert kept.durable
    assert not lost.durable
    after = put(appender, b"after")
    appender.close()
    assert after.durable
    assert [bodies(segment.path) for segment in sealed_segments(tmp_path)] == [[b"kept" * 100], [b"after"]]


def test_a_full_disk_at_the_first_write_leaves_no_file(tmp_path):
    """A segment that got nothing durable is removed."""
    appender = make(tmp_path)
    lost = put(appender, os.urandom(100_000))
    with no_file_larger_than(0), pytest.raises(SpoolUnavailableError):
        appender.close()
    assert not lost.durable
    assert list((tmp_path / "traces").iterdir()) == []


def test_a_disk_that_fills_in_the_middle_of_a_write(tmp_path, monkeypatch):
    """A short write and then ENOSPC: the requests are refused, what was durable stays, and later ones go on."""
    appender = make(tmp_path)
    kept = put(appender, b"kept")
    appender.sync()
    lost = put(appender, b"lost" * 5000)
    real, calls = os.pwrite, []

    def full(fd, data, offset):
        calls.append(len(data))
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data[:4096], offset)

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        with pytest.raises(SpoolUnavailableError, match="No space left"):
            appender.sync()
    assert calls[1] == calls[0] - 4096, "what a short write left was tried again"
    after = put(appender, b"after")
    appender.close()
    assert (kept.durable, lost.durable, after.durable) == (True, False, True)
    assert [bodies(segment.path) for segment in sealed_segments(tmp_path)] == [[b"kept"], [b"after"]]


def test_a_directory_that_cannot_be_written_refuses(tmp_path):
    """When not even the file can be made, the request is not durable and the next one may be."""
    appender = make(tmp_path)
    (tmp_path / "traces").rename(tmp_path / "away")
    lost = put(appender)
    with pytest.raises(SpoolUnavailableError):
        appender.sync()
    (tmp_path / "away").rename(tmp_path / "traces")
    assert not lost.durable
    again = put(appender)
    appender.close()
    assert again.durable


def test_a_directory_that_cannot_be_synced_refuses(tmp_path, monkeypatch):
    """Without its name on disk a file would be gone after a power failure: nothing in it is acknowledged."""
    appender = make(tmp_path)
    lost = put(appender)

    def broken(_):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", broken)
        with pytest.raises(SpoolUnavailableError, match="Input/output"):
            appender.sync()
    assert not lost.durable
    appender.close()
    assert sealed_segments(tmp_path) == []
    assert list((tmp_path / "traces").iterdir()) == []


def test_a_failed_sync_is_never_trusted_again(tmp_path, monkeypatch):
    """Requests that came in meanwhile are not durable either: the file is cut to what was synced before."""
    appender = make(tmp_path)
    put(appender, b"first")
    appender.sync()
    put(appender, b"second")
    meanwhile = []

    def broken(fd):
        monkeypatch.undo()
        meanwhile.append(put(appender, b"third"))
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", broken)
    with pytest.raises(SpoolUnavailableError, match="Input/output"):
        appender.sync()
    appender.sync()
    assert not meanwhile[0].durable
    (segment,) = sealed_segments(tmp_path)
    assert bodies(segment.path) == [b"first"]


def test_a_seal_that_fails_is_left_to_recovery(tmp_path, monkeypatch):
    """The request is durable all the same; the file keeps its open name until someone recovers it."""
    appender = make(tmp_path)
    ticket = put(appender)
    monkeypatch.setattr(os, "ftruncate", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "no")))
    with pytest.raises(SpoolUnavailableError):
        appender.close()
    monkeypatch.undo()
    assert ticket.durable
    assert sealed_segments(tmp_path) == []
    assert [found.kept_messages for found in recover(tmp_path)] == [1]


def test_a_file_system_without_direct_io_is_written_through_the_cache(tmp_path, monkeypatch):
    """EINVAL for the flag is answered by opening without it; any other refusal stands."""
    real = os.open

    def picky(path, flags, *args):
        fd = real(path, flags & ~os.O_DIRECT, *args)
        if flags & os.O_DIRECT:
            os.close(fd)
            raise OSError(errno.EINVAL, "Invalid argument")
        return fd

    monkeypatch.setattr(os, "open", picky)
    appender = make(tmp_path)
    assert not put(appender).durable
    appender.close()
    assert bodies(sealed_segments(tmp_path)[0].path) == [b"body"]


def test_a_recovery_that_is_faster_than_the_lock_is_noticed(tmp_path, monkeypatch):
    """A file deleted between its creation and its lock must not take requests to the grave."""
    real = fcntl.flock

    def late(fd, operation):
        recover(tmp_path)
        real(fd, operation)

    appender = make(tmp_path)
    lost = put(appender)
    monkeypatch.setattr(appender_module.fcntl, "flock", lambda *a: (monkeypatch.undo(), late(*a)))
    with pytest.raises(SpoolUnavailableError):
        appender.sync()
    assert not lost.durable
    assert list((tmp_path / "traces").iterdir()) == []
