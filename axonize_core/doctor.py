"""What ``axonize doctor`` finds: installation, switches, integrations, GPU, agents and the collector."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
import urllib.error
import urllib.request
from importlib import metadata
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import click
import msgspec

from axonize_core import __version__
from axonize_core.absence import read_absences
from axonize_core.errors import ConfigurationError
from axonize_core.export.report import agent_lines, endpoint_lines, queue_lines
from axonize_core.frames import FrameDecoder, FrameError, Status, StatusRequest, encode_frame
from axonize_core.gpu.report import gpu_lines
from axonize_core.plugins import load_plugins
from axonize_core.runtime_dir import obstacle_to_socket, runtime_dirs
from axonize_core.transport import agent_socket_path, connect

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from axonize_core.absence import Absence
    from axonize_core.settings import Settings

__all__ = ["Finding", "agent_sockets", "agent_status", "examine", "print_facts", "print_json"]

_PACKAGES = (
    "opentelemetry-sdk",
    "opentelemetry-exporter-otlp-proto-common",
    "requests",
    "nvidia-ml-py",
    "pluggy",
    "msgspec",
)
_ALARMING = ("records_dropped", "records_orphaned", "engines_lost", "encoder_failures")
TIMEOUT_S = 2.0


class Finding(NamedTuple):
    """One fact: which part, ``ok``, ``note`` or ``problem``, what, and the next step if there is one."""

    part: str
    level: str
    text: str
    facts: Mapping[str, Any] = MappingProxyType({})


def examine(settings: Settings) -> list[Finding]:
    """Look at everything, most basic first; nothing is changed."""
    return [
        *_installation(),
        *_switches(settings),
        *_gpu(settings),
        *_plugins(settings),
        *_agents(settings),
        *(Finding("export", *line) for line in queue_lines(settings)),
        *_collector(),
    ]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _installation() -> Iterator[Finding]:
    yield Finding("installation", "ok", f"axonize {__version__}, Python {platform.python_version()} ({sys.prefix})")
    for package in _PACKAGES:
        version = _version(package)
        level = "ok" if version else "problem"
        yield Finding("installation", level, f"{package} {version or 'is missing: pip install axonize'}")
    for entry in metadata.entry_points(group="axonize.integrations"):
        supported = entry.load()
        yield _integration(supported)
        yield from _hindrances(supported)


def _integration(supported: Any) -> Finding:
    """Say whether an integration's framework is there, in a version that it knows."""
    low, high = (".".join(map(str, bound)) for bound in supported.SUPPORTED)
    known, version = f">={low},<{high}", _version(supported.ENGINE)
    if version is None:
        return Finding("integrations", "note", f"{supported.ENGINE} is not installed ({known} is supported)")
    if supported.is_supported(version):
        later = ", ".join(supported.added_later(version))
        more = f"; newer versions add {later}" if later else ""
        return Finding("integrations", "ok", f"{supported.ENGINE} {version} is supported ({known}){more}")
    if hasattr(supported, "missing"):
        text = f"{supported.ENGINE} {version} was not tested ({known} is): what it has in the same places is recorded"
        return Finding("integrations", "note", text)
    text = f"{supported.ENGINE} {version} is not supported ({known} is): nothing of it is recorded; upgrade axonize"
    return Finding("integrations", "problem", text)


def _hindrances(supported: Any) -> Iterator[Finding]:
    """Say what in the environment keeps an installed framework from being recorded, where its integration knows."""
    if hasattr(supported, "hindrances") and _version(supported.ENGINE) is not None:
        yield from (Finding("integrations", "problem", text) for text in supported.hindrances(os.environ))


def _switches(settings: Settings) -> Iterator[Finding]:
    if settings.disabled:
        yield Finding("switches", "note", f"everything is off, by {settings.disabled_by}")
    elif not settings.auto_activation:
        yield Finding(
            "switches", "note", "ENVIRONMENT keeps automatic activation off; AXONIZE_ENABLED=true turns it on"
        )
    else:
        yield Finding("switches", "ok", "on")


def _gpu(settings: Settings) -> Iterator[Finding]:
    import pynvml  # noqa: PLC0415 - only here

    from axonize_core.gpu.nvml import NvmlProvider  # noqa: PLC0415 - same

    try:
        provider = NvmlProvider()
    except pynvml.NVMLError as e:
        simulated = settings.gpu_provider == "simulated"
        text = "the simulated device is used" if simulated else "spans say gpu.provenance=unavailable"
        yield Finding("gpu", "note", f"NVML: {e}; {text}")
        return
    for resource in provider.resources():
        what = f"slice {resource.mig_profile or ''}".rstrip() if resource.kind == "mig" else resource.gpu.name
        more = " (MIG)" if resource.kind == "sliced" else ""
        yield Finding("gpu", "ok", f"{what} {resource.id}{more}, driver {resource.gpu.driver_version}")
    provider.close()


def _plugins(settings: Settings) -> Iterator[Finding]:
    plugins = load_plugins(settings.load_plugins, groups=("axonize", "axonize.server"))
    yield Finding("plugins", "ok", ", ".join(plugins.names()))
    for name, reason in plugins.disabled.items():
        yield Finding("plugins", "problem", f"{name} {reason}")


def _agents(settings: Settings) -> Iterator[Finding]:
    """Ask every agent socket in this user's runtime directories, ours first, and read what lonely processes wrote."""
    try:
        own = agent_socket_path(settings)
    except ConfigurationError as e:
        yield Finding("agent", "problem", str(e))
        return
    none = None if own.exists() else _no_agent(settings, own)
    found = [finding for path in agent_sockets(settings) for finding in _agent(path)]
    if none and (none.level == "problem" or not found):  # an agent of other settings is no help to these
        yield none
    yield from found
    yield from (_lonely(absence) for place in _places(settings, own) for absence in read_absences(place))


