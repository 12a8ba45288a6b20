-- Requests by minute, kept longer than the spans they came from. A request counts in the minute it started.
-- The digests hold milliseconds; an unknown latency is in no digest.
-- statement
CREATE TABLE IF NOT EXISTS {database}.requests_1m {on_cluster}
(
    tenant LowCardinality(String) CODEC(ZSTD(1)),
    service LowCardinality(String) CODEC(ZSTD(1)),
    model LowCardinality(String) CODEC(ZSTD(1)),
    engine LowCardinality(String) CODEC(ZSTD(1)),
    minute DateTime('UTC') CODEC(Delta(4), ZSTD(1)),
    requests SimpleAggregateFunction(sum, UInt64) CODEC(T64, ZSTD(1)),
    errors SimpleAggregateFunction(sum, UInt64) CODEC(T64, ZSTD(1)),
    incomplete SimpleAggregateFunction(sum, UInt64) CODEC(T64, ZSTD(1)),
    input_tokens SimpleAggregateFunction(sum, Nullable(Int64)) CODEC(T64, ZSTD(1)),
    output_tokens SimpleAggregateFunction(sum, Nullable(Int64)) CODEC(T64, ZSTD(1)),
    e2e_ms AggregateFunction(quantilesTDigest(0.5, 0.9, 0.99), Float32),
    queue_ms AggregateFunction(quantilesTDigest(0.5, 0.9, 0.99), Nullable(Float32)),
    ttft_ms AggregateFunction(quantilesTDigest(0.5, 0.9, 0.99), Nullable(Float32)),
    tpot_ms AggregateFunction(quantilesTDigest(0.5, 0.9, 0.99), Nullable(Float32))
)
ENGINE = {engine:AggregatingMergeTree}
PARTITION BY toDate(minute)
ORDER BY (tenant, service, model, engine, minute)
TTL minute + INTERVAL {ttl_rollups_days} DAY
SETTINGS ttl_only_drop_parts = 1, non_replicated_deduplication_window = {dedup_window};
-- statement
CREATE MATERIALIZED VIEW IF NOT EXISTS {database}.requests_1m_mv {on_cluster} TO {database}.requests_1m AS
SELECT
    tenant, service, model, engine,
    toStartOfMinute(toDateTime(start_time, 'UTC')) AS minute,
    count() AS requests,
    countIf(status_code = 2) AS errors,
    countIf(spans.incomplete) AS incomplete,
    sum(spans.input_tokens) AS input_tokens,
    sum(spans.output_tokens) AS output_tokens,
    quantilesTDigestState(0.5, 0.9, 0.99)(toFloat32(duration_ns / 1e6)) AS e2e_ms,
    quantilesTDigestState(0.5, 0.9, 0.99)(toFloat32(spans.queue_ms)) AS queue_ms,
    quantilesTDigestState(0.5, 0.9, 0.99)(toFloat32(spans.ttft_ms)) AS ttft_ms,
    quantilesTDigestState(0.5, 0.9, 0.99)(toFloat32(spans.tpot_ms)) AS tpot_ms
FROM {database}.spans
WHERE phase = 'request'
GROUP BY tenant, service, model, engine, minute;
