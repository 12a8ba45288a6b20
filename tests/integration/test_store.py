"""Segments become rows: once, in one block, in every table behind them."""

from __future__ import annotations

import random
import subprocess
import sys
import time

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from axonize_core import attributes as names
from axonize_core.errors import ConfigurationError
from axonize_server.settings import Settings
from axonize_server.spool import INSERT_SETTINGS
from axonize_server.store import clickhouse
from axonize_server.store.clickhouse import ClickHouseStore, SegmentRefusedError, StoreUnreachableError
from clickhouse_faults import refused
from own_spans import OwnLoad, as_requests, own_span, set_attributes

DAY_NS = 86_400 * 10**9


def insert(store, segment):
    store.insert(segment.path, segment.signal, segment.id, INSERT_SETTINGS)


def load(seed=1, requests=30):
    """Requests of a made-up server, spread over four days, and how many members its steps had."""
    made = OwnLoad(seed, start_ns=time.time_ns() - 60 * 10**9, slots=8, mean_output=20)
    served, steps = made.run(requests)
    for number, span in enumerate([*served, *steps]):
        shift = number // 4 % 4 * DAY_NS
        span.start_time_unix_nano -= shift
        span.end_time_unix_nano -= shift
    return [*as_requests([*served, *steps], made.resource)], served, steps, made


def totals(store):
    """What each table counts, whatever rows it has merged so far."""
    one = store.query(f"SELECT count() AS spans, countIf(phase = 'batch') AS steps FROM {store.database}.spans")[0]
    sums = {
        "batches": "count()",
        "traces": "sum(spans)",
        "requests_1m": "sum(requests)",
    }
    return {
        **one,
        **{t: store.query(f"SELECT {sql} AS n FROM {store.database}.{t}")[0]["n"] for t, sql in sums.items()},
    }


@pytest.mark.parametrize("kind", ["store", "http_store"])
def test_a_repeated_segment_counts_once(kind, request, write_segment):
    """Six inserts of one segment of several days count once in spans, batches, traces and rollups."""
    store = request.getfixturevalue(kind)
    requests, served, steps, _ = load()
    segment = write_segment(*requests)
    for _ in range(6):
        insert(store, segment)
    expected = {
        "spans": len(served) + len(steps),
        "steps": len(steps),
        "batches": len(steps),
        "traces": len(served) + len(steps),
        "requests_1m": len(served) // 4,
    }
    assert totals(store) == expected
    insert(store, write_segment(*requests))
    assert totals(store) == {name: 2 * count for name, count in expected.items()}


def test_other_segments_do_not_make_it_forgotten(store, write_segment):
    """A segment repeated after a dozen others is still known."""
    first = write_segment(*load(1, 5)[0])
    insert(store, first)
    for seed in range(2, 14):
        insert(store, write_segment(*load(seed, 2)[0]))
    before = totals(store)
    insert(store, first)
    assert totals(store) == before


def test_a_full_segment_is_one_block(store, write_segment):
    """Many requests of one day make one part, of one file: a split would break deduplication, and each cost merges."""
    store.command(f"SYSTEM STOP MERGES {store.database}.spans")
    noon, full = time.time_ns() // DAY_NS * DAY_NS + DAY_NS // 2, Settings().segment_max_records
    spans = [own_span("queue", noon, noon + number, {}) for number in range(full)]
    insert(store, write_segment(*as_requests(spans, {"service.name": "s"})))
    parts = store.query(
        "SELECT rows, part_type FROM system.parts WHERE database = {d:String} AND table = 'spans' AND active",
        {"d": store.database},
    )
    assert parts == [{"rows": full, "part_type": "Compact"}]


