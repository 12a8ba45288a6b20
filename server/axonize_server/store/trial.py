"""A copy of the store's tables and views in which inserts are tried; nothing in it reaches the real ones."""

from __future__ import annotations

import contextlib
import hashlib
import uuid
from typing import TYPE_CHECKING

from axonize_core.errors import StoreError
from axonize_server.migrate import migrate_store
from axonize_server.store.clickhouse import ClickHouseStore, SegmentRefusedError
from axonize_server.store.explode import TABLES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from axonize_server.settings import Settings

__all__ = ["Trial", "trial"]


@contextlib.contextmanager
def trial(store: ClickHouseStore, settings: Settings) -> Iterator[Trial]:
    """Make the copy beside the store's database, and drop it at the end; one a killed writer left goes first.

    On a cluster it is on the one machine that answers.

    Raises:
        StoreError: The store is away, or the user may make no database.
    """
    owner = hashlib.sha256(str(settings.data_dir).encode()).hexdigest()[:8]
    name = f"{store.database[:48]}_trial_{owner}"
    copy = ClickHouseStore(store.dsn._replace(database=name))
    try:
        copy.command(f"DROP DATABASE IF EXISTS {name} SYNC")
        migrate_store(copy, settings)
        yield Trial(store, copy)
        copy.command(f"DROP DATABASE IF EXISTS {name} SYNC")
    finally:
        copy.close()


class Trial:
    """Tries inserts; one thread."""

    def __init__(self, store: ClickHouseStore, copy: ClickHouseStore) -> None:
        self._store, self._copy = store, copy

    def refusal(self, path: Path, signal: str, settings: Mapping[str, int]) -> str | None:
        """Say why a segment is refused, or None when it becomes rows in every table.

        Raises:
            StoreUnreachableError: It could not be tried now.
        """
        try:
            self._copy.insert(path, signal, uuid.uuid4().hex, settings)
        except SegmentRefusedError as e:
            return str(e.__cause__ or e)
        return None

    def stored_rows(self, signal: str) -> int:
        """Count the rows in the store's own table whose key one of the rows tried here has.

        Rows of a refused insert are among those tried: a view may refuse what its table took. A sender's
        repetition has equal keys as well, so a 0 proves that nothing was stored and another number proves nothing.

        Raises:
            StoreError: It could not be counted now.
        """
        table = TABLES[signal]
        found = self._store.query(
            "SELECT sorting_key FROM system.tables WHERE database = {database:String} AND name = {table:String}",
            {"database": self._store.local_database, "table": table},
        )
        if not found or not (key := str(found[0]["sorting_key"])):
            raise StoreError(f"store {self._store.dsn.text!r} has no table {table!r} with a sorting key")
        among = "GLOBAL IN" if self._store.cluster else "IN"  # other shards do not have the copy
        counted = self._store.query(
            f"SELECT count() AS n FROM {self._store.database}.{table} WHERE tuple({key}) {among}"  # noqa: S608  our own names
            f" (SELECT tuple({key}) FROM {self._copy.database}.{table})"
        )
        return int(counted[0]["n"])
