"""What ClickHouse spends on a span of 1 KB, and where: reading protobuf, opening it into columns, the table, the views.

Each stage is run alone on the same segments, in turn, in the engine that is embedded; its CPU is the process's own. Merges
are stopped meanwhile, so that none is counted for what happens to run beside it; what they take afterwards is a row of
its own. The ceiling is the same rows in ClickHouse's own format, which it need not open. What is measured begins after
a round that is thrown away: until its memory has been used once, ClickHouse waits for the system's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from bench_table import Row

from axonize_server.migrate import migrate_store
from axonize_server.process import ENVIRONMENT
from axonize_server.settings import Settings
from axonize_server.spool import INSERT_SETTINGS, header_message, request_frame
from axonize_server.store import explode
from axonize_server.store.clickhouse import ClickHouseStore
from axonize_server.store.schema import MESSAGE, proto_path, structure
from otlp_bodies import trace_body

if TYPE_CHECKING:
    from collections.abc import Callable

SPANS, BODIES = 512, 128  # a full segment
SEGMENTS, ROUNDS = 4, 4
TARGET = 100_000
QUIET_S = 2.0
STAGES = ("read", "opened", "in its table", "in all tables")


def run() -> list[Row]:
    """Return spans per CPU-second to the end of each stage, and its share of the whole; in a writer's environment."""
    writer = [sys.executable, __file__]
    done = subprocess.run(
        writer,
        env={**os.environ, **ENVIRONMENT["writer"], "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        check=True,
    )
    return [Row(*row) for row in json.loads(done.stdout.splitlines()[-1])]


def measure() -> list[Row]:
    """Return the rows as measured in this process."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        store = ClickHouseStore(f"chdb://{directory}/clickhouse")
        migrate_store(store, Settings(data_dir=directory))
        for table in ("alone", "native"):
            store.command(f"CREATE TABLE {store.database}.{table} AS {store.database}.spans")
        segments = [_segment(directory, at) for at in range(SEGMENTS)]
        store.command("SYSTEM STOP MERGES")
        rounds = [_costs(store, segment, str(at)) for at in range(ROUNDS) for segment in segments]
        merging = _merging(store)
        store.close()
    us = {stage: median(costs[stage] for costs in rounds[SEGMENTS:]) for stage in rounds[0]}
    whole = us["in all tables"]
    rows, before = [], 0.0
    for stage in STAGES:
        rows.append(_stage_row(stage, us[stage], before, whole))
        before = us[stage]
    ratio = us["native"] / whole
    rows.append(
        Row(
            name="ClickHouse, the same rows from its own format",
            ours=f"{1e3 / whole:.0f} k spans/cpu-s",
            peer=f"{1e3 / us['native']:.0f} k",
            peer_name="Native into the table and all views, the ceiling",
            ratio=f"{ratio:.2f} x",
            target="(printed)",
            met=True,
        )
    )
    return [*rows, merging]


def _stage_row(stage: str, us: float, before: float, whole: float) -> Row:
    last = stage == STAGES[-1]
    rate = 1e6 / us
    return Row(
        name=f"ClickHouse, spans {stage}",
        ours=f"{rate / 1000:.0f} k spans/cpu-s",
        peer=f"{TARGET / 1000:.0f} k" if last else "-",
        peer_name="limit" if last else f"{max(0.0, us - before) / whole:.0%} of the whole",
        ratio=f"{rate / TARGET:.2f} x" if last else "-",
        target=">= 1 x" if last else "(printed)",
        met=not last or rate >= TARGET,
    )


def _costs(store: ClickHouseStore, segment: Path, name: str) -> dict[str, float]:
    """Return the microseconds of CPU a span takes to the end of each stage."""
    schema = f"format_schema = '{proto_path('traces')}:{MESSAGE}'"
    source = f"file('{segment}', Protobuf, '{{structure}}')"
    statement = explode.insert("traces", store.database, source, schema)
    into, _, select = statement.partition(f" SETTINGS {schema}\n")
    native = segment.with_suffix(".native")
    reader = source.replace("{structure}", structure("traces"))
    costs = {
        "read": _cost(lambda: store.command(f"SELECT sum(ignore(*)) FROM {reader} SETTINGS {schema}")),
        "opened": _cost(lambda: store.command(f"{select} SETTINGS {schema} FORMAT Null")),
        "in its table": _cost(
            lambda: store.command(f"{into.replace('.spans ', '.alone ')} SETTINGS {schema}{_PLAIN}\n{select}")
        ),
        "in all tables": _cost(lambda: store.insert(segment, "traces", f"{segment.stem}-{name}", INSERT_SETTINGS)),
    }
    store.command(f"SELECT * FROM {store.database}.alone INTO OUTFILE '{native}' TRUNCATE FORMAT Native")
    store.command(f"TRUNCATE TABLE {store.database}.alone")
    token = f"insert_deduplication_token = '{segment.stem}-{name}-native'"
    load = f"INSERT INTO {store.database}.spans SETTINGS {token}{_PLAIN} SELECT * FROM file('{native}', Native)"
    return {**costs, "native": _cost(lambda: store.command(load))}


def _merging(store: ClickHouseStore) -> Row:
    """Return what merges take of the parts that were inserted, until none is left to make."""
    spans = store.rows()["spans"]
    before, parts = _merged(store)
    began_ns = time.process_time_ns()
    store.command("SYSTEM START MERGES")
    after, left = before, parts
    while _is_merging(store) or after == before:
        time.sleep(QUIET_S)
        after, left = _merged(store)
    us = (time.process_time_ns() - began_ns) / spans / 1e3
    return Row(
        name="ClickHouse, merges afterwards",
        ours=f"{us:.1f} us a span",
        peer=f"{(after - before) / spans:.1f} times",
        peer_name=f"each row is merged, its trace's included; {parts} parts of spans became {left}",
        ratio="-",
        target="(printed)",
        met=True,
    )


def _merged(store: ClickHouseStore) -> tuple[int, int]:
    """Return the rows merged so far, and the parts that spans have."""
    rows = store.query("SELECT value FROM system.events WHERE event = 'MergedRows'")
    parts = store.query("SELECT count() AS n FROM system.parts WHERE active AND table = 'spans'")
    return int(rows[0]["value"]) if rows else 0, int(parts[0]["n"])


def _is_merging(store: ClickHouseStore) -> bool:
    return store.query("SELECT count() AS n FROM system.merges")[0]["n"] > 0


_PLAIN = "".join(f", {name} = {value}" for name, value in INSERT_SETTINGS.items())


def _cost(work: Callable[[], object]) -> float:
    before = time.process_time_ns()
    work()
    return (time.process_time_ns() - before) / SPANS / BODIES / 1e3


def _segment(directory: Path, number: int) -> Path:
    parts = [header_message("traces")]
    for at in range(BODIES):
        body = trace_body(number * BODIES + at, SPANS)
        length, trailer = request_frame(body, tenant="default", received_ns=time.time_ns())
        parts += [length, body, trailer]
    path = directory / f"segment-{number}.pb"
    path.write_bytes(b"".join(parts))
    return path


if __name__ == "__main__":
    print(json.dumps(measure()), flush=True)
    os._exit(0)  # the engine's own end is slow, and not what is measured