def test_promoted_columns_say_what_the_maps_say(store, write_segment):
    """Every derived column of a request equals the attribute it is derived from; what was not sent is null."""
    now = time.time_ns()
    sent = {
        names.ENGINE: "vllm",
        names.MODEL: "m",
        names.OPERATION: "chat",
        names.REQUEST_ID: "r-1",
        names.REQUEST_SEQ: 2**40,
        names.INPUT_TOKENS: 0,
        names.OUTPUT_TOKENS: 7,
        names.FINISH_REASONS: ["length", "stop"],
        names.ERROR_TYPE: "ValueError",
        names.LATENCY_QUEUE_S: 0.25,
        names.LATENCY_TTFT_S: 0.5,
        names.INCOMPLETE: True,
        names.HW_ID: "GPU-1",
        names.GPU_COMPUTE_RESOURCE: "MIG-1",
        names.GPU_PROVENANCE: "measured",
    }
    requests = as_requests([own_span("request", now, now + 5, sent)], {"service.name": "s", "service.instance.id": "i"})
    insert(store, write_segment(*requests))
    columns = (
        "service, instance_id, model, engine, phase, operation, request_id, request_seq, input_tokens, output_tokens,"
        " finish_reason, error_type, queue_ms, ttft_ms, tpot_ms, incomplete, hw_id, compute_resource, gpu_provenance"
    )
    assert [*store.query(f"SELECT {columns} FROM {store.database}.spans")[0].values()] == [
        *("s", "i", "m", "vllm", "request", "chat", "r-1", 2**40, 0, 7),
        *("length", "ValueError", 250.0, 500.0, None, True, "GPU-1", "MIG-1", "measured"),
    ]


def test_batches_hold_the_members_sent(store, write_segment):
    """The arrays of each step equal the members that were packed into its bytes attributes."""
    requests, _, steps, made = load(3, 20)
    insert(store, write_segment(*requests))
    rows = store.query(f"SELECT * FROM {store.database}.batches ORDER BY step_seq")
    assert len(rows) == len(steps) == made.step_seq
    assert sum(len(row["member_request_seq"]) for row in rows) == made.members
    for row, step in zip(rows, steps, strict=True):
        packed = {a.key: a.value.bytes_value for a in step.attributes if a.value.HasField("bytes_value")}
        assert _packed(row["member_request_seq"], 8) == packed[names.MEMBER_REQUEST_SEQ]
        for column, name in (
            ("member_prefill_tokens", names.MEMBER_PREFILL_TOKENS),
            ("member_decode_tokens", names.MEMBER_DECODE_TOKENS),
            ("member_context_tokens", names.MEMBER_CONTEXT_TOKENS),
        ):
            assert _packed(row[column], 4) == packed[name]
        assert row["duration_ns"] == step.end_time_unix_nano - step.start_time_unix_nano


def test_a_step_that_says_no_number_stops_nobody(store, write_segment):
    """A time or share that is NaN, infinite or beyond its column is null; the rest of the segment is stored."""
    now = time.time_ns()
    odd = {
        names.BATCH_SCHEDULE_MS: float("nan"),
        names.DEVICE_TIME_MS: float("-inf"),
        names.BATCH_UPDATE_MS: 1e300,
        names.BATCH_KV_CACHE_USAGE: float("nan"),
        names.BATCH_RUNNING: 2**63 - 1,
    }
    steps = [own_span("batch", now, now + 1, odd), own_span("batch", now + 1, now + 2, {names.BATCH_UPDATE_MS: 1.5})]
    insert(store, write_segment(*as_requests(steps, {})))
    columns = "schedule_ns, execute_ns, update_ns, device_ns, kv_cache_usage, running"
    rows = store.query(f"SELECT {columns} FROM {store.database}.batches ORDER BY start_time")
    assert [[*row.values()] for row in rows] == [
        [None, None, None, None, None, 2**63 - 1],
        [None, None, 1_500_000, None, None, None],
    ]


def test_steps_of_before_stay_as_they_are(empty_store, settings, write_segment, monkeypatch):
    """Steps stored before the columns were there have nulls in them, the next one fills them; a repeat changes nothing."""
    from axonize_server import migrate

    whole = migrate.load("clickhouse")
    with monkeypatch.context() as patch:
        patch.setattr(migrate, "load", lambda _: [found for found in whole if found.number < 10])
        migrate.migrate_store(empty_store, settings)
    now = time.time_ns()
    said = {names.BATCH_SEQ: 1, names.BATCH_SCHEDULE_MS: 0.25, names.BATCH_WAITING: 3}
    insert(empty_store, write_segment(*as_requests([own_span("batch", now, now + 1, said)], {})))
    later, *_ = migrate.migrate_store(empty_store, settings)
    assert later.number == 10
    for statement in later.statements:
        empty_store.command(statement)
    insert(
        empty_store, write_segment(*as_requests([own_span("batch", now + 1, now + 2, said | {names.BATCH_SEQ: 2})], {}))
    )
    rows = empty_store.query(f"SELECT step_seq, schedule_ns, waiting FROM {empty_store.database}.batches ORDER BY 1")
    assert [[*row.values()] for row in rows] == [[1, None, None], [2, 250_000, 3]]


