-- GPU samples by minute, kept longer than the samples: a day of one GPU is 1,440 rows. What several agents read of one
-- GPU at a time is the mean or the greatest of all their readings. No energy here: it is no mean (see the API's energy).
-- statement
CREATE TABLE IF NOT EXISTS {database}.gpu_metrics_1m {on_cluster}
(
    tenant LowCardinality(String) CODEC(ZSTD(1)),
    hw_id LowCardinality(String) CODEC(ZSTD(1)),
    compute_resource LowCardinality(String) CODEC(ZSTD(1)),
    minute DateTime('UTC') CODEC(Delta(4), ZSTD(1)),
    provenance SimpleAggregateFunction(any, LowCardinality(Nullable(String))) CODEC(ZSTD(1)),
    utilization AggregateFunction(avg, Nullable(Float64)),
    utilization_max SimpleAggregateFunction(max, Nullable(Decimal(9, 2))) CODEC(T64, ZSTD(1)),
    power_w AggregateFunction(avg, Nullable(Float64)),
    power_w_max SimpleAggregateFunction(max, Nullable(Decimal(9, 1))) CODEC(T64, ZSTD(1)),
    memory_used_bytes_max SimpleAggregateFunction(max, Nullable(Int64)) CODEC(ZSTD(1)),
    temperature_c_max SimpleAggregateFunction(max, Nullable(Decimal(9, 1))) CODEC(T64, ZSTD(1))
)
ENGINE = {engine:AggregatingMergeTree}
PARTITION BY toDate(minute)
ORDER BY (tenant, compute_resource, hw_id, minute)
TTL minute + INTERVAL {ttl_rollups_days} DAY
SETTINGS ttl_only_drop_parts = 1, non_replicated_deduplication_window = {dedup_window};
-- statement
CREATE MATERIALIZED VIEW IF NOT EXISTS {database}.gpu_metrics_1m_mv {on_cluster} TO {database}.gpu_metrics_1m AS
SELECT
    tenant,
    hw_id,
    compute_resource,
    toStartOfMinute(toDateTime(time)) AS minute,
    any(gpu_metrics.provenance) AS provenance,
    avgState(toFloat64(gpu_metrics.utilization)) AS utilization,
    max(gpu_metrics.utilization) AS utilization_max,
    avgState(toFloat64(gpu_metrics.power_w)) AS power_w,
    max(gpu_metrics.power_w) AS power_w_max,
    max(memory_used_bytes) AS memory_used_bytes_max,
    max(temperature_c) AS temperature_c_max
FROM {database}.gpu_metrics
GROUP BY tenant, hw_id, compute_resource, minute;
-- statement
INSERT INTO {database}.gpu_metrics_1m
SELECT
    tenant,
    hw_id,
    compute_resource,
    toStartOfMinute(toDateTime(time)) AS minute,
    any(gpu_metrics.provenance) AS provenance,
    avgState(toFloat64(gpu_metrics.utilization)) AS utilization,
    max(gpu_metrics.utilization) AS utilization_max,
    avgState(toFloat64(gpu_metrics.power_w)) AS power_w,
    max(gpu_metrics.power_w) AS power_w_max,
    max(memory_used_bytes) AS memory_used_bytes_max,
    max(temperature_c) AS temperature_c_max
FROM {database}.gpu_metrics
GROUP BY tenant, hw_id, compute_resource, minute
SETTINGS max_partitions_per_insert_block = 0;
