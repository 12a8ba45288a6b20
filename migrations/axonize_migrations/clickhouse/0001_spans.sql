-- Every span of every client. What OTLP carries comes back from here equal, attribute by attribute:
-- the five maps of a level together hold all of its attributes. The columns with a DEFAULT repeat what
-- questions are asked about; they are derived from the maps and never the other way round.
-- statement
CREATE TABLE IF NOT EXISTS {database}.spans {on_cluster}
(
    tenant LowCardinality(String) CODEC(ZSTD(1)),
    service LowCardinality(String) DEFAULT resource_string['service.name'] CODEC(ZSTD(1)),
    model LowCardinality(String) DEFAULT if(
        attrs_string['gen_ai.request.model'] != '',
        attrs_string['gen_ai.request.model'],
        resource_string['gen_ai.request.model']
    ) CODEC(ZSTD(1)),
    start_time DateTime64(9, 'UTC') CODEC(Delta(8), ZSTD(1)),
    trace_id FixedString(16) CODEC(ZSTD(3)),
    span_id FixedString(8) CODEC(ZSTD(3)),
    parent_span_id FixedString(8) CODEC(ZSTD(3)),
    trace_state LowCardinality(String) CODEC(ZSTD(1)),
    flags UInt32 CODEC(ZSTD(1)),
    name LowCardinality(String) CODEC(ZSTD(1)),
    kind Int32 CODEC(ZSTD(1)),
    duration_ns Int64 CODEC(T64, ZSTD(3)),
    status_code Int32 CODEC(ZSTD(1)),
    status_message String CODEC(ZSTD(3)),
    attrs_string Map(LowCardinality(String), LowCardinality(String)) CODEC(ZSTD(1)),
    attrs_int Map(LowCardinality(String), Int64) CODEC(ZSTD(9)),
    attrs_float Map(LowCardinality(String), Float64) CODEC(ZSTD(9)),
    attrs_bool Map(LowCardinality(String), Bool) CODEC(ZSTD(3)),
    attrs_raw Map(LowCardinality(String), String) CODEC(ZSTD(3)),
    attrs_dropped UInt32 CODEC(ZSTD(1)),
    `events.time` Array(DateTime64(9, 'UTC')) CODEC(Delta(8), ZSTD(1)),
    `events.name` Array(LowCardinality(String)) CODEC(ZSTD(1)),
    `events.attrs` Array(Array(String)) CODEC(ZSTD(3)),
    `events.dropped` Array(UInt32) CODEC(ZSTD(1)),
    events_dropped UInt32 CODEC(ZSTD(1)),
    `links.trace_id` Array(FixedString(16)) CODEC(ZSTD(1)),
    `links.span_id` Array(FixedString(8)) CODEC(ZSTD(1)),
    `links.trace_state` Array(LowCardinality(String)) CODEC(ZSTD(1)),
    `links.attrs` Array(Array(String)) CODEC(ZSTD(3)),
    `links.dropped` Array(UInt32) CODEC(ZSTD(1)),
    `links.flags` Array(UInt32) CODEC(ZSTD(1)),
    links_dropped UInt32 CODEC(ZSTD(1)),
    scope_name LowCardinality(String) CODEC(ZSTD(1)),
    scope_version LowCardinality(String) CODEC(ZSTD(1)),
    scope_attrs Array(String) CODEC(ZSTD(3)),
    scope_dropped UInt32 CODEC(ZSTD(1)),
    scope_schema_url LowCardinality(String) CODEC(ZSTD(1)),
    resource_string Map(LowCardinality(String), LowCardinality(String)) CODEC(ZSTD(1)),
    resource_int Map(LowCardinality(String), Int64) CODEC(ZSTD(3)),
    resource_float Map(LowCardinality(String), Float64) CODEC(ZSTD(3)),
    resource_bool Map(LowCardinality(String), Bool) CODEC(ZSTD(3)),
    resource_raw Map(LowCardinality(String), String) CODEC(ZSTD(3)),
    resource_dropped UInt32 CODEC(ZSTD(1)),
    resource_schema_url LowCardinality(String) CODEC(ZSTD(1)),
    phase LowCardinality(String) DEFAULT attrs_string['ai.phase'] CODEC(ZSTD(1)),
    engine LowCardinality(String) DEFAULT if(
        attrs_string['ai.engine'] != '', attrs_string['ai.engine'], resource_string['ai.engine']
    ) CODEC(ZSTD(1)),
    operation LowCardinality(String) DEFAULT attrs_string['gen_ai.operation.name'] CODEC(ZSTD(1)),
    error_type LowCardinality(String) DEFAULT attrs_string['error.type'] CODEC(ZSTD(1)),
    compute_resource LowCardinality(String) DEFAULT attrs_string['gpu.compute_resource.id'] CODEC(ZSTD(1)),
    gpu_provenance LowCardinality(String) DEFAULT attrs_string['gpu.provenance'] CODEC(ZSTD(1)),
    -- The first string of an OTLP ArrayValue ('a', tag, length, tag, length, text), as long as lengths fit one byte.
    finish_reason LowCardinality(String) DEFAULT if(
        startsWith(attrs_raw['gen_ai.response.finish_reasons'], 'a\n')
            AND substring(attrs_raw['gen_ai.response.finish_reasons'], 4, 1) = '\n',
        substring(
            attrs_raw['gen_ai.response.finish_reasons'],
            6,
            reinterpretAsUInt8(substring(attrs_raw['gen_ai.response.finish_reasons'], 5, 1))),
        '') CODEC(ZSTD(1)),
    incomplete Bool DEFAULT attrs_bool['ai.incomplete'] CODEC(ZSTD(1)),
    instance_id String ALIAS resource_string['service.instance.id'],
    request_id String ALIAS attrs_string['ai.request.id'],
    hw_id String ALIAS attrs_string['hw.id'],
    request_seq Nullable(Int64) ALIAS
        if(mapContains(attrs_int, 'ai.request.seq'), attrs_int['ai.request.seq'], NULL),
    input_tokens Nullable(Int64) ALIAS
        if(mapContains(attrs_int, 'gen_ai.usage.input_tokens'), attrs_int['gen_ai.usage.input_tokens'], NULL),
    output_tokens Nullable(Int64) ALIAS
        if(mapContains(attrs_int, 'gen_ai.usage.output_tokens'), attrs_int['gen_ai.usage.output_tokens'], NULL),
    queue_ms Nullable(Float64) ALIAS
        if(mapContains(attrs_float, 'gen_ai.latency.time_in_queue'),
           attrs_float['gen_ai.latency.time_in_queue'] * 1000, NULL),
    ttft_ms Nullable(Float64) ALIAS
        if(mapContains(attrs_float, 'gen_ai.latency.time_to_first_token'),
           attrs_float['gen_ai.latency.time_to_first_token'] * 1000, NULL),
    tpot_ms Nullable(Float64) ALIAS
        if(mapContains(attrs_float, 'gen_ai.latency.time_per_output_token'),
           attrs_float['gen_ai.latency.time_per_output_token'] * 1000, NULL),
    INDEX by_trace trace_id TYPE bloom_filter(0.001) GRANULARITY 1
)
ENGINE = {engine:MergeTree}
PARTITION BY toDate(start_time)
ORDER BY (tenant, service, model, toStartOfMinute(start_time), trace_id, start_time)
TTL toDateTime(start_time) + INTERVAL {ttl_spans_days} DAY
SETTINGS ttl_only_drop_parts = 1, non_replicated_deduplication_window = {dedup_window};
