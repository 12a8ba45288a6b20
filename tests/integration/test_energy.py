"""Energy of GPUs that several agents watch."""

from __future__ import annotations

import contextlib
import time

import pytest

from axonize_server.query_energy import energies
from axonize_server.query_gpus import gpus
from axonize_server.registry.address import open_registry
from axonize_server.registry.sync import RegistrySync
from axonize_server.spool import INSERT_SETTINGS
from gpu_reports import gpu_info, request, samples

S = 10**9
POWER_W = 300


@pytest.fixture
def watch(store, write_segment):
    """Store what an agent reads of a GPU at 300 W, from one second to another, on a counter with its own offset."""
    gpu = gpu_info("node-a", 0)
    start_ns = time.time_ns() // S * S - 600 * S

    def readings(agent, seconds, *, offset_j, phase_ms=0):
        for second in seconds:
            at_ns = start_ns + second * S + phase_ms * 10**6
            energy_j = offset_j + POWER_W * (second + phase_ms / 1000)
            yield samples([(gpu, {"hw.energy": energy_j, "hw.power": float(POWER_W)})], time_ns=at_ns, agent=agent)

    def write(*found):
        segment = write_segment(*(request for part in found for request in part), signal="metrics")
        store.insert(segment.path, "metrics", segment.id, INSERT_SETTINGS)

    def used():
        (row,) = energies(store, tenant="default", since_ns=start_ns, until_ns=start_ns + 600 * S)
        return row["energy_j"], row["agents"]

    return readings, write, used


def test_two_agents_on_one_gpu_double_nothing(watch):
    """Interleaved readings of one counter from two origins are one GPU's energy: 300 W for 60.5 s."""
    readings, write, used = watch
    write(readings("a", range(61), offset_j=10_000), readings("b", range(61), offset_j=9_000_000, phase_ms=500))
    assert used() == (pytest.approx(60.5 * POWER_W, rel=0.001), 2)


def test_the_same_instants_count_once(watch):
    """Two agents that read at the very same times are one stream."""
    readings, write, used = watch
    write(readings("a", range(31), offset_j=0), readings("b", range(31), offset_j=77))
    assert used() == (pytest.approx(30 * POWER_W), 2)


def test_an_agent_that_takes_over_loses_nothing(watch):
    """An agent that begins before the other ends adds what it alone saw; time nobody watched is not made up."""
    readings, write, used = watch
    write(readings("a", range(31), offset_j=5_000), readings("b", range(25, 51), offset_j=0))
    assert used() == (pytest.approx(50 * POWER_W), 2)
    write(readings("c", range(100, 111), offset_j=3))
    assert used() == (pytest.approx(60 * POWER_W), 3)


def test_a_counter_that_fell_is_no_energy(watch):
    """Between a reading and a lower one nothing is known of what was used."""
    readings, write, used = watch
    write(readings("a", range(11), offset_j=50_000), readings("a", range(11, 21), offset_j=0))
    assert used() == (pytest.approx(19 * POWER_W), 1)


def test_the_newest_reading_is_any_agents(store, write_segment, tmp_path):
    """Of two agents the one that read last tells how a GPU is now."""
    gpu, now_ns = gpu_info("node-a", 0), time.time_ns()
    early = samples([(gpu, {"hw.power": 100.0})], time_ns=now_ns - 2 * S, agent="z")
    late = samples([(gpu, {"hw.power": 200.0})], time_ns=now_ns - S, agent="a")
    report = request([("gpu", gpu, now_ns - S, 1)])
    segment = write_segment(early, late, report, signal="metrics")
    store.insert(segment.path, "metrics", segment.id, INSERT_SETTINGS)
    with contextlib.closing(open_registry(f"sqlite:///{tmp_path}/registry.db")) as registry:
        RegistrySync(store, registry).sync()
        (found,) = gpus(registry, store, tenant="default")["gpus"]
    assert found["reading"]["power_w"] == 200.0
