"""From reports in the real store to the registry, in each database there is."""

from __future__ import annotations

import itertools
import json
import random
import threading
import time

import pytest

from axonize_core.errors import StoreError
from axonize_server.migrate import migrate_registry
from axonize_server.query_gpus import gpus
from axonize_server.registry.address import open_registry
from axonize_server.registry.sightings import GAP_NS
from axonize_server.registry.sync import RegistrySync
from axonize_server.spool import INSERT_SETTINGS
from gpu_reports import S, context_info, full_info, gpu_info, request, slice_info

TABLES = ("physical_gpus", "compute_resources", "resource_contexts", "gpu_sightings")
GPU = gpu_info("node-a", 0, mig=True)
ONE, TWO = slice_info(GPU, 1), slice_info(GPU, 2)
MINUTE = 60 * S


@pytest.fixture
def put(store, write_segment):
    """Store reports as the writer does."""

    def put_it(*requests):
        segment = write_segment(*requests, signal="metrics")
        store.insert(segment.path, segment.signal, segment.id, INSERT_SETTINGS)
        return segment

    return put_it


def contents(registry):
    with registry.reading() as run:
        return {table: sorted(run(f"SELECT * FROM {table}"), key=repr) for table in TABLES}


def holders(registry, store, resource, at_ns):
    """Return the pods that had a resource at a time."""
    uuid = resource["gpu.compute_resource.id"]
    tree = gpus(registry, store, tenant="default", at_ns=at_ns, compute_resource=uuid)["gpus"]
    return [c["pod"] for gpu in tree for found in gpu["compute_resources"] for c in found["contexts"]]


def test_a_report_is_in_the_registry(put, store, registry):
    """All three layers arrive with what was said about them; asked again, there is nothing new."""
    now = time.time_ns()
    context = context_info(ONE, "node-a", 11, pod="chat-0", sharing="mig", **{"k8s.node.name": "worker-1"})
    put(request([("gpu", GPU, now, 1), ("compute_resource", ONE, now, 1), ("context", context, now, 1)]))
    sync = RegistrySync(store, registry)
    assert (sync.sync(), sync.sync()) == (3, 0)
    (gpu,) = gpus(registry, store, tenant="default")["gpus"]
    assert (gpu["gpu_uuid"], gpu["node"], gpu["mig_enabled"]) == (GPU["hw.id"], "node-a", True)
    assert gpu["driver_version"] == "570.86.15"
    (found,) = gpu["compute_resources"]
    assert found["compute_resource"] == ONE["gpu.compute_resource.id"]
    place = ("mig_profile", "gpu_instance_id", "compute_instance_id", "placement_start", "placement_size", "sm_share")
    assert [found[name] for name in place] == ["1g.10gb", 1, 0, 1, 1, 1 / 7]
    (held,) = found["contexts"]
    assert (held["device"], held["pod"], held["pid"], held["node"]) == ("cuda:0", "chat-0", 11, "worker-1")
    assert (held["engine"], held["sharing"], held["rank"], held["valid_to"]) == ("vllm", "mig", 0, None)
    assert gpus(registry, store, tenant="acme")["gpus"][0]["compute_resources"][0]["contexts"] == []


def a_story(start):
    """Two slices over twenty minutes: one is destroyed and made again, pods come and go, two agents look on."""
    first = context_info(ONE, "node-a", 11, pod="chat-0")
    second = context_info(ONE, "node-a", 12, pod="chat-1")
    other = context_info(TWO, "node-a", 13, pod="embed-0")
    told = [
        [("gpu", GPU, start + n * MINUTE, 1), ("compute_resource", TWO, start + n * MINUTE, 1)] for n in range(0, 20, 2)
    ]
    told += [[("compute_resource", ONE, start + n * MINUTE, 1)] for n in (0, 2, 4, 6, 8, 10, 12)]
    told += [[("context", first, start + n * MINUTE, 1)] for n in (0, 2, 4)]
    told += [[("context", first, start + 5 * MINUTE, 0), ("compute_resource", ONE, start + 5 * MINUTE, 0)]]
    told += [[("compute_resource", ONE, start + 5 * MINUTE, 1)]]
    told += [[("context", second, start + n * MINUTE, 1)] for n in (6, 8, 10, 12)]
    told += [[("context", other, start + n * MINUTE, 1)] for n in (0, 2, 9, 11)]
    reports = [request(points) for points in told]
    seen_by_both = [("compute_resource", ONE, start + 5 * MINUTE + 7 * S, 0), ("gpu", GPU, start + 6 * MINUTE, 1)]
    return [*reports, request(seen_by_both, node="node-a", agent="agent-2")]


