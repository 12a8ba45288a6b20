"""One table's files: rows are gathered into row groups, row groups into a file, and a full file gets its final name."""

from __future__ import annotations

import contextlib
import os
import time
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from axonize_parquet import Limits
    from axonize_parquet.tables import Table

__all__ = ["TableFiles"]

MEGABYTE = 1_000_000


class TableFiles:
    """Writes on the caller's thread. A file under way is hidden (``.name.part``): readers only see finished ones."""

    def __init__(self, table: Table, directory: Path, limits: Limits) -> None:
        self.written = 0
        self.lost = 0
        self._table = table
        self._directory = directory / table.name
        self._directory.mkdir(parents=True, exist_ok=True)
        self._limits = limits
        self._events: list[Any] = []
        self._writer: pq.ParquetWriter | None = None
        self._part: Path | None = None
        self._in_file = 0
        self._began_at = 0.0
        self._files = 0

    def waiting(self) -> int:
        """Return the rows that are in no finished file yet."""
        return len(self._events) + self._in_file

    def is_old(self) -> bool:
        """Say whether what is under way is old enough to be finished."""
        return self.waiting() > 0 and time.monotonic() - self._began_at >= self._limits.file_s

    def add(self, events: Sequence[Any]) -> None:
        """Take events, and write them when they are enough for a row group.

        Raises:
            Exception: as ``flush``.
        """
        if not self.waiting():
            self._began_at = time.monotonic()
        self._events += events
        if len(self._events) >= self._limits.row_group_rows:
            self.flush()

    def flush(self) -> None:
        """Write what waits as a row group, and finish the file if that filled it.

        Raises:
            Exception: it could not be written; the file under way is given up and its rows are counted as lost.
        """
        events, self._events = self._events, []
        if not events:
            return
        self._in_file += len(events)
        try:
            writer = self._writer or self._open()
            writer.write_table(self._table.rows(events), row_group_size=len(events))
            if self._part is not None and self._part.stat().st_size >= self._limits.file_mb * MEGABYTE:
                self._close()
        except Exception:
            self._give_up()
            raise

    def finish(self) -> None:
        """Write what waits, and give the file its name.

        Raises:
            Exception: as ``flush``.
        """
        self.flush()
        try:
            self._close()
        except Exception:
            self._give_up()
            raise

    def _open(self) -> pq.ParquetWriter:
        self._files += 1
        now = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S.%f")
        self._part = self._directory / f".{now}-{os.getpid()}-{self._files}.parquet.part"
        self._writer = pq.ParquetWriter(self._part, self._table.schema(), compression="zstd")
        return self._writer

    def _close(self) -> None:
        if self._writer is not None and self._part is not None:
            self._writer.close()
            self._part.rename(self._part.with_name(self._part.name.removeprefix(".").removesuffix(".part")))
            self.written += self._in_file
            self._writer, self._part, self._in_file = None, None, 0

    def _give_up(self) -> None:
        writer, self._writer, self._part = self._writer, None, None
        self.lost += self._in_file
        self._in_file = 0
        with contextlib.suppress(Exception):
            if writer is not None:
                writer.close()
