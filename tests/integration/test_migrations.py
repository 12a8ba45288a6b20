"""Migrations on the real engines, and the documentation held against what they make."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from axonize_core.errors import StoreError
from axonize_server import migrate
from axonize_server.migrate import Migration, MigrationError, load, migrate_registry, migrate_store
from axonize_server.registry.address import open_registry
from axonize_server.settings import Settings

ARCHITECTURE = Path(__file__).parents[2] / "ARCHITECTURE.md"
STORE_TABLES = {
    "spans",
    "batches",
    "traces",
    "requests_1m",
    "metrics",
    "logs",
    "gpu_metrics",
    "gpu_metrics_1m",
    "gpu_inventory",
}
REGISTRY_TABLES = {
    "physical_gpus",
    "compute_resources",
    "resource_contexts",
    "gpu_sightings",
    "registry_state",
    "prices",
    "engine_compatibility",
    "tenants",
    "api_keys",
}


def columns_of(store):
    rows = store.query(
        "SELECT table, name, type FROM system.columns WHERE database = {d:String} AND table NOT LIKE '%\\_mv'"
        " AND table != 'schema_migrations' ORDER BY table, position",
        {"d": store.database},
    )
    return {(row["table"], row["name"]): row["type"] for row in rows}


def registry_columns(registry):
    with registry.transaction() as run:
        tables = [name for (name,) in run("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {(t, c[1]): c[2] for t in tables if t != "schema_migrations" for c in run(f"PRAGMA table_info({t})")}


def documented():
    """(table, column) → type, as ARCHITECTURE.md lists them."""
    part = ARCHITECTURE.read_text("utf-8").split("<!-- tables -->")[1].split("\n## 9")[0]
    found = {}
    for section in part.split("\n### ")[1:]:
        table = re.match(r"`(\w+)`", section)[1]
        for name, kind in re.findall(r"^\| `([\w.]+)` \| `([^`]+)` \| \S", section, flags=re.MULTILINE):
            found[table, name] = kind
    return found


def test_every_table_and_column_is_documented(store, settings):
    """ARCHITECTURE.md lists exactly the tables, columns and types that the migrations make."""
    registry = open_registry(settings.registry)
    migrate_registry(registry)
    made = columns_of(store) | registry_columns(registry)
    listed = documented()
    assert {table for table, _ in made} == STORE_TABLES | REGISTRY_TABLES
    assert listed.keys() ^ made.keys() == set()
    assert {key: (listed[key], made[key]) for key in made if listed[key] != made[key]} == {}


def test_a_second_run_does_nothing(empty_store, settings):
    """All migrations apply to an empty store, once; the schema stays the same."""
    applied = migrate_store(empty_store, settings)
    assert [done.name for done in applied] == [found.name for found in load("clickhouse")]
    before = columns_of(empty_store)
    assert migrate_store(empty_store, settings) == []
    assert columns_of(empty_store) == before


def test_dry_run_touches_nothing(empty_store, settings):
    """A dry run gives the statements that would run, and makes not even the database."""
    planned = migrate_store(empty_store, settings, dry_run=True)
    assert len(planned) == len(load("clickhouse"))
    assert f"{empty_store.database}.spans" in planned[0].statements[0]
    exists = "SELECT count() AS n FROM system.databases WHERE name = {d:String}"
    assert empty_store.query(exists, {"d": empty_store.database}) == [{"n": 0}]
    registry = open_registry(settings.registry)
    assert len(migrate_registry(registry, dry_run=True)) == len(load("postgres"))
    assert registry_columns(registry) == {}


@pytest.mark.parametrize("of_totals", [2, 4])
def test_the_days_of_the_settings_are_used(empty_store, tmp_path, of_totals):
    """How long rows are kept comes from the settings, table by table; a trace's totals stay as long as its spans."""
    days = {"spans": 3, "traces": of_totals, "batches": 5, "gpu_metrics": 6, "metrics": 8, "rollups": 9, "logs": 10}
    migrate_store(empty_store, Settings(data_dir=tmp_path, **{f"ttl_{name}_days": n for name, n in days.items()}))
    rows = empty_store.query(
        "SELECT name, extract(create_table_query, 'toIntervalDay\\((\\d+)\\)') AS days FROM system.tables"
        " WHERE database = {d:String} AND engine LIKE '%MergeTree' AND name != 'schema_migrations'",
        {"d": empty_store.database},
    )
    days["requests_1m"] = days["gpu_metrics_1m"] = days.pop("rollups")
    days["gpu_inventory"] = days["spans"]
    days["traces"] = max(days["traces"], days["spans"])
    assert {row["name"]: int(row["days"]) for row in rows} == days


def test_an_edited_migration_stops_the_store(store, settings, monkeypatch):
    """A file edited after it was applied is named, and nothing of what follows it is run."""
    first, *others = load("clickhouse")
    edited = [
        first._replace(sha256="0" * 64),
        *others,
        Migration(99, "0099_new.sql", "x", "-- statement\nDROP NOTHING"),
    ]
    monkeypatch.setattr(migrate, "load", lambda _: edited)
    with pytest.raises(MigrationError, match=first.name):
        migrate_store(store, settings)


def test_an_edited_migration_stops_the_registry(settings, monkeypatch):
    """The same for the registry."""
    registry = open_registry(settings.registry)
    migrate_registry(registry)
    monkeypatch.setattr(migrate, "load", lambda _: [found._replace(sha256="0") for found in load("postgres")])
    with pytest.raises(MigrationError, match=r"0001_registry\.sql"):
        migrate_registry(registry)


def test_cluster_statements_are_valid(store, settings):
    """Rendered for a cluster, every statement is still ClickHouse SQL."""
    variables = migrate._variables("axonize", settings) | {
        "on_cluster": "ON CLUSTER 'main'",
        "engine_prefix": "Replicated",
        "engine_arguments": "('/clickhouse/tables/{shard}/{database}/{table}', '{replica}')",
    }
    for found in load("clickhouse"):
        for statement in migrate.render(found, variables):
            assert "ON CLUSTER" in statement or statement.startswith("INSERT")
            store.query(f"EXPLAIN AST {statement}")


def test_a_stopped_migration_goes_on(empty_store, settings, monkeypatch):
    """A run that ended halfway is finished by the next one; what was applied is not repeated."""
    whole = load("clickhouse")
    broken = [*whole[:2], whole[2]._replace(text=whole[2].text + "\n-- statement\nNO SQL AT ALL")]
    with monkeypatch.context() as patch:
        patch.setattr(migrate, "load", lambda _: broken)
        with pytest.raises(StoreError, match="SYNTAX_ERROR"):
            migrate_store(empty_store, settings)
    assert [done.number for done in migrate_store(empty_store, settings)] == [
        migration.number for migration in whole[2:]
    ]
