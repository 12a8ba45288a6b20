"""The last samples of one compute resource, and what they say about a span's own time.

Utilisation and memory are means of the samples inside the span, or the one that held when it began. Power is the
energy counter's rise over the span, interpolated between readings: the counter sees what happens between them.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from axonize_core.events import GpuSample

__all__ = ["Readings", "mean_of", "mean_power_w"]

KEPT_SAMPLES = 600


class Readings(NamedTuple):
    """Samples in order of time. Never changed, so any thread reads it without a lock; ``adding`` makes a new one."""

    times: tuple[int, ...] = ()
    samples: tuple[GpuSample, ...] = ()
    energy_times: tuple[int, ...] = ()
    energies_j: tuple[float, ...] = ()
    refresh_ns: int = 0

    def adding(self, sample: GpuSample) -> Readings:
        """Return these readings and one more, without the oldest when there are too many."""
        energy_times, energies, refresh_ns = self.energy_times, self.energies_j, self.refresh_ns
        if sample.energy_j is not None:
            at_ns = sample.time_ns if sample.energy_time_ns is None else sample.energy_time_ns
            refresh_ns = 2 * max(0, sample.time_ns - at_ns)
            if not energy_times or at_ns > energy_times[-1]:
                energy_times, energies = _kept(energy_times, at_ns), _kept(energies, sample.energy_j)
        times, samples = _kept(self.times, sample.time_ns), _kept(self.samples, sample)
        return Readings(times, samples, energy_times, energies, refresh_ns)

    def window(self, start_ns: int, end_ns: int, oldest_ns: float) -> tuple[int, int]:
        """Return the range of samples inside a span, or else of the one that held when it began.

        A reading from more than ``oldest_ns`` before the span says nothing about it.
        """
        first, last = bisect_left(self.times, start_ns), bisect_right(self.times, end_ns)
        if first < last or not self.times:
            return first, last
        first = max(0, first - 1)
        return first, first if abs(start_ns - self.times[first]) > oldest_ns else first + 1

    def segment(self, start_ns: int, end_ns: int, oldest_ns: float) -> int | None:
        """Return which rise of the counter a span lies in, so that all in it have one power; None for several."""
        if len(self.energy_times) < 2:  # noqa: PLR2004 - a rise needs two readings
            return -1
        if end_ns - self.times[-1] > oldest_ns:
            return None
        start_ns, end_ns = _padded(self, start_ns, end_ns)
        first = bisect_left(self.energy_times, start_ns)
        return first if first == bisect_left(self.energy_times, end_ns) else None


def _padded(readings: Readings, start_ns: int, end_ns: int) -> tuple[int, int]:
    """Return a span made at least as long as a refresh of the counter, around its middle."""
    missing_ns = readings.refresh_ns - (end_ns - start_ns)
    return (start_ns - missing_ns // 2, end_ns + missing_ns // 2) if missing_ns > 0 else (start_ns, end_ns)


def _kept(values: tuple, value: object) -> tuple:  # type: ignore[type-arg] # of any kind
    return (*values[-KEPT_SAMPLES + 1 :], value)


def mean_of(samples: tuple[GpuSample, ...], field: str) -> float | None:
    """Return the mean of a field over the samples that have it."""
    values = [value for sample in samples if (value := getattr(sample, field)) is not None]
    if len(values) == 1:
        return float(values[0])
    return fmean(values) if values else None


def mean_power_w(readings: Readings, start_ns: int, end_ns: int, oldest_ns: float) -> float | None:
    """Return the mean power over a span, None where nothing is known of it.

    Before the first reading of the counter there is nothing; after the last one the latest rise goes on. A span that
    is shorter than a refresh of the counter gets the mean of one around it: the counter tells nothing finer.
    """
    times = readings.energy_times
    if len(times) < 2 or end_ns < times[0]:  # noqa: PLR2004 - a rise needs two readings
        first, last = readings.window(start_ns, end_ns, oldest_ns)
        return mean_of(readings.samples[first:last], "power_w")
    if end_ns - readings.times[-1] > oldest_ns:
        return None
    start_ns, end_ns = _padded(readings, start_ns, end_ns)
    start_ns = max(start_ns, times[0])
    if end_ns <= times[-1]:
        return _rise(readings, start_ns, max(end_ns, start_ns + 1))
    latest_ns = max(min(times[-1] - readings.refresh_ns, times[-2]), times[0])
    tail_w = _rise(readings, latest_ns, times[-1])
    if start_ns >= times[-1]:
        return tail_w
    known_j = _rise(readings, start_ns, times[-1]) * (times[-1] - start_ns)
    return (known_j + tail_w * (end_ns - times[-1])) / (end_ns - start_ns)


def _rise(readings: Readings, start_ns: int, end_ns: int) -> float:
    """Return W, the counter's rise between two times within its readings."""
    return (_energy_j(readings, end_ns) - _energy_j(readings, start_ns)) / (end_ns - start_ns) * 1e9


def _energy_j(readings: Readings, at_ns: int) -> float:
    times, energies = readings.energy_times, readings.energies_j
    after = min(max(bisect_left(times, at_ns), 1), len(times) - 1)
    share = (at_ns - times[after - 1]) / (times[after] - times[after - 1])
    return energies[after - 1] + share * (energies[after] - energies[after - 1])
