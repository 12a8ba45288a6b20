"""The registry in SQLite."""

from __future__ import annotations

import threading

import pytest

from axonize_core.errors import ConfigurationError, StoreError
from axonize_server.migrate import migrate_registry
from axonize_server.registry.sqlite import open_registry

NOW = "2026-01-01T00:00:00.000Z"


@pytest.fixture
def registry(tmp_path):
    registry = open_registry(f"sqlite:///{tmp_path}/deep/registry.db")
    migrate_registry(registry)
    return registry


def add_gpu(run):
    run(
        "INSERT INTO physical_gpus (gpu_uuid, model, node, provenance, first_seen_at, last_seen_at)"
        " VALUES (%s, %s, %s, %s, %s, %s)",
        ("GPU-1", "H100", "node-1", "measured", NOW, NOW),
    )


def add_slice(run, generation):
    run(
        "INSERT INTO compute_resources (resource_id, uuid, generation, gpu_uuid, kind, provenance, first_seen_at,"
        " last_seen_at) VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
        (f"r-{generation}", "MIG-1", generation, "GPU-1", "mig", "measured", NOW, NOW),
    )


def test_it_is_made_migrated_and_answers(registry):
    """A new file is made with its folders, migrated once, and answers; opened again it has kept everything."""
    assert registry.ping()
    assert migrate_registry(registry) == []
    with registry.transaction() as run:
        add_gpu(run)
    again = open_registry(registry.text)
    with again.transaction() as run:
        assert run("SELECT gpu_uuid, mig_enabled FROM physical_gpus") == [("GPU-1", 0)]


def test_a_recreated_slice_is_a_new_generation(registry):
    """One uuid may come back as another resource; the same generation twice is refused."""
    with registry.transaction() as run:
        add_gpu(run)
        add_slice(run, 1)
        add_slice(run, 2)
    with pytest.raises(StoreError, match="UNIQUE"), registry.transaction() as run:
        add_slice(run, 2)


def test_a_slice_belongs_to_a_known_gpu(registry):
    """A resource of a GPU nobody knows is refused."""
    with pytest.raises(StoreError, match="FOREIGN KEY"), registry.transaction() as run:
        add_slice(run, 1)


def test_a_failed_transaction_leaves_nothing(registry):
    """An exception inside takes back all of it."""
    with pytest.raises(RuntimeError), registry.transaction() as run:
        add_gpu(run)
        raise RuntimeError
    with registry.transaction() as run:
        assert run("SELECT count(*) FROM physical_gpus") == [(0,)]


def test_two_that_migrate_at_once(tmp_path):
    """Of several that migrate one file at the same time each file is applied by exactly one."""
    applied, errors = [], []

    def one():
        try:
            applied.extend(migrate_registry(open_registry(f"sqlite:///{tmp_path}/r.db")))
        except Exception as e:
            errors.append(e)

    threads = [threading.Thread(target=one) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [done.number for done in applied] == [1]


@pytest.mark.parametrize("dsn", ["", "registry.db", "sqlite://", "sqlite:///", "sqlite://relative.db", "mysql://h/d"])
def test_what_is_no_address(dsn):
    """Anything that is no absolute SQLite file is refused."""
    with pytest.raises(ConfigurationError, match="is no address"):
        open_registry(dsn)


def test_postgresql_comes_later():
    """A PostgreSQL address is told that it comes later, and what to use until then."""
    with pytest.raises(ConfigurationError, match="PostgreSQL registry comes in a later release: use sqlite"):
        open_registry("postgresql://u:p@h/db")


def test_a_file_that_is_no_database(tmp_path):
    """A file of something else is an error that names it, and is left alone."""
    path = tmp_path / "other.txt"
    path.write_text("something else, longer than a header of SQLite would be\n" * 10)
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"other\.txt"):
        open_registry(f"sqlite://{path}")
    assert path.read_bytes() == before
