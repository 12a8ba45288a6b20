"""How the store lies on a ClickHouse cluster.

`<database>_local` has the tables, replicated, and the views between them; each shard has its part. `<database>` has
one Distributed table for each, under the name queries and inserts use everywhere else. It holds no rows of its own,
so it is made anew whenever its table changes.
"""

from __future__ import annotations

import re

__all__ = ["SHARDING", "engine_variables", "fronts", "local_database", "on_cluster"]

_DEDUP_SECONDS = 7 * 86_400
"""A replicated table forgets tokens by age too, by default after an hour (26.9): less than a store may be away."""

_BY_TRACE = "cityHash64(trace_id)"
_BY_GPU = "cityHash64(tenant, hw_id)"
SHARDING = {
    "spans": _BY_TRACE,
    # What a view makes lies where its source lies, and no key may say otherwise: queries may skip shards by it.
    "batches": _BY_TRACE,
    "traces": _BY_TRACE,
    "requests_1m": "",
    # A GPU's points lie together, since samples of one time merge; others by who sent them, not all on one shard.
    "metrics": (
        "if(attrs_string['hw.id'] != '', cityHash64(tenant, attrs_string['hw.id']),"
        " cityHash64(tenant, resource_string['service.instance.id'], name))"
    ),
    "gpu_metrics": _BY_GPU,
    "gpu_metrics_1m": _BY_GPU,
    "gpu_inventory": "",
    # Beside its trace, if it has one; by its time if not.
    "logs": "if(trace_id = toFixedString('', 16), cityHash64(tenant, time), cityHash64(trace_id))",
    "schema_migrations": "number",
}
"""By table, what decides on which shard a row lies; nothing where views alone write and no key would be true."""

_CHANGED = re.compile(r"(?:CREATE TABLE IF NOT EXISTS|ALTER TABLE) \{database\}\.(\w+)")


def local_database(database: str, cluster: str) -> str:
    """Give the database with the tables that have rows."""
    return f"{database}_local" if cluster else database


def on_cluster(cluster: str) -> str:
    """Give the clause that makes a statement run on all machines; empty without a cluster."""
    return f"ON CLUSTER '{cluster}'" if cluster else ""


def engine_variables(cluster: str, dedup_window: int) -> dict[str, str]:
    """Give what migrations are filled in with where engines are named; what has braces is ClickHouse's to fill in."""
    if not cluster:
        return {"engine_prefix": "", "engine_arguments": "", "dedup_window": str(dedup_window)}
    return {
        "engine_prefix": "Replicated",
        "engine_arguments": "('/clickhouse/tables/{shard}/{database}/{table}', '{replica}')",
        "dedup_window": (
            f"{dedup_window}, replicated_deduplication_window = {dedup_window},"
            f" replicated_deduplication_window_seconds = {_DEDUP_SECONDS}"
        ),
    }


def fronts(text: str, database: str, cluster: str) -> list[str]:
    """Give the statements that bring the Distributed tables up to date with what a migration's text changed."""
    tables = dict.fromkeys(table for table in _CHANGED.findall(text) if table in SHARDING)
    return [_front(table, database, cluster) for table in tables] if cluster else []


def _front(table: str, database: str, cluster: str) -> str:
    local = local_database(database, cluster)
    key = f", {SHARDING[table]}" if SHARDING[table] else ""
    return (
        f"CREATE OR REPLACE TABLE {database}.{table} {on_cluster(cluster)} AS {local}.{table}"
        f" ENGINE = Distributed('{cluster}', '{local}', '{table}'{key})"
    )
