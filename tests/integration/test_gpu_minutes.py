"""Readings of GPUs by minute."""

from __future__ import annotations

import time

import pytest
from starlette.testclient import TestClient

from axonize_server.api import make_app
from axonize_server.query_gpus import minutes
from axonize_server.spool import INSERT_SETTINGS
from gpu_reports import gpu_info, samples

S = 10**9


@pytest.fixture
def minute_ns():
    """A whole minute, ten minutes ago."""
    return (time.time_ns() // (60 * S) - 10) * 60 * S


@pytest.fixture
def write(store, write_segment):
    """Store requests as one segment; give its path and id, to insert it again."""

    def write_it(*requests):
        segment = write_segment(*requests, signal="metrics")
        store.insert(segment.path, "metrics", segment.id, INSERT_SETTINGS)
        return segment

    return write_it


def test_a_minute_is_the_mean_and_the_greatest_of_its_samples(store, write, minute_ns):
    """Means of what was read, whichever agent and request it came in; an unread field is null, never 0."""
    gpu = gpu_info("node-a", 0)
    write(
        samples([(gpu, {"hw.power": 100.0, "hw.gpu.utilization": 0.2})], time_ns=minute_ns, agent="a"),
        samples([(gpu, {"hw.power": 200.0})], time_ns=minute_ns + 59 * S, agent="b"),
    )
    write(samples([(gpu, {"hw.power": 600.0})], time_ns=minute_ns + 60 * S, agent="a"))
    first, second = minutes(store, tenant="default", compute_resource=gpu["hw.id"], since_ns=minute_ns + 30 * S)
    assert first["minute"] == time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(minute_ns / 1e9))
    assert (first["power_w"], first["power_w_max"]) == (150.0, 200.0)
    assert (first["utilization"], first["utilization_max"]) == (0.2, 0.2)
    assert (second["power_w"], second["utilization"], second["temperature_c_max"]) == (600.0, None, None)


def test_a_segment_inserted_again_changes_no_mean(store, write, minute_ns):
    """Behind two views the same segment counts once, or a retry would shift the minute."""
    gpu = gpu_info("node-a", 0)
    segment = write(samples([(gpu, {"hw.power": 100.0})], time_ns=minute_ns, agent="a"))
    write(samples([(gpu, {"hw.power": 400.0})], time_ns=minute_ns + S, agent="a"))
    for _ in range(3):
        store.insert(segment.path, "metrics", segment.id, INSERT_SETTINGS)
    (found,) = minutes(store, tenant="default", compute_resource=gpu["hw.id"], since_ns=minute_ns)
    assert found["power_w"] == 250.0


def test_another_resource_or_tenant_sees_nothing_of_it(store, write, minute_ns):
    """Minutes are those of one resource of one tenant."""
    gpu, other = gpu_info("node-a", 0), gpu_info("node-a", 1)
    write(samples([(gpu, {"hw.power": 100.0})], time_ns=minute_ns, agent="a"))
    assert minutes(store, tenant="default", compute_resource=other["hw.id"], since_ns=minute_ns) == []
    assert minutes(store, tenant="other", compute_resource=gpu["hw.id"], since_ns=minute_ns) == []


def test_the_api_gives_the_minutes_of_a_named_resource(store, write, minute_ns):
    """Without a resource the answer says what is missing and where to find it."""
    gpu = gpu_info("node-a", 0)
    write(samples([(gpu, {"hw.power": 100.0})], time_ns=minute_ns, agent="a"))
    with TestClient(make_app(store, None, None, "default")) as client:
        found = client.get("/api/v1/gpus/minutes", params={"compute_resource": gpu["hw.id"], "since": "1h"}).json()
        refused = client.get("/api/v1/gpus/minutes")
    assert found["compute_resource"] == gpu["hw.id"]
    assert [minute["power_w"] for minute in found["minutes"]] == [100.0]
    assert refused.status_code == 400
    assert "/api/v1/gpus" in refused.text
