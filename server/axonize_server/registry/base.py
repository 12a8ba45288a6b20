"""What a registry offers, whichever database it is in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

__all__ = ["Registry", "Run", "upsert"]


class Run(Protocol):
    """Runs one statement inside a transaction and gives its rows; parameters are written `%s`."""

    def __call__(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run it."""
        ...


class Registry(Protocol):
    """A small SQL database; any thread may use it.

    Statements are written once for all databases: `%s` for a parameter, and the two ways to hand a list over that
    the databases name differently (`texts` and `records`).
    """

    text: str
    """The address as it may be shown: no password is in it."""
    texts: str
    """A table of one column `value`, out of one parameter: a JSON array of strings."""

    def records(self, table: str, columns: Sequence[str]) -> str:
        """Give a SELECT of these columns, of the table's types, out of one parameter: a JSON array of objects."""
        ...

    def transaction(self, *, commit: bool = True) -> AbstractContextManager[Run]:
        """Change things, alone: others that change wait. Commits at the end, rolls back on an exception.

        Raises:
            StoreError: The database cannot be reached, refused, or others took too long.
        """
        ...

    def reading(self) -> AbstractContextManager[Run]:
        """Read one consistent state; waits for nobody.

        Raises:
            StoreError: The database cannot be reached or refused.
        """
        ...

    def ping(self) -> bool:
        """Say whether the database answers."""
        ...

    def close(self) -> None:
        """Let go of connections; the registry is not used after this."""
        ...


def upsert(registry: Registry, table: str, key: Sequence[str], columns: Sequence[str]) -> str:
    """Give the one statement that inserts or replaces any number of rows, handed over as one JSON parameter."""
    replaced = ", ".join(f"{column} = excluded.{column}" for column in columns if column not in key)
    return (
        f"INSERT INTO {table} ({', '.join(columns)}) {registry.records(table, columns)}"
        f" ON CONFLICT ({', '.join(key)}) DO UPDATE SET {replaced}"
    )