def test_who_had_the_slice_has_one_answer(put, store, registry):
    """At each time one pod, or none, had the slice; a re-created slice is a new generation, told by two agents or one."""
    start = time.time_ns() - 30 * MINUTE
    put(*a_story(start))
    RegistrySync(store, registry).sync()
    expected = {0: "chat-0", 4: "chat-0", 5: None, 6: "chat-1", 11: "chat-1", 12: None}
    for minute, pod in expected.items():
        assert holders(registry, store, ONE, start + minute * MINUTE) == ([pod] if pod else []), minute
    assert holders(registry, store, TWO, start + 5 * MINUTE) == []
    assert holders(registry, store, TWO, start + 10 * MINUTE) == ["embed-0"]
    with registry.reading() as run:
        generations = run(
            "SELECT generation, gone_at IS NULL FROM compute_resources WHERE uuid = %s ORDER BY generation",
            (ONE["gpu.compute_resource.id"],),
        )
    assert [number for number, _ in generations] == [1, 2]
    assert [bool(there) for _, there in generations] == [False, True]


@pytest.mark.parametrize("seed", range(2))
def test_late_repeated_and_reordered_reports_end_in_the_same_registry(put, store, registry, tmp_path, seed):
    """However reports are ordered, repeated and parted into segments, with a round after each, the rows are the same."""
    now = time.time_ns()
    story = a_story(now - 30 * MINUTE)
    shuffled = [*story, *random.Random(seed).sample(story, 8)]
    random.Random(seed).shuffle(shuffled)
    sync = RegistrySync(store, registry, clock=lambda: now)
    for at in range(0, len(shuffled), 9):
        put(*shuffled[at : at + 9])
        sync.sync()
    straight = open_registry(f"sqlite:///{tmp_path}/straight.db")
    RegistrySync(store, straight, clock=lambda: now).sync()
    assert contents(registry) == contents(straight)
    assert len(contents(registry)["resource_contexts"]) == 4


def test_the_times_of_one_context_never_overlap(put, store, registry):
    """Reports that contradict each other at random still give each context one resource at a time."""
    chance = random.Random(5)
    start = time.time_ns() - 60 * MINUTE
    holding = [context_info(one, "node-a", 11, pod=f"pod-{n}") for n, one in enumerate((ONE, TWO, slice_info(GPU, 3)))]
    sync = RegistrySync(store, registry)
    for _ in range(4):
        points = [
            ("context", chance.choice(holding), start + chance.randrange(40) * 30 * S, chance.random() < 0.8)
            for _ in range(10)
        ]
        put(request(points))
        sync.sync()
        with registry.reading() as run:
            rows = run("SELECT valid_from, valid_to FROM resource_contexts ORDER BY holding")
        for (_, ended), (began, _) in itertools.pairwise(rows):
            assert ended is not None
            assert ended <= began


def test_a_context_nobody_reports_ends(put, store, registry):
    """Three minutes after the last report a context ended then, with no report saying so; a late one opens it again."""
    now = time.time_ns()
    context = context_info(ONE, "node-a", 11, pod="chat-0")
    put(request([("context", context, now, 1)]))
    RegistrySync(store, registry, clock=lambda: now + GAP_NS).sync()
    assert holders(registry, store, ONE, now + S) == ["chat-0"]
    later = RegistrySync(store, registry, clock=lambda: now + GAP_NS + S)
    assert later.sync() == 0
    assert holders(registry, store, ONE, now + S) == []
    put(request([("context", context, now + 2 * MINUTE, 1)]))
    later.sync()
    assert holders(registry, store, ONE, now + S) == ["chat-0"]
    with registry.reading() as run:
        assert run("SELECT count(*) FROM resource_contexts") == [(1,)]


def test_layers_come_in_any_order(put, store, registry):
    """A context of a slice nobody described yet is shown by ids alone, and in its place once it is."""
    now = time.time_ns()
    sync = RegistrySync(store, registry)
    put(request([("context", context_info(ONE, "node-a", 11, pod="chat-0"), now, 1)]))
    sync.sync()
    (gpu,) = gpus(registry, store, tenant="default")["gpus"]
    assert (gpu["gpu_uuid"], gpu["model"]) == (GPU["hw.id"], None)
    assert [(r["kind"], r["contexts"][0]["pod"]) for r in gpu["compute_resources"]] == [(None, "chat-0")]
    put(request([("gpu", GPU, now, 1), ("compute_resource", ONE, now, 1)]))
    sync.sync()
    (gpu,) = gpus(registry, store, tenant="default")["gpus"]
    assert [(r["kind"], r["contexts"][0]["pod"]) for r in gpu["compute_resources"]] == [("mig", "chat-0")]


