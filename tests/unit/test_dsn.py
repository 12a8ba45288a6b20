"""Addresses of the store."""

from __future__ import annotations

import pytest

from axonize_core.errors import ConfigurationError
from axonize_server.store.dsn import parse_dsn


def test_chdb_directory():
    """A chdb address is a directory, with the default database unless another is named."""
    assert parse_dsn("chdb:///var/lib/axonize")[:4] == ("chdb", "/var/lib/axonize", "", "axonize")
    assert parse_dsn("chdb:///d?database=other").database == "other"


def test_server_address():
    """A server's address keeps credentials and options for the client, and its path is the database."""
    dsn = parse_dsn("https://me:s3cret@db.example:8443/prod?verify=false")
    assert (dsn.scheme, dsn.url, dsn.database) == (
        "https",
        "https://me:s3cret@db.example:8443?verify=false",
        "prod",
    )
    assert parse_dsn("http://localhost:8123").database == "axonize"


def test_the_password_is_never_shown():
    """Neither the text to show nor an error message has the password in it."""
    assert parse_dsn("http://me:s3cret@h:1/db").text == "http://me:***@h:1/db"
    with pytest.raises(ConfigurationError) as caught:
        parse_dsn("clickhouse://me:s3cret@h:9000/db")
    assert "s3cret" not in str(caught.value)


def test_whether_the_server_is_on_this_machine():
    """By the address itself; a name that is not localhost is somewhere else."""
    hosts = ["127.0.0.1", "127.9.9.9:8123", "[::1]:8123", "localhost", "db.example", "10.0.0.1", "[2001:db8::1]"]
    assert [parse_dsn(f"http://me:pw@{host}/db").is_local for host in hosts] == [True] * 4 + [False] * 3


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/var/lib",
        "chdb://",
        "chdb:///",
        "chdb://relative/dir",
        "chdb:///d?databse=x",
        "chdb:///d?database=a-b",
        "http:///db",
        "http://h/two/parts",
        "http://h/drop table",
        "postgresql://h/db",
    ],
)
def test_what_is_no_address(text):
    """Anything else is refused when it is read, not when the first segment comes."""
    with pytest.raises(ConfigurationError):
        parse_dsn(text)
