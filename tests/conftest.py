"""Fixtures by resource, and the versions of the real parts the tests run on."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

pytest_plugins = [path.stem for path in sorted(Path(__file__).parent.glob("fix_*.py"))]

REAL_PARTS = ("torch", "transformers", "chdb-core", "clickhouse-connect", "opentelemetry-sdk", "protobuf")


def pytest_report_header() -> str:
    return "parts: " + ", ".join(f"{name} {_version(name)}" for name in REAL_PARTS)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"
