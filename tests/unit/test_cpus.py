"""Where the agent runs, and after whom."""

from __future__ import annotations

import os
import subprocess
import sys

from axonize_core import cpus

PROGRAM = """
import os, pathlib, sys
from axonize_core.cpus import give_way
give_way(pathlib.Path(sys.argv[1]))
print(os.getpriority(os.PRIO_PROCESS, 0))
"""


def test_an_agent_gives_way_to_engines(tmp_path):
    """It is nice, and so is its session, which comes first where Linux shares CPUs out."""
    autogroup = tmp_path / "autogroup"
    done = subprocess.run([sys.executable, "-c", PROGRAM, autogroup], capture_output=True, text=True, check=True)
    assert int(done.stdout) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + cpus.NICE)
    assert autogroup.read_text() == str(cpus.NICE)


def test_a_system_that_does_not_let_it_is_left_as_it_is(tmp_path):
    """A kernel without sessions' shares, or a sandbox that forbids it, costs nothing."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, tmp_path / "no" / "file"], capture_output=True, check=True)
    assert done.stderr == b""
