"""Where the agent runs, and after whom: the CPUs that the process that starts it was given, and behind the engines.

Engines pin themselves to a CPU and spin there, as vLLM's workers on CPU do, and what they start inherits it. An agent
on the CPU of a busy worker was seen to wait 23 s for 0.6 s of work, while another CPU had time.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["CPUS", "give_way", "use"]

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


def give_way(autogroup: Path = Path("/proc/self/autogroup")) -> None:
    """Let engines go first where CPUs are short; as far as the system allows it.

    Linux shares CPUs out between sessions before it looks at the niceness of their processes (``sched_autogroup``), and
    an agent has a session of its own.
    """
    with contextlib.suppress(OSError):
        os.nice(NICE)
    with contextlib.suppress(OSError):
        autogroup.write_text(str(NICE))


def use(cpus: Iterable[int]) -> None:
    """Let the calling thread, and those it starts, run on these; as far as the system allows it."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.sched_setaffinity(0, cpus)
