-- What an engine says of its steps: where their time went, the device's own time, who runs and who waits, and how full
-- the KV cache is. Steps of before, and of engines that do not say it, have null. Times are exact to the nanosecond, and
-- execution is what is left of a step between its other two parts; what is no number, or beyond its column, is null, so
-- that it stops no segment.
-- statement
ALTER TABLE {database}.batches {on_cluster}
    ADD COLUMN IF NOT EXISTS schedule_ns Nullable(Int64) CODEC(T64, ZSTD(3)),
    ADD COLUMN IF NOT EXISTS update_ns Nullable(Int64) CODEC(T64, ZSTD(3)),
    ADD COLUMN IF NOT EXISTS execute_ns Nullable(Int64) ALIAS duration_ns - schedule_ns - update_ns,
    ADD COLUMN IF NOT EXISTS device_ns Nullable(Int64) CODEC(T64, ZSTD(3)),
    ADD COLUMN IF NOT EXISTS running Nullable(Int64) CODEC(T64, ZSTD(3)),
    ADD COLUMN IF NOT EXISTS waiting Nullable(Int64) CODEC(T64, ZSTD(3)),
    ADD COLUMN IF NOT EXISTS kv_cache_usage Nullable(Decimal(9, 4)) CODEC(T64, ZSTD(3));
-- statement
ALTER TABLE {database}.batches_mv {on_cluster} MODIFY QUERY
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
    reinterpret(substring(attrs_raw['ai.batch.member.context_tokens'], 2), 'Array(UInt32)') AS member_context_tokens,
    if(mapContains(attrs_float, 'ai.batch.schedule_ms'),
       accurateCastOrNull(round(attrs_float['ai.batch.schedule_ms'] * 1e6), 'Int64'), NULL) AS schedule_ns,
    if(mapContains(attrs_float, 'ai.batch.update_ms'),
       accurateCastOrNull(round(attrs_float['ai.batch.update_ms'] * 1e6), 'Int64'), NULL) AS update_ns,
    if(mapContains(attrs_float, 'ai.device_time_ms'),
       accurateCastOrNull(round(attrs_float['ai.device_time_ms'] * 1e6), 'Int64'), NULL) AS device_ns,
    if(mapContains(attrs_int, 'ai.batch.running'), attrs_int['ai.batch.running'], NULL) AS running,
    if(mapContains(attrs_int, 'ai.batch.waiting'), attrs_int['ai.batch.waiting'], NULL) AS waiting,
    if(mapContains(attrs_float, 'ai.batch.kv_cache.usage'),
       toDecimal32(accurateCastOrNull(round(attrs_float['ai.batch.kv_cache.usage'] * 1e4), 'Int16'), 4) / 10000, NULL)
        AS kv_cache_usage
FROM {database}.spans
WHERE phase = 'batch';
