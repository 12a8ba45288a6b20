"""The store: ClickHouse, in this process (chDB) or a server over HTTP, through one class."""

from __future__ import annotations

import os
import re
import threading
import time
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import clickhouse_connect
from clickhouse_connect.driver.compression import get_compressor
from clickhouse_connect.driver.exceptions import ClickHouseError, DatabaseError, ProgrammingError
from clickhouse_connect.driver.summary import QuerySummary

from axonize_core.errors import ConfigurationError, StoreError
from axonize_server.store import explode
from axonize_server.store.anew import encoded_anew
from axonize_server.store.attributes import ODD
from axonize_server.store.cluster import SHARDING, local_database
from axonize_server.store.dsn import Dsn, parse_dsn
from axonize_server.store.schema import MESSAGE, proto, proto_path

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Mapping

    from clickhouse_connect.driver.client import Client
    from clickhouse_connect.driver.query import QueryResult

__all__ = ["MINIMUM_VERSION", "ClickHouseStore", "SegmentRefusedError", "StoreUnreachableError"]

MINIMUM_VERSION = (25, 6)
"""The first release that takes a protobuf schema inside a statement."""

_PARTITIONS_PER_INSERT = 1000
_MEMORY_PER_INSERT_BYTES = 4 << 30
"""A full segment of 64 MiB takes about 1 GiB; small bodies can be made that take any amount."""

_CHUNK_BYTES = 1 << 20
_CONNECT_TIMEOUT_S = 10
_READ_TIMEOUT_S = 120
"""Seconds without a byte; a server that works on a statement sends a header now and then."""

# Errors about the data itself, by ClickHouse's numbers: no later attempt can end otherwise. They are raised while
# the segment is read or converted, before its single block reaches the table.
_MEMORY_LIMIT_EXCEEDED = 241
_DATA_ERRORS = {6, 27, 32, 33, 36, 53, 69, 117, 131, 407, 434, 436, 437, 444, 683}


class StoreUnreachableError(StoreError):
    """Nobody answered, or the answer was not about the data: the same may succeed later."""


class SegmentRefusedError(StoreError):
    """ClickHouse cannot make rows of this segment."""