def _packed(values, width):
    return b"".join(value.to_bytes(width, "little") for value in values)


def test_the_rollup_adds_up(store, write_segment):
    """Counts, tokens and percentiles by minute equal those of the spans."""
    requests, served, _, _ = load(4, 60)
    insert(store, write_segment(*requests))
    rolled = store.query(
        "SELECT sum(requests) AS n, sum(input_tokens) AS tokens_in, sum(output_tokens) AS tokens_out,"
        " quantilesTDigestMerge(0.5, 0.9, 0.99)(ttft_ms)[1] AS p50, count() AS minutes"
        f" FROM {store.database}.requests_1m"
    )[0]
    raw = store.query(
        "SELECT count() AS n, sum(input_tokens) AS tokens_in, sum(output_tokens) AS tokens_out,"
        f" countIf(ttft_ms < {rolled['p50']!r}) AS below FROM {store.database}.spans WHERE phase = 'request'"
    )[0]
    assert rolled["n"] == raw["n"] == len(served) // 4
    assert (rolled["tokens_in"], rolled["tokens_out"]) == (raw["tokens_in"], raw["tokens_out"])
    # A digest interpolates between neighbours, which lie far apart among few requests: its rank is what holds.
    assert raw["below"] / raw["n"] == pytest.approx(0.5, abs=0.05)
    assert rolled["minutes"] > 1


def test_what_is_no_segment_is_refused(store, tmp_path):
    """Bytes that are no OTLP are refused as such, and nothing of them is stored."""
    generator = random.Random(1)
    for number in range(3):
        path = tmp_path / f"{number}.pb"
        path.write_bytes(generator.randbytes(500))
        with pytest.raises(SegmentRefusedError):
            store.insert(path, "traces", str(number))
    assert store.rows()["spans"] == 0


def test_wrong_id_lengths_are_refused(store, write_segment):
    """An id too long for its column is refused: receivers let none through, but the store does not cut either."""
    request = ExportTraceServiceRequest()
    request.resource_spans.add().scope_spans.add().spans.add(trace_id=b"x" * 17, span_id=b"y" * 8)
    with pytest.raises(SegmentRefusedError):
        insert(store, write_segment(request))


def test_a_torn_segment_is_refused(store, write_segment):
    """A segment that ends inside a message is refused whole."""
    segment = write_segment(*load(5, 3)[0])
    segment.path.write_bytes(segment.path.read_bytes()[:-7])
    with pytest.raises(SegmentRefusedError):
        insert(store, segment)
    assert store.rows()["spans"] == 0


def test_a_segment_too_large_as_rows_is_refused(store, write_segment, monkeypatch):
    """A small body that would need more memory than a statement may have is refused, and costs only itself."""
    monkeypatch.setitem(clickhouse._PINNED, "max_memory_usage", 30_000_000)
    spans = [own_span("queue", time.time_ns(), time.time_ns(), {}) for _ in range(512)]
    resource = {f"key {number}": "value" * 10 for number in range(2000)}
    with pytest.raises(SegmentRefusedError, match="memory"):
        insert(store, write_segment(*as_requests(spans, resource)))
    assert store.rows()["spans"] == 0
    insert(store, write_segment(*load(7, 3)[0]))
    assert store.rows()["spans"] > 12


def test_a_server_error_is_no_refusal(http_store, clickhouse_front, write_segment):
    """A 500 without a code of the data leaves the segment to be asked for again, and then it counts once."""
    segment = write_segment(*load(6, 3)[0])
    clickhouse_front.insert_faults = iter([refused(500)])
    with pytest.raises(StoreUnreachableError):
        insert(http_store, segment)
    insert(http_store, segment)
    insert(http_store, segment)
    assert totals(http_store)["requests_1m"] == 3


