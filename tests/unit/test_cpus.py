"""Where the agent runs, and after whom."""

from __future__ import annotations

import gzip
import itertools
import os
import subprocess
import sys

from axonize_core import cpus
from axonize_core.export.batch import pack, unpacked

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
    """All items come, in order, and the CPU is offered whenever so much time went by."""
    seen, readings_ns = [], itertools.count(0, 20_000)
    monkeypatch.setattr(os, "sched_yield", lambda: seen.append("yield"))
    monkeypatch.setattr(cpus.time, "perf_counter_ns", readings_ns.__next__)
    for item in cpus.yielding(range(8)):
        seen.append(item)
    assert seen == [0, 1, "yield", 2, 3, 4, "yield", 5, 6, 7]
    assert list(cpus.yielding([])) == []


def test_a_body_is_compressed_with_others_let_in_between(monkeypatch):
    """In pieces, and what comes out is one gzip member without a time."""
    seen = []
    monkeypatch.setattr(cpus, "_AT_A_TIME_NS", 0)
    monkeypatch.setattr(os, "sched_yield", lambda: seen.append("yield"))
    body = bytes(range(256)) * 200
    packed = pack(body, 3, 7, 1000)
    assert len(seen) == len(body) // 4096 + 1
    assert packed.gzipped
    assert packed.body[4:8] == bytes(4)
    assert gzip.decompress(packed.body) == unpacked(packed) == body
