"""Steps whose device time another process measures: they wait for it, a moment.

Workers read their marks some steps later and ship by themselves. Agent's main thread.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from axonize_core.events import BatchEvent

__all__ = ["DeviceTimes"]

WAIT_S = 1.0
MOST = 16_384
_Step = tuple[str, int]


class DeviceTimes:
    """What workers measured and the steps that wait for it; an engine's steps wait once a worker spoke of it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._engines: set[str] = set()
        self._measured: dict[_Step, int] = {}
        self._waiting: dict[_Step, tuple[BatchEvent, float]] = {}

    def hear(self, measured: Iterable[tuple[str, int, int]]) -> None:
        """Take engine, step and ns of the device; of several workers the longest counts."""
        for engine, step, device_ns in measured:
            self._engines.add(engine)
            key = (engine, step)
            self._measured[key] = max(device_ns, self._measured.get(key, 0))
            if len(self._measured) > MOST:
                del self._measured[next(iter(self._measured))]

    def join(self, batches: Iterable[BatchEvent]) -> list[BatchEvent]:
        """Return the steps that need not wait, with their device time where it is there; others come from ``due``."""
        ready = []
        for batch in batches:
            engine = batch.source.resource.get("ai.engine.id", "")
            if batch.engine_step is None or engine not in self._engines:
                ready.append(batch)
            else:
                self._waiting[engine, batch.engine_step] = (batch, self._clock() + WAIT_S)
        return ready

    def due(self, *, closing: bool = False) -> list[BatchEvent]:
        """Return the steps whose time came, and after a moment those without; ``closing`` waits for none.

        Several workers measure one step: the first to speak does not speak for all, so each waits out its moment.
        """
        now, ready = self._clock(), []
        for key, (batch, deadline) in list(self._waiting.items()):
            if not closing and now < deadline:
                break
            del self._waiting[key]
            device_ns = self._measured.pop(key, None)
            ready.append(batch if device_ns is None else msgspec.structs.replace(batch, device_ns=device_ns))
        return ready
