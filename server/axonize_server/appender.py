"""The writing side of the spool, as one receiver process uses it.

Requests are gathered in page-aligned memory and written by direct I/O together with the sync: through the
page cache the same bytes cost two to five times the CPU. Where the file system knows no direct I/O, the same
writes go through the cache.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import stat
import threading
import time
import uuid
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from axonize_server.spool import SpoolFullError, SpoolUnavailableError, header_message, request_frame, sync_directory

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["Appender", "Limits", "Ticket", "Usage"]

_BLOCK = 4096  # what direct I/O aligns memory, offset and length to
_STAGING_BYTES = 4 << 20


@dataclass(frozen=True)
class Limits:
    """When a segment is sealed: records, bytes, distinct days, seconds since its first record."""

    records: int = 65_536
    size_bytes: int = 64 << 20
    days: int = 64
    age_s: float = 1.0


class Usage:
    """The bytes of all segments of one spool, refused ones too, known to within what others wrote in `refresh_s`.

    Counted before they are written; a full spool is looked at again before it is reported full. Any thread.
    """

    def __init__(self, spool_dir: Path, max_bytes: int, *, refresh_s: float = 0.25) -> None:
        self._dir, self._max_bytes, self._refresh_s = spool_dir, max_bytes, refresh_s
        self._lock = threading.Lock()
        self._bytes = self._unwritten = 0
        self._read_at = float("-inf")

    def reserve(self, size: int) -> None:
        """Count `size` bytes more, or raise SpoolFullError."""
        with self._lock:
            now = time.monotonic()
            if now - self._read_at > self._refresh_s or self._bytes + size > self._max_bytes:
                self._bytes, self._read_at = _total_bytes(self._dir) + self._unwritten, now
            if self._bytes + size > self._max_bytes:
                raise SpoolFullError(
                    f"the spool {str(self._dir)!r} holds {self._bytes} of at most {self._max_bytes} bytes;"
                    " see that the store is reachable and what `axonize spool ls` shows as refused,"
                    " or raise AXONIZE_SPOOL_MAX_BYTES"
                )
            self._bytes += size
            self._unwritten += size

    def written(self, size: int) -> None:
        """From now on the directory shows these bytes, or they are gone."""
        with self._lock:
            self._unwritten -= size


def _total_bytes(spool_dir: Path) -> int:
    """What waits for the writer, and what is set aside: both take the disk's room until somebody acts."""
    total = 0
    for path in chain(spool_dir.glob("*/*"), spool_dir.glob("refused/*/*")):
        with contextlib.suppress(FileNotFoundError):  # the writer deletes while we look
            found = path.stat()
            total += found.st_size if stat.S_ISREG(found.st_mode) else 0
    return total


class _Write(NamedTuple):
    """Staged bytes on their way to the disk: where they go, and where the segment's content then ends."""

    staging: memoryview
    offset: int
    length: int
    end: int
    reserved: int


