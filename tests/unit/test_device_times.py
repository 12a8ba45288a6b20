"""Steps and the device times that workers measure of them."""

from __future__ import annotations

from axonize_core import device_times as module
from axonize_core.device_times import WAIT_S, DeviceTimes
from axonize_core.events import BatchEvent, SourceInfo


class Setting:
    """Device times with a clock that moves when told to."""

    def __init__(self):
        self.now = 0.0
        self.times = DeviceTimes(lambda: self.now)


def batch(step, engine="e/0"):
    source = SourceInfo("i", "vllm", "s", "m", "vllm", ("workers", 0, None), {"ai.engine.id": engine}, 1)
    return BatchEvent(source, 1, 1, 1, 0, 1, (7,), (0,), (1,), (0,), engine_step=step)


def test_steps_do_not_wait_where_no_worker_measures():
    """Only an engine whose workers spoke of device time is waited for."""
    setting = Setting()
    setting.times.hear([("other/0", 1, 5)])
    assert setting.times.join([batch(1), batch(None, "other/0")]) == [batch(1), batch(None, "other/0")]


def test_the_slowest_worker_counts():
    """Two workers measured a step; what was measured before the step was told counts as well."""
    setting = Setting()
    setting.times.hear([("e/0", 1, 500), ("e/0", 2, 70)])
    assert setting.times.join([batch(1), batch(2), batch(3)]) == []
    setting.times.hear([("e/0", 1, 800)])
    assert setting.times.due() == []
    setting.now = WAIT_S
    assert [(b.engine_step, b.device_ns) for b in setting.times.due()] == [(1, 800), (2, 70), (3, None)]
    assert setting.times.due(closing=True) == []


def test_the_end_waits_for_nothing():
    """When the agent ends, every step is told as far as it is known."""
    setting = Setting()
    setting.times.hear([("e/0", 1, 500)])
    setting.times.join([batch(1), batch(2)])
    assert [b.device_ns for b in setting.times.due(closing=True)] == [500, None]


def test_what_was_measured_of_nothing_is_bounded(monkeypatch):
    """A worker whose engine core is not recorded cannot fill the agent."""
    monkeypatch.setattr(module, "MOST", 2)
    setting = Setting()
    setting.times.hear([("e/0", step, 5) for step in range(9)])
    setting.times.join([batch(step) for step in range(9)])
    assert [b.engine_step for b in setting.times.due(closing=True) if b.device_ns] == [7, 8]
