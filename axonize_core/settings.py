"""What the environment says, read once into a frozen object.

Standard library only: this runs in the inference process. ``OTEL_*`` variables keep their meaning; ours are
added where OTel has none. ``docs/settings.md`` is generated from the table below.
"""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote

from axonize_core import __version__
from axonize_core.errors import ConfigurationError
from axonize_core.runtime_dir import choose_runtime_dir

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["SETTINGS", "Setting", "Settings", "get_settings", "is_asked_for", "settings_markdown", "wanted_plugins"]


class Setting(NamedTuple):
    """One environment variable: name, default, unit, and what it does."""

    env: str
    default: str
    unit: str
    meaning: str


SETTINGS: tuple[Setting, ...] = (
    Setting(
        "AXONIZE_DISABLED",
        "false",
        "",
        "`true` switches everything off: `instrument()` returns its argument untouched",
    ),
    Setting("OTEL_SDK_DISABLED", "false", "", "`true` does the same, as for every OpenTelemetry SDK"),
    Setting(
        "AXONIZE_OPT_OUT_FILE",
        "~/.config/axonize/disabled",
        "path",
        "while this file (or /etc/axonize/disabled) exists, everything is off",
    ),
    Setting(
        "AXONIZE_ENABLED",
        "",
        "",
        "`true` switches on what is off until asked for (vLLM's plugin, as `--plugin axonize` does), and lets what "
        "activates itself do so under ENVIRONMENT=test or development",
    ),
    Setting(
        "ENVIRONMENT",
        "",
        "",
        "`test` and `development` keep off what would activate itself; an explicit `instrument()` works",
    ),
    Setting(
        "AXONIZE_AGENT",
        "auto",
        "",
        "`auto` starts or joins an agent, `unix:///path.sock` uses a node agent, `inline` runs it in this process",
    ),
    Setting("AXONIZE_AGENT_PYTHON", "", "path", "interpreter of the agent when sys.executable is not one"),
    Setting(
        "AXONIZE_RUNTIME_DIR",
        "first usable of $XDG_RUNTIME_DIR/axonize, /tmp/axonize-<uid>, $TMPDIR/axonize-<uid>, /dev/shm/axonize-<uid>",
        "path",
        "where sockets, locks and the agent's log live (0700)",
    ),
    Setting(
        "AXONIZE_QUEUE_CAPACITY",
        "65536",
        "records",
        "bound of the queue in the inference process; full drops the newest and counts it",
    ),
    Setting(
        "AXONIZE_STATE_DIR",
        "$XDG_STATE_HOME/axonize or ~/.local/state/axonize",
        "path",
        "where the agent's disk queue lies (0700); a local disk",
    ),
    Setting(
        "AXONIZE_EXPORT_QUEUE_BYTES",
        "1073741824",
        "bytes",
        "bound of the disk queue while the collector is away; full drops the newest and counts it; 0 queues in memory",
    ),
    Setting("AXONIZE_EXPORT_QUEUE_AGE_S", "86400", "s", "what waited longer for the collector is dropped and counted"),
    Setting(
        "AXONIZE_EXPORT_QUEUE_CAPACITY",
        "50000",
        "spans",
        "bound of what waits to be encoded in the agent's memory; full drops the newest and counts it",
    ),
    Setting(
        "AXONIZE_EXPORT_GZIP_BYTES",
        "1024",
        "bytes",
        "bodies of this size and more are compressed; OTEL_EXPORTER_OTLP_COMPRESSION=gzip or none overrides it",
    ),
    Setting(
        "AXONIZE_LOAD_PLUGINS",
        "all",
        "names",
        "plugins to load: `all`, `none`, or entry points, comma-separated; `axonize plugins` shows what became of them",
    ),
    Setting(
        "AXONIZE_PLUGIN_*",
        "",
        "",
        "read by installed plugins, each says which; processes that differ in them do not share an agent",
    ),
    Setting("AXONIZE_GPU_PROVIDER", "auto", "", "`auto` (NVML when there is one), `nvml`, `simulated` or `none`"),
    Setting("AXONIZE_GPU_INTERVAL_MS", "1000", "ms", "time between two GPU samples, 100 or more"),
    Setting(
        "AXONIZE_HF_DEVICE_TIME",
        "false",
        "",
        "`true` times the steps of transformers' generate on the GPU too, by CUDA events; some us a step",
    ),
    Setting(
        "AXONIZE_VLLM_DEVICE_TIME",
        "false",
        "",
        "`true` times the steps of vLLM on the GPU too, by CUDA events; some us a step",
    ),
    Setting("AXONIZE_TRITON", "false", "", "`true` records models where `axonize triton enable` was run"),
    Setting(
        "AXONIZE_TRITON_DETAIL",
        "full",
        "",
        "what is read of each Triton request: `full`, or `ids`: neither its caller's trace nor its parameters",
    ),
    Setting("AXONIZE_TRITON_DEVICE", "", "cuda:0", "what a Triton model runs on where its instance group does not say"),
    Setting("OTEL_SERVICE_NAME", "unknown_service:<engine>", "", "service.name of the spans"),
    Setting("OTEL_RESOURCE_ATTRIBUTES", "", "key=value,…", "more resource attributes, percent-encoded"),
    Setting("OTEL_TRACES_EXPORTER", "otlp", "", "`none` keeps spans in the agent, for its plugins only"),
    Setting("OTEL_METRICS_EXPORTER", "otlp", "", "`none` does the same for GPU samples"),
    Setting(
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "http://localhost:4318",
        "URL",
        "where the agent sends spans and metrics; all other OTEL_EXPORTER_OTLP_* variables are honoured too",
    ),
    Setting(
        "OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf", "", "`grpc` needs `pip install 'axonize[grpc]'` and port 4317"
    ),
)

