-- What agents report about the identity of GPUs, in the order it came in: the registry reads on from where it stopped.
-- A report may be minutes old (agents queue on disk), so `inserted_at` is what is read by and `time` is what is meant.
-- statement
CREATE TABLE IF NOT EXISTS {database}.gpu_inventory {on_cluster}
(
    tenant LowCardinality(String) CODEC(ZSTD(1)),
    layer LowCardinality(String) CODEC(ZSTD(1)),
    id String CODEC(ZSTD(1)),
    agent LowCardinality(String) CODEC(ZSTD(1)),
    time DateTime64(9, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    present Bool CODEC(ZSTD(1)),
    attributes String CODEC(ZSTD(1)),
    inserted_at DateTime64(9, 'UTC') DEFAULT now64(9) CODEC(Delta(8), ZSTD(1))
)
ENGINE = {engine:MergeTree}
PARTITION BY toStartOfHour(inserted_at)
ORDER BY (tenant, layer, id, inserted_at)
TTL toDateTime(inserted_at) + INTERVAL {ttl_spans_days} DAY
SETTINGS ttl_only_drop_parts = 1, non_replicated_deduplication_window = {dedup_window};
-- statement
CREATE MATERIALIZED VIEW IF NOT EXISTS {database}.gpu_inventory_mv {on_cluster} TO {database}.gpu_inventory AS
SELECT
    tenant,
    multiIf(
        name = 'axonize.gpu.info', 'gpu',
        name = 'axonize.gpu.compute_resource.info', 'compute_resource',
        'context'
    ) AS layer,
    multiIf(
        name = 'axonize.gpu.info', attrs_string['hw.id'],
        name = 'axonize.gpu.compute_resource.info', attrs_string['gpu.compute_resource.id'],
        attrs_string['gpu.context.id']
    ) AS id,
    instance_id AS agent,
    time,
    ifNull(value_int > 0, ifNull(value_float > 0, false)) AS present,
    toJSONString(tuple(
        mapFilter((name, value) -> name IN ('host.name', 'k8s.node.name'), resource_string),
        attrs_string, attrs_int, attrs_float, attrs_bool
    )) AS attributes
FROM {database}.metrics
WHERE name IN ('axonize.gpu.info', 'axonize.gpu.compute_resource.info', 'axonize.gpu.context.info')
    AND id != '' AND (value_int IS NOT NULL OR value_float IS NOT NULL);
