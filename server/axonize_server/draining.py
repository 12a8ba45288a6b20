"""The end of a writer: the signal that asks for it, and the alarm that sees to it."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import threading

__all__ = ["DrainOverError", "drained", "listen_to_signals"]

_GRACE_S = 1.0


class DrainOverError(BaseException):
    """The time to drain is over and a call to the store has not come back; raised where the main thread waits."""


def listen_to_signals(stop: threading.Event, drain_s: float) -> None:
    """Set `stop` at the first SIGTERM or SIGINT; call it in the main thread.

    Who is not `drained` by then gets a DrainOverError in the main thread, `drain_s` seconds and a moment after.
    """

    def told(*_: object) -> None:
        if not stop.is_set():
            stop.set()
            signal.setitimer(signal.ITIMER_REAL, drain_s + _GRACE_S)

    def over(*_: object) -> None:
        raise DrainOverError

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, told)
    signal.signal(signal.SIGALRM, over)


def drained() -> None:
    """Say that the drain is over by itself, so that nothing is interrupted any more."""
    signal.setitimer(signal.ITIMER_REAL, 0)
