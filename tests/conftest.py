"""Fixtures by resource, the versions of the real parts the tests run on, and which tests need the collector."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

pytest_plugins = [path.stem for path in sorted(Path(__file__).parent.glob("fix_*.py"))]

REAL_PARTS = ("torch", "transformers", "chdb-core", "clickhouse-connect", "opentelemetry-sdk", "protobuf")


def pytest_report_header() -> str:
    """Name the versions in the first lines of every run."""
    return "parts: " + ", ".join(f"{name} {_version(name)}" for name in REAL_PARTS)


def pytest_collection_modifyitems(items: list) -> None:
    """Mark the tests of files that import the collector or use one."""
    server = {path for path in {item.path for item in items} if "axonize_server" in path.read_text()}
    for item in items:
        if item.path in server:
            item.add_marker("server")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"