class ClickHouseStore:
    """One database in ClickHouse; safe to use from many threads (each gets a connection of its own).

    For `chdb` the directory belongs to one process, and that process must not fork afterwards.
    """

    def __init__(self, dsn: str | Dsn, cluster: str = "") -> None:
        """Connect and check the version.

        Args:
            dsn: where it is.
            cluster: the ClickHouse cluster it is spread over, by the name the server has for it; none if empty.

        Raises:
            ConfigurationError: The address cannot be used, or the server is too old.
            StoreUnreachableError: Nobody answers, or another process holds the directory.
        """
        self.dsn = parse_dsn(dsn) if isinstance(dsn, str) else dsn
        self.database = self.dsn.database
        self.cluster = cluster
        self.local_database = local_database(self.database, cluster)
        """Where the tables are that have rows, and their views; another than `database` only on a cluster."""
        if cluster and self.dsn.scheme == "chdb":
            raise ConfigurationError(f"store {self.dsn.text!r} is in this process: it can be on no cluster {cluster!r}")
        self._local = threading.local()
        self._lock = threading.Lock()
        self._clients: list[Client] = []
        self.version = str(self._client().server_version)
        _check_version(self.version)
        self._check_cluster()

    def query(self, sql: str, parameters: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """Give the rows of a query; `{name:Type}` in it is bound by the server.

        Raises:
            StoreUnreachableError: Nobody answers, or ClickHouse refuses.
        """
        try:
            result = self._client().query(sql, parameters=dict(parameters or {}))
            self._check_answer(result, "read_rows")
            return list(result.named_results())
        except (ClickHouseError, ValueError) as e:  # ValueError: what came is no block of rows
            raise StoreUnreachableError(f"store {self.dsn.text!r}: {e}") from e

    def command(self, sql: str) -> None:
        """Run a statement that has no rows to give (DDL).

        Raises:
            StoreError: Nobody answers, or ClickHouse refuses.
        """
        try:
            result = self._client().command(sql)
        except ClickHouseError as e:
            raise StoreError(f"store {self.dsn.text!r}: {e}") from e
        if isinstance(result, QuerySummary):
            self._check_answer(result, "read_rows")
        elif self.dsn.scheme != "chdb" and result != "":
            raise StoreError(f"store {self.dsn.text!r} answered {str(result)[:200]!r} to a statement that has no rows")

    def insert(self, path: Path, signal: str, token: str, settings: Mapping[str, int] | None = None) -> bool | None:
        """Insert a segment, at most once per token however often it is asked for.

        Args:
            path: the segment: length-delimited OTLP requests.
            signal: `traces`, `metrics` or `logs`.
            token: identifies the segment (its id).
            settings: insert settings frozen in the segment; they decide how it is split into blocks.

        Returns:
            Whether a table knew the token already and took nothing; None where the store does not tell.

        Raises:
            SegmentRefusedError: The data cannot be stored, now or later.
            StoreUnreachableError: Anything else; ask again.
        """
        try:
            return self._insert_usual(path, signal, token, settings or {})
        except DatabaseError as e:
            if _is_about_data(e):
                raise SegmentRefusedError(f"segment {path.name!r}: {e}") from e
            raise StoreUnreachableError(f"store {self.dsn.text!r}: {e}") from e
        except ClickHouseError as e:
            raise StoreUnreachableError(f"store {self.dsn.text!r}: {e}") from e

    def _insert_usual(self, path: Path, signal: str, token: str, settings: Mapping[str, int]) -> bool | None:
        """Insert a segment as it is; one that the statement finds encoded in an unusual way, encoded anew."""
        try:
            return self._insert(path, signal, token, settings)
        except DatabaseError as e:
            if e.code != ODD:
                raise
        with encoded_anew(path, signal) as usual:
            return self._insert(usual, signal, token, settings)

    def _insert(self, path: Path, signal: str, token: str, settings: Mapping[str, int]) -> bool | None:
        in_process = self.dsn.scheme == "chdb"
        format_settings = _format(signal, in_process=in_process)
        clause = _clause({**settings, **format_settings, **_PINNED, "insert_deduplication_token": token})
        source = f"file({_quote(str(path))}, Protobuf, '{{structure}}')" if in_process else "input('{structure}')"
        statement = explode.insert(signal, self.database, source, clause)
        if not in_process:
            self._send(path, statement)
            return None
        known = self._known_blocks()
        self._client().command(statement)
        return self._known_blocks() > known

    def _known_blocks(self) -> int:
        """Count the blocks the engine in this process has dropped as repeated; only the writer inserts here."""
        found = self.query("SELECT value FROM system.events WHERE event = 'DuplicatedInsertedBlocks'")
        return int(found[0]["value"]) if found else 0

    def _send(self, path: Path, statement: str) -> None:
        """Post statement and segment as one body: a URL may be too short for the statement."""
        client = self._client()
        compression = client.write_compression
        with path.open("rb") as segment:
            body = _compressed(_body(statement, segment), compression)
            told = client.raw_insert("", insert_block=body, fmt="Protobuf", compression=compression)
        self._check_answer(told, "written_rows")

    def _check_answer(self, answer: QueryResult | QuerySummary, fact: str) -> None:
        """Take only a server's word for it that a statement is done: a proxy's 200 has no summary.

        Raises:
            StoreUnreachableError: The answer does not say `fact`.
        """
        if self.dsn.scheme != "chdb" and fact not in answer.summary:
            raise StoreUnreachableError(
                f"store {self.dsn.text!r} answered 200 without {fact!r} in X-ClickHouse-Summary, so nothing proves that"
                " the statement was run: see whether ClickHouse, not a proxy's page, answers at that address"
            )

    def _check_cluster(self) -> None:
        known = self.query("SELECT DISTINCT cluster FROM system.clusters ORDER BY 1") if self.cluster else []
        if self.cluster and self.cluster not in (names := [row["cluster"] for row in known]):
            raise ConfigurationError(
                f"store {self.dsn.text!r} knows no cluster {self.cluster!r}, but {names!r}: see remote_servers in its"
                " configuration, or give another --store-cluster"
            )

    def rows(self) -> dict[str, int]:
        """Give the number of rows in each table, as the parts' headers say."""
        if self.cluster:
            counts = (f"SELECT '{table}' AS name, count() AS n FROM {self.database}.{table}" for table in SHARDING)  # noqa: S608  our own names
            return {row["name"]: row["n"] for row in self.query(" UNION ALL ".join(counts))}
        found = self.query(
            "SELECT name, toUInt64(ifNull(total_rows, 0)) AS n FROM system.tables"
            " WHERE database = {database:String} AND engine LIKE '%MergeTree' ORDER BY name",
            {"database": self.database},
        )
        return {row["name"]: row["n"] for row in found}

    def ping(self) -> bool:
        """Say whether the store answers now."""
        try:
            return self.query("SELECT 1 AS one") == [{"one": 1}]
        except StoreError:
            return False

    def close(self) -> None:
        """Close the connections of all threads; the store is not used after this."""
        with self._lock:
            clients, self._clients = self._clients, []
        for client in clients:
            client.close()

    def _client(self) -> Client:
        client: Client | None = getattr(self._local, "client", None)
        if client is None:
            client = _connect(self.dsn, self.cluster)
            self._local.client = client
            with self._lock:
                self._clients.append(client)
        return client


# Not for a segment to decide: what a statement needs to be taken at all.
# A view's table decides by itself whether it has a block, also when the view's source has it: a crash may have come
# between the two. Older servers have that off.
_PINNED = {
    "async_insert": 0,
    "deduplicate_blocks_in_dependent_materialized_views": 1,
    "materialized_views_ignore_errors": 0,
    "max_partitions_per_insert_block": _PARTITIONS_PER_INSERT,
    "max_memory_usage": _MEMORY_PER_INSERT_BYTES,
}


def _is_about_data(error: DatabaseError) -> bool:
    """Say whether the segment itself is at fault: unreadable, or larger as rows than a statement may hold.

    A server that is short of memory as a whole has the same number but another text, and may recover.
    """
    too_large = error.code == _MEMORY_LIMIT_EXCEEDED and re.search(
        "query memory limit|for query", str(error), re.IGNORECASE
    )
    return error.code in _DATA_ERRORS or bool(too_large)


def _format(signal: str, *, in_process: bool) -> dict[str, str]:
    """Give the settings that name the schema: our file in this process, its text to a server.

    Given the text, the engine in this process would leave a `__cache__` in the working directory.
    """
    if in_process:
        return {"format_schema": f"{proto_path(signal)}:{MESSAGE}"}
    return {
        "format_schema_source": "string",
        "format_schema": proto(signal),
        "format_schema_message_name": MESSAGE,
    }


def _clause(settings: Mapping[str, object]) -> str:
    return ", ".join(f"{name} = {_quote(str(value))}" for name, value in settings.items())


def _quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _body(statement: str, segment: BinaryIO) -> Generator[bytes, None, None]:
    yield f"{statement}\nFORMAT Protobuf\n".encode()
    while chunk := segment.read(_CHUNK_BYTES):
        yield chunk


def _compressed(body: Iterable[bytes], compression: str | None) -> Generator[bytes, None, None]:
    """Compress as clickhouse-connect does its own inserts: a frame for each block."""
    compressor = get_compressor(compression)
    for block in body:
        if compressed := compressor.compress_block(block):
            yield bytes(compressed)
    if end := compressor.flush():  # type: ignore[no-untyped-call]  # clickhouse-connect's has no types
        yield end


def _connect(dsn: Dsn, cluster: str) -> Client:
    try:
        return _connect_chdb(dsn) if dsn.scheme == "chdb" else _connect_http(dsn, cluster)
    except (ClickHouseError, OSError) as e:
        raise StoreUnreachableError(f"store {dsn.text!r} cannot be opened: {e}") from e
    except ImportError as e:
        raise ConfigurationError(f"store {dsn.text!r} needs chdb: pip install 'axonize[embedded]'") from e


def _connect_chdb(dsn: Dsn) -> Client:
    """Open the engine's directory; its time zone is that of the process, and ours is UTC."""
    os.environ["TZ"] = "UTC"
    time.tzset()
    Path(dsn.path).mkdir(parents=True, exist_ok=True)
    options = {"config-file": str(files("axonize_server.store").joinpath("embedded.xml"))}
    return clickhouse_connect.get_client(interface="chdb", path=dsn.path, chdb_options=options)


# An insert is over when it is on every shard, with its token; a statement for all machines has no rows to give.
_ON_CLUSTER = {"distributed_foreground_insert": 1, "distributed_ddl_output_mode": "none"}


def _connect_http(dsn: Dsn, cluster: str) -> Client:
    """Connect without a session: a session allows one query at a time.

    A server answers when a statement is over, not before: an error that comes after a 200 would be missed. What the
    address says of compression and time-outs wins.
    """
    try:
        return clickhouse_connect.get_client(
            dsn=dsn.url,
            interface=dsn.scheme,  # without it, TLS is for port 443 and 8443 only
            compress=not dsn.is_local,
            connect_timeout=_CONNECT_TIMEOUT_S,
            send_receive_timeout=_READ_TIMEOUT_S,
            autogenerate_session_id=False,
            settings={"wait_end_of_query": 1, **(_ON_CLUSTER if cluster else {})},
        )
    except (TypeError, ProgrammingError) as e:
        raise ConfigurationError(f"store {dsn.text!r} has an option that cannot be used: {e}") from e


def _check_version(version: str) -> None:
    found = tuple(int(part) for part in version.split(".")[:2])
    if found < MINIMUM_VERSION:
        minimum = ".".join(map(str, MINIMUM_VERSION))
        raise ConfigurationError(f"ClickHouse {version!r} is too old: Axonize needs {minimum} or later")
