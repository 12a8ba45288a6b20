"""Where the registry is: one string, two databases."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from axonize_core.errors import ConfigurationError
from axonize_server.registry.sqlite import SqliteRegistry

if TYPE_CHECKING:
    from axonize_server.registry.base import Registry

__all__ = ["open_registry"]


def open_registry(dsn: str) -> Registry:
    """Open the registry at `sqlite:///file` or `postgresql://user:password@host/database`.

    A PostgreSQL server is connected to when it is first used, so that one that is away does not stop the start.

    Raises:
        ConfigurationError: The address is none we can use, or what it needs is not installed.
        StoreError: The file cannot be opened.
    """
    parts = urlsplit(dsn)
    if parts.scheme in ("postgres", "postgresql"):
        try:
            from axonize_server.registry.postgres import PostgresRegistry  # noqa: PLC0415  an extra of its own
        except ModuleNotFoundError as e:
            raise ConfigurationError(f"a PostgreSQL registry needs {e.name}: pip install 'axonize[postgres]'") from e
        return PostgresRegistry(dsn)
    if parts.scheme != "sqlite" or parts.netloc or not parts.path.strip("/"):
        raise ConfigurationError(
            f"registry {dsn!r} is no address: give sqlite:///absolute/file.db or postgresql://user:password@host/database"
        )
    return SqliteRegistry(Path("/" + parts.path.lstrip("/")))
