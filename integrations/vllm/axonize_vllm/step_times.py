"""What a device took for each step of a worker, by two CUDA events around it; opt-in, never synchronising.

An event is a mark in the device's stream: the time between two is the device's own, waiting for the host included.
vLLM's host runs ahead of the device, so the marks of a step are read in later ones, as far as they were passed by then;
the last step before a pause is told when the next one ends.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Protocol

from axonize_core.frames import Kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from axonize_core.recorder import Recorder

__all__ = ["StepTimes"]

MOST_PENDING = 1024


class Event(Protocol):
    """What is used of ``torch.cuda.Event(enable_timing=True)``."""

    def record(self) -> None: ...
    def query(self) -> bool: ...
    def elapsed_time(self, end: Event) -> float: ...


class StepTimes:
    """The marks of one worker, on the thread that runs its model; a few us a step. No method raises."""

    def __init__(self, recorder: Recorder, engine_id: str, make_event: Callable[[], Event]) -> None:
        self._recorder = recorder
        self._engine_id = engine_id
        self._make_event = make_event
        self._open: tuple[int, Event] | None = None
        self._pending: deque[tuple[int, Event, Event]] = deque()
        self._free: list[Event] = []
        self._broken = False

    def begin(self, step: int | None) -> None:
        """Mark the begin of a step; one without a number is not measured."""
        self._open = None
        if step is None or self._broken:
            return
        try:
            self._open = (step, self._mark())
        except Exception:  # noqa: BLE001 - nothing of ours may reach the engine
            self._break()

    def end(self) -> None:
        """Mark the end of the step that began last, and tell of those that the device is done with."""
        if self._open is None:
            return
        try:
            self._pending.append((*self._open, self._mark()))
            self._open = None
            self._tell()
            # A device this far behind, or one that never passes its marks, is not asked any further.
            if len(self._pending) > MOST_PENDING:
                self._break()
        except Exception:  # noqa: BLE001 - same
            self._break()

    def _mark(self) -> Event:
        event = self._free.pop() if self._free else self._make_event()
        event.record()
        return event

    def _tell(self) -> None:
        """Emit the steps both of whose marks were passed; in a stream they are passed in order."""
        pending, done = self._pending, []
        while pending and pending[0][2].query():
            step, begin, end = pending.popleft()
            done.append((step, round(begin.elapsed_time(end) * 1e6)))
            self._free += (begin, end)
        if done:
            self._recorder.emit(Kind.STEP_DEVICE, 0, (self._engine_id, tuple(done)))

    def _break(self) -> None:
        self._broken, self._open = True, None
        self._pending.clear()
        self._recorder.count_error("vllm.step_times")