def _places(settings: Settings, own: Path) -> list[Path]:
    return list(dict.fromkeys([own.parent, settings.runtime_dir, *runtime_dirs(os.environ)]))


def agent_sockets(settings: Settings) -> list[Path]:
    """Return the sockets of all agents this user may have, that of these settings first.

    Raises:
        ConfigurationError: the path of these settings' agent does not fit into a socket address.
    """
    own = agent_socket_path(settings)
    others = (path for place in _places(settings, own) for path in sorted(place.glob("agent-*.sock")) if path != own)
    return [path for path in (own, *others) if path.exists()]


def _no_agent(settings: Settings, own: Path) -> Finding:
    """Say that there is none, and whether there could be one."""
    if settings.agent == "inline":
        return Finding("agent", "note", "runs inside each instrumented process (AXONIZE_AGENT=inline)")
    if settings.agent != "auto":
        return Finding("agent", "problem", f"none runs at {own}; start one: axonize agent --socket {own}")
    if obstacle := obstacle_to_socket(own.parent):
        return Finding("agent", "problem", f"none can run at {own}: {obstacle}; set AXONIZE_RUNTIME_DIR")
    return Finding("agent", "note", f"none runs at {own}; the first instrumented process starts one")


def _lonely(absence: Absence) -> Finding:
    """Say what a process that found no agent lost so far."""
    if absence.ended:
        text = f"pid {absence.pid} ended without an agent, {absence.dropped} records were dropped"
    else:
        age_s = time.time() - absence.since_s
        text = f"pid {absence.pid} is without an agent for {age_s:.0f} s, {absence.waiting} records wait"
        text += f", {absence.dropped} were dropped"
    return Finding("agent", "problem", f"{text}: {absence.reason}", msgspec.structs.asdict(absence))


def _agent(path: Path) -> Iterator[Finding]:
    try:
        facts = agent_status(path)
    except (OSError, FrameError) as e:
        yield Finding("agent", "problem", f"{path} does not answer: {e}")
        return
    text = f"pid {facts['pid']}, {facts['processes_live']} processes, {facts['requests_live']} live requests"
    yield Finding("agent", "ok", text, facts)
    yield from (_engine(engine) for engine in facts.get("engines", ()))
    counts = dict(facts["counts"])
    for own in facts["facts"].values():
        counts.update({k: v for k, v in own.items() if isinstance(v, int)})
        yield from (Finding("export", *line) for line in agent_lines(own))
    for name in _ALARMING:
        if counts.get(name):
            yield Finding("agent", "problem", f"{name.replace('_', ' ')}: {counts[name]}")
    yield from (Finding("gpu", *line) for line in gpu_lines(facts["gpu"]))
    for where, count in {**facts["process_errors"], **facts["failures"], **facts["gpu_failures"]}.items():
        yield Finding("agent", "problem", f"failures in {where}: {count}")
    for name, reason in facts["disabled"].items():
        yield Finding("agent", "problem", f"plugin {name} is disabled: {reason}")


def _engine(facts: Mapping[str, str]) -> Finding:
    """Say what is recorded of a live engine, from the attributes of its source and its ``engine`` and ``model``."""
    on = facts["ai.capabilities"].split(",")
    name = " ".join(part for part in (facts["engine"], facts.get("ai.engine.version", ""), facts["model"]) if part)
    text = f"{name} ({facts.get('ai.engine.id', '')}): {', '.join(on)}"
    if "stat_logger" in on:
        return Finding("engines", "problem", f"{text}; steps and members are not: its log says why", facts)
    return Finding("engines", "ok", text, facts)


def agent_status(path: Path) -> dict[str, Any]:
    """Return the facts an agent states about itself.

    Raises:
        OSError: it does not answer.
        FrameError: what answers is no agent.
    """
    connection = connect(path, TIMEOUT_S)
    try:
        connection.sendall(encode_frame(StatusRequest()))
        decoder = FrameDecoder()
        while data := connection.recv(65_536):
            for frame in decoder.feed(data):
                if isinstance(frame, Status):
                    return frame.facts
    finally:
        connection.close()
    raise FrameError("it closed the connection without a status")


def _collector() -> Iterator[Finding]:
    yield from (Finding("collector", *line) for line in endpoint_lines(TIMEOUT_S))
    api = os.environ.get("AXONIZE_API_URL", "http://127.0.0.1:4319").rstrip("/")
    try:
        with urllib.request.urlopen(f"{api}/api/v1/health", timeout=TIMEOUT_S) as response:  # noqa: S310 - the user's own URL
            health = json.load(response)
    except (OSError, ValueError) as e:
        yield Finding(
            "collector", "note", f"no query API at {api} ({getattr(e, 'reason', e)}); start one: axonize collector"
        )
        return
    level = "ok" if health.get("status") == "ok" else "problem"
    yield Finding("collector", level, f"query API at {api}: {health.get('status')}", health)


def print_facts(findings: list[Finding]) -> None:
    """Print one line per finding, problems in red."""
    marks = {"ok": ("ok", "green"), "note": ("--", "yellow"), "problem": ("!!", "red")}
    for finding in findings:
        mark, colour = marks[finding.level]
        click.echo(f"{click.style(mark, fg=colour)} {finding.part:<13} {finding.text}")


def print_json(findings: list[Finding]) -> None:
    """Print everything, with all counters, as JSON."""
    click.echo(json.dumps([{**f._asdict(), "facts": dict(f.facts)} for f in findings], indent=2, default=str))
