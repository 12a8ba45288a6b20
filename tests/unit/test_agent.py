"""The agent's own housekeeping; what it does for engines is in tests/integration/test_agent.py."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from types import SimpleNamespace

from axonize_core import agent


class Knot:
    """Refers to itself, so that only a collection lets go of it."""

    def __init__(self):
        self.itself = self


def test_what_hangs_together_in_cycles_is_let_go_of_now_and_then(tmp_path, monkeypatch):
    """The agent collects by its own clock, where Python's collector does not."""
    monkeypatch.setattr(agent, "COLLECT_S", 0.15)
    ticks = iter(range(4))
    pipeline = SimpleNamespace(dispatch=lambda: next(ticks, None) is None and server.stop())
    server = agent.AgentServer(tmp_path / "agent.sock", pipeline, fingerprint=None)
    gc.disable()
    try:
        knot = weakref.ref(Knot())
        server.serve()
        assert knot() is None
    finally:
        gc.enable()
        server.close()


def test_pythons_own_passes_are_off():
    """They come in the middle of work, and take as long as an engine can feel."""
    program = "import gc; from axonize_core.agent import quieten_collector as q; q(); print(gc.isenabled())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