@dataclass(eq=False)
class _OpenSegment:
    """One file being written; the appending thread stages, the syncing thread owns the file."""

    path: Path
    staging: memoryview
    fill: int = 0  # bytes in staging
    base: int = 0  # where staging begins in the file; a multiple of the block
    synced: int = 0
    reserved: int = 0  # bytes counted in Usage and not yet written
    records: int = 0
    days: set[int] = field(default_factory=set)
    opened_at: float = field(default_factory=time.monotonic)
    fd: int = -1

    def over(self, limits: Limits, size: int, records: int, days: set[int]) -> bool:
        """Whether one more request of that size would pass a limit."""
        return (
            self.records + records > limits.records
            or self.base + self.fill + size > limits.size_bytes
            or len(self.days | days) > limits.days
        )

    def stage(self, *parts: bytes | bytearray | memoryview) -> None:
        """Append bytes to what waits for the disk."""
        size = sum(map(len, parts))
        if self.fill + size > len(self.staging) - _BLOCK:
            larger = _aligned(max(2 * len(self.staging), self.fill + size + _BLOCK))
            larger[: self.fill] = self.staging[: self.fill]
            self.staging = larger
        for part in parts:
            self.staging[self.fill : self.fill + len(part)] = part
            self.fill += len(part)

    def take(self, spare: memoryview) -> _Write:
        """Hand over what is staged; its unfinished block goes on in `spare`, and is written again later."""
        taken, fill, offset = self.staging, self.fill, self.base
        whole = fill - fill % _BLOCK
        length = -(-fill // _BLOCK) * _BLOCK
        taken[fill:length] = bytes(length - fill)
        spare[: fill - whole] = taken[whole:fill]
        self.staging, self.base, self.fill = spare, offset + whole, fill - whole
        reserved, self.reserved = self.reserved, 0
        return _Write(taken, offset, length, offset + fill, reserved)


class Ticket(NamedTuple):
    """Where an appended request ends; `durable` once a sync has passed that point."""

    segment: _OpenSegment
    end: int

    @property
    def durable(self) -> bool:
        """Whether the request would survive a power failure now."""
        return self.segment.synced >= self.end


class Appender:
    """Appends the requests of one signal for one receiver process.

    `append`, `seal_due` and `seal` are called by one thread and never wait for the disk; `sync` by another.
    """

    def __init__(
        self,
        spool_dir: Path,
        signal: str,
        usage: Usage,
        limits: Limits | None = None,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        """Append to the segments of a signal; `clock` tells ns since the epoch and may step."""
        self._dir = spool_dir / signal
        self._clock = clock
        self._signal, self._usage, self._limits = signal, usage, limits or Limits()
        self._lock = threading.Lock()
        self._current: _OpenSegment | None = None
        self._closing: list[_OpenSegment] = []
        self._spares: list[memoryview] = []
        self._dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._named_ns = _newest_name(self._dir)

    def append(
        self,
        body: bytes | bytearray | memoryview,
        *,
        records: int,
        tenant: str,
        received_ns: int,
        days: set[int] | frozenset[int] = frozenset(),
    ) -> Ticket:
        """Put one request behind the others; it is durable when its ticket says so.

        Args:
            body: A whole, valid OTLP request; copied.
            records: Spans, data points or log records in it.
            tenant: Whose it is; overrides whatever the sender put into our field.
            received_ns: Epoch time of its arrival.
            days: Days since the epoch its records lie in (a superset will do).

        Raises:
            SpoolFullError: The spool's bound is reached.
        """
        prefix, trailer = request_frame(body, tenant=tenant, received_ns=received_ns)
        size = len(prefix) + len(body) + len(trailer)
        self._usage.reserve(size)
        with self._lock:
            if self._current is not None and self._current.over(self._limits, size, records, set(days)):
                self._close_current()
            segment = self._current = self._current or self._begin()
            segment.stage(prefix, body, trailer)
            segment.reserved += size
            segment.records += records
            segment.days |= days
            return Ticket(segment, segment.base + segment.fill)

    def _begin(self) -> _OpenSegment:
        # Never before the last one: a clock that was set back must not let younger segments overtake older ones.
        self._named_ns = max(self._clock(), self._named_ns + 1)
        path = self._dir / f"{self._named_ns:020d}-{uuid.uuid4().hex}.open"
        segment = _OpenSegment(path, self._spare())
        segment.stage(header_message(self._signal))
        return segment

    def _spare(self) -> memoryview:
        return self._spares.pop() if self._spares else _aligned(_STAGING_BYTES)

    def _close_current(self) -> None:
        if self._current is not None:
            self._closing.append(self._current)
            self._current = None

    def seal_due(self) -> bool:
        """Whether the open segment has reached its age; cheap enough to ask often."""
        segment = self._current
        return segment is not None and time.monotonic() - segment.opened_at >= self._limits.age_s

    def seal(self) -> None:
        """Let the next `sync` seal the open segment."""
        with self._lock:
            self._close_current()

    def sync(self) -> None:
        """Write and sync what was appended, then seal the segments that are full.

        A segment the disk refuses is cut back to what is durable of it and sealed there.

        Raises:
            SpoolUnavailableError: The disk refused something; the tickets say which requests are not durable.
        """
        with self._lock:
            closing, self._closing = self._closing, []
            targets = closing if self._current is None else [*closing, self._current]
            dirty = [segment for segment in targets if segment.base + segment.fill > segment.synced]
            writes = [(segment, segment.take(self._spare())) for segment in dirty]
        faults = []
        for segment, write in writes:
            fault = self._flush(segment, write)
            self._usage.written(write.reserved)
            if fault is not None:
                faults.append(fault)
                self._abandon(segment, closing)
        faults += [fault for segment in closing if (fault := _seal(segment))]
        if faults:
            raise SpoolUnavailableError(f"cannot write to the spool {str(self._dir)!r}: {faults[0]}") from faults[0]

    def _flush(self, segment: _OpenSegment, write: _Write) -> OSError | None:
        try:
            if segment.fd < 0:
                segment.fd = _create(segment.path)
            _write_whole(segment.fd, write)
            os.fdatasync(segment.fd)
        except OSError as error:
            return error
        segment.synced = write.end
        with self._lock:
            if len(write.staging) == _STAGING_BYTES:
                self._spares.append(write.staging)
        return None

    def _abandon(self, segment: _OpenSegment, closing: list[_OpenSegment]) -> None:
        """After a failed sync, memory and disk may differ: nothing more goes into this file."""
        with self._lock:
            if self._current is segment:
                self._current = None
            self._usage.written(segment.reserved)
        if segment not in closing:
            closing.append(segment)

    def close(self) -> None:
        """Sync and seal everything; the appender is empty afterwards.

        Raises:
            SpoolUnavailableError: As `sync` does.
        """
        self.seal()
        self.sync()


def _newest_name(folder: Path) -> int:
    """The time in the name of the youngest segment that is there."""
    times = (path.name.partition("-")[0] for path in folder.iterdir())
    return max((int(text) for text in times if text.isdigit()), default=0)


def _aligned(size: int) -> memoryview:
    """Zeroed memory that begins on a page and is a whole number of blocks."""
    return memoryview(mmap.mmap(-1, -(-size // _BLOCK) * _BLOCK))


def _create(path: Path) -> int:
    """A new file, locked, and its name durable before anything in it is acknowledged."""
    fd = _open_direct(path)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # taken: a recovery was faster, and deletes the file
        path.stat()  # gone: the same
        sync_directory(path.parent)
    except OSError:
        os.close(fd)
        path.unlink(missing_ok=True)
        raise
    return fd


def _open_direct(path: Path) -> int:
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
    try:
        return os.open(path, flags | os.O_DIRECT, 0o600)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    path.unlink(missing_ok=True)  # Linux creates the file before it refuses the flag
    return os.open(path, flags, 0o600)


def _write_whole(fd: int, write: _Write) -> None:
    done = 0
    while done < write.length:
        done += os.pwrite(fd, write.staging[done : write.length], write.offset + done)


def _seal(segment: _OpenSegment) -> OSError | None:
    """Cut off the padding and what is not durable, and rename to ``.pb``.

    The new name needs no sync: after a power failure the old name is recovered to the same id. A file that
    cannot be sealed keeps its old name, without its lock, for recovery.
    """
    if segment.fd < 0:
        return None
    try:
        if segment.synced:
            os.ftruncate(segment.fd, segment.synced)
            os.fdatasync(segment.fd)
            segment.path.rename(segment.path.with_suffix(".pb"))
        else:
            segment.path.unlink()
    except OSError as error:
        return error
    finally:
        os.close(segment.fd)
    return None