def test_a_repeated_segment_is_one_report(put, store, write_segment):
    """A segment inserted again after a crash adds no row to the inventory."""
    segment = put(request([("gpu", GPU, time.time_ns(), 1)]))
    store.insert(segment.path, segment.signal, segment.id, INSERT_SETTINGS)
    assert store.query(f"SELECT count() AS n FROM {store.database}.gpu_inventory") == [{"n": 1}]


def test_nonsense_stops_nobody(put, store, registry):
    """Reports without id, with NUL, with numbers too large or of the wrong type leave the others alone."""
    now = time.time_ns()
    odd = {**ONE, "gpu.compute_resource.id": "MIG-\0odd", "gpu.mig.gi_id": 1 << 60, "gpu.sm.share": "all", "x": "\0"}
    points = [
        ("gpu", {"hw.name": "no id"}, now, 1),
        ("compute_resource", odd, now, 1),
        ("compute_resource", {"gpu.compute_resource.id": "MIG-bare"}, now, 1),
        ("gpu", GPU, now, 1),
        ("context", context_info(ONE, "node-a", 1 << 62, **{"ai.rank": -1}), now, 1),
    ]
    put(request(points))
    assert RegistrySync(store, registry).sync() == 4
    with registry.reading() as run:
        assert [u for (u,) in run("SELECT uuid FROM compute_resources ORDER BY uuid")] == ["MIG-bare", "MIG-odd"]
        assert run("SELECT gpu_uuid FROM physical_gpus") == [(GPU["hw.id"],)]


def test_long_silence_is_caught_up_in_parts(put, store, registry, monkeypatch):
    """What came in over a longer time than is read at once is read in several rounds, and none of it is left out."""
    now = time.time_ns()
    for n in range(3):
        put(request([("gpu", gpu_info("node-a", n), now, 1)]))
        time.sleep(0.01)
    monkeypatch.setattr("axonize_server.registry.reports._WINDOW_NS", 1)
    assert RegistrySync(store, registry).sync() >= 3
    with registry.reading() as run:
        assert run("SELECT count(*) FROM physical_gpus") == [(3,)]


def test_a_registry_that_is_away_is_caught_up_with(put, store, postgres_server, monkeypatch, request_dsn):
    """While PostgreSQL is down rounds fail and are counted, and afterwards everything is there."""
    monkeypatch.setattr("axonize_server.registry.sync._FIRST_WAIT_S", 0.1)
    postgres_server.stop()
    registry = open_registry(request_dsn)
    sync = RegistrySync(store, registry)
    sync.start()
    put(request([("gpu", GPU, time.time_ns(), 1), ("compute_resource", full_info(GPU), time.time_ns(), 1)]))
    try:
        _until(lambda: sync.failed_rounds)
        assert "refused" in sync.last_error
        postgres_server.start()
        _until(lambda: sync.synced_things == 2)
        assert sync.last_error is None
        assert len(gpus(registry, store, tenant="default")["gpus"]) == 1
    finally:
        sync.stop()
        registry.close()


@pytest.fixture
def request_dsn(postgres_server, request, monkeypatch):
    monkeypatch.delenv("AXONIZE_TEST_POSTGRES_DSN", raising=False)
    return request.getfixturevalue("postgres_dsn")


def _until(condition, timeout_s=30):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_two_collectors_on_one_registry(put, store, registry):
    """Several that take over the same reports at once end in the same rows as one."""
    now = time.time_ns()
    put(*a_story(now - 30 * MINUTE))
    errors = []

    def take_over():
        try:
            RegistrySync(store, registry, clock=lambda: now).sync()
        except StoreError as e:
            errors.append(e)

    threads = [threading.Thread(target=take_over) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    before = contents(registry)
    with registry.transaction() as run:
        for table in (*TABLES, "registry_state"):
            run(f"DELETE FROM {table}")
    take_over()
    assert contents(registry) == before
    assert json.loads(before["gpu_sightings"][0][1])


def test_a_newer_schema_is_left_alone(registry, store):
    """A registry some newer Axonize migrated is an error, and stays as it is."""
    with registry.transaction() as run:
        run("INSERT INTO schema_migrations (number, name, sha256, applied_at) VALUES (99, '0099_x.sql', 'x', 't')")
    with pytest.raises(Exception, match="newer Axonize"):
        RegistrySync(store, registry).sync()
    with pytest.raises(Exception, match="newer Axonize"):
        migrate_registry(registry)