def test_nobody_there():
    """An address where nobody listens is an error that names it."""
    with pytest.raises(StoreUnreachableError, match=r"127\.0\.0\.1:9"):
        ClickHouseStore("http://127.0.0.1:9/axonize")


_MERGING = """
import sys
from contextlib import suppress
from pathlib import Path
from threading import Thread
from axonize_server.store.clickhouse import ClickHouseStore

def niceness():
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):
            if (task / "comm").read_text().strip() == "MergeMutate":
                yield int((task / "stat").read_text().rsplit(")")[1].split()[16])

store = ClickHouseStore(f"chdb://{sys.argv[1]}")
print(store.query("SELECT value FROM system.merge_tree_settings WHERE name = 'merge_selector_base'")[0]["value"])
store.command("CREATE TABLE default.t (a Int64) ENGINE = MergeTree ORDER BY a")
most = 0
while most < 10:
    for _ in range(3):
        store.command("INSERT INTO default.t SELECT number FROM numbers(500000)")
    merging = Thread(target=store.command, args=("OPTIMIZE TABLE default.t FINAL",))
    merging.start()
    while merging.is_alive():
        most = max([most, *niceness()])
print(most)
"""


def test_merges_of_the_embedded_engine_go_last(tmp_path):
    """They are nice, and make one part of ten; in a process of its own, since an engine is configured once in each."""
    said = subprocess.check_output(
        [sys.executable, "-c", _MERGING, str(tmp_path / "clickhouse")], text=True, timeout=60
    )
    assert said.split("\n")[:2] == ["10", "10"]


def test_an_old_server_is_refused(empty_store, monkeypatch):
    """A ClickHouse that cannot take a schema inside a statement is refused when the store is opened."""
    monkeypatch.setattr(clickhouse, "MINIMUM_VERSION", (99, 1))
    with pytest.raises(ConfigurationError, match=r"needs 99\.1 or later"):
        ClickHouseStore(empty_store.dsn)


def points(metric, *values, now, **attributes):
    for value in values:
        point = metric.data_points.add(time_unix_nano=now, start_time_unix_nano=now - 10)
        set_attributes(point.attributes, attributes)
        if isinstance(value, int):
            point.as_int = value
        else:
            point.as_double = value


def test_every_metric_type(store, write_segment):
    """Gauges, sums, histograms, exponential histograms and summaries become rows with all their parts."""
    now = time.time_ns()
    request = ExportMetricsServiceRequest()
    resource_metrics = request.resource_metrics.add()
    set_attributes(resource_metrics.resource.attributes, {"service.name": "s"})
    metrics = resource_metrics.scope_metrics.add().metrics
    points(metrics.add(name="g", unit="1", description="d").gauge, 0, 0.0, now=now, key="v", n=1, b=b"\x00")
    total = metrics.add(name="s").sum
    total.is_monotonic, total.aggregation_temporality = True, 2
    points(total, 2**63 - 1, now=now)
    histogram = metrics.add(name="h").histogram
    histogram.aggregation_temporality = 1
    point = histogram.data_points.add(time_unix_nano=now, count=3, sum=0.0, bucket_counts=[1, 2], explicit_bounds=[0.5])
    point.exemplars.add(as_double=1.0, trace_id=b"t" * 16)
    point = metrics.add(name="e").exponential_histogram.data_points.add(
        time_unix_nano=now, count=4, scale=-2, zero_count=1
    )
    point.positive.offset, point.min = -3, -1.5
    point.positive.bucket_counts.extend([1, 0, 2**40])
    point = metrics.add(name="q").summary.data_points.add(time_unix_nano=now, count=5, sum=6.5)
    point.quantile_values.add(quantile=0.99, value=7.0)
    metrics.add(name="none at all")
    segment = write_segment(request, signal="metrics")
    for _ in range(3):
        insert(store, segment)
    found = {}
    for row in store.query(f"SELECT * FROM {store.database}.metrics"):
        found.setdefault(row["name"], []).append(row)
    assert {name: len(rows) for name, rows in found.items()} == {"g": 2, "s": 1, "h": 1, "e": 1, "q": 1}
    assert {(row["value_int"], row["value_float"]) for row in found["g"]} == {(0, None), (None, 0.0)}
    gauge = found["g"][0]
    assert (gauge["attrs_string"], gauge["attrs_int"], gauge["attrs_raw"]) == ({"key": "v"}, {"n": 1}, {"b": "b\x00"})
    assert (gauge["service"], gauge["unit"], gauge["description"], gauge["type"]) == ("s", "1", "d", "gauge")
    s, h, e, q = (found[name][0] for name in "sheq")
    assert (s["value_int"], s["monotonic"], s["temporality"], s["count"]) == (2**63 - 1, True, 2, None)
    assert (h["count"], h["sum"], h["min"], h["bucket_counts"], h["explicit_bounds"]) == (3, 0.0, None, [1, 2], [0.5])
    assert len(h["exemplars"]) == 1
    assert (e["scale"], e["zero_count"], e["positive_offset"], e["positive_counts"]) == (-2, 1, -3, [1, 0, 2**40])
    assert (e["min"], e["negative_counts"], e["sum"]) == (-1.5, [], None)
    assert (q["count"], q["sum"], q["quantiles"], q["quantile_values"]) == (5, 6.5, [0.99], [7.0])


