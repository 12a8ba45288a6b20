-- The three layers as agents report them. Nothing wrote these tables before, so they are made anew: reports of the
-- layers come in any order, so no layer refers to another by a foreign key, and what is unknown is null. Every report
-- moves last_seen_at, so PostgreSQL's pages have room for the next version of each row and indexes stay as they are.
-- statement
DROP TABLE IF EXISTS resource_contexts;
-- statement
DROP TABLE IF EXISTS compute_resources;
-- statement
DROP TABLE IF EXISTS physical_gpus;
-- statement
CREATE TABLE physical_gpus (
    gpu_uuid TEXT NOT NULL PRIMARY KEY,
    model TEXT,
    vendor TEXT,
    architecture TEXT,
    node TEXT,
    pci_bus_id TEXT,
    memory_bytes BIGINT,
    driver_version TEXT,
    mig_enabled INTEGER,
    provenance TEXT,
    first_seen_at TEXT NOT NULL,
    last_seen_at TEXT NOT NULL,
    gone_at TEXT
) {room_for_updates};
-- statement
-- A slice that is destroyed and made again is a new generation: another row, though its uuid came back.
CREATE TABLE compute_resources (
    uuid TEXT NOT NULL,
    generation INTEGER NOT NULL,
    gpu_uuid TEXT,
    kind TEXT,
    mig_profile TEXT,
    gpu_instance_id INTEGER,
    compute_instance_id INTEGER,
    placement_start INTEGER,
    placement_size INTEGER,
    memory_bytes BIGINT,
    sm_share DOUBLE PRECISION,
    provenance TEXT,
    first_seen_at TEXT NOT NULL,
    last_seen_at TEXT NOT NULL,
    gone_at TEXT,
    PRIMARY KEY (uuid, generation)
) {room_for_updates};
-- statement
CREATE INDEX compute_resources_by_gpu ON compute_resources (gpu_uuid, first_seen_at);
-- statement
-- History: a row per time a process held a resource under a name; open while valid_to is null. The times of one
-- context never overlap.
CREATE TABLE resource_contexts (
    tenant_id TEXT NOT NULL,
    context_id TEXT NOT NULL,
    holding INTEGER NOT NULL,
    compute_resource TEXT,
    gpu_uuid TEXT,
    device TEXT,
    host TEXT,
    pid BIGINT,
    instance_id TEXT,
    service TEXT,
    engine TEXT,
    rank INTEGER,
    container TEXT,
    pod TEXT,
    namespace TEXT,
    node TEXT,
    sharing TEXT,
    provenance TEXT,
    valid_from TEXT NOT NULL,
    valid_to TEXT,
    last_seen_at TEXT NOT NULL,
    PRIMARY KEY (tenant_id, context_id, holding)
) {room_for_updates};
-- statement
CREATE INDEX resource_contexts_by_time ON resource_contexts (tenant_id, valid_to, valid_from);
-- statement
CREATE INDEX resource_contexts_by_resource ON resource_contexts (compute_resource, valid_from);
-- statement
-- What the rows above are made of: when each thing was reported present and when gone, as one JSON document per thing.
CREATE TABLE gpu_sightings (
    thing TEXT NOT NULL PRIMARY KEY,
    document TEXT NOT NULL
) {room_for_updates};
-- statement
CREATE TABLE registry_state (
    name TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
);
