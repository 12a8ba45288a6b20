"""The registry's contract, on SQLite and on a real PostgreSQL server."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time

import pytest

from axonize_core.errors import ConfigurationError, StoreError
from axonize_server.migrate import load, migrate_registry
from axonize_server.registry.address import open_registry

GPU = ("gpu_uuid", "model", "memory_bytes", "first_seen_at", "last_seen_at")


def add_gpus(run, *uuids, model="H100", memory_bytes=85899345920):
    row = {"model": model, "memory_bytes": memory_bytes, "first_seen_at": "t1", "last_seen_at": "t2"}
    run.upsert("physical_gpus", ("gpu_uuid",), GPU, [{"gpu_uuid": uuid, **row} for uuid in uuids])


def uuids_in(registry):
    with registry.reading() as run:
        return [uuid for (uuid,) in run("SELECT gpu_uuid FROM physical_gpus ORDER BY gpu_uuid")]


def test_it_is_made_migrated_and_answers(registry):
    """A new database is migrated once, and answers."""
    assert registry.ping()
    assert migrate_registry(registry) == []


def test_many_rows_in_one_statement(registry):
    """Rows are inserted and replaced by one statement, unknowns stay null, and every type comes back as it was."""
    with registry.transaction() as run:
        add_gpus(run, "GPU-1", "GPU-2")
        add_gpus(run, "GPU-2", "GPU-3", model='it\'s 100 % \\ "B200" é\n', memory_bytes=None)
    with registry.reading() as run:
        rows = run("SELECT gpu_uuid, model, memory_bytes, node FROM physical_gpus ORDER BY gpu_uuid")
    other = 'it\'s 100 % \\ "B200" é\n'
    assert rows == [("GPU-1", "H100", 85899345920, None), ("GPU-2", other, None, None), ("GPU-3", other, None, None)]


def test_floats_and_lists_of_texts(registry):
    """A float comes back as it was, and a list of texts is one parameter."""
    columns = ("uuid", "generation", "sm_share", "first_seen_at", "last_seen_at")
    rows = [dict(zip(columns, (uuid, 1, 1 / 7, "t", "t"), strict=True)) for uuid in ("MIG-a", "MIG-b", "MIG-c")]
    with registry.transaction() as run:
        run.upsert("compute_resources", ("uuid", "generation"), columns, rows)
    sql = f"SELECT uuid, sm_share FROM compute_resources WHERE uuid {registry.among} ORDER BY uuid"
    with registry.reading() as run:
        assert run(sql, (json.dumps(["MIG-c", "MIG-a", "'; --"]),)) == [("MIG-a", 1 / 7), ("MIG-c", 1 / 7)]


def test_a_failed_transaction_leaves_nothing(registry):
    """An exception inside, whoever's it is, takes back all of it."""
    with pytest.raises(RuntimeError), registry.transaction() as run:
        add_gpus(run, "GPU-1")
        raise RuntimeError
    with pytest.raises(StoreError, match="registry"), registry.transaction() as run:
        add_gpus(run, "GPU-1")
        run("SELECT * FROM no_such_table")
    with registry.transaction(commit=False) as run:
        add_gpus(run, "GPU-1")
    assert uuids_in(registry) == []


