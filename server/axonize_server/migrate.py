"""Brings store and registry to the schema this version knows.

Migrations are numbered files, cut at lines that say `-- statement` (never at `;`), filled in from settings, and
recorded with a checksum of the file: an applied file never changes, the next change is the next number. Every
statement can run twice, since ClickHouse has no transaction around them.

Who may migrate: a chDB directory and a SQLite file have one owner (the engine's and SQLite's own locks). On a
ClickHouse server or cluster run it as one job: two at once would run the same repeatable statements, not corrupt.
"""

from __future__ import annotations

import hashlib
import re
from datetime import datetime, timezone
from importlib.resources import files
from typing import TYPE_CHECKING, NamedTuple

from axonize_core.errors import AxonizeError
from axonize_server.store.cluster import engine_variables, fronts, local_database, on_cluster

if TYPE_CHECKING:
    from collections.abc import Mapping

    from axonize_server.registry.base import Registry
    from axonize_server.settings import Settings
    from axonize_server.store.clickhouse import ClickHouseStore

__all__ = [
    "Applied",
    "Migration",
    "MigrationError",
    "history_statements",
    "load",
    "migrate_registry",
    "migrate_store",
    "render",
]

_NAME = re.compile(r"(\d{4})_\w+\.sql")
_MARKER = re.compile(r"^-- statement$", re.MULTILINE)
_VARIABLE = re.compile(r"\{(\w+)(?::(\w+))?\}")
_DEDUP_WINDOW = 1000
"""Inserted blocks each table remembers, to know a repeated one: a segment is one block per day it touches."""


class MigrationError(AxonizeError):
    """An applied migration and its file are no longer the same, or its file is gone."""


class Migration(NamedTuple):
    """One file; `sha256` is of its text before anything is filled in."""

    number: int
    name: str
    sha256: str
    text: str


class Applied(NamedTuple):
    """One file that was applied now, or with `dry_run` would be, and its statements as they run."""

    number: int
    name: str
    statements: list[str]


def load(kind: str) -> list[Migration]:
    """Read the migrations of `clickhouse` or `postgres`, by number.

    Raises:
        MigrationError: Two files have one number, or numbers are missing.
    """
    folder = files("axonize_migrations").joinpath(kind)
    found = []
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if match := _NAME.fullmatch(entry.name):
            text = entry.read_text("utf-8")
            digest = hashlib.sha256(text.encode()).hexdigest()
            found.append(Migration(int(match[1]), entry.name, digest, text))
    if [migration.number for migration in found] != list(range(1, len(found) + 1)):
        raise MigrationError(f"migrations of {kind!r} are not numbered 1, 2, 3 …: {[m.name for m in found]!r}")
    return found


def render(migration: Migration, variables: Mapping[str, str]) -> list[str]:
    """Give a migration's statements with `{variable}` and `{engine:Name}` filled in.

    Raises:
        MigrationError: A variable is unknown.
    """

    def fill(match: re.Match[str]) -> str:
        name, argument = match.groups()
        if name == "engine" and argument:
            return variables["engine_prefix"] + argument + variables["engine_arguments"]
        if name not in variables:
            raise MigrationError(f"{migration.name}: unknown variable {match[0]!r}")
        return variables[name]

    chunks = _MARKER.split(migration.text)[1:]
    return [_VARIABLE.sub(fill, chunk).strip().rstrip(";") for chunk in chunks]


def migrate_store(store: ClickHouseStore, settings: Settings, *, dry_run: bool = False) -> list[Applied]:
    """Apply what the store's database lacks, in order; a second run applies nothing.

    Raises:
        MigrationError: An applied file was edited or is gone.
        StoreError: The store refused a statement; what came before it stays recorded.
    """
    variables = _variables(store.database, settings, store.cluster)
    history = f"{store.database}.schema_migrations"
    if not dry_run:
        for statement in history_statements(store, settings):
            store.command(statement)
    known = _store_history(store)
    applied = []
    for migration in pending(load("clickhouse"), known):
        done = Applied(migration.number, migration.name, _statements(migration, store, variables))
        if not dry_run:
            for statement in done.statements:
                store.command(statement)
            store.command(
                f"INSERT INTO {history} (number, name, sha256, applied_at) VALUES "  # noqa: S608  our own names
                f"({migration.number}, '{migration.name}', '{migration.sha256}', now64(3, 'UTC'))"
            )
        applied.append(done)
    if applied and not dry_run and (store.dsn.scheme == "chdb" or applied[0].number == 1):
        _reload_views(store, variables["on_cluster"])
    return applied


def _statements(migration: Migration, store: ClickHouseStore, variables: Mapping[str, str]) -> list[str]:
    """Give a migration's statements as the store needs them.

    On a cluster a table is dropped at once, or the next one of its name would find the old one's replicas.
    """
    made = render(migration, variables)
    if store.cluster:
        made = [f"{sql} SYNC" if sql.startswith("DROP TABLE") else sql for sql in made]
    return made + fronts(migration.text, store.database, store.cluster)


