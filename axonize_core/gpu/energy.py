"""An energy counter that only grows, out of one that wraps, restarts with the driver and now and then steps back."""

from __future__ import annotations

from collections import Counter

__all__ = ["EnergyCounter"]

MOST_POWER_W = 5_000
"""Above what any GPU takes; what would need more was no wrap."""
_WRAP_MJ = 2**32


class EnergyCounter:
    """Adds up one GPU's counter (mJ). ``counts`` says how often it wrapped, was reset and stepped back."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.start_ns: int | None = None
        self._offset_mj = 0
        self._last: tuple[int, int] | None = None

    def add(self, raw_mj: int, time_ns: int) -> int:
        """Return the total in mJ at ``time_ns``; on the same scale as the counter until that wraps or is reset.

        What was used between the last reading and a reset is not known, and not counted.
        """
        if self._last is None:
            self.start_ns = time_ns
        elif raw_mj < self._last[0]:
            raw_mj = self._fell(raw_mj, time_ns, *self._last)
        self._last = (raw_mj, time_ns)
        return self._offset_mj + raw_mj

    def _fell(self, raw_mj: int, time_ns: int, last_mj: int, last_ns: int) -> int:
        most_mj = MOST_POWER_W * max(time_ns - last_ns, 0) / 1e6
        if last_mj < _WRAP_MJ and raw_mj + _WRAP_MJ - last_mj <= most_mj:
            self.counts["wraps"] += 1
            self._offset_mj += _WRAP_MJ
        elif raw_mj > last_mj // 2:  # no counter is reset to most of what it was: two readings overtook each other
            self.counts["steps_back"] += 1
            return last_mj
        else:
            self.counts["resets"] += 1
            self._offset_mj += last_mj
        return raw_mj
