"""What one ``emit()`` costs beside a reading of the clock: minima of interleaved bursts."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from axonize_core.recorder import Recorder

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["emit_cost"]

_CALLS = 5_000
_ROUNDS = 40


class _Held:
    """Leaves the records where they are."""

    def start(self) -> None:
        pass

    def flush(self, timeout_s: float) -> bool:  # noqa: ARG002 - nothing is on its way
        return True

    def stop(self, timeout_s: float) -> bool:  # noqa: ARG002 - same
        return True

    def forget(self) -> None:
        pass

    def ship_here(self) -> int:
        return 2**63


def emit_cost() -> dict[str, float]:
    """Return ``emit_ns`` and ``clock_ns``, per call, without the loop around them."""
    recorder = Recorder(_CALLS * 2, lambda _: _Held())
    loop = clock = emit = float("inf")
    for _ in range(_ROUNDS):
        loop, clock, emit = (
            min(loop, _burst(None)),
            min(clock, _burst(time.perf_counter_ns)),
            min(emit, _emits(recorder)),
        )
        while recorder.queued():
            recorder.take()
    return {"emit_ns": emit - loop, "clock_ns": clock - loop}


def _burst(call: Callable[[], int] | None) -> float:
    started_ns = time.perf_counter_ns()
    if call is None:
        for _ in range(_CALLS):
            pass
    else:
        for _ in range(_CALLS):
            call()
    return (time.perf_counter_ns() - started_ns) / _CALLS


def _emits(recorder: Recorder) -> float:
    emit = recorder.emit
    started_ns = time.perf_counter_ns()
    for _ in range(_CALLS):
        emit(2, 7, 1)
    return (time.perf_counter_ns() - started_ns) / _CALLS
