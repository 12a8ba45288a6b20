-- One row per OTLP data point, of whatever type; what a type does not have is null or empty.
-- statement
CREATE TABLE IF NOT EXISTS {database}.metrics {on_cluster}
(
    tenant LowCardinality(String) CODEC(ZSTD(1)),
    service LowCardinality(String) DEFAULT resource_string['service.name'] CODEC(ZSTD(1)),
    instance_id LowCardinality(String) DEFAULT resource_string['service.instance.id'] CODEC(ZSTD(1)),
    name LowCardinality(String) CODEC(ZSTD(1)),
    type Enum8('gauge' = 1, 'sum' = 2, 'histogram' = 3, 'exponential_histogram' = 4, 'summary' = 5) CODEC(ZSTD(1)),
    unit LowCardinality(String) CODEC(ZSTD(1)),
    description LowCardinality(String) CODEC(ZSTD(1)),
    temporality Int32 CODEC(ZSTD(1)),
    monotonic Bool CODEC(ZSTD(1)),
    start_time DateTime64(9, 'UTC') CODEC(Delta(8), ZSTD(1)),
    time DateTime64(9, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    flags UInt32 CODEC(ZSTD(1)),
    value_int Nullable(Int64) CODEC(Delta(8), ZSTD(1)),
    value_float Nullable(Float64) CODEC(Gorilla(8), ZSTD(1)),
    count Nullable(UInt64) CODEC(Delta(8), ZSTD(1)),
    sum Nullable(Float64) CODEC(Gorilla(8), ZSTD(1)),
    min Nullable(Float64) CODEC(Gorilla(8), ZSTD(1)),
    max Nullable(Float64) CODEC(Gorilla(8), ZSTD(1)),
    bucket_counts Array(UInt64) CODEC(ZSTD(1)),
    explicit_bounds Array(Float64) CODEC(ZSTD(1)),
    scale Nullable(Int32) CODEC(ZSTD(1)),
    zero_count Nullable(UInt64) CODEC(ZSTD(1)),
    zero_threshold Nullable(Float64) CODEC(ZSTD(1)),
    positive_offset Nullable(Int32) CODEC(ZSTD(1)),
    positive_counts Array(UInt64) CODEC(ZSTD(1)),
    negative_offset Nullable(Int32) CODEC(ZSTD(1)),
    negative_counts Array(UInt64) CODEC(ZSTD(1)),
    quantiles Array(Float64) CODEC(ZSTD(1)),
    quantile_values Array(Float64) CODEC(ZSTD(1)),
    exemplars Array(String) CODEC(ZSTD(1)),
    metadata Array(String) CODEC(ZSTD(1)),
    attrs_string Map(LowCardinality(String), LowCardinality(String)) CODEC(ZSTD(1)),
    attrs_int Map(LowCardinality(String), Int64) CODEC(ZSTD(1)),
    attrs_float Map(LowCardinality(String), Float64) CODEC(ZSTD(1)),
    attrs_bool Map(LowCardinality(String), Bool) CODEC(ZSTD(1)),
    attrs_raw Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    scope_name LowCardinality(String) CODEC(ZSTD(1)),
    scope_version LowCardinality(String) CODEC(ZSTD(1)),
    scope_attrs Array(String) CODEC(ZSTD(1)),
    scope_dropped UInt32 CODEC(ZSTD(1)),
    scope_schema_url LowCardinality(String) CODEC(ZSTD(1)),
    resource_string Map(LowCardinality(String), LowCardinality(String)) CODEC(ZSTD(1)),
    resource_int Map(LowCardinality(String), Int64) CODEC(ZSTD(1)),
    resource_float Map(LowCardinality(String), Float64) CODEC(ZSTD(1)),
    resource_bool Map(LowCardinality(String), Bool) CODEC(ZSTD(1)),
    resource_raw Map(LowCardinality(String), String) CODEC(ZSTD(1)),
    resource_dropped UInt32 CODEC(ZSTD(1)),
    resource_schema_url LowCardinality(String) CODEC(ZSTD(1))
)
ENGINE = {engine:MergeTree}
PARTITION BY toDate(time)
ORDER BY (tenant, service, name, attrs_string, instance_id, time)
TTL toDateTime(time) + INTERVAL {ttl_metrics_days} DAY
SETTINGS ttl_only_drop_parts = 1, non_replicated_deduplication_window = {dedup_window};
