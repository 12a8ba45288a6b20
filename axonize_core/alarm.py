"""A sleep that others can put off or end, without the sleeper waking up in between: a timer of the kernel's.

A thread that wakes up takes the GIL from the engine's and gives it back: half a millisecond of a step, however little
it does (docs/adr/0010). No lock, event or condition of Python's can be put off without that.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import struct
import time
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["LONGEST_S", "Alarm"]

LONGEST_S = 10.0
"""How long a sleep can be put off; what else the sleeper looks after is not left alone for longer."""
_FIRST_FREE_FD = 3
_NS = 1_000_000_000
_TIMES = struct.Struct("4l")
"""``struct itimerspec``: seconds and ns of the interval, of which there is none here, and of the first time."""


class Alarm:
    """One thread sleeps; ``put_off`` and ``ring`` may be called from any other. Nothing here raises or blocks those.

    Where the kernel's timer cannot be had, or a host closed its number, sleeps are neither put off nor cut short.
    """

    def __init__(self) -> None:
        self._fd = -1
        self._rung = False
        try:
            self._set_time = _function("timerfd_settime", "iiPP")
            made = _function("timerfd_create", "ii")(time.CLOCK_MONOTONIC, os.O_CLOEXEC)
            if made >= 0:  # where no standard stream's number is its own, as a host may have closed these
                self._fd = fcntl.fcntl(made, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE_FD)
                os.close(made)
        except (OSError, AttributeError, ImportError):  # no such function, or a Python without ctypes
            self._fd = -1
        self._poll = select.poll()
        if self._fd >= 0:
            self._poll.register(self._fd, select.POLLIN)

    def sleep(self, period_s: float) -> None:
        """Sleep so long, or longer where it is put off, ``LONGEST_S`` at most; returns at once when it was rung."""
        if not self.put_off(period_s):
            time.sleep(period_s)
        elif not self._rung:
            self._poll.poll(LONGEST_S * 1000)
        self._rung = False

    def put_off(self, period_s: float) -> bool:
        """Let the sleeper sleep so long from now on; False where that cannot be done."""
        return self._rung or self._set(period_s)

    def ring(self) -> None:
        """Wake the sleeper, now or when it next wants to sleep."""
        self._rung = True
        self._set(1 / _NS)

    def close(self) -> None:
        """Let go of the timer; the sleeper calls this, or a forked child for its copy."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):  # a host closed it
                os.close(fd)

    def _set(self, period_s: float) -> bool:
        return self._fd >= 0 and not self._set_time(self._fd, 0, _times(period_s), None)


@lru_cache
def _times(period_s: float) -> bytes:
    seconds = int(period_s)
    return _TIMES.pack(0, 0, seconds, round((period_s - seconds) * _NS))


def _function(name: str, arguments: str) -> Callable[..., int]:
    """Return a function of the C library that keeps the GIL: to let go of it would take longer than the call.

    ``arguments`` has a letter for each: i an int, P a pointer.
    """
    import ctypes  # noqa: PLC0415 - not every Python has it

    function = getattr(ctypes.PyDLL(None), name)
    function.argtypes = [{"i": ctypes.c_int, "P": ctypes.c_void_p}[letter] for letter in arguments]
    return function  # type: ignore[no-any-return] # ctypes says Any
