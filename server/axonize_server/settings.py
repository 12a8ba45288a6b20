"""The collector's settings, defined once: each field is a flag, an ``AXONIZE_…`` variable and a YAML key.

Precedence: flag, environment, the YAML file named by ``AXONIZE_CONFIG``, default. Read once at start into a
frozen object that is passed down.
"""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import yaml
from pydantic import AfterValidator, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from axonize_core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Settings", "default_data_dir", "load_settings"]

ENV_PREFIX = "AXONIZE_"


def default_data_dir() -> Path:
    """``$XDG_DATA_HOME/axonize``, else ``~/.local/share/axonize``."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "axonize"


def _loopback(host: str) -> str:
    try:
        inside = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        inside = False
    if not inside:
        raise ValueError(
            "only a loopback address can be listened on until the collector has authentication;"
            " use 127.0.0.1 and put an authenticating proxy in front of it"
        )
    return host


Port = Annotated[int, Field(ge=0, le=65_535)]
Days = Annotated[int, Field(ge=1, le=3_650)]
Bytes = Annotated[int, Field(ge=1024)]
Seconds = Annotated[float, Field(gt=0)]


class Settings(BaseSettings):
    """Everything the collector can be told."""

    model_config = SettingsConfigDict(frozen=True, env_prefix=ENV_PREFIX, extra="forbid", env_ignore_empty=True)

    data_dir: Path = Field(default_factory=default_data_dir, description="Where everything is kept")
    store: str = Field("", description="ClickHouse: chdb:///dir inside the collector, or http(s)://user:pass@host:port")
    store_cluster: str = Field(
        "", pattern=r"^[\w.-]*$", description="ClickHouse cluster the store is spread over, as its servers name it"
    )
    registry: str = Field("", description="GPU registry: sqlite:///file, or postgresql://user:pass@host/database")
    host: Annotated[str, AfterValidator(_loopback)] = Field(
        "127.0.0.1", description="Address to listen on; loopback only"
    )
    http_port: Port = Field(4318, description="OTLP/HTTP port; 0 takes a free one")
    grpc_port: Port | None = Field(None, description="OTLP/gRPC port; 0 is off; unset is 4317 where that is free")
    api_port: Port = Field(4319, description="Query API port")
    workers: int = Field(1, ge=1, le=64, description="Receiver processes")
    tenant: str = Field("default", min_length=1, max_length=64, description="Tenant of what is received")
    max_body_bytes: Bytes = Field(64 << 20, description="Largest request body once inflated, in bytes")
    max_compressed_bytes: Bytes = Field(20 << 20, description="Largest gzip request body as sent, in bytes")
    spool_max_bytes: Bytes = Field(2 << 30, description="Bytes the spool may hold; beyond, requests are refused")
    spool_max_age_s: Seconds = Field(
        86_400.0, description="Seconds after which what waits in the spool is reported as too old"
    )
    spool_drop_old: bool = Field(
        False,
        description="Drop what is older while the store is away: acknowledged data is lost, and counted",
    )
    segment_max_records: int = Field(65_536, ge=1, description="Records after which a segment is sealed")
    segment_max_bytes: Bytes = Field(64 << 20, description="Bytes after which a segment is sealed")
    segment_max_age_s: Seconds = Field(1.0, description="Seconds after which a segment is sealed")
    drain_s: Seconds = Field(10.0, description="Seconds given to requests under way, and to the spool, at the end")
    ttl_spans_days: Days = Field(7, description="Days that spans are kept")
    ttl_traces_days: Days = Field(30, description="Days that per-trace totals are kept; at least as long as spans")
    ttl_batches_days: Days = Field(7, description="Days that batches are kept")
    ttl_gpu_metrics_days: Days = Field(30, description="Days that GPU samples are kept")
    ttl_metrics_days: Days = Field(30, description="Days that other metrics are kept")
    ttl_logs_days: Days = Field(7, description="Days that logs are kept")
    ttl_rollups_days: Days = Field(90, description="Days that minute rollups are kept")

    @model_validator(mode="before")
    @classmethod
    def _places(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Store and registry live in the data directory unless told otherwise; all paths become absolute."""
        data_dir = Path(values.get("data_dir") or default_data_dir()).expanduser().absolute()
        return {
            **values,
            "data_dir": data_dir,
            "store": values.get("store") or f"chdb://{data_dir / 'clickhouse'}",
            "registry": values.get("registry") or f"sqlite:///{data_dir / 'registry.db'}",
        }

    @property
    def spool_dir(self) -> Path:
        """The receivers' and the writer's only interface."""
        return self.data_dir / "spool"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic-settings' signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic-settings' signature
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flag, environment, YAML."""
        return init_settings, env_settings, InitSettingsSource(settings_cls, _from_yaml(os.environ))


def load_settings(**flags: Any) -> Settings:
    """The settings of this process; a flag that is None was not given.

    Raises:
        ConfigurationError: A value cannot be used, or the YAML file cannot be read.
    """
    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        raise ConfigurationError("; ".join(map(_explained, error.errors()))) from error


def _explained(fault: Any) -> str:
    name = "_".join(map(str, fault["loc"]))
    if fault["type"] == "extra_forbidden":
        return f"there is no setting {name!r}; see docs/collector-settings.md"
    flag, variable = f"--{name.replace('_', '-')}", ENV_PREFIX + name.upper()
    return f"{flag} ({variable}) cannot be {fault['input']!r}: {fault['msg'].removeprefix('Value error, ')}"


def _from_yaml(environ: Mapping[str, str]) -> dict[str, Any]:
    """The keys of the file that AXONIZE_CONFIG names, if it names one."""
    if not (name := environ.get(ENV_PREFIX + "CONFIG")):
        return {}
    try:
        content = yaml.safe_load(Path(name).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"AXONIZE_CONFIG={name!r} cannot be read: {error}") from error
    if not isinstance(content, (dict, type(None))):
        raise ConfigurationError(
            f"AXONIZE_CONFIG={name!r} must hold `key: value` lines, not a {type(content).__name__}"
        )
    return {str(key).replace("-", "_"): _expanded(value, environ) for key, value in (content or {}).items()}


_VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?::-(?P<default>[^}]*))?\}")


def _expanded(value: Any, environ: Mapping[str, str]) -> Any:
    """``${VAR}`` and ``${VAR:-default}`` in a string; the default also stands in for an empty variable."""

    def replaced(match: re.Match[str]) -> str:
        name, default = match["name"], match["default"]
        if found := environ.get(name):
            return found
        if default is None and name not in environ:
            raise ConfigurationError(
                f"${{{name}}} is used in AXONIZE_CONFIG but not set; set it or write ${{{name}:-…}}"
            )
        return default or ""

    return _VARIABLE.sub(replaced, value) if isinstance(value, str) else value


if __name__ == "__main__":
    from axonize_server.settings_texts import main

    main()
