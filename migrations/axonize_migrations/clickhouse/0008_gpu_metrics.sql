-- GPU samples anew, in a third of the bytes: to the millisecond, 0.1 W, 1 J, 0.1 °C and a hundredth of busy, as
-- integers or decimals, which compress where floats do not. Two agents that see one GPU are two streams, so that their
-- counters are never mixed. What was sent stays exact in `metrics`, and the samples there fill the new table, so nothing
-- is lost; running twice merges into the same rows.
-- statement
DROP TABLE IF EXISTS {database}.gpu_metrics_mv {on_cluster};
-- statement
DROP TABLE IF EXISTS {database}.gpu_metrics {on_cluster};
-- statement
CREATE TABLE IF NOT EXISTS {database}.gpu_metrics {on_cluster}
(
    tenant LowCardinality(String) CODEC(ZSTD(1)),
    hw_id LowCardinality(String) CODEC(ZSTD(1)),
    compute_resource LowCardinality(String) CODEC(ZSTD(1)),
    agent LowCardinality(String) CODEC(ZSTD(1)),
    time DateTime64(3, 'UTC') CODEC(Delta(8), ZSTD(1)),
    hw_name SimpleAggregateFunction(anyLast, LowCardinality(Nullable(String))) CODEC(ZSTD(1)),
    provenance SimpleAggregateFunction(any, LowCardinality(Nullable(String))) CODEC(ZSTD(1)),
    utilization SimpleAggregateFunction(any, Nullable(Decimal(9, 2))) CODEC(T64, ZSTD(1)),
    memory_used_bytes SimpleAggregateFunction(any, Nullable(Int64)) CODEC(ZSTD(1)),
    memory_total_bytes SimpleAggregateFunction(any, Nullable(Int64)) CODEC(ZSTD(1)),
    power_w SimpleAggregateFunction(any, Nullable(Decimal(9, 1))) CODEC(Delta(4), T64('bit'), ZSTD(1)),
    energy_j SimpleAggregateFunction(any, Nullable(Int64)) CODEC(Delta(8), T64, ZSTD(1)),
    temperature_c SimpleAggregateFunction(any, Nullable(Decimal(9, 1))) CODEC(ZSTD(1))
)
ENGINE = {engine:AggregatingMergeTree}
PARTITION BY toDate(time)
ORDER BY (tenant, hw_id, compute_resource, agent, time)
TTL toDateTime(time) + INTERVAL {ttl_gpu_metrics_days} DAY
SETTINGS ttl_only_drop_parts = 1, non_replicated_deduplication_window = {dedup_window};
-- statement
CREATE MATERIALIZED VIEW IF NOT EXISTS {database}.gpu_metrics_mv {on_cluster} TO {database}.gpu_metrics AS
SELECT
    tenant,
    hw_id,
    compute_resource,
    agent,
    time,
    anyLast(name_of) AS hw_name,
    any(provenance_of) AS provenance,
    anyIf(if(abs(value) < 1e5, toDecimal32(toInt32(round(if(abs(value) < 1e5, value, 0) * 100)), 2) / 100, NULL), name = 'hw.gpu.utilization')
        AS utilization,
    anyIf(whole, name = 'hw.gpu.memory.usage') AS memory_used_bytes,
    anyIf(whole, name = 'hw.gpu.memory.limit') AS memory_total_bytes,
    anyIf(if(abs(value) < 1e7, toDecimal32(toInt32(round(if(abs(value) < 1e7, value, 0) * 10)), 1) / 10, NULL), name = 'hw.power') AS power_w,
    anyIf(whole, name = 'hw.energy') AS energy_j,
    anyIf(if(abs(value) < 1e7, toDecimal32(toInt32(round(if(abs(value) < 1e7, value, 0) * 10)), 1) / 10, NULL), name = 'hw.temperature')
        AS temperature_c
FROM
(
    SELECT
        tenant,
        name,
        attrs_string['hw.id'] AS hw_id,
        attrs_string['gpu.compute_resource.id'] AS compute_resource,
        instance_id AS agent,
        toDateTime64(metrics.time, 3, 'UTC') AS time,
        nullIf(attrs_string['hw.name'], '') AS name_of,
        nullIf(attrs_string['gpu.provenance'], '') AS provenance_of,
        ifNull(coalesce(value_float, toFloat64(value_int)), nan) AS value,
        coalesce(value_int, if(abs(value) < 9e18, toInt64(round(if(abs(value) < 9e18, value, 0))), NULL)) AS whole
    FROM {database}.metrics
    WHERE startsWith(name, 'hw.') AND attrs_string['hw.id'] != ''
)
GROUP BY tenant, hw_id, compute_resource, agent, time;
-- statement
INSERT INTO {database}.gpu_metrics
SELECT
    tenant,
    hw_id,
    compute_resource,
    agent,
    time,
    anyLast(name_of) AS hw_name,
    any(provenance_of) AS provenance,
    anyIf(if(abs(value) < 1e5, toDecimal32(toInt32(round(if(abs(value) < 1e5, value, 0) * 100)), 2) / 100, NULL), name = 'hw.gpu.utilization')
        AS utilization,
    anyIf(whole, name = 'hw.gpu.memory.usage') AS memory_used_bytes,
    anyIf(whole, name = 'hw.gpu.memory.limit') AS memory_total_bytes,
    anyIf(if(abs(value) < 1e7, toDecimal32(toInt32(round(if(abs(value) < 1e7, value, 0) * 10)), 1) / 10, NULL), name = 'hw.power') AS power_w,
    anyIf(whole, name = 'hw.energy') AS energy_j,
    anyIf(if(abs(value) < 1e7, toDecimal32(toInt32(round(if(abs(value) < 1e7, value, 0) * 10)), 1) / 10, NULL), name = 'hw.temperature')
        AS temperature_c
FROM
(
    SELECT
        tenant,
        name,
        attrs_string['hw.id'] AS hw_id,
        attrs_string['gpu.compute_resource.id'] AS compute_resource,
        instance_id AS agent,
        toDateTime64(metrics.time, 3, 'UTC') AS time,
        nullIf(attrs_string['hw.name'], '') AS name_of,
        nullIf(attrs_string['gpu.provenance'], '') AS provenance_of,
        ifNull(coalesce(value_float, toFloat64(value_int)), nan) AS value,
        coalesce(value_int, if(abs(value) < 9e18, toInt64(round(if(abs(value) < 9e18, value, 0))), NULL)) AS whole
    FROM {database}.metrics
    WHERE startsWith(name, 'hw.') AND attrs_string['hw.id'] != ''
)
GROUP BY tenant, hw_id, compute_resource, agent, time
SETTINGS max_partitions_per_insert_block = 0;
