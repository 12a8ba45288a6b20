"""The store on a cluster: what is sent to make it, and the same answers through Distributed tables.

What is sent is held against the engine's own parser. What runs, runs on a cluster of one shard: nothing here says how
several shards, replicas and Keeper work together.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest
from click.testing import CliRunner

from axonize_core.errors import ConfigurationError
from axonize_server import query, query_energy, query_gpus
from axonize_server.commands_operate import migrate as migrate_command
from axonize_server.health import Counters
from axonize_server.migrate import history_statements, load, migrate_store
from axonize_server.refused import refused_segments
from axonize_server.registry.reports import read_reports
from axonize_server.spool import INSERT_SETTINGS
from axonize_server.store.clickhouse import ClickHouseStore
from axonize_server.store.cluster import SHARDING
from axonize_server.store.explode import TABLES
from axonize_server.writer import Writer
from clickhouse_cluster import CLUSTER
from exactly_once import look
from gpu_reports import gpu_info, samples
from otlp_bodies import logs_body
from own_spans import OwnLoad, as_requests, own_span

SERVE = Path(__file__).parents[1] / "clickhouse_cluster.py"


@pytest.fixture(scope="module")
def cluster_url(tmp_path_factory):
    """A cluster's only machine, a process of its own: the engine reads its configuration when it starts."""
    directory = tmp_path_factory.mktemp("cluster")
    with (
        (directory / "log").open("wb") as log,
        subprocess.Popen(
            [sys.executable, SERVE, str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=directory,
            env={**os.environ, "PYTHONPATH": str(SERVE.parent)},  # PYTHONSAFEPATH, where set, leaves its folder out
            text=True,
        ) as process,
    ):
        url = process.stdout.readline().strip()
        assert url, (directory / "log").read_text()
        yield url
        process.kill()


@pytest.fixture
def bare_cluster(cluster_url):
    """A store on the cluster without a schema."""
    with contextlib.closing(ClickHouseStore(f"{cluster_url}/test_{uuid.uuid4().hex}", CLUSTER)) as store:
        yield store


@pytest.fixture
def cluster_store(bare_cluster, settings):
    """A migrated store on the cluster."""
    migrate_store(bare_cluster, settings)
    return bare_cluster


@pytest.fixture
def parsed(store):
    """Give a statement as the engine's parser writes it, and the tree it made of it."""

    def parse(statement):
        (told,) = store.query("SELECT formatQuerySingleLine({sql:String}) AS sql", {"sql": statement})
        tree = "\n".join(row["explain"] for row in store.query(f"EXPLAIN AST {statement}"))
        return told["sql"], tree

    return parse


_REPLICATED = re.compile(
    r"Function Replicated\w*MergeTree .*\n +ExpressionList .*\n"
    r" +Literal '/clickhouse/tables/\{shard\}/\{database\}/\{table\}'\n +Literal '\{replica\}'"
)


_PARENTHESES = str.maketrans("", "", "()")
"""The parser adds some."""


def test_what_makes_it_is_what_a_cluster_needs(bare_cluster, settings, parsed):
    """All of it runs on all machines; tables with rows are replicated and remember tokens for a week; drops wait."""
    planned = migrate_store(bare_cluster, settings, dry_run=True)
    assert len(planned) == len(load("clickhouse"))
    made, local = {}, bare_cluster.local_database
    for statement in [
        *history_statements(bare_cluster, settings),
        *(sql for done in planned for sql in done.statements),
    ]:
        sql, tree = parsed(statement)
        verb, _, name = re.match(r"(.*?)( IF NOT EXISTS| IF EXISTS)? (test_[\w.]+)", sql).groups()
        assert (f" ON CLUSTER {CLUSTER}" in sql) is (verb != "INSERT INTO"), statement
        assert sql.endswith(" SYNC") is (verb == "DROP TABLE"), statement
        assert verb in ("CREATE DATABASE", "CREATE OR REPLACE TABLE") or name.startswith(f"{local}."), statement
        if verb in ("CREATE TABLE", "CREATE OR REPLACE TABLE"):
            made[name] = sql, tree
    for table, key in SHARDING.items():
        sql, tree = made.pop(f"{local}.{table}")
        assert _REPLICATED.search(tree), sql
        assert table == "schema_migrations" or "replicated_deduplication_window_seconds = 604800" in sql
        front, tree = made.pop(f"{bare_cluster.database}.{table}")
        told = [CLUSTER, local, table]
        assert re.search(
            r"Function Distributed .*\n +ExpressionList .*\n" + "".join(rf" +Literal '{t}'\n" for t in told), tree
        )
        placed = re.search(r"Distributed\('\w+', '\w+', '\w+'(.*)\)$", front)[1]
        assert placed.translate(_PARENTHESES) == (f", {key}" if key else "").translate(_PARENTHESES)
    assert made == {}
    assert all(SHARDING[table] for table in TABLES.values()), "what is inserted into needs a key"


def load_of_everything(write_segment):
    """Segments of every signal, as a server, its agent and a foreign sender make them."""
    made = OwnLoad(3, start_ns=time.time_ns() - 60 * 10**9, slots=8, mean_output=20)
    served, steps = made.run(30)
    gpu, now = gpu_info("node-a", 0), time.time_ns()
    readings = {"hw.power": 300.5, "hw.energy": 10_000, "hw.gpu.utilization": 0.5}
    one, two = (samples([(gpu, readings | {"hw.energy": 10_000 + n})], time_ns=now - n * 10**9) for n in range(2))
    informed = samples([(gpu, {"axonize.gpu.info": 1})], time_ns=now)
    return [
        write_segment(*as_requests([*served, *steps], made.resource)),
        write_segment(one, two, informed, signal="metrics"),
        write_segment(logs_body(1), signal="logs"),
    ]


def insert(store, segments):
    for segment in segments:
        store.insert(segment.path, segment.signal, segment.id, INSERT_SETTINGS)


def answers(store, now):
    """What the API and the registry ask the store."""
    found = query.requests(store, tenant="default", limit=1000)
    reports = read_reports(store, 0)
    return {
        "requests": found,
        "trace": query.trace(store, tenant="default", trace_id=found[0]["trace_id"]),
        "batches": query.batches(store, tenant="default", limit=1000),
        "engines": query_gpus.engines(store, tenant="default", window_s=900),
        "readings": query_gpus._readings(store, "default", now),
        "minutes": query_gpus.minutes(
            store, tenant="default", compute_resource=gpu_info("node-a", 0)["hw.id"], since_ns=now - 10**13
        ),
        "energies": query_energy.energies(store, tenant="default", since_ns=now - 10**13, until_ns=now),
        "reports": reports.sightings,
    }


def test_a_cluster_gives_the_answers_of_one_server(cluster_store, http_store, write_segment):
    """Every question the API and the registry ask has the same answer through Distributed tables."""
    segments = load_of_everything(write_segment)
    for store in (cluster_store, http_store):
        insert(store, segments)
    now = time.time_ns()
    one, other = (answers(store, now) for store in (cluster_store, http_store))
    assert all(one.values()), "an answer without rows compares nothing"
    assert one == other
    rows = cluster_store.rows()
    assert rows == http_store.rows()


def test_a_repeated_segment_counts_once_on_a_cluster(cluster_store, write_segment):
    """The token reaches the tables behind the Distributed one, and the views' tables."""
    segments = load_of_everything(write_segment)
    for _ in range(3):
        insert(cluster_store, segments)
    stored = look(cluster_store)
    assert len(stored.rows["spans"]) > 100
    assert not any(stored.doubled.values())
    assert not stored.unequal


def test_every_statement_waits_for_all_shards(bare_cluster):
    """An insert is over when it is everywhere, with its token; a statement for all machines has no rows to give."""
    asked = (
        "SELECT getSetting('distributed_foreground_insert') AS waits, getSetting('distributed_ddl_output_mode') AS told"
    )
    assert bare_cluster.query(asked) == [{"waits": True, "told": "none"}]


def test_a_view_row_lies_where_its_table_says(cluster_store, write_segment):
    """The key of a table that a view fills is that of its source's row, or there is none: queries may skip shards."""
    insert(cluster_store, load_of_everything(write_segment))
    sources = {
        "batches": ("spans", "hex(span_id)"),
        "traces": ("spans", "hex(trace_id)"),
        "gpu_metrics": ("metrics", "{hw_id}"),
        "gpu_metrics_1m": ("metrics", "{hw_id}"),
    }
    assert sources.keys() | TABLES.values() | {"schema_migrations"} == {name for name, key in SHARDING.items() if key}
    for table, (source, name) in sources.items():
        placed = {}
        for where in (table, source):
            by = name.format(hw_id="attrs_string['hw.id']" if where == "metrics" else "hw_id")
            rows = cluster_store.query(
                f"SELECT DISTINCT {by} AS name, {SHARDING[where]} AS at FROM {cluster_store.database}.{where} WHERE name != ''"
            )
            placed[where] = {row["name"]: row["at"] for row in rows}
        assert placed[table]
        assert placed[table].items() <= placed[source].items()


def test_poison_is_parted_on_a_cluster_of_one_address(cluster_store, settings, write_segment):
    """The copy is on the machine that answers, and what is stored already is found on every shard."""
    now = time.time_ns()
    spans = [own_span("queue", now, now + 5, {}) for _ in range(9)]
    spans[4].trace_id += b"!"
    write_segment(*as_requests(spans, {"service.name": "chat"}))
    Writer(cluster_store, settings, Counters(), threading.Event()).store_sealed()
    assert cluster_store.rows()["spans"] == 8
    assert len(refused_segments(settings.spool_dir)) == 1


def test_a_second_migration_applies_nothing(cluster_store, settings):
    """What was applied is known through the Distributed table too."""
    assert migrate_store(cluster_store, settings) == []


def test_a_migration_brings_the_front_up_to_date(cluster_store):
    """A column that a later migration added is in the Distributed table as in the tables behind it."""
    columns = cluster_store.query(
        "SELECT database, groupArray((name, type, default_kind)) AS columns FROM system.columns"
        " WHERE table = 'batches' AND database IN ({a:String}, {b:String}) GROUP BY database",
        {"a": cluster_store.database, "b": cluster_store.local_database},
    )
    assert len(columns) == 2
    assert columns[0]["columns"] == columns[1]["columns"]
    assert "kv_cache_usage" in str(columns[0]["columns"])


def test_a_cluster_nobody_knows(cluster_url, settings):
    """It is refused when the store is opened, and so is an engine in this process."""
    with pytest.raises(ConfigurationError, match=r"no cluster 'other', but \['main'\]"):
        ClickHouseStore(f"{cluster_url}/axonize", "other")
    with pytest.raises(ConfigurationError, match="in this process"):
        ClickHouseStore(settings.store, CLUSTER)


def test_the_dry_run_prints_all_of_it(cluster_url, tmp_path):
    """From the databases on, and nothing is made."""
    at = ["--dry-run", "--store", f"{cluster_url}/dry", "--store-cluster", CLUSTER, "--data-dir", str(tmp_path)]
    printed = CliRunner().invoke(migrate_command, at, catch_exceptions=False).output
    assert "CREATE DATABASE IF NOT EXISTS dry_local ON CLUSTER 'main';" in printed
    assert "ENGINE = Distributed('main', 'dry_local', 'spans', cityHash64(trace_id));" in printed
    with contextlib.closing(ClickHouseStore(f"{cluster_url}/dry")) as store:
        assert store.query("SELECT name FROM system.databases WHERE name LIKE 'dry%'") == []
