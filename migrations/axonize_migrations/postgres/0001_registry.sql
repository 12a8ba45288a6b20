-- The three layers of GPU identity, and what the collector must know that is no telemetry. One SQL for SQLite and
-- PostgreSQL: ids are text made by us, times are RFC 3339 text in UTC, documents are JSON text.
--
-- physical_gpus -> compute_resources -> resource_contexts: the hardware, what can be scheduled on it (the whole GPU
-- or a slice), and what a process called it at some time. Every pod may see "cuda:0"; none is ever confused.
-- statement
CREATE TABLE IF NOT EXISTS physical_gpus (
    gpu_uuid TEXT NOT NULL PRIMARY KEY,
    model TEXT NOT NULL,
    node TEXT NOT NULL,
    pci_bus_id TEXT,
    memory_bytes BIGINT,
    driver_version TEXT,
    mig_enabled INTEGER NOT NULL DEFAULT 0,
    provenance TEXT NOT NULL,
    first_seen_at TEXT NOT NULL,
    last_seen_at TEXT NOT NULL
);
-- statement
-- A slice that is destroyed and made again is a new generation: another row, though its uuid came back.
CREATE TABLE IF NOT EXISTS compute_resources (
    resource_id TEXT NOT NULL PRIMARY KEY,
    uuid TEXT NOT NULL,
    generation INTEGER NOT NULL DEFAULT 1,
    gpu_uuid TEXT NOT NULL REFERENCES physical_gpus (gpu_uuid),
    kind TEXT NOT NULL,
    mig_profile TEXT,
    gpu_instance_id INTEGER,
    compute_instance_id INTEGER,
    placement_start INTEGER,
    placement_size INTEGER,
    memory_bytes BIGINT,
    provenance TEXT NOT NULL,
    first_seen_at TEXT NOT NULL,
    last_seen_at TEXT NOT NULL,
    gone_at TEXT,
    UNIQUE (uuid, generation),
    CHECK (kind IN ('full', 'mig'))
);
-- statement
CREATE INDEX IF NOT EXISTS compute_resources_by_gpu ON compute_resources (gpu_uuid);
-- statement
-- History: a row per time a process held a resource under a name; open while valid_to is null.
CREATE TABLE IF NOT EXISTS resource_contexts (
    context_id TEXT NOT NULL PRIMARY KEY,
    resource_id TEXT NOT NULL REFERENCES compute_resources (resource_id),
    tenant_id TEXT NOT NULL,
    instance_id TEXT NOT NULL,
    device TEXT NOT NULL,
    host TEXT NOT NULL,
    pid INTEGER,
    pod TEXT,
    container TEXT,
    valid_from TEXT NOT NULL,
    valid_to TEXT,
    last_seen_at TEXT NOT NULL
);
-- statement
CREATE INDEX IF NOT EXISTS resource_contexts_by_resource ON resource_contexts (resource_id, valid_from);
-- statement
CREATE INDEX IF NOT EXISTS resource_contexts_by_instance ON resource_contexts (instance_id, device);
-- statement
-- What a resource costs, by model of GPU and kind of slice; the price valid at a time is the newest not after it.
CREATE TABLE IF NOT EXISTS prices (
    price_id TEXT NOT NULL PRIMARY KEY,
    tenant_id TEXT NOT NULL,
    gpu_model TEXT NOT NULL,
    mig_profile TEXT NOT NULL DEFAULT '',
    currency TEXT NOT NULL,
    per_gpu_second NUMERIC(20, 12),
    per_joule NUMERIC(20, 12),
    valid_from TEXT NOT NULL,
    valid_to TEXT,
    source TEXT NOT NULL,
    UNIQUE (tenant_id, gpu_model, mig_profile, valid_from)
);
-- statement
CREATE TABLE IF NOT EXISTS engine_compatibility (
    engine TEXT NOT NULL,
    version_from TEXT NOT NULL,
    version_before TEXT NOT NULL DEFAULT '',
    integration_version TEXT NOT NULL,
    status TEXT NOT NULL,
    notes TEXT NOT NULL DEFAULT '',
    checked_at TEXT NOT NULL,
    PRIMARY KEY (engine, version_from, integration_version),
    CHECK (status IN ('supported', 'untested', 'unsupported'))
);
-- statement
CREATE TABLE IF NOT EXISTS tenants (
    tenant_id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    settings TEXT NOT NULL DEFAULT '{}',
    created_at TEXT NOT NULL,
    disabled_at TEXT
);
-- statement
-- Only the hash of a key is kept; the prefix is shown so that people can tell their keys apart.
CREATE TABLE IF NOT EXISTS api_keys (
    key_id TEXT NOT NULL PRIMARY KEY,
    tenant_id TEXT NOT NULL REFERENCES tenants (tenant_id),
    prefix TEXT NOT NULL,
    key_sha256 TEXT NOT NULL UNIQUE,
    scopes TEXT NOT NULL,
    description TEXT NOT NULL DEFAULT '',
    created_at TEXT NOT NULL,
    expires_at TEXT,
    last_used_at TEXT,
    revoked_at TEXT
);
-- statement
CREATE INDEX IF NOT EXISTS api_keys_by_tenant ON api_keys (tenant_id);
