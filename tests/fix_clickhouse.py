"""ClickHouse for tests: the engine in this process, or the server at AXONIZE_TEST_CLICKHOUSE_DSN.

One engine directory per process, a database of its own per test.
"""

from __future__ import annotations

import os
import time
import uuid
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from google.protobuf.message import Message

    from axonize_server.settings import Settings
    from axonize_server.spool import Segment
    from axonize_server.store.clickhouse import ClickHouseStore
    from clickhouse_front import Front

__all__ = ["clickhouse_front", "clickhouse_path", "empty_store", "http_store", "settings", "store", "write_segment"]


@pytest.fixture(scope="session")
def clickhouse_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The engine's directory in this process."""
    return str(tmp_path_factory.mktemp("clickhouse"))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings whose data directory is the test's own."""
    from axonize_server.settings import Settings

    return Settings(data_dir=tmp_path, api_port=0)


@pytest.fixture
def empty_store(clickhouse_path: str) -> Iterator[ClickHouseStore]:
    """A store whose database does not exist yet; it is dropped at the end."""
    server = os.environ.get("AXONIZE_TEST_CLICKHOUSE_DSN")
    yield from _store(server or f"chdb://{clickhouse_path}")


@pytest.fixture
def store(empty_store: ClickHouseStore, settings: Settings) -> ClickHouseStore:
    """A migrated store."""
    from axonize_server.migrate import migrate_store

    migrate_store(empty_store, settings)
    return empty_store


@pytest.fixture
def clickhouse_front(clickhouse_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Front]:
    """The engine behind HTTP; it keeps a cache of the schemas it is sent in the working directory."""
    from clickhouse_front import Front

    monkeypatch.chdir(tmp_path)
    with Front(clickhouse_path) as front:
        yield front


@pytest.fixture
def http_store(clickhouse_front: Front, settings: Settings) -> Iterator[ClickHouseStore]:
    """A migrated store that is reached over HTTP."""
    from axonize_server.migrate import migrate_store

    for store in _store(clickhouse_front.url):
        migrate_store(store, settings)
        yield store


def _store(dsn: str) -> Iterator[ClickHouseStore]:
    from axonize_server.store.clickhouse import ClickHouseStore

    name = f"test_{uuid.uuid4().hex}"
    parts = urlsplit(dsn)
    dsn = f"{dsn}?database={name}" if parts.scheme == "chdb" else f"{parts.scheme}://{parts.netloc}/{name}"
    store = ClickHouseStore(dsn)
    yield store
    store.command(f"DROP DATABASE IF EXISTS {name}")
    store.close()


@pytest.fixture
def write_segment(settings: Settings) -> Callable[..., Segment]:
    """Write OTLP requests as a sealed segment of the spool, as a receiver does."""
    from axonize_server.spool import Segment, header_message, request_frame

    def write(*requests: Message | bytes, signal: str = "traces", tenant: str = "default") -> Segment:
        created_ns = time.time_ns()
        path = settings.spool_dir / signal / f"{created_ns}-{uuid.uuid4().hex}.pb"
        path.parent.mkdir(parents=True, exist_ok=True)
        parts = [header_message(signal)]
        for request in requests:
            body = request if isinstance(request, bytes) else request.SerializeToString()
            length, trailer = request_frame(body, tenant=tenant, received_ns=created_ns)
            parts += [length, body, trailer]
        data = b"".join(parts)
        draft = path.with_suffix(".draft")
        draft.write_bytes(data)
        draft.rename(path)
        return Segment(path, path.stem, signal, created_ns, len(data))

    return write