_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"", "0", "false", "no", "off"}
_PLUGIN_PREFIX = "AXONIZE_PLUGIN_"
_QUIET_ENVIRONMENTS = {"test", "development"}


@dataclass(frozen=True)
class Settings:
    """The settings of one process; see the table for each field's variable."""

    disabled: bool = False
    disabled_by: str = ""
    auto_activation: bool = True
    agent: str = "auto"
    agent_python: str = ""
    runtime_dir: Path = Path("/tmp")  # noqa: S108 - replaced by from_env, which checks owner and mode
    queue_capacity: int = 65_536
    export_queue_capacity: int = 50_000
    export_queue_bytes: int = 1024**3
    export_queue_age_s: int = 86_400
    export_gzip_bytes: int = 1024
    state_dir: Path | None = None
    load_plugins: tuple[str, ...] | None = None
    plugin_settings: Mapping[str, str] = field(default_factory=dict)
    gpu_provider: str = "auto"
    gpu_interval_ms: int = 1000
    hf_device_time: bool = False
    vllm_device_time: bool = False
    triton_detail: str = "full"
    service_name: str = ""
    resource: Mapping[str, str] = field(default_factory=dict)
    fingerprint: str = ""

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> Settings:
        """Read the environment.

        Raises:
            ConfigurationError: a variable holds a value that cannot be used.
        """
        env = os.environ if env is None else env
        disabled_by = _disabled_by(env)
        resource = _resource(env)
        return cls(
            disabled=bool(disabled_by),
            disabled_by=disabled_by,
            auto_activation=not disabled_by and _auto_activation(env),
            agent=_agent(env),
            agent_python=env.get("AXONIZE_AGENT_PYTHON", ""),
            runtime_dir=choose_runtime_dir(env),
            queue_capacity=_integer(env, "AXONIZE_QUEUE_CAPACITY", 65_536, 1),
            export_queue_capacity=_integer(env, "AXONIZE_EXPORT_QUEUE_CAPACITY", 50_000, 1),
            export_queue_bytes=_integer(env, "AXONIZE_EXPORT_QUEUE_BYTES", 1024**3, 0),
            export_queue_age_s=_integer(env, "AXONIZE_EXPORT_QUEUE_AGE_S", 86_400, 1),
            export_gzip_bytes=_integer(env, "AXONIZE_EXPORT_GZIP_BYTES", 1024, 0),
            state_dir=_state_dir(env),
            load_plugins=wanted_plugins(env),
            plugin_settings={name: value for name, value in env.items() if name.startswith(_PLUGIN_PREFIX)},
            gpu_provider=_choice(env, "AXONIZE_GPU_PROVIDER", ("auto", "nvml", "simulated", "none")),
            gpu_interval_ms=_integer(env, "AXONIZE_GPU_INTERVAL_MS", 1000, 100),
            hf_device_time=_flag(env, "AXONIZE_HF_DEVICE_TIME"),
            vllm_device_time=_flag(env, "AXONIZE_VLLM_DEVICE_TIME"),
            triton_detail=_choice(env, "AXONIZE_TRITON_DETAIL", ("full", "ids")),
            service_name=_text(env.get("OTEL_SERVICE_NAME", "")) or resource.get("service.name", ""),
            resource=resource,
            fingerprint=_fingerprint(env),
        )


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """Return the settings of this process, read from the environment on the first call."""
    return Settings.from_env()


def is_asked_for(env: Mapping[str, str] | None = None) -> bool:
    """Say whether AXONIZE_ENABLED switches on what is off until asked for, and no other switch turns everything off.

    Reads the environment anew each time: a command line may set it for this process and its children.

    Raises:
        ConfigurationError: one of the switches is neither true nor false.
    """
    env = os.environ if env is None else env
    return _flag(env, "AXONIZE_ENABLED") and not _disabled_by(env)


