"""Where the store is: one string, two transports."""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit, urlunsplit

from axonize_core.errors import ConfigurationError

__all__ = ["DEFAULT_DATABASE", "Dsn", "parse_dsn"]

DEFAULT_DATABASE = "axonize"
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")


class Dsn(NamedTuple):
    """A parsed store address."""

    scheme: str
    """`chdb`, `http` or `https`."""
    path: str
    """The engine's directory; empty but for `chdb`."""
    url: str
    """Address and credentials of the server, without a database; empty for `chdb`."""
    database: str
    text: str
    """The address as it may be shown: the password is not in it."""

    @property
    def is_local(self) -> bool:
        """Whether the server is on this machine, so that bytes on the way cost nothing."""
        host = urlsplit(self.url).hostname or ""
        try:
            return host == "localhost" or ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False


def parse_dsn(text: str) -> Dsn:
    """Parse `chdb:///dir[?database=name]` or `http[s]://[user:password@]host[:port][/database][?option=value]`.

    A server's options are those of clickhouse-connect, which checks them when it connects.

    Raises:
        ConfigurationError: The text is neither, or the database is no plain identifier.
    """
    parts = urlsplit(text)
    if parts.scheme == "chdb":
        return _chdb(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigurationError(
            f"store {_redacted(text)!r} is no address: give chdb:///dir or http://user:password@host:8123/database"
        )
    database = _identifier(parts.path.strip("/") or DEFAULT_DATABASE)
    url = urlunsplit((parts.scheme, parts.netloc, "", parts.query, ""))
    return Dsn(parts.scheme, "", url, database, _redacted(text))


def _chdb(text: str) -> Dsn:
    parts = urlsplit(text)
    if parts.netloc or not parts.path.strip("/"):
        raise ConfigurationError(f"store {text!r} names no directory: chdb:// is followed by an absolute path")
    options = parse_qs(parts.query)
    if unknown := set(options) - {"database"}:
        raise ConfigurationError(f"store {text!r} has unknown options {sorted(unknown)!r}: only database is known")
    return Dsn("chdb", parts.path, "", _identifier(options.get("database", [DEFAULT_DATABASE])[-1]), text)


def _identifier(name: str) -> str:
    if not _IDENTIFIER.fullmatch(name):
        raise ConfigurationError(f"database {name!r} must be letters, digits and underscores, not a digit first")
    return name


def _redacted(text: str) -> str:
    return re.sub(r"(?<=://)([^/@:]*):[^/]*@", r"\1:***@", text)
