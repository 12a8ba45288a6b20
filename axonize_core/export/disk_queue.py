"""A queue of batches on disk: first in, first out, bounded in bytes, kept over restarts.

At least once: what was in flight when the process died is sent again. Not thread-safe.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from axonize_core.export.segment import SUFFIX, Segment, SegmentCorruptError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from axonize_core.export.batch import Batch

__all__ = ["DiskQueue"]

SEGMENT_BYTES = 4 * 1024 * 1024
# The disk is the inference server's before it is ours.
RESERVED_BYTES = 128 * 1024 * 1024
logger = logging.getLogger(__name__)


class DiskQueue:
    """Segments of one directory, oldest first; the last one is written to.

    Raises:
        OSError: the directory cannot be used.
    """

    def __init__(
        self,
        directory: Path,
        max_bytes: int,
        *,
        reserved_bytes: int = RESERVED_BYTES,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self.directory = directory
        self.torn_bytes = 0
        self.unreadable_items = 0
        self._max_bytes = max_bytes
        self._segment_bytes = min(SEGMENT_BYTES, max(max_bytes // 8, 1))
        self._reserved_bytes = reserved_bytes
        self._clock = clock
        self._segments: deque[Segment] = deque()
        directory.mkdir(mode=0o700, exist_ok=True)
        self._recover()

    @property
    def file_bytes(self) -> int:
        """Bytes on disk, sent records of the first segment included."""
        return sum(segment.end for segment in self._segments)

    @property
    def waiting_bytes(self) -> int:
        """Bytes of unsent records."""
        return sum(segment.end - segment.start for segment in self._segments)

    @property
    def batches(self) -> int:
        """Unsent batches."""
        return sum(segment.batches for segment in self._segments)

    @property
    def items(self) -> int:
        """Spans or samples in them."""
        return sum(segment.items for segment in self._segments)

    def append(self, batch: Batch) -> bool:
        """Add a batch at the end; False when it would exceed the bound.

        Raises:
            OSError: it cannot be written; the queue is as before.
        """
        if self.file_bytes + len(batch.body) > self._max_bytes:
            return False
        if not self._segments or self._segments[-1].end >= self._segment_bytes:
            self._make_segment()
        self._segments[-1].append(batch)
        return True

    def head(self) -> Batch | None:
        """Return the oldest batch. What cannot be read back is counted, with the rest of its segment."""
        while self._segments and not self._segments[0].batches and len(self._segments) > 1:
            self._segments.popleft().remove()
        while self._segments and self._segments[0].batches:
            try:
                return self._segments[0].head()
            except (OSError, SegmentCorruptError) as e:
                self._give_up(self._segments.popleft(), e)
        return None

    def settle(self, batch: Batch) -> None:
        """Remove the oldest batch, which is ``batch``."""
        segment = self._segments[0]
        try:
            segment.settle(batch)
        except OSError as e:
            logger.warning("%s cannot be marked: %s; its records may be sent again", segment.path, e)
            segment.skip(batch)
        if not segment.batches:
            self._retire(segment)

    def close(self) -> None:
        """Let go of the files; those with nothing to send are removed."""
        for segment in self._segments:
            if segment.batches:
                segment.close()
            else:
                with suppress(OSError):
                    segment.remove()
        self._segments.clear()

    def _retire(self, segment: Segment) -> None:
        with suppress(OSError):
            if len(self._segments) > 1:
                self._segments.popleft().remove()
            else:
                segment.clear()

    def _give_up(self, segment: Segment, error: Exception) -> None:
        logger.error("%d spans or samples of the queue are lost: %s", segment.items, error)
        self.unreadable_items += segment.items
        self.torn_bytes += segment.end - segment.start
        with suppress(OSError):
            segment.remove()

    def _make_segment(self) -> None:
        space = os.statvfs(self.directory)
        if space.f_bavail * space.f_frsize < self._reserved_bytes:
            reserved = f"less than {self._reserved_bytes >> 20} MiB are free"
            raise OSError(errno.ENOSPC, reserved, str(self.directory))
        # Names sort by age, also when the clock stepped back and after adoption from another directory.
        last = int(self._segments[-1].path.name.split("-")[0]) if self._segments else 0
        name = f"{max(self._clock(), last + 1):020d}-{os.getpid()}{SUFFIX}"
        self._segments.append(Segment(self.directory / name, create=True))

    def _recover(self) -> None:
        for path in sorted(self.directory.glob(f"*{SUFFIX}")):
            try:
                segment = Segment(path, create=False)
            except OSError as e:
                logger.error("%s of the queue cannot be read and is left alone: %s", path, e)  # noqa: TRY400 - the line is enough
                continue
            self.torn_bytes += segment.torn_bytes
            if segment.batches:
                self._segments.append(segment)
            else:
                segment.remove()
        if self.torn_bytes:
            logger.warning("%d torn bytes at the end of %s were cut off", self.torn_bytes, self.directory)
