"""The runner's rules, without a database."""

from __future__ import annotations

import re

import pytest

from axonize_server.migrate import Migration, MigrationError, load, pending, render
from axonize_server.registry.postgres import PostgresRegistry
from axonize_server.registry.sqlite import SqliteRegistry


def migration(number: int, text: str = "-- statement\nSELECT 1;\n") -> Migration:
    return Migration(number, f"{number:04}_x.sql", f"sha-{number}", text)


def test_statements_are_cut_at_markers_only():
    """A semicolon inside a statement does not cut it; what stands before the first marker is no statement."""
    text = "-- about\nnot a statement;\n-- statement\nSELECT ';';\n-- statement\nSELECT 2\n"
    assert render(migration(1, text), {}) == ["SELECT ';'", "SELECT 2"]


def test_variables_are_filled_in():
    """Names in braces become values, engines get their prefix and arguments, an unknown name is an error."""
    variables = {"database": "d", "engine_prefix": "Replicated", "engine_arguments": "('/path', '{replica}')"}
    text = "-- statement\nCREATE TABLE {database}.t (x Int8 DEFAULT '{}') ENGINE = {engine:MergeTree}"
    assert render(migration(1, text), variables) == [
        "CREATE TABLE d.t (x Int8 DEFAULT '{}') ENGINE = ReplicatedMergeTree('/path', '{replica}')"
    ]
    with pytest.raises(MigrationError, match=r"unknown variable '\{nope\}'"):
        render(migration(1, "-- statement\nSELECT {nope}"), variables)


def test_only_new_numbers_are_pending():
    """What history knows is not run again."""
    all_of_them = [migration(1), migration(2), migration(3)]
    known = {1: ("0001_x.sql", "sha-1"), 2: ("0002_x.sql", "sha-2")}
    assert pending(all_of_them, known) == all_of_them[2:]
    assert pending(all_of_them, {}) == all_of_them


def test_an_edited_file_is_named():
    """An applied file whose text changed stops everything, by its name."""
    with pytest.raises(MigrationError, match=r"0001_x\.sql was edited"):
        pending([migration(1)], {1: ("0001_x.sql", "another")})


def test_a_newer_schema_is_refused():
    """An older version does not work on a schema that a newer one has changed."""
    with pytest.raises(MigrationError, match=r"0002_future\.sql was applied by a newer"):
        pending([migration(1)], {1: ("0001_x.sql", "sha-1"), 2: ("0002_future.sql", "x")})


def test_shipped_migrations_can_run_twice():
    """ClickHouse has no transaction around them, so every statement of theirs may come again."""
    for found in load("clickhouse"):
        for statement in found.text.split("-- statement")[1:]:
            sql = re.sub(r"^--.*\n", "", statement.lstrip(), flags=re.MULTILINE)
            assert not re.search(r"ADD COLUMN(?! IF NOT EXISTS)", sql), found.name
            kind = (
                r"CREATE (TABLE|MATERIALIZED VIEW) IF NOT EXISTS|DROP TABLE IF EXISTS"
                r"|ALTER TABLE \{database\}\.\w+ \{on_cluster\}\s+(ADD COLUMN|MODIFY QUERY|MODIFY SETTING)"
                r"|INSERT INTO \{database\}\.gpu_metrics(_1m)?\n"
            )
            assert re.match(kind, sql), found.name


def test_registry_migrations_leave_room_where_the_database_can():
    """PostgreSQL's tables of reports keep room in their pages for the next version of a row; SQLite knows no such thing."""
    for registry, tables in ((PostgresRegistry, 4), (SqliteRegistry, 0)):
        made = [s for m in load("postgres") for s in render(m, {"room_for_updates": registry.room_for_updates})]
        assert sum("WITH (fillfactor" in statement for statement in made) == tables


def test_every_clickhouse_table_knows_repeated_inserts():
    """Each table a segment reaches has a deduplication window, an expiry, and is ready for a cluster."""
    for found in load("clickhouse"):
        for statement in found.text.split("-- statement")[1:]:
            assert "{database}" in statement
            if "INSERT INTO" not in statement:
                assert "{on_cluster}" in statement
            if "CREATE TABLE" in statement:
                assert "non_replicated_deduplication_window = {dedup_window}" in statement
                assert re.search(r"TTL .*\{ttl_\w+_days\} DAY", statement)
                assert "ENGINE = {engine:" in statement
                assert re.search(r"ORDER BY \(tenant, ", statement)
