"""What a fleet costs: taking over a full re-report in each registry, GPU samples on disk, and a day of one GPU.

The fleet has 2,000 GPUs of seven slices each, and a process on every slice. The report goes the whole way: OTLP
segment, store, registry. PostgreSQL is measured where tests could start one (see `fix_postgres`).
"""

from __future__ import annotations

import contextlib
import random
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path

from bench_table import Row

from axonize_server.migrate import migrate_registry, migrate_store
from axonize_server.query_gpus import minutes
from axonize_server.registry.address import open_registry
from axonize_server.registry.sync import RegistrySync
from axonize_server.settings import Settings
from axonize_server.spool import INSERT_SETTINGS, header_message, request_frame
from axonize_server.store.clickhouse import ClickHouseStore
from fix_postgres import Postgres, binaries
from gpu_reports import GIB, context_info, gpu_info, request, slice_info

NODES, GPUS_A_NODE, SLICES = 250, 8, 7
RE_REPORT_S, SAMPLE_BYTES, DAY_MS = 1.0, 4.0, 20.0
SAMPLED_GPUS, SAMPLES = 8, 86_400
LOOKS = 100


def run():
    """One row per registry and size of report, then those of the samples."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        for processes in (False, True):
            store = _store(directory, f"fleet_{processes}".lower())
            rows += _re_reports(store, directory, processes=processes)
            store.close()
        store = _store(directory, "samples")
        rows += _samples(store)
        store.close()
    return rows


def _store(directory, database):
    store = ClickHouseStore(f"chdb://{directory}/clickhouse?database={database}")
    migrate_store(store, Settings(data_dir=directory))
    return store


def _re_reports(store, directory, *, processes):
    """Report the fleet, let each registry take it over, report again and measure that; the best of two."""
    with contextlib.ExitStack() as stack:
        syncs = {"SQLite": _sync(stack, store, f"sqlite:///{directory}/{store.database}.db")}
        if folder := binaries():
            place = directory / f"postgres-{store.database}"
            place.mkdir()
            server = Postgres(folder, place)
            server.start(durable=True)
            stack.callback(server.stop)
            syncs["PostgreSQL"] = _sync(stack, store, server.dsn)
        took = {name: [] for name in syncs}
        for round_number in range(3):
            _report(store, directory, time.time_ns(), processes=processes)
            for name, (sync, written) in syncs.items():
                took[name].append(_take_over(sync, written))
            if round_number < 2:
                time.sleep(6)  # beyond what is always read again
    return [_row(name, min(found[1:]), processes=processes) for name, found in took.items()]


def _sync(stack, store, dsn):
    registry = open_registry(dsn)
    migrate_registry(registry)
    stack.callback(registry.close)
    written = Counter()
    return RegistrySync(store, _Counting(registry, written)), written


def _report(store, directory, time_ns, *, processes):
    """One full report of the fleet, as each node's agent sends it, all in one segment."""
    messages = []
    for number, things in enumerate(_fleet()):
        points = [(layer, values, time_ns, 1) for layer, values in things if processes or layer != "context"]
        messages.append(request(points, node=f"node-{number:03}"))
    _insert(store, directory, messages)


def _fleet():
    for number in range(NODES):
        node, things = f"node-{number:03}", []
        for index in range(GPUS_A_NODE):
            gpu = gpu_info(node, index, mig=True)
            things.append(("gpu", gpu))
            for gi in range(SLICES):
                found = slice_info(gpu, gi)
                context = context_info(found, node, 1000 * index + gi, pod=f"chat-{index}-{gi}", sharing="mig")
                things += [("compute_resource", found), ("context", context)]
        yield things


def _insert(store, directory, messages):
    parts = [header_message("metrics")]
    for message in messages:
        body = message.SerializeToString()
        length, trailer = request_frame(body, tenant="default", received_ns=time.time_ns())
        parts += [length, body, trailer]
    path = directory / f"{time.time_ns()}.pb"
    path.write_bytes(b"".join(parts))
    store.insert(path, "metrics", path.stem, INSERT_SETTINGS)
    path.unlink()


def _take_over(sync, written):
    """Seconds of a round, from asking the store to the commit, and of them on this process's CPU."""
    written.clear()
    began, cpu = time.perf_counter(), time.process_time()
    things = sync.sync()
    took_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu
    assert things in (NODES * GPUS_A_NODE * (1 + SLICES), NODES * GPUS_A_NODE * (1 + 2 * SLICES)), things
    assert max(written.values()) == 1, written
    return took_s, cpu_s


