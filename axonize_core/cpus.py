"""The CPUs that this process was given when it was started, for the agent that it may start.

Engines pin themselves to a CPU and spin there, as vLLM's workers on CPU do, and what they start inherits it. An agent
on the CPU of a busy worker was seen to wait 23 s for 0.6 s of work, while another CPU had time.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["CPUS", "use"]

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


def use(cpus: Iterable[int]) -> None:
    """Let the calling thread, and those it starts, run on these; as far as the system allows it."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.sched_setaffinity(0, cpus)
