"""The registry in one SQLite file: the default, nothing to set up."""

from __future__ import annotations

import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from axonize_core.errors import StoreError
from axonize_server.registry.base import conflict

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from axonize_server.registry.base import Run

__all__ = ["SqliteRegistry"]

_LOCK_WAIT_S = 10.0
_CACHE_KIB = 65_536
"""A large fleet's report changes some 20 MB of pages in one transaction."""


class SqliteRegistry:
    """One file; every transaction has a connection of its own, so any thread may use it."""

    among = "IN (SELECT value FROM json_each(%s))"
    room_for_updates = ""

    def __init__(self, path: Path) -> None:
        """Create the file if need be.

        Raises:
            StoreError: It cannot be opened.
        """
        self.path = path
        self.text = f"sqlite://{path}"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise StoreError(f"registry {self.text!r} cannot be opened: {e}") from e
        with self.transaction() as run:
            run("SELECT 1")

    @contextmanager
    def transaction(self, *, commit: bool = True) -> Iterator[Run]:
        """Hold the database's write lock: commits at the end if asked to, rolls back on an exception.

        Raises:
            StoreError: SQLite refused, or another process held the lock for 10 s.
        """
        with self._connection("IMMEDIATE", "COMMIT" if commit else "ROLLBACK") as run:
            yield run

    @contextmanager
    def reading(self) -> Iterator[Run]:
        """Read one consistent state.

        Raises:
            StoreError: SQLite refused.
        """
        with self._connection("DEFERRED", "ROLLBACK") as run:
            yield run

    @contextmanager
    def _connection(self, begin: str, end: str) -> Iterator[Run]:
        try:
            connection = sqlite3.connect(self.path, timeout=_LOCK_WAIT_S, isolation_level=None)
        except sqlite3.Error as e:
            raise StoreError(f"registry {self.text!r} cannot be opened: {e}") from e
        try:
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            connection.execute(f"BEGIN {begin}")
            yield _Run(connection)
            connection.execute(end)
        except sqlite3.Error as e:
            raise StoreError(f"registry {self.text!r}: {e}") from e
        finally:
            connection.close()  # rolls back what was not committed

    def ping(self) -> bool:
        """Say whether the database answers."""
        try:
            with self.reading() as run:
                return run("SELECT 1") == [(1,)]
        except StoreError:
            return False

    def close(self) -> None:
        """Nothing is kept open."""


class _Run:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __call__(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        return self._connection.execute(sql.replace("%s", "?"), tuple(parameters)).fetchall()

    def upsert(self, table: str, key: Sequence[str], columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
        values = ", ".join(f":{column}" for column in columns)
        sql = f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({values}){conflict(key, columns)}"  # noqa: S608
        self._connection.executemany(sql, rows)
