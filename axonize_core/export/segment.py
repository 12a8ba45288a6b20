"""One append-only file of the disk queue.

A record is a header and a body. What was sent is marked in place, one byte, so a segment needs no file beside it and
may be moved to another queue's directory. Writes go to the page cache: they survive any death of the process, not the
machine's; whatever that leaves behind fails the checksum.
"""

from __future__ import annotations

import errno
import os
import struct
import zlib
from contextlib import suppress
from typing import TYPE_CHECKING

from axonize_core.export.batch import Batch

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["SUFFIX", "Segment", "SegmentCorruptError"]

# The format's version: other suffixes are other versions' and stay untouched.
SUFFIX = ".q1"
_HEADER = struct.Struct("<4sIIIQBB2x")  # magic, crc32, body bytes, items, created_ns, gzipped, sent
_CHECKED = struct.Struct("<IIQB")
_MAGIC = b"AXQ1"
_SENT_AT = 25


class SegmentCorruptError(Exception):
    """What was read is not what was written."""


class Segment:
    """Unsent records lie between ``start`` and ``end``, in bytes of the file. Not thread-safe.

    Raises:
        OSError: from every method that touches the file.
    """

    def __init__(self, path: Path, *, create: bool) -> None:
        self.path = path
        self.start = 0
        self.end = 0
        self.batches = 0
        self.items = 0
        self.torn_bytes = 0
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT | os.O_EXCL if create else 0), 0o600)
        if not create:
            self._recover()

    def append(self, batch: Batch) -> None:
        """Write a record behind the last; a record that does not fit leaves the file as it was."""
        header = _HEADER.pack(_MAGIC, _crc(batch), len(batch.body), batch.items, batch.created_ns, batch.gzipped, 0)
        try:
            self._write(header, batch.body)
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._fd, self.end)
            raise
        self.end += len(header) + len(batch.body)
        self.batches += 1
        self.items += batch.items

    def head(self) -> Batch:
        """Return the first unsent record.

        Raises:
            SegmentCorruptError: it was damaged, or is gone.
        """
        return self._read(self.start)

    def settle(self, batch: Batch) -> None:
        """Mark ``batch``, the first unsent record, as sent."""
        os.pwrite(self._fd, b"\x01", self.start + _SENT_AT)
        self.skip(batch)

    def skip(self, batch: Batch) -> None:
        """Go on behind the first unsent record without a mark: it is sent again after a restart."""
        self.start += _HEADER.size + len(batch.body)
        self.batches -= 1
        self.items -= batch.items

    def clear(self) -> None:
        """Forget all records, so that a queue that keeps up hardly reaches the disk."""
        os.ftruncate(self._fd, 0)
        self.start = self.end = self.batches = self.items = 0

    def close(self) -> None:
        """Let go of the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def remove(self) -> None:
        """Delete the file."""
        self.close()
        self.path.unlink(missing_ok=True)

    def _write(self, header: bytes, body: bytes) -> None:
        if os.pwritev(self._fd, (header, body), self.end) < len(header) + len(body):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    def _read(self, at: int) -> Batch:
        fields = self._header(at)
        if fields is None:
            raise SegmentCorruptError(f"{self.path} has no record at byte {at}")
        crc, length, items, created_ns, gzipped, _ = fields
        batch = Batch(os.pread(self._fd, length, at + _HEADER.size), items, created_ns, bool(gzipped))
        if len(batch.body) != length or _crc(batch) != crc:
            raise SegmentCorruptError(f"{self.path} is damaged at byte {at}")
        return batch

    def _header(self, at: int) -> tuple[int, int, int, int, int, int] | None:
        data = os.pread(self._fd, _HEADER.size, at)
        if len(data) < _HEADER.size or data[:4] != _MAGIC:
            return None
        fields: tuple[int, int, int, int, int, int] = _HEADER.unpack(data)[1:]
        return fields

    def _recover(self) -> None:
        """Find the first unsent record, count, and cut off a torn tail. Bodies are checked when they are read."""
        size, at, last = os.fstat(self._fd).st_size, 0, -1
        while (fields := self._header(at)) is not None and at + _HEADER.size + fields[1] <= size:
            last, at = at, at + _HEADER.size + fields[1]
            if fields[5]:
                self.start = at
            else:
                self.batches += 1
                self.items += fields[2]
        self.end = at
        if last >= self.start:
            self._check_last(last)
        self.torn_bytes = size - self.end
        if self.torn_bytes:
            os.ftruncate(self._fd, self.end)

    def _check_last(self, at: int) -> None:
        """Cut the last record off when its body never arrived whole."""
        try:
            self._read(at)
        except SegmentCorruptError:
            fields = self._header(at)
            self.end = at
            self.batches -= 1
            self.items -= fields[2] if fields else 0


def _crc(batch: Batch) -> int:
    fields = _CHECKED.pack(len(batch.body), batch.items, batch.created_ns, batch.gzipped)
    return zlib.crc32(batch.body, zlib.crc32(fields))