def _flag(env: Mapping[str, str], name: str) -> bool:
    value = env.get(name, "").strip().lower()
    if value not in _TRUE | _FALSE:
        raise ConfigurationError(f"{name}={env[name]!r} is neither true nor false; set it to true or false")
    return value in _TRUE


def _integer(env: Mapping[str, str], name: str, default: int, least: int) -> int:
    text = env.get(name, "").strip()
    try:
        value = int(text) if text else default
    except ValueError as e:
        raise ConfigurationError(f"{name}={text!r} is no whole number") from e
    if value < least:
        raise ConfigurationError(f"{name}={value} is below the least value, {least}")
    return value


def _choice(env: Mapping[str, str], name: str, choices: tuple[str, ...]) -> str:
    value = env.get(name, "").strip().lower() or choices[0]
    if value not in choices:
        raise ConfigurationError(f"{name}={env[name]!r} is not one of {', '.join(choices)}")
    return value


def _agent(env: Mapping[str, str]) -> str:
    value = env.get("AXONIZE_AGENT", "").strip() or "auto"
    if value in ("auto", "inline") or value.startswith("unix:///"):
        return value
    raise ConfigurationError(f"AXONIZE_AGENT={value!r} is neither auto, inline nor unix:///path/agent.sock")


def _disabled_by(env: Mapping[str, str]) -> str:
    for name in ("AXONIZE_DISABLED", "OTEL_SDK_DISABLED"):
        if _flag(env, name):
            return name
    own = env.get("AXONIZE_OPT_OUT_FILE", "")
    config = env.get("XDG_CONFIG_HOME") or str(Path(env.get("HOME", "/")) / ".config")
    for path in (Path(own) if own else Path(config) / "axonize/disabled", Path("/etc/axonize/disabled")):
        # Unlike Path.exists, this takes a place we may not look into, another user's HOME say, for one without a file.
        if os.path.exists(path):  # noqa: PTH110
            return str(path)
    return ""


def _auto_activation(env: Mapping[str, str]) -> bool:
    return env.get("ENVIRONMENT", "").strip().lower() not in _QUIET_ENVIRONMENTS or _flag(env, "AXONIZE_ENABLED")


def wanted_plugins(env: Mapping[str, str]) -> tuple[str, ...] | None:
    """Return the entry points that AXONIZE_LOAD_PLUGINS names; None for all, empty for none."""
    value = env.get("AXONIZE_LOAD_PLUGINS", "all").strip()
    if value.lower() in ("all", "none"):
        return None if value.lower() == "all" else ()
    return tuple(name for part in value.split(",") if (name := part.strip()))


def _state_dir(env: Mapping[str, str]) -> Path | None:
    if own := env.get("AXONIZE_STATE_DIR"):
        return Path(own)
    if xdg := env.get("XDG_STATE_HOME"):
        return Path(xdg) / "axonize"
    home = env.get("HOME", "")
    # Root could make the home that a container's environment names and its image lacks; that is not for us to do.
    return Path(home) / ".local/state/axonize" if os.path.isdir(home) else None  # noqa: PTH112 - no error where we may not look


def _resource(env: Mapping[str, str]) -> dict[str, str]:
    pairs = (part.partition("=") for part in env.get("OTEL_RESOURCE_ATTRIBUTES", "").split(",") if "=" in part)
    return {_text(key).strip(): _text(unquote(value.strip())) for key, _, value in pairs}


def _text(value: str) -> str:
    """Return text that can be sent: bytes that this process's locale could not decode are UTF-8, or a replacement."""
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _fingerprint(env: Mapping[str, str]) -> str:
    """Hash what two processes must agree on before they may share an agent."""
    shared = {
        name: value
        for name, value in env.items()
        if name.startswith(("OTEL_EXPORTER_OTLP_", "AXONIZE_EXPORT_", "AXONIZE_GPU_", _PLUGIN_PREFIX))
        or name in ("AXONIZE_LOAD_PLUGINS", "AXONIZE_STATE_DIR", "OTEL_TRACES_EXPORTER", "OTEL_METRICS_EXPORTER")
    }
    text = repr((__version__, sys.prefix, sorted(shared.items())))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def settings_markdown() -> str:
    """Return the table of the variables, for ``axonize env`` and the documentation."""
    rows = [f"| `{s.env}` | `{s.default}` | {s.unit} | {s.meaning} |" for s in SETTINGS]
    return "\n".join(["| variable | default | unit | meaning |", "|---|---|---|---|", *rows, ""])


_INTRODUCTION = """# Settings beside inference

Read once, when the first model is instrumented. Generated from `axonize_core/settings.py` by `make docs`; `axonize env`
prints the same table. The collector's settings stand in [collector-settings.md](collector-settings.md).
"""

if __name__ == "__main__":
    print(_INTRODUCTION, settings_markdown(), sep="\n", end="")  # noqa: T201 - this is what running it is for
