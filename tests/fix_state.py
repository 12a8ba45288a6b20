"""A state directory of each test's own: no test finds, or leaves, a disk queue in the user's."""

from __future__ import annotations

import itertools

import pytest

_COUNT = itertools.count()


@pytest.fixture(autouse=True, scope="session")
def state_home(tmp_path_factory):
    """XDG_STATE_HOME, for what is started by fixtures of a wider scope, or without our own variables."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.getbasetemp() / "state-home"))
        yield


@pytest.fixture(autouse=True)
def state_dir(monkeypatch, tmp_path_factory):
    """AXONIZE_STATE_DIR of this test and of what it starts; made by who needs it."""
    path = tmp_path_factory.getbasetemp() / f"state-{next(_COUNT)}"
    monkeypatch.setenv("AXONIZE_STATE_DIR", str(path))
    return path
