-- Totals per trace, added up while spans arrive: a trace may come in many segments, over many minutes.
-- statement
CREATE TABLE IF NOT EXISTS {database}.traces {on_cluster}
(
    tenant LowCardinality(String) CODEC(ZSTD(1)),
    trace_id FixedString(16) CODEC(ZSTD(1)),
    start_time SimpleAggregateFunction(min, DateTime64(9, 'UTC')) CODEC(Delta(8), ZSTD(1)),
    end_time SimpleAggregateFunction(max, DateTime64(9, 'UTC')) CODEC(Delta(8), ZSTD(1)),
    spans SimpleAggregateFunction(sum, UInt64) CODEC(T64, ZSTD(1)),
    errors SimpleAggregateFunction(sum, UInt64) CODEC(T64, ZSTD(1)),
    requests SimpleAggregateFunction(sum, UInt64) CODEC(T64, ZSTD(1)),
    input_tokens SimpleAggregateFunction(sum, Nullable(Int64)) CODEC(T64, ZSTD(1)),
    output_tokens SimpleAggregateFunction(sum, Nullable(Int64)) CODEC(T64, ZSTD(1))
)
ENGINE = {engine:AggregatingMergeTree}
PARTITION BY toDate(start_time)
ORDER BY (tenant, trace_id)
TTL toDateTime(start_time) + INTERVAL {ttl_traces_days} DAY
SETTINGS ttl_only_drop_parts = 1, non_replicated_deduplication_window = {dedup_window};
-- statement
CREATE MATERIALIZED VIEW IF NOT EXISTS {database}.traces_mv {on_cluster} TO {database}.traces AS
SELECT
    tenant,
    trace_id,
    min(spans.start_time) AS start_time,
    max(addNanoseconds(spans.start_time, duration_ns)) AS end_time,
    count() AS spans,
    countIf(status_code = 2) AS errors,
    countIf(phase = 'request') AS requests,
    sumIf(spans.input_tokens, phase = 'request') AS input_tokens,
    sumIf(spans.output_tokens, phase = 'request') AS output_tokens
FROM {database}.spans
GROUP BY tenant, trace_id, toDate(spans.start_time);
