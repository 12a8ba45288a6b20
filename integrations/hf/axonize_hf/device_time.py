"""What a GPU took for each step of ``generate``, by CUDA events at the steps' boundaries; opt-in, never synchronising.

An event is a mark in the device's stream: the time between two is the device's own, waiting for the host included.
Where a mark was not passed yet when it is asked for (``query()``), the time of that step stays unknown.
"""

from __future__ import annotations

import logging
from collections import deque
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

from axonize_core.settings import get_settings
from axonize_hf.run import guarded

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["DeviceTime", "device_time"]

_MOST_PENDING = 4096
logger = logging.getLogger("axonize.hf")


class _Event(Protocol):
    """What is used of ``torch.cuda.Event(enable_timing=True)``."""

    def record(self, stream: Any) -> None: ...
    def query(self) -> bool: ...
    def elapsed_time(self, end: Any) -> float: ...


class DeviceTime:
    """The marks of one run. The thread of its ``generate``; a mark costs microseconds, not the 0.3 us of a step."""

    def __init__(self, make_event: Callable[[], _Event], stream: Any = None) -> None:
        self._make_event = make_event
        self._stream = stream
        self._pending: deque[_Event] = deque()
        self._free: list[_Event] = []
        self._durations_ns: list[int | None] = []
        self._broken = False

    def marking(self, append: Callable[[int], None]) -> Callable[[int], None]:
        """Return ``append`` with a mark after it."""

        def step(t_ns: int) -> None:
            append(t_ns)
            self.mark()

        return step

    def mark(self) -> None:
        """Mark a boundary: a step's begin, or the end of the last one. Never raises."""
        if not self._broken and self._mark() is None:
            self._broken = True

    @guarded("hf.device_time.mark")
    def _mark(self) -> bool | None:
        event = self._free.pop() if self._free else self._make_event()
        event.record(self._stream)
        self._pending.append(event)
        self._resolve()
        # A device this far behind is not asked any further; the steps so far keep their times.
        return True if len(self._pending) < _MOST_PENDING else None

    def _resolve(self) -> None:
        """Measure every step both of whose marks were passed; in a stream they are passed in order."""
        pending = self._pending
        while len(pending) > 1 and pending[1].query():
            begin = pending.popleft()
            self._durations_ns.append(round(begin.elapsed_time(pending[0]) * 1e6))
            self._free.append(begin)

    def take(self) -> tuple[int | None, ...] | None:
        """Return the device's time of each step in ns as far as it is known by now."""
        self._take()
        unresolved = max(0, len(self._pending) - 1)
        return (*self._durations_ns, *(None,) * unresolved) or None

    @guarded("hf.device_time.resolve")
    def _take(self) -> None:
        if not self._broken:
            self._resolve()


@guarded("hf.device_time.begin")
def device_time(model: Any) -> DeviceTime | None:
    """Return what times a run of this model; None unless AXONIZE_HF_DEVICE_TIME asks for it and it is on one GPU."""
    if not get_settings().hf_device_time:
        return None
    device, parts = model.device, set((getattr(model, "hf_device_map", None) or {}).values())
    if device.type != "cuda" or len(parts) > 1:
        _say(f"the model is on {', '.join(map(str, sorted(parts, key=str))) if parts else device}")
        return None
    import torch  # noqa: PLC0415 - the user's

    if torch.cuda.is_current_stream_capturing():
        return None
    return DeviceTime(lambda: torch.cuda.Event(enable_timing=True), torch.cuda.current_stream(device))


@lru_cache
def _say(why: str) -> None:
    logger.warning("AXONIZE_HF_DEVICE_TIME needs a model on one CUDA device, and %s: no device time", why)
