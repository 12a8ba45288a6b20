"""What the device took, by marks in its stream: with a stand-in for CUDA's events, and with a GPU where there is one."""

from __future__ import annotations

import dataclasses
import logging
from types import SimpleNamespace

import pytest

import axonize_hf
from axonize_core.settings import get_settings
from axonize_core.testing import capture_events
from axonize_hf import device_time

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

IDS = torch.tensor([[5, 6, 7, 8, 9]])
GREEDY = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": 63}


class Stream:
    """Stands for a GPU: passes the marks in its stream when it is told to, and takes 2 ms between two of them."""

    def __init__(self):
        self.recorded = []
        self.made = 0
        self.passed = 0

    def event(self):
        self.made += 1
        return Event(self)


class Event:
    """Stands for ``torch.cuda.Event``; to ask what was not passed yet would wait for the device, and fails."""

    def __init__(self, stream):
        self.stream = stream
        self.place = -1

    def record(self, stream):
        self.place = len(self.stream.recorded)
        self.stream.recorded.append(self)

    def query(self):
        return self.place < self.stream.passed

    def elapsed_time(self, end):
        assert self.query()
        assert end.query(), "this would raise, as the device is not there yet"
        return 2.0 * (end.place - self.place)


@pytest.fixture
def stream():
    return Stream()


def test_steps_are_measured_as_marks_are_passed(stream):
    """Each step's time is there once its marks were passed; what was not passed at the end stays unknown."""
    times, timer = [], device_time.DeviceTime(stream.event)
    step = timer.marking(times.append)
    for t_ns in (10, 20, 30):
        step(t_ns)
        stream.passed = len(stream.recorded)
    timer.mark()
    assert times == [10, 20, 30]
    assert timer.take() == (2_000_000, 2_000_000, None)
    stream.passed = len(stream.recorded)
    assert timer.take() == (2_000_000,) * 3


def test_events_are_used_again(stream):
    """A long run needs few events, for those of measured steps are recorded again."""
    timer = device_time.DeviceTime(stream.event)
    for _ in range(100):
        timer.mark()
        stream.passed = len(stream.recorded)
    assert (len(timer.take()), stream.made) == (99, 3)


def test_a_device_far_behind_is_not_asked_any_further(stream, monkeypatch):
    """Marks are bounded; steps beyond them have no time of the device, and none is made up."""
    monkeypatch.setattr(device_time, "_MOST_PENDING", 4)
    timer = device_time.DeviceTime(stream.event)
    for _ in range(9):
        timer.mark()
    assert (stream.made, timer.take()) == (4, (None,) * 3)


def test_a_failing_event_is_counted_once(stream, recorded, monkeypatch):
    """An event that raises costs the device time of its run, and is counted."""
    timer = device_time.DeviceTime(stream.event)
    monkeypatch.setattr(Event, "record", None)
    for _ in range(3):
        timer.mark()
    assert timer.take() is None
    assert recorded.recorder.errors == {"hf.device_time.mark": 1}


def test_device_time_reaches_steps_and_phases(llama, stream, monkeypatch):
    """A generate whose device keeps up tells its time for every step, the prompt's and the answer's."""
    make, keeps_up = stream.event, device_time.DeviceTime.mark

    def mark(self):
        stream.passed = len(stream.recorded) + 1
        keeps_up(self)

    monkeypatch.setattr(device_time.DeviceTime, "mark", mark)
    monkeypatch.setattr("axonize_hf.generation.device_time", lambda model: device_time.DeviceTime(make))
    axonize_hf.instrument(llama)
    with capture_events() as seen:
        llama.generate(IDS, **GREEDY)
    assert [batch.device_ns for batch in seen.batches] == [2_000_000] * 5
    assert [prefill.device_ns for prefill in seen.prefills] == [2_000_000]
    assert [decode.device_ns for decode in seen.decodes] == [8_000_000]
    span = next(span for span in seen.spans if span.name == "decode")
    assert (span.attributes["ai.device_time_ms"], span.attributes["ai.device_time.provenance"]) == (8.0, "cuda_events")


@pytest.fixture
def asked(monkeypatch):
    """The setting is on."""
    settings = dataclasses.replace(get_settings(), hf_device_time=True)
    monkeypatch.setattr(device_time, "get_settings", lambda: settings)
    device_time._say.cache_clear()


def test_without_a_gpu_it_says_so_once(llama, asked, caplog):
    """Asked for where there is no CUDA device, one warning says why there is no device time."""
    axonize_hf.instrument(llama)
    with caplog.at_level(logging.WARNING, "axonize.hf"), capture_events() as seen:
        for _ in range(2):
            llama.generate(IDS, **GREEDY)
    assert [batch.device_ns for batch in seen.batches] == [None] * 10
    assert caplog.messages == [
        "AXONIZE_HF_DEVICE_TIME needs a model on one CUDA device, and the model is on cpu: no device time"
    ]


@pytest.mark.parametrize(("parts", "capturing", "timed"), [
    (None, False, True),
    ({"": 0}, False, True),
    ({"model.layers.0": 0, "lm_head": 1}, False, False),
    (None, True, False),
])  # fmt: skip
def test_one_gpu_is_timed_on_its_stream(parts, capturing, timed, asked, stream, monkeypatch):
    """A model on one GPU is timed on that GPU's stream; one on several is not, nor while a CUDA graph is captured."""
    found = []
    cuda = {"Event": lambda enable_timing: stream.event(), "is_current_stream_capturing": lambda: capturing}
    for name, stand_in in (cuda | {"current_stream": found.append}).items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    device = torch.device("cuda", 1)
    timer = device_time.device_time(SimpleNamespace(device=device, hf_device_map=parts))
    assert (timer is not None) == timed
    if timer is not None:
        timer.mark()
        assert (found, len(stream.recorded)) == ([device], 1)


def test_off_by_default(llama):
    """Nothing is timed unless it is asked for."""
    assert device_time.device_time(llama) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here: only the stand-in was tested")
def test_a_gpu_tells_its_time(llama, asked):
    """On a GPU all steps but perhaps the last have the device's own time, and together they fit into the request."""
    axonize_hf.instrument(llama.to("cuda"))
    with capture_events() as seen:
        for _ in range(2):  # the first one warms up
            llama.generate(IDS.to("cuda"), **GREEDY)
    measured = [batch.device_ns for batch in seen.batches[5:]]
    assert all(measured[:-1])
    assert sum(n or 0 for n in measured) < seen.requests[1].duration_ns
