"""What waits for the collector: on disk while that works, else in memory, in order and bounded either way.

Full drops the newest, as everywhere in Axonize; what is older than the age bound goes first. Every drop is counted.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from axonize_core.export.batch import Batch
    from axonize_core.export.disk_queue import DiskQueue

__all__ = ["Backlog"]

MEMORY_BYTES = 32 * 1024 * 1024
logger = logging.getLogger(__name__)


class Backlog:
    """First in, first out. Batches in memory are always newer than those on disk.

    ``append`` is for the encoder's thread; ``head`` and ``settle`` for the sender's, which alone removes the head.
    """

    def __init__(
        self,
        disk: DiskQueue | None,
        fallback: str = "",
        *,
        max_age_s: float,
        memory_bytes: int = MEMORY_BYTES,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self.dropped: Counter[str] = Counter()
        self.fallback = fallback
        self._disk = disk
        self._disk_failures = 0
        self._max_age_ns = int(max_age_s * 1e9)
        self._memory: deque[Batch] = deque()
        self._memory_bytes = 0
        self._memory_limit_bytes = memory_bytes
        self._clock = clock
        self._closed = False
        self._lock = threading.Lock()

    def append(self, batch: Batch) -> None:
        """Add a batch at the end, or drop and count it when there is no room. Never raises."""
        with self._lock:
            if self._closed:
                self.dropped["shutdown"] += batch.items
                return
            self._keep(batch)
            self._move_to_disk()

    def head(self) -> Batch | None:
        """Return the oldest batch that is not too old."""
        with self._lock:
            while (batch := self._oldest()) is not None and batch.created_ns < self._clock() - self._max_age_ns:
                self._remove(batch)
                self.dropped["age"] += batch.items
            return batch

    def settle(self, batch: Batch) -> None:
        """Remove what ``head`` returned."""
        with self._lock:
            self._remove(batch)

    def close(self) -> int:
        """Let go of the files; return how many items stay on disk. What is in memory is dropped and counted."""
        with self._lock:
            self._closed = True
            self._move_to_disk()
            self.dropped["shutdown"] += sum(batch.items for batch in self._memory)
            self._memory.clear()
            kept = self._disk.items if self._disk is not None else 0
            if self._disk is not None:
                self._disk.close()
            return kept

    @property
    def items(self) -> int:
        """Spans or samples that wait."""
        with self._lock:
            return (self._disk.items if self._disk is not None else 0) + sum(b.items for b in self._memory)

    def facts(self) -> dict[str, Any]:
        """Return what ``axonize doctor`` shows."""
        with self._lock:
            oldest, disk = self._oldest(), self._disk
            dropped = Counter(self.dropped)
            if disk is not None:
                dropped["unreadable"] += disk.unreadable_items
            return {
                "directory": str(disk.directory) if disk is not None else None,
                "fallback": self.fallback,
                "disk_failures": self._disk_failures,
                "torn_bytes": disk.torn_bytes if disk is not None else 0,
                "waiting": (disk.items if disk is not None else 0) + sum(b.items for b in self._memory),
                "waiting_batches": (disk.batches if disk is not None else 0) + len(self._memory),
                "waiting_bytes": (disk.waiting_bytes if disk is not None else 0) + self._memory_bytes,
                "memory_bytes": self._memory_bytes,
                "oldest_age_s": None if oldest is None else max(0.0, (self._clock() - oldest.created_ns) / 1e9),
                "dropped": {cause: count for cause, count in dropped.items() if count},
            }

    def _oldest(self) -> Batch | None:
        if self._disk is not None and (batch := self._disk.head()) is not None:
            return batch
        return self._memory[0] if self._memory else None

    def _remove(self, batch: Batch) -> None:
        # The batch may have moved from memory to disk since; then it is the first there, unless it found no room.
        if self._memory and self._memory[0] is batch:
            self._memory.popleft()
            self._memory_bytes -= len(batch.body)
        elif self._disk is not None and self._disk.head() == batch:
            self._disk.settle(batch)

    def _keep(self, batch: Batch) -> None:
        if self._memory_bytes + len(batch.body) > self._memory_limit_bytes:
            self.dropped["full"] += batch.items
            return
        self._memory.append(batch)
        self._memory_bytes += len(batch.body)

    def _move_to_disk(self) -> None:
        """Write what is in memory, oldest first, as far as the disk takes it."""
        while self._disk is not None and self._memory:
            batch = self._memory[0]
            try:
                taken = self._disk.append(batch)
            except OSError as e:
                self._disk_failed(e)
                return
            self._say("")
            if not taken:
                self.dropped["full"] += batch.items
            self._memory.popleft()
            self._memory_bytes -= len(batch.body)

    def _disk_failed(self, error: OSError) -> None:
        self._disk_failures += 1
        self._say(f"{error.strerror or error!r} ({error.filename or 'queue'})")

    def _say(self, fallback: str) -> None:
        if fallback != self.fallback:
            if fallback:
                logger.error("the disk queue does not work, batches stay in memory: %s", fallback)
            else:
                logger.info("the disk queue works again")
            self.fallback = fallback
