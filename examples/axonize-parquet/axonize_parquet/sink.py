"""The plugin object: hooks put events into a bounded queue, one thread writes them."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from axonize_core import hookimpl
from axonize_parquet.files import TableFiles
from axonize_parquet.tables import BATCHES, DECODES, GPU_SAMPLES, PREFILLS, REQUESTS, Table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from axonize_parquet import Limits

__all__ = ["ParquetSink"]

TABLES = (REQUESTS, PREFILLS, DECODES, BATCHES, GPU_SAMPLES)
LOOK_S = 0.5
logger = logging.getLogger(__name__)


class ParquetSink:
    """Takes events without waiting for the disk; when the queue is full the newest are dropped and counted."""

    def __init__(self, directory: Path, limits: Limits) -> None:
        self.counts: Counter[str] = Counter()
        self.last_error = ""
        self._limits = limits
        self._files = {table.name: TableFiles(table, directory, limits) for table in TABLES}
        self._queue: queue.SimpleQueue[tuple[str, Sequence[Any]] | None] = queue.SimpleQueue()
        self._queued = 0
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="axonize-parquet", daemon=True)
        self._thread.start()

    @hookimpl
    def axonize_requests(self, events: Sequence[Any]) -> None:
        """Queue requests."""
        self._take(REQUESTS, events)

    @hookimpl
    def axonize_prefills(self, events: Sequence[Any]) -> None:
        """Queue prefills."""
        self._take(PREFILLS, events)

    @hookimpl
    def axonize_decodes(self, events: Sequence[Any]) -> None:
        """Queue decodes."""
        self._take(DECODES, events)

    @hookimpl
    def axonize_batches(self, events: Sequence[Any]) -> None:
        """Queue engine steps."""
        self._take(BATCHES, events)

    @hookimpl
    def axonize_gpu_samples(self, samples: Sequence[Any]) -> None:
        """Queue GPU samples; called on the sampler's thread."""
        self._take(GPU_SAMPLES, samples)

    @hookimpl
    def axonize_shutdown(self, timeout_s: float) -> None:
        """Finish all files; what does not fit into the time is lost with its count."""
        self._queue.put(None)
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            logger.error("%d rows were not written within %.1f s", self._queued, timeout_s)

    def facts(self) -> dict[str, Any]:
        """Return the counters, for ``axonize doctor``."""
        files = self._files.values()
        return {
            **self.counts,
            "rows_written": sum(f.written for f in files),
            "rows_lost": sum(f.lost for f in files),
            "rows_waiting": self._queued + sum(f.waiting() for f in files),
            "parquet_error": self.last_error,
        }

    def _take(self, table: Table, events: Sequence[Any]) -> None:
        with self._lock:
            kept = events[: max(0, self._limits.queue_rows - self._queued)]
            self._queued += len(kept)
            self.counts["rows_dropped"] += len(events) - len(kept)
        if kept:
            self._queue.put((table.name, kept))

    def _run(self) -> None:
        next_look = time.monotonic() + LOOK_S
        while True:
            try:
                item = self._queue.get(timeout=LOOK_S)
            except queue.Empty:
                item = ("", ())
            if item is None:
                break
            if item[1]:
                self._write(*item)
            if time.monotonic() >= next_look:
                self._finish([files for files in self._files.values() if files.is_old()])
                next_look = time.monotonic() + LOOK_S
        self._finish(list(self._files.values()))

    def _write(self, name: str, events: Sequence[Any]) -> None:
        files = self._files[name]
        try:
            files.add(events)
        except Exception as e:  # noqa: BLE001 - a full disk today may have room tomorrow
            self._failed(e)
        with self._lock:
            self._queued -= len(events)

    def _finish(self, found: Sequence[TableFiles]) -> None:
        for files in found:
            try:
                files.finish()
            except Exception as e:  # noqa: BLE001 - same; the other tables go on
                self._failed(e)

    def _failed(self, error: Exception) -> None:
        if not self.counts["write_failures"]:
            logger.error("cannot write: %r", error)
        self.counts["write_failures"] += 1
        self.last_error = repr(error)
