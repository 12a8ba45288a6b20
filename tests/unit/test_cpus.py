"""Where the agent runs, and after whom."""

from __future__ import annotations

import os
import subprocess
import sys

from axonize_core import cpus

PROGRAM = """
import os
from axonize_core.cpus import give_way
give_way()
print(os.getpriority(os.PRIO_PROCESS, 0))
"""


def test_an_agent_gives_way_to_engines():
    """It is nice, as far as niceness goes."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert int(done.stdout) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + cpus.NICE)


def test_a_system_that_does_not_let_it_is_left_as_it_is():
    """A sandbox that forbids it costs nothing."""
    program = f"import os; os.nice = lambda by: (_ for _ in ()).throw(PermissionError(by)){PROGRAM}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) == os.getpriority(os.PRIO_PROCESS, 0)


def test_long_work_lets_others_on_its_cpu_in_between(monkeypatch):
    """All items come, in order, and the CPU is offered before the first and after every few."""
    seen = []
    monkeypatch.setattr(os, "sched_yield", lambda: seen.append("yield"))
    for item in cpus.yielding(range(40)):
        seen.append(item)
    assert [item for item in seen if item != "yield"] == list(range(40))
    assert [at for at, item in enumerate(seen) if item == "yield"] == [0, 17, 34]
    assert list(cpus.yielding([])) == []
