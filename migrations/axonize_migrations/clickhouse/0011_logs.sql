-- One row per OTLP log record. A text body stands in `body`; any other kind of value in `body_raw`: a letter for
-- its kind, then its bytes, as in the maps of raw attributes. A record without a time has that of its observation.
-- statement
CREATE TABLE IF NOT EXISTS {database}.logs {on_cluster}
(
    tenant LowCardinality(String) CODEC(ZSTD(1)),
    service LowCardinality(String) DEFAULT resource_string['service.name'] CODEC(ZSTD(1)),
    severity_number Int32 CODEC(ZSTD(1)),
    time DateTime64(9, 'UTC') CODEC(Delta(8), ZSTD(1)),
    time_unknown Bool CODEC(ZSTD(1)),
    observed_time DateTime64(9, 'UTC') CODEC(Delta(8), ZSTD(1)),
    trace_id FixedString(16) CODEC(ZSTD(3)),
    span_id FixedString(8) CODEC(ZSTD(3)),
    flags UInt32 CODEC(ZSTD(1)),
    severity_text LowCardinality(String) CODEC(ZSTD(1)),
    event_name LowCardinality(String) CODEC(ZSTD(1)),
    body String CODEC(ZSTD(3)),
    body_raw String CODEC(ZSTD(3)),
    attrs_string Map(LowCardinality(String), LowCardinality(String)) CODEC(ZSTD(1)),
    attrs_int Map(LowCardinality(String), Int64) CODEC(ZSTD(3)),
    attrs_float Map(LowCardinality(String), Float64) CODEC(ZSTD(3)),
    attrs_bool Map(LowCardinality(String), Bool) CODEC(ZSTD(3)),
    attrs_raw Map(LowCardinality(String), String) CODEC(ZSTD(3)),
    attrs_dropped UInt32 CODEC(ZSTD(1)),
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
    INDEX by_trace trace_id TYPE bloom_filter(0.001) GRANULARITY 1,
    INDEX by_word body TYPE tokenbf_v1(32768, 3, 0) GRANULARITY 8
)
ENGINE = {engine:MergeTree}
PARTITION BY toDate(time)
ORDER BY (tenant, service, severity_number, time)
TTL toDateTime(time) + INTERVAL {ttl_logs_days} DAY
SETTINGS ttl_only_drop_parts = 1, non_replicated_deduplication_window = {dedup_window};
