"""The registry in one SQLite file: identity of GPUs, prices, tenants."""

from __future__ import annotations

import sqlite3
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from axonize_core.errors import ConfigurationError, StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Run", "SqliteRegistry", "open_registry"]

_LOCK_WAIT_S = 10.0


class Run(Protocol):
    """Runs one statement inside a transaction and gives its rows; parameters are written `%s`."""

    def __call__(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run it."""
        ...


class SqliteRegistry:
    """One file; every transaction has a connection of its own, so any thread may use it."""

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
        try:
            connection = sqlite3.connect(self.path, timeout=_LOCK_WAIT_S, isolation_level=None)
        except sqlite3.Error as e:
            raise StoreError(f"registry {self.text!r} cannot be opened: {e}") from e
        try:
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("BEGIN IMMEDIATE")
            yield _runner(connection)
            connection.execute("COMMIT" if commit else "ROLLBACK")
        except sqlite3.Error as e:
            raise StoreError(f"registry {self.text!r}: {e}") from e
        finally:
            connection.close()  # rolls back what was not committed

    def ping(self) -> bool:
        """Say whether the database answers."""
        try:
            with self.transaction() as run:
                return run("SELECT 1") == [(1,)]
        except StoreError:
            return False


def _runner(connection: sqlite3.Connection) -> Run:
    def run(sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        return connection.execute(sql.replace("%s", "?"), tuple(parameters)).fetchall()

    return run


def open_registry(dsn: str) -> SqliteRegistry:
    """Open the registry at `sqlite:///file`.

    Raises:
        ConfigurationError: The address is none we can use.
        StoreError: The file cannot be opened.
    """
    parts = urlsplit(dsn)
    if parts.scheme in ("postgres", "postgresql"):
        raise ConfigurationError("a PostgreSQL registry comes in a later release: use sqlite:///file until then")
    if parts.scheme != "sqlite" or parts.netloc or not parts.path.strip("/"):
        raise ConfigurationError(f"registry {dsn!r} is no address: give sqlite:///absolute/file.db")
    return SqliteRegistry(Path("/" + parts.path.lstrip("/")))
