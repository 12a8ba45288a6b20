"""These tests run in the environment that ``make test-vllm`` makes; elsewhere they are not even looked at."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest


def pytest_ignore_collect():
    """Leave the folder out where there is no vLLM; in its own environment nothing is left out."""
    # A folder called vllm, such as this one, would be found too, but has no file.
    spec = find_spec("vllm")
    return True if spec is None or spec.origin is None else None


def pytest_collection_modifyitems(items):
    """Give each test the time that a server takes to start and to end, beside its own."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent) and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(600))
