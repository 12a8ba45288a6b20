-- GPU samples, one wide row per compute resource and time. A sample may come as several data points, even in
-- several requests: `any` passes over nulls, so the parts of one sample merge into one row.
-- statement
CREATE TABLE IF NOT EXISTS {database}.gpu_metrics {on_cluster}
(
    tenant LowCardinality(String) CODEC(ZSTD(1)),
    hw_id LowCardinality(String) CODEC(ZSTD(1)),
    compute_resource LowCardinality(String) CODEC(ZSTD(1)),
    time DateTime64(9, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    hw_name SimpleAggregateFunction(anyLast, Nullable(String)),
    provenance SimpleAggregateFunction(any, Nullable(String)),
    utilization SimpleAggregateFunction(any, Nullable(Float64)) CODEC(Gorilla(8), ZSTD(1)),
    memory_used_bytes SimpleAggregateFunction(any, Nullable(Int64)) CODEC(Delta(8), ZSTD(1)),
    memory_total_bytes SimpleAggregateFunction(any, Nullable(Int64)) CODEC(Delta(8), ZSTD(1)),
    power_w SimpleAggregateFunction(any, Nullable(Float64)) CODEC(Gorilla(8), ZSTD(1)),
    energy_j SimpleAggregateFunction(any, Nullable(Float64)) CODEC(Gorilla(8), ZSTD(1)),
    temperature_c SimpleAggregateFunction(any, Nullable(Float64)) CODEC(Gorilla(8), ZSTD(1))
)
ENGINE = {engine:AggregatingMergeTree}
PARTITION BY toDate(time)
ORDER BY (tenant, hw_id, compute_resource, time)
TTL toDateTime(time) + INTERVAL {ttl_gpu_metrics_days} DAY
SETTINGS ttl_only_drop_parts = 1, non_replicated_deduplication_window = {dedup_window};
-- statement
CREATE MATERIALIZED VIEW IF NOT EXISTS {database}.gpu_metrics_mv {on_cluster} TO {database}.gpu_metrics AS
SELECT
    tenant,
    attrs_string['hw.id'] AS hw_id,
    attrs_string['gpu.compute_resource.id'] AS compute_resource,
    time,
    anyLast(nullIf(attrs_string['hw.name'], '')) AS hw_name,
    any(nullIf(attrs_string['gpu.provenance'], '')) AS provenance,
    anyIf(coalesce(value_float, toFloat64(value_int)), name = 'hw.gpu.utilization') AS utilization,
    anyIf(coalesce(value_int, toInt64(value_float)), name = 'hw.gpu.memory.usage') AS memory_used_bytes,
    anyIf(coalesce(value_int, toInt64(value_float)), name = 'hw.gpu.memory.limit') AS memory_total_bytes,
    anyIf(coalesce(value_float, toFloat64(value_int)), name = 'hw.power') AS power_w,
    anyIf(coalesce(value_float, toFloat64(value_int)), name = 'hw.energy') AS energy_j,
    anyIf(coalesce(value_float, toFloat64(value_int)), name = 'hw.temperature') AS temperature_c
FROM {database}.metrics
WHERE startsWith(name, 'hw.') AND attrs_string['hw.id'] != ''
GROUP BY tenant, hw_id, compute_resource, time;
