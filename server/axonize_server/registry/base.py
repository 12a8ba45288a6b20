"""What a registry offers, whichever database it is in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager

__all__ = ["Registry", "Run", "conflict"]


class Run(Protocol):
    """Runs statements inside a transaction; parameters are written `%s`."""

    def __call__(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run one and give its rows."""
        ...

    def upsert(self, table: str, key: Sequence[str], columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
        """Insert or replace any number of rows with one statement."""
        ...


class Registry(Protocol):
    """A small SQL database; any thread may use it.

    Statements are written once for all databases, but for `among` and `room_for_updates`.
    """

    text: str
    """The address as it may be shown: no password is in it."""
    among: str
    """What follows an expression to ask whether it is one of a parameter's: a JSON array of strings."""
    room_for_updates: str
    """What a CREATE TABLE ends with whose rows are replaced all the time."""

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


def conflict(key: Sequence[str], columns: Sequence[str]) -> str:
    """Give what an INSERT ends with so that a row whose key is there is replaced."""
    replaced = ", ".join(f"{column} = excluded.{column}" for column in columns if column not in key)
    return f" ON CONFLICT ({', '.join(key)}) DO UPDATE SET {replaced}"
