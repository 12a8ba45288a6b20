-- One row per engine step. Members stand in parallel arrays, decoded from the fixed-width little-endian
-- bytes attributes (the leading 'b' of a raw value is skipped).
-- statement
CREATE TABLE IF NOT EXISTS {database}.batches {on_cluster}
(
    tenant LowCardinality(String) CODEC(ZSTD(1)),
    service LowCardinality(String) CODEC(ZSTD(1)),
    model LowCardinality(String) CODEC(ZSTD(1)),
    engine LowCardinality(String) CODEC(ZSTD(1)),
    instance_id LowCardinality(String) CODEC(ZSTD(1)),
    start_time DateTime64(9, 'UTC') CODEC(Delta(8), ZSTD(1)),
    duration_ns Int64 CODEC(T64, ZSTD(3)),
    trace_id FixedString(16) CODEC(ZSTD(3)),
    span_id FixedString(8) CODEC(ZSTD(3)),
    step_seq Nullable(Int64) CODEC(Delta(8), ZSTD(3)),
    size Nullable(Int64) CODEC(T64, ZSTD(3)),
    prefill_tokens Nullable(Int64) CODEC(T64, ZSTD(3)),
    decode_tokens Nullable(Int64) CODEC(T64, ZSTD(3)),
    hw_id LowCardinality(String) CODEC(ZSTD(1)),
    compute_resource LowCardinality(String) CODEC(ZSTD(1)),
    gpu_provenance LowCardinality(String) CODEC(ZSTD(1)),
    incomplete Bool CODEC(ZSTD(1)),
    status_code Int32 CODEC(ZSTD(1)),
    member_request_seq Array(UInt64) CODEC(Delta(8), ZSTD(6)),
    member_prefill_tokens Array(UInt32) CODEC(ZSTD(3)),
    member_decode_tokens Array(UInt32) CODEC(ZSTD(3)),
    member_context_tokens Array(UInt32) CODEC(Delta(4), ZSTD(6))
)
ENGINE = {engine:MergeTree}
PARTITION BY toDate(start_time)
ORDER BY (tenant, service, model, instance_id, start_time)
TTL toDateTime(start_time) + INTERVAL {ttl_batches_days} DAY
SETTINGS ttl_only_drop_parts = 1, non_replicated_deduplication_window = {dedup_window};
-- statement
CREATE MATERIALIZED VIEW IF NOT EXISTS {database}.batches_mv {on_cluster} TO {database}.batches AS
SELECT
    tenant, service, model, engine, instance_id, start_time, duration_ns, trace_id, span_id,
    if(mapContains(attrs_int, 'ai.batch.seq'), attrs_int['ai.batch.seq'], NULL) AS step_seq,
    if(mapContains(attrs_int, 'ai.batch.size'), attrs_int['ai.batch.size'], NULL) AS size,
    if(mapContains(attrs_int, 'ai.batch.prefill_tokens'), attrs_int['ai.batch.prefill_tokens'], NULL) AS prefill_tokens,
    if(mapContains(attrs_int, 'ai.batch.decode_tokens'), attrs_int['ai.batch.decode_tokens'], NULL) AS decode_tokens,
    hw_id, compute_resource, gpu_provenance, incomplete, status_code,
    reinterpret(substring(attrs_raw['ai.batch.member.request_seq'], 2), 'Array(UInt64)') AS member_request_seq,
    reinterpret(substring(attrs_raw['ai.batch.member.prefill_tokens'], 2), 'Array(UInt32)') AS member_prefill_tokens,
    reinterpret(substring(attrs_raw['ai.batch.member.decode_tokens'], 2), 'Array(UInt32)') AS member_decode_tokens,
    reinterpret(substring(attrs_raw['ai.batch.member.context_tokens'], 2), 'Array(UInt32)') AS member_context_tokens
FROM {database}.spans
WHERE phase = 'batch';