def test_those_who_change_wait_for_each_other(registry):
    """Of read-and-write transactions in many threads none is lost."""

    def count():
        with registry.transaction() as run:
            found = run("SELECT value FROM registry_state WHERE name = %s", ("n",))
            value = str(int(found[0][0]) + 1 if found else 1)
            run.upsert("registry_state", ("name",), ("name", "value"), [{"name": "n", "value": value}])

    threads = [threading.Thread(target=lambda: [count() for _ in range(5)]) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with registry.reading() as run:
        assert run("SELECT value FROM registry_state") == [("30",)]


def test_who_reads_sees_one_state(registry):
    """What is committed while somebody reads is not seen by them."""
    with registry.reading() as run:
        before = run("SELECT count(*) FROM physical_gpus")
        writer = threading.Thread(target=lambda: _add(registry))
        writer.start()
        writer.join(1.0)  # SQLite's writer waits for readers to end
        assert run("SELECT count(*) FROM physical_gpus") == before == [(0,)]
    writer.join()
    assert uuids_in(registry) == ["GPU-1"]


def _add(registry):
    with registry.transaction() as run:
        add_gpus(run, "GPU-1")


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_two_that_migrate_at_once(kind, request, tmp_path):
    """Of several that migrate one database at the same time each file is applied by exactly one."""
    dsn = request.getfixturevalue("postgres_dsn") if kind == "postgres" else f"sqlite:///{tmp_path}/r.db"
    applied, errors = [], []

    def one():
        try:
            registry = open_registry(dsn)
            applied.extend(migrate_registry(registry))
            registry.close()
        except Exception as e:
            errors.append(e)

    threads = [threading.Thread(target=one) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [done.number for done in applied] == [found.number for found in load("postgres")]


def test_columns_are_the_same_in_both(postgres_dsn, tmp_path):
    """One SQL makes the same tables and columns in SQLite and in PostgreSQL."""
    columns = []
    for dsn, sql in (
        (f"sqlite:///{tmp_path}/r.db", "SELECT m.name, c.name FROM sqlite_master m, pragma_table_info(m.name) c"),
        (postgres_dsn, "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'public'"),
    ):
        registry = open_registry(dsn)
        migrate_registry(registry)
        with registry.reading() as run:
            columns.append(
                sorted((table, name) for table, name in run(sql) if not table.startswith(("sqlite_", "pg_")))
            )
        registry.close()
    tables = {table for table, _ in columns[1]}
    assert [row for row in columns[0] if row[0] in tables] == columns[1]
    assert {"physical_gpus", "compute_resources", "resource_contexts", "prices", "tenants"} <= tables


@pytest.mark.parametrize("dsn", ["", "registry.db", "sqlite://", "sqlite:///", "sqlite://relative.db", "mysql://h/d"])
def test_what_is_no_address(dsn):
    """Anything that is neither an absolute SQLite file nor PostgreSQL is refused."""
    with pytest.raises(ConfigurationError, match="is no address"):
        open_registry(dsn)


def test_an_address_postgresql_cannot_read():
    """A PostgreSQL address with an unknown option is refused at once, without the password."""
    with pytest.raises(ConfigurationError, match="cannot be read") as refused:
        open_registry("postgresql://u:secret@h/db?nonsense=1")
    assert "secret" not in str(refused.value)


def test_a_postgresql_that_is_not_there():
    """Nobody listening is an error that names the server and the reason, never the password."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    registry = open_registry(f"postgresql://u:secret@127.0.0.1:{port}/db")
    began = time.monotonic()
    with pytest.raises(StoreError, match=rf"127\.0\.0\.1:{port}/db.*refused") as refused, registry.reading():
        pass
    assert time.monotonic() - began < 10
    assert "secret" not in str(refused.value)
    assert not registry.ping()
    registry.close()


def test_a_wrong_password_and_an_unknown_database(postgres_server):
    """What the server says about it is what the error says."""
    for dsn, said in (
        (postgres_server.dsn.replace(postgres_server.password, "wrong"), "password authentication failed"),
        (postgres_server.dsn.replace("/postgres", "/nowhere"), 'database "nowhere" does not exist'),
    ):
        registry = open_registry(dsn)
        with pytest.raises(StoreError, match=said), registry.transaction():
            pass
        registry.close()


def test_a_server_that_restarts(postgres_server, registry_of_own_server):
    """Connections that died with the server are replaced when it is back."""
    registry = registry_of_own_server
    _add(registry)
    postgres_server.stop()
    assert not registry.ping()
    postgres_server.start()
    assert registry.ping()
    assert uuids_in(registry) == ["GPU-1"]


@pytest.fixture
def registry_of_own_server(postgres_server, monkeypatch, request):
    monkeypatch.delenv("AXONIZE_TEST_POSTGRES_DSN", raising=False)
    registry = open_registry(request.getfixturevalue("postgres_dsn"))
    migrate_registry(registry)
    yield registry
    registry.close()


def test_without_psycopg_the_extra_is_named():
    """Where the extra is not installed, the error is the command that installs it."""
    code = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from axonize_server.registry.address import open_registry\n"
        "try: open_registry('postgresql://h/d')\n"
        "except Exception as e: print(type(e).__name__, e)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "ConfigurationError a PostgreSQL registry needs psycopg: pip install 'axonize[postgres]'\n"


def test_a_file_that_is_no_database(tmp_path):
    """A file of something else is an error that names it, and is left alone."""
    path = tmp_path / "other.txt"
    path.write_text("something else, longer than a header of SQLite would be\n" * 10)
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"other\.txt"):
        open_registry(f"sqlite://{path}")
    assert path.read_bytes() == before
