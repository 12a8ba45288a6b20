"""The registry in PostgreSQL: for several collectors, or a database that somebody already looks after."""

from __future__ import annotations

from contextlib import contextmanager
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import ConnectionPool, PoolTimeout

from axonize_core.errors import ConfigurationError, StoreError
from axonize_server.registry.base import conflict

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from psycopg import Connection

    from axonize_server.registry.base import Run

__all__ = ["PostgresRegistry"]

_CONNECTIONS = 4
_CONNECT_S = 3
_WAIT_S = 2.0
_LOCK_WAIT_S = 10
_LOCK = 0x61786F6E697A6500
"""The advisory lock that those who change the registry hold, one after the other: the letters of our name."""

_OPTIONS = f"-c lock_timeout={_LOCK_WAIT_S}s -c idle_in_transaction_session_timeout=60s -c TimeZone=UTC"


class PostgresRegistry:
    """A pool of connections, made when first used; any thread may use it."""

    among = "= ANY(ARRAY(SELECT json_array_elements_text(%s::json)))"
    room_for_updates = "WITH (fillfactor = 45)"

    def __init__(self, dsn: str) -> None:
        """Check the address; nobody is connected to yet.

        Raises:
            ConfigurationError: The address cannot be read.
        """
        try:
            parts = conninfo_to_dict(dsn)
        except psycopg.ProgrammingError as e:
            raise ConfigurationError(f"the registry's address cannot be read: {_one_line(e)}") from e
        host = parts.get("host") or "localhost"
        user = f"{parts['user']}@" if parts.get("user") else ""
        self.text = f"postgresql://{user}{host}:{parts.get('port') or 5432}/{parts.get('dbname') or ''}"
        self._dsn = dsn
        self._pool = ConnectionPool(
            dsn,
            min_size=0,
            max_size=_CONNECTIONS,
            open=False,
            timeout=_WAIT_S,
            reconnect_timeout=_CONNECT_S,
            max_idle=60.0,
            kwargs={"connect_timeout": _CONNECT_S, "application_name": "axonize", "options": _OPTIONS},
            check=ConnectionPool.check_connection,
            name="axonize-registry",
        )

    @contextmanager
    def transaction(self, *, commit: bool = True) -> Iterator[Run]:
        """Change things, alone: commits at the end if asked to, rolls back on an exception.

        Raises:
            StoreError: PostgreSQL cannot be reached or refused, or another process held the lock for 10 s.
        """
        with self._connection() as connection:
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            yield _Run(connection)
            if not commit:
                connection.rollback()

    @contextmanager
    def reading(self) -> Iterator[Run]:
        """Read one consistent state.

        Raises:
            StoreError: PostgreSQL cannot be reached or refused.
        """
        with self._connection() as connection:
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            yield _Run(connection)

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        try:
            self._pool.open()
            with self._pool.connection() as connection:
                yield connection
        except PoolTimeout as e:
            raise StoreError(f"registry {self.text!r}: {self._why_unreachable()}") from e
        except psycopg.Error as e:
            raise StoreError(f"registry {self.text!r}: {_one_line(e)}") from e

    def _why_unreachable(self) -> str:
        """Ask once more without the pool, which keeps the reason to itself."""
        try:
            psycopg.connect(self._dsn, connect_timeout=_CONNECT_S).close()
        except psycopg.Error as e:
            return _one_line(e)
        return f"no connection was free for {_WAIT_S} s"

    def ping(self) -> bool:
        """Say whether the database answers."""
        try:
            with self.reading() as run:
                return run("SELECT 1") == [(1,)]
        except StoreError:
            return False

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()


class _Run:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __call__(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        # As bytes: migrations are our own text, known only at run time.
        cursor = self._connection.execute(sql.encode(), parameters or None)
        return cursor.fetchall() if cursor.description else []

    def upsert(self, table: str, key: Sequence[str], columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
        """Copy all rows into a temporary table, whose types are the table's, and insert them out of it.

        PostgreSQL reads rows while they are sent: half of what 16,000 documents took was to read them as JSON. The
        temporary table stays with the connection, so the catalog is not written each time, and each commit empties it.
        It takes the privilege TEMPORARY on the database, which everybody has unless it was revoked.
        """
        names = ", ".join(columns)
        values = itemgetter(*columns)
        new = f"new_{table}"
        self(f"CREATE TEMPORARY TABLE IF NOT EXISTS {new} (LIKE {table}) ON COMMIT DELETE ROWS")
        self(f"DELETE FROM {new}")  # noqa: S608  our own names; it has rows where this transaction was here before
        with self._connection.cursor() as cursor, cursor.copy(f"COPY {new} ({names}) FROM STDIN".encode()) as copy:
            for row in rows:
                copy.write_row(values(row))
        self(f"INSERT INTO {table} ({names}) SELECT {names} FROM {new}{conflict(key, columns)}")  # noqa: S608


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
