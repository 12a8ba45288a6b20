"""These tests run in the environment that ``make test-triton`` makes; elsewhere they are not even looked at.

The folder is not called triton: the one that torch imports would be found here where it is not installed.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path):
    """Leave the folder out where there is no tritonserver, and always what only the server can import."""
    return True if find_spec("pytriton") is None or collection_path.name == "models" else None


def pytest_collection_modifyitems(items):
    """Give each test the time that a server takes to start and to end, beside its own."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent) and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(180))
