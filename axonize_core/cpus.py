"""Where the agent runs, and after whom: the CPUs that the process that starts it was given, and behind the engines.

Engines pin themselves to a CPU and spin there, as vLLM's workers on CPU do, and what they start inherits it. An agent
on the CPU of a busy worker was seen to wait 23 s for 0.6 s of work, while another CPU had time.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["CPUS", "give_way", "use", "yielding"]

Item = TypeVar("Item")
_AT_A_TIME_NS = 50_000
"""Longer than an item takes, a record or a span, and shorter than an engine's thread can feel."""
_OPENMP = ("GOMP_CPU_AFFINITY", "KMP_AFFINITY", "OMP_PLACES", "OMP_PROC_BIND")
"""With these OpenMP pins the thread that loads it: import torch, most of the time before us."""


def _given() -> tuple[int, ...]:
    """Return where this process may run, or its parent where OpenMP pinned this one; empty where that is not told."""
    try:
        pinned = any(name in os.environ for name in _OPENMP)
        return tuple(sorted(os.sched_getaffinity(os.getppid() if pinned else 0)))
    except (OSError, AttributeError):
        return ()


CPUS = _given()
"""As this module was imported, which the recorder does."""


NICE = 5
"""Next to a busy engine the agent gets a quarter of a CPU then, and all of one that is idle. With much less it could
fall behind an engine that runs on the CPU, whose records would be dropped."""


def give_way() -> None:
    """Let the engine go first where CPUs are short; as far as the system allows it.

    Niceness counts among the processes of a session only: Linux shares CPUs out between sessions first
    (``sched_autogroup``), so the agent stays in the session of the engine that started it. With one of its own, made
    nice as well, clients of a busy engine in a third session waited up to 230 ms for a CPU (docs/adr/0009).
    """
    with contextlib.suppress(OSError):
        os.nice(NICE)


def use(cpus: Iterable[int]) -> None:
    """Let the calling thread, and those it starts, run on these; as far as the system allows it."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.sched_setaffinity(0, cpus)


def yielding(items: Iterable[Item]) -> Iterator[Item]:
    """Give the items, and let whoever waits for this CPU have it every 50 us; costs 0.1 us an item.

    A thread of the engine that woke up behind the agent was seen to wait there for 3 to 4 ms, another CPU idle,
    whatever their niceness. Beside Triton on two cores, p99 of a request over gRPC was 3.0 ms without this and 1.3 ms
    with it; 1.1 ms without an agent (docs/adr/0009).
    """
    clock = time.perf_counter_ns
    due_ns = clock() + _AT_A_TIME_NS
    for item in items:
        if clock() >= due_ns:
            os.sched_yield()
            due_ns = clock() + _AT_A_TIME_NS
        yield item
