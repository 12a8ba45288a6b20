"""A state directory of each test's own: no test finds, or leaves, a disk queue in the user's."""

from __future__ import annotations

import itertools

import pytest

_COUNT = itertools.count()


@pytest.fixture(autouse=True)
def state_dir(monkeypatch, tmp_path_factory):
    """AXONIZE_STATE_DIR of this test and of what it starts; made by who needs it."""
    path = tmp_path_factory.getbasetemp() / f"state-{next(_COUNT)}"
    monkeypatch.setenv("AXONIZE_STATE_DIR", str(path))
    return path