def _reload_views(store: ClickHouseStore, clause: str) -> None:
    """Let the engine read its views as the next process will.

    A view's table knows a repeated block by a hash in which the view's query stands. After ALTER … MODIFY QUERY that
    hash is another one until the view was loaded anew (measured on 26.9), so a segment inserted before a restart and
    repeated after it would count twice. In a server that others insert into meanwhile, rows would miss the view: there
    only a new database is treated so.
    """
    views = store.query(
        "SELECT name FROM system.tables WHERE database = {database:String} AND engine = 'MaterializedView'",
        {"database": store.local_database},
    )
    for view in views:
        name = f"{store.local_database}.{view['name']}"
        store.command(f"DETACH TABLE {name} {clause} {'SYNC' if clause else ''}")
        store.command(f"ATTACH TABLE {name} {clause}")


def migrate_registry(registry: Registry, *, dry_run: bool = False) -> list[Applied]:
    """Apply what the registry lacks, all or nothing; others wait on the database's own write lock.

    Raises:
        MigrationError: An applied file was edited or is gone.
        StoreError: The database refused, or stayed locked.
    """
    with registry.transaction(commit=not dry_run) as run:
        run(_HISTORY_REGISTRY)
        known = {int(number): (str(name), str(sha)) for number, name, sha in run(_REGISTRY_KNOWN)}
        applied = []
        for migration in pending(load("postgres"), known):
            done = Applied(
                migration.number, migration.name, render(migration, {"room_for_updates": registry.room_for_updates})
            )
            for statement in done.statements:
                run(statement)
            run(_REGISTRY_RECORD, (migration.number, migration.name, migration.sha256, _now()))
            applied.append(done)
    return applied


def pending(migrations: list[Migration], known: Mapping[int, tuple[str, str]]) -> list[Migration]:
    """Give the migrations not applied yet, after checking those that are.

    Args:
        migrations: all there are.
        known: number → (name, sha256) of the applied ones.

    Raises:
        MigrationError: An applied file was edited, or this version does not have it.
    """
    by_number = {migration.number: migration for migration in migrations}
    for number, (name, sha256) in sorted(known.items()):
        migration = by_number.get(number)
        if migration is None:
            raise MigrationError(f"{name} was applied by a newer Axonize: install that version or later")
        if migration.sha256 != sha256:
            raise MigrationError(f"{migration.name} was edited after it was applied: restore it and add a new number")
    return [migration for migration in migrations if migration.number not in known]


_HISTORY_CLICKHOUSE = (
    "CREATE TABLE IF NOT EXISTS {database}.schema_migrations {on_cluster}"
    " (number UInt32, name String, sha256 String, applied_at DateTime64(3, 'UTC'))"
    " ENGINE = {engine_prefix}ReplacingMergeTree{engine_arguments} ORDER BY number"
)
_HISTORY_REGISTRY = (
    "CREATE TABLE IF NOT EXISTS schema_migrations"
    " (number INTEGER NOT NULL PRIMARY KEY, name TEXT NOT NULL, sha256 TEXT NOT NULL, applied_at TEXT NOT NULL)"
)
_REGISTRY_KNOWN = "SELECT number, name, sha256 FROM schema_migrations ORDER BY number"
_REGISTRY_RECORD = "INSERT INTO schema_migrations (number, name, sha256, applied_at) VALUES (%s, %s, %s, %s)"


def history_statements(store: ClickHouseStore, settings: Settings) -> list[str]:
    """Give the statements that make what has to be there before the store's first migration."""
    variables = _variables(store.database, settings, store.cluster)
    return [
        *(f"CREATE DATABASE IF NOT EXISTS {name} {variables['on_cluster']}".rstrip() for name in _databases(store)),
        _VARIABLE.sub(lambda match: variables[match[1]], _HISTORY_CLICKHOUSE),
        *fronts(_HISTORY_CLICKHOUSE, store.database, store.cluster),
    ]


def _databases(store: ClickHouseStore) -> dict[str, None]:
    return dict.fromkeys((store.database, store.local_database))


def _store_history(store: ClickHouseStore) -> dict[int, tuple[str, str]]:
    exists = store.query(
        "SELECT name FROM system.tables WHERE database = {database:String} AND name = 'schema_migrations'",
        {"database": store.database},
    )
    if not exists:
        return {}
    rows = store.query(f"SELECT number, name, sha256 FROM {store.database}.schema_migrations ORDER BY number")  # noqa: S608
    return {row["number"]: (row["name"], row["sha256"]) for row in rows}


def _variables(database: str, settings: Settings, cluster: str = "") -> dict[str, str]:
    """Give what the store's migrations are filled in with."""
    return {
        "database": local_database(database, cluster),
        "on_cluster": on_cluster(cluster),
        **engine_variables(cluster, _DEDUP_WINDOW),
        **{name: str(getattr(settings, name)) for name in _TTLS},
        # Spans are found by their trace's totals.
        "ttl_traces_days": str(max(settings.ttl_traces_days, settings.ttl_spans_days)),
    }


_TTLS = (
    "ttl_spans_days",
    "ttl_batches_days",
    "ttl_traces_days",
    "ttl_metrics_days",
    "ttl_logs_days",
    "ttl_gpu_metrics_days",
    "ttl_rollups_days",
)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