def gpu_request(now, **readings):
    request = ExportMetricsServiceRequest()
    metrics = request.resource_metrics.add().scope_metrics.add().metrics
    identity = {names.HW_ID: "GPU-1", names.GPU_COMPUTE_RESOURCE: "MIG-1", names.GPU_PROVENANCE: "measured"}
    for name, value in readings.items():
        points(metrics.add(name="hw." + name.replace("_", ".")).gauge, value, now=now, **identity)
    return request


def test_a_gpu_sample_in_pieces_is_one_row(store, write_segment):
    """Readings of one time that come in several segments merge into one wide row; what nobody read is null."""
    now = time.time_ns()
    insert(store, write_segment(gpu_request(now, power=300.5, gpu_utilization=0.5), signal="metrics"))
    insert(store, write_segment(gpu_request(now, gpu_memory_usage=2**33), signal="metrics"))
    insert(store, write_segment(gpu_request(now, energy=0.0), signal="metrics"))
    insert(store, write_segment(gpu_request(now + 10**9, power=0), signal="metrics"))
    store.command(f"OPTIMIZE TABLE {store.database}.gpu_metrics FINAL")
    readings = "power_w, utilization, memory_used_bytes, energy_j, temperature_c, provenance, hw_name"
    rows = store.query(f"SELECT hw_id, compute_resource, {readings} FROM {store.database}.gpu_metrics ORDER BY time")
    assert [[*row.values()] for row in rows] == [
        ["GPU-1", "MIG-1", 300.5, 0.5, 2**33, 0.0, None, "measured", None],
        ["GPU-1", "MIG-1", 0.0, None, None, None, None, "measured", None],
    ]


def test_readings_that_are_no_numbers_stop_nobody(store, write_segment):
    """A reading that is NaN, infinite or beyond its column is null in the samples; the rest of the segment is stored."""
    now = time.time_ns()
    odd = gpu_request(now, power=float("nan"), gpu_utilization=1e300, energy=float("inf"), temperature=61.27)
    insert(store, write_segment(odd, gpu_request(now + 10**9, power=312.44), signal="metrics"))
    readings = "toFloat64(power_w) AS power_w, utilization, energy_j, toFloat64(temperature_c) AS temperature_c"
    rows = store.query(f"SELECT {readings} FROM {store.database}.gpu_metrics ORDER BY time")
    assert [[*row.values()] for row in rows] == [[None, None, None, 61.3], [312.4, None, None, None]]


def test_samples_of_before_are_kept_by_the_migration(store, write_segment):
    """The compact table is filled from the points that are there, and filling it twice changes nothing."""
    from axonize_server import migrate
    from axonize_server.settings import Settings

    insert(store, write_segment(gpu_request(time.time_ns(), power=300.5), signal="metrics"))
    wanted = f"SELECT * FROM {store.database}.gpu_metrics FINAL"
    before = store.query(wanted)
    again = next(found for found in migrate.load("clickhouse") if found.name == "0008_gpu_metrics.sql")
    for _ in range(2):
        for statement in migrate.render(again, migrate._variables(store.database, Settings())):
            store.command(statement)
    assert store.query(wanted) == before
    assert len(before) == 1
