"""The energy counter, and the power that comes of it."""

from __future__ import annotations

import pytest

from axonize_core.events import GpuSample
from axonize_core.gpu.energy import EnergyCounter
from axonize_core.gpu.readings import KEPT_SAMPLES, Readings, mean_power_w

S = 1_000_000_000


def test_a_counter_that_rises_is_left_as_it_is():
    """The scale is the counter's own, so two agents that watch it say the same."""
    counter = EnergyCounter()
    assert [counter.add(v, t * S) for t, v in enumerate((100, 300, 300, 900))] == [100, 300, 300, 900]
    assert counter.start_ns == 0
    assert not counter.counts


def test_a_wrap_is_added_up():
    """32 bits of millijoules last 1.7 h at 700 W."""
    counter = EnergyCounter()
    counter.add(2**32 - 200_000, 0)
    assert counter.add(500_000, S) == 2**32 + 500_000
    assert counter.counts == {"wraps": 1}


def test_a_reset_goes_on_from_what_was():
    """What no GPU could have used since was no wrap: the driver began again."""
    counter = EnergyCounter()
    counter.add(2**31, 0)
    assert counter.add(1_000, S) == 2**31 + 1_000
    assert counter.add(5_000, 2 * S) == 2**31 + 5_000
    assert counter.counts == {"resets": 1}


def test_a_counter_above_32_bits_never_wraps_at_them():
    """64 bits outlast the GPU."""
    counter = EnergyCounter()
    counter.add(2**40, 0)
    assert counter.add(10, S) == 2**40 + 10
    assert counter.counts == {"resets": 1}


def test_a_small_step_back_is_no_reset():
    """The total stands still until the counter is past it again."""
    counter = EnergyCounter()
    assert [counter.add(v, t * S) for t, v in enumerate((1000, 990, 1010))] == [1000, 1000, 1010]
    assert counter.counts == {"steps_back": 1}


def readings(*samples):
    """Readings at (s, J, W)."""
    found = Readings()
    for t_s, energy_j, power_w in samples:
        found = found.adding(GpuSample("g", "g", "n", int(t_s * S), "measured", energy_j=energy_j, power_w=power_w))
    return found


@pytest.mark.parametrize(
    ("start_s", "end_s", "watts"),
    [
        (0, 1, 100),
        (1, 2, 300),
        (0.5, 1.5, 200),
        (0.25, 0.26, 100),
        (1.5, 1.5, 300),
        (-1, 1, 100),
        (0.5, 3, (50 + 300 + 300) / 2.5),
        (2.5, 2.6, 300),
        (9, 10, None),
    ],
)
def test_power_is_the_rise_of_the_counter_over_the_span(start_s, end_s, watts):
    """Between readings in proportion; after the last one the latest rise goes on, for a while."""
    found = mean_power_w(readings((0, 0, 70), (1, 100, 70), (2, 400, 50)), int(start_s * S), int(end_s * S), 3e9)
    assert found == (None if watts is None else pytest.approx(watts, rel=1e-6))


def test_a_span_shorter_than_a_refresh_gets_the_mean_of_one():
    """A reading is up to a refresh old, and dated half of one back: what is shorter, is noise."""
    found = Readings()
    for t_s, energy_j in ((1, 0), (1.1, 20), (1.2, 30)):
        at_ns = int(t_s * S)
        found = found.adding(
            GpuSample("g", "g", "n", at_ns, "measured", energy_j=energy_j, energy_time_ns=at_ns - S // 20)
        )
    assert found.refresh_ns == S // 10
    assert mean_power_w(found, int(1.045 * S), int(1.055 * S), 3e9) == pytest.approx(150)


def test_without_a_counter_power_is_the_mean_of_the_readings():
    """Older GPUs have none."""
    found = readings((0, None, 100), (1, None, 300))
    assert mean_power_w(found, 0, S, 3e9) == 200
    assert mean_power_w(readings((0, None, None)), 0, S, 3e9) is None
    assert mean_power_w(readings((5, 1.0, 80)), 0, S, 3e9) is None, "before everything"


def test_readings_are_bounded():
    """The oldest go."""
    found = readings(*((t, float(t), 1.0) for t in range(KEPT_SAMPLES + 5)))
    assert len(found.times) == len(found.samples) == len(found.energies_j) == KEPT_SAMPLES
    assert found.times[0] == 5 * S
