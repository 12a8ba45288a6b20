"""Where a signal goes and how: the OTEL_EXPORTER_OTLP_* variables, as the OpenTelemetry specification reads them.

https://opentelemetry.io/docs/specs/otel/protocol/exporter/ (1.55). A signal's own variable wins over the general one.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from opentelemetry.util.re import parse_env_headers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["GRPC", "HTTP", "Endpoint", "queue_key"]

HTTP, GRPC = "http/protobuf", "grpc"
_DEFAULT_URL = {HTTP: "http://localhost:4318", GRPC: "http://localhost:4317"}
_DEFAULT_TIMEOUT_S = 10.0
# The specification counts milliseconds, OpenTelemetry's own Python exporters seconds; nobody waits 100 s or 99 ms.
_LEAST_MS = 100


@dataclass(frozen=True)
class Endpoint:
    """``url`` is a whole URL for HTTP, ``host:port`` for gRPC; ``compression`` is empty when nothing was asked for."""

    signal: str
    protocol: str
    url: str
    secure: bool
    headers: Mapping[str, str]
    timeout_s: float
    compression: str
    certificate: str
    client_certificate: str
    client_key: str
    problems: tuple[str, ...] = ()

    @classmethod
    def from_env(cls, signal: str, env: Mapping[str, str] | None = None) -> Endpoint:
        """Read what stands for ``traces`` or ``metrics``; what cannot be used is named in ``problems``."""
        env = os.environ if env is None else env
        problems: list[str] = []

        def read(name: str) -> str:
            own = env.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_{name}", "").strip()
            return own or env.get(f"OTEL_EXPORTER_OTLP_{name}", "").strip()

        protocol = _one_of(read("PROTOCOL"), (HTTP, GRPC), HTTP, "PROTOCOL", problems)
        url, secure = _target(signal, protocol, read, own=env.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT", ""))
        return cls(
            signal=signal,
            protocol=protocol,
            url=url,
            secure=secure,
            headers=parse_env_headers(read("HEADERS"), liberal=True),
            timeout_s=_timeout_s(read("TIMEOUT"), problems),
            compression=_one_of(read("COMPRESSION"), ("gzip", "none", ""), "", "COMPRESSION", problems),
            certificate=read("CERTIFICATE"),
            client_certificate=read("CLIENT_CERTIFICATE"),
            client_key=read("CLIENT_KEY"),
            problems=tuple(problems),
        )

    def gzip_bytes(self, threshold: int) -> int | None:
        """Return from which size on bodies are compressed: all, none, or those of ``threshold`` bytes and more."""
        return {"gzip": 0, "none": None}.get(self.compression, threshold)

    @property
    def items(self) -> str:
        """What is sent there, for people."""
        return "spans" if self.signal == "traces" else "GPU samples"

    @property
    def shown_url(self) -> str:
        """The URL without a password, for logs and ``axonize doctor``."""
        return re.sub(r"//[^/]*@", "//", self.url)

    @property
    def origin(self) -> str:
        """The shown URL without its path."""
        return self.url if self.protocol == GRPC else "/".join(self.shown_url.split("/", 3)[:3])

    def address(self) -> tuple[str, int] | None:
        """Return host and port, for a look whether anybody listens; None for forms only gRPC knows."""
        parts = urlsplit(self.url if self.protocol == HTTP else f"//{self.url}")
        try:
            return (parts.hostname, parts.port or (443 if self.secure else 80)) if parts.hostname else None
        except ValueError:
            return None


def queue_key(endpoints: Iterable[Endpoint]) -> str:
    """Hash where the data goes and as whom: a queue must never be sent anywhere else."""
    text = repr(
        [
            (e.signal, e.protocol, e.url, e.secure, sorted(e.headers.items()), e.client_certificate, e.client_key)
            for e in endpoints
        ]
    )
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _target(signal: str, protocol: str, read: Callable[[str], str], own: str) -> tuple[str, bool]:
    url = read("ENDPOINT") or _DEFAULT_URL[protocol]
    if protocol == HTTP:
        url = url if own.strip() else f"{url.rstrip('/')}/v1/{signal}"
        return url, url.startswith("https://")
    scheme, separator, rest = url.rpartition("://")
    if scheme in ("http", "https"):
        return rest.split("/", 1)[0], scheme == "https"
    # Any other form is gRPC's own; without a scheme the variable decides, and secure is the default.
    return (url if separator else rest), read("INSECURE").lower() != "true"


def _one_of(value: str, known: tuple[str, ...], default: str, name: str, problems: list[str]) -> str:
    value = value.lower()
    if value in known:
        return value
    if value:
        problems.append(f"OTEL_EXPORTER_OTLP_{name}={value!r} is not supported; {default or 'gzip'} is used")
    return default


def _timeout_s(text: str, problems: list[str]) -> float:
    try:
        value = float(text) if text else _DEFAULT_TIMEOUT_S
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        problems.append(f"OTEL_EXPORTER_OTLP_TIMEOUT={text!r} is no time in milliseconds; 10000 is used")
        return _DEFAULT_TIMEOUT_S
    return value / 1000 if value >= _LEAST_MS else value
