"""The machine and the versions that a measurement was made with; unknown is None."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["describe_machine", "load_average"]

_PACKAGES = ("axonize", "msgspec", "opentelemetry-sdk", "pluggy")


def describe_machine(about: Mapping[str, Any]) -> dict[str, Any]:
    """Return processor, cores, memory, system, and versions, those of the workload included."""
    return {
        "cpu": _field(Path("/proc/cpuinfo"), "model name") or platform.processor() or None,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": _memory_bytes(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "versions": {"python": platform.python_version(), **_versions(), **about["versions"]},
    }


def load_average() -> tuple[float, float, float] | None:
    """Return how many processes wanted to run in the last 1, 5 and 15 minutes."""
    try:
        return os.getloadavg()
    except OSError:
        return None


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _memory_bytes() -> int | None:
    text = _field(Path("/proc/meminfo"), "MemTotal")
    return int(text.split()[0]) * 1024 if text else None


def _field(path: Path, name: str) -> str | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), None)