def _row(name, took, *, processes):
    took_s, cpu_s = took
    what = " + 14,000 processes" if processes else ""
    return Row(
        name=f"{name}: 2,000 GPUs x 7 slices{what} re-reported, one statement a table",
        ours=f"{took_s:.2f} s",
        peer="-" if processes else f"{RE_REPORT_S:g} s",
        peer_name=f"{'' if processes else 'limit; '}{cpu_s:.2f} s on the CPU of this process",
        ratio="-" if processes else f"{took_s / RE_REPORT_S:.2f}",
        target="-" if processes else f"< {RE_REPORT_S:g}",
        met=processes or took_s < RE_REPORT_S,
    )


class _Counting:
    """A registry that counts the statements that write rows, by table."""

    def __init__(self, registry, written):
        self._registry = registry
        self._written = written

    def __getattr__(self, name):
        return getattr(self._registry, name)

    @contextlib.contextmanager
    def transaction(self, *, commit=True):
        with self._registry.transaction(commit=commit) as run:
            yield _CountedRun(run, self._written)


class _CountedRun:
    def __init__(self, run, written):
        self._run = run
        self._written = written

    def __call__(self, sql, parameters=()):
        return self._run(sql, parameters)

    def upsert(self, table, *rest):
        self._written[table] += 1
        self._run.upsert(table, *rest)


def _samples(store):
    """A day of 1 Hz samples with noise in every reading, inserted as the view writes them; bytes a row, and a look at a day."""
    start_s = int(time.time()) - SAMPLES
    for number in range(SAMPLED_GPUS):
        store.command(_one_gpu(store.database, number, start_s))
    for table in ("gpu_metrics", "gpu_metrics_1m"):
        store.command(f"OPTIMIZE TABLE {store.database}.{table} FINAL")
    size = store.query(
        "SELECT sum(bytes_on_disk) AS bytes, sum(rows) AS n FROM system.parts"
        " WHERE database = {d:String} AND table = 'gpu_metrics' AND active",
        {"d": store.database},
    )[0]
    per_row = size["bytes"] / size["n"]
    looks = sorted(_day_ms(store, start_s) for _ in range(LOOKS))
    p95 = looks[int(0.95 * LOOKS)]
    return [
        Row(
            name=f"bytes per GPU sample on disk ({size['n']:,} rows of 5 readings)",
            ours=f"{per_row:.2f} B",
            peer=f"{SAMPLE_BYTES:g} B",
            peer_name="limit",
            ratio=f"{per_row / SAMPLE_BYTES:.2f}",
            target=f"<= {SAMPLE_BYTES:g}",
            met=per_row <= SAMPLE_BYTES,
        ),
        Row(
            name=f"one GPU, 24 h by minute out of {SAMPLED_GPUS}, p95",
            ours=f"{p95:.1f} ms",
            peer=f"{DAY_MS:g} ms",
            peer_name=f"limit; median {statistics.median(looks):.1f} ms",
            ratio=f"{p95 / DAY_MS:.2f}",
            target=f"< {DAY_MS:g}",
            met=p95 < DAY_MS,
        ),
    ]


def _one_gpu(database, number, start_s):
    """A GPU under load that changes every minute or so: readings with the steps and the noise that NVML's have."""
    power = random.Random(number).uniform(150, 650)
    return f"""
        INSERT INTO {database}.gpu_metrics
        SELECT 'default', 'GPU-{number:012}', 'GPU-{number:012}', '9b0c6f5e-0000-4000-8000-{number // 8:012}',
            fromUnixTimestamp64Nano(toInt64({start_s} + number) * 1000000000 + rand(9) % 3000000, 'UTC'),
            'NVIDIA H100 80GB HBM3', 'measured',
            round(least(1, greatest(0, (sipHash64(intDiv(number, 45), {number}) % 80 + rand(1) % 20) / 100)), 2),
            toInt64({20 * GIB} + intDiv(number, 120) % 30 * {GIB // 2} + sipHash64(intDiv(number, 7)) % 64 * 2097152),
            {80 * GIB},
            round({power:.1f} + sipHash64(intDiv(number, 45), {number}) % 80 + rand(2) % 100 / 20, 3),
            round((number * ({power:.1f} + 42) * 1000 + rand(3) % 40000) / 1000, 3),
            45 + sipHash64(intDiv(number, 30)) % 25
        FROM numbers({SAMPLES})"""


def _day_ms(store, start_s):
    began = time.perf_counter()
    rows = minutes(store, tenant="default", compute_resource="GPU-000000000007", since_ns=start_s * 10**9)
    assert len(rows) >= 1440
    return (time.perf_counter() - began) * 1000
