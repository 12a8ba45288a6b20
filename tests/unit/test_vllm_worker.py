"""Workers of vLLM, with stand-ins for its wrapper and for CUDA's events."""

import dataclasses
import sys
from collections import Counter
from types import ModuleType, SimpleNamespace

import pytest

from axonize_core.frames import Kind
from axonize_core.recorder import get_recorder
from axonize_core.settings import get_settings
from axonize_vllm import worker
from axonize_vllm.step_times import MOST_PENDING, StepTimes


@pytest.fixture(autouse=True)
def errors(monkeypatch):
    """What is counted in a test, and not in the next one."""
    monkeypatch.setattr(get_recorder(), "errors", Counter())
    return get_recorder().errors


class Worker:
    """A worker: two calls a step, the first of which may answer already."""

    def __init__(self, device=None, rank=0, answers_at_once=False):
        self.vllm_config = SimpleNamespace(
            instance_id="1f0c3", device_config=SimpleNamespace(device_type="cpu"), model_config=None
        )
        self.device, self.rank, self.answers_at_once = device, rank, answers_at_once
        self.calls = []

    def init_device(self):
        self.calls.append("init_device")
        return "ready"

    def execute_model(self, scheduler_output):
        self.calls.append("execute_model")
        return "output" if self.answers_at_once else None

    def sample_tokens(self, grammar_output):
        self.calls.append("sample_tokens")
        return "tokens"


class Recorder:
    """Keeps what is emitted."""

    def __init__(self):
        self.emitted, self.errors = [], []
        self.count_error = self.errors.append

    def emit(self, kind, handle, payload):
        self.emitted.append((kind, handle, payload))


class Stream:
    """Stands for a GPU: it passes the marks in its stream when it is told to, and takes 2 ms between two of them."""

    def __init__(self):
        self.recorded = self.passed = self.made = 0

    def event(self):
        self.made += 1
        return Event(self)


class Event:
    """Stands for ``torch.cuda.Event``; to measure what was not passed yet would raise."""

    def __init__(self, stream):
        self.stream = stream

    def record(self):
        self.place = self.stream.recorded
        self.stream.recorded += 1

    def query(self):
        return self.place < self.stream.passed

    def elapsed_time(self, end):
        assert self.query()
        assert end.query()
        return 2.0 * (end.place - self.place)


@pytest.fixture
def wrapper(monkeypatch):
    """vLLM's wrapper class around workers, instrumented."""

    class WorkerWrapperBase:
        def __init__(self, worker):
            self.worker = worker

        def init_device(self):
            return self.worker.init_device()

    for name in ("vllm", "vllm.v1", "vllm.v1.worker", "vllm.v1.worker.worker_base"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["vllm.v1.worker.worker_base"].WorkerWrapperBase = WorkerWrapperBase
    sys.modules["vllm"].__version__ = "0.32.0"
    recorder = get_recorder()
    monkeypatch.setattr(recorder, "sources", [])
    monkeypatch.setattr(recorder, "start", lambda: wrapped.starts.append(1))
    wrapped = WorkerWrapperBase
    wrapped.starts = []
    worker.instrument()
    return wrapped


def sources():
    return [source for _, source in get_recorder().sources]


@pytest.mark.parametrize(
    ("device", "told"),
    [
        (None, ("cpu", 0, None)),
        (SimpleNamespace(type="cpu", index=None), ("cpu", 0, None)),
        (SimpleNamespace(type="xpu", index=1), ("xpu", 1, None)),
    ],
)
def test_worker_tells_its_device_once_it_has_it(device, told, wrapper):
    """And that it is a worker, of which rank and engine; an agent hears of it though nothing is emitted."""
    one = Worker(device, rank=2)
    assert wrapper(one).init_device() == "ready"
    assert one.calls == ["init_device"]
    (source,) = sources()
    assert source[4] == told
    assert {"ai.engine.id": "1f0c3/0", "ai.role": "worker", "ai.rank": "2"}.items() <= dict(source[5]).items()
    assert wrapper.starts == [1]


def test_uuid_of_a_cuda_device_is_told(wrapper, monkeypatch):
    """With the prefix that NVML gives it."""
    torch = ModuleType("torch")
    torch.cuda = SimpleNamespace(get_device_properties=lambda device: SimpleNamespace(uuid="5f3a"))
    monkeypatch.setitem(sys.modules, "torch", torch)
    wrapper(Worker(SimpleNamespace(type="cuda", index=3))).init_device()
    assert sources()[0][4] == ("cuda", 3, "GPU-5f3a")


def test_instrumenting_twice_wraps_once(wrapper):
    """Plugins may be loaded several times."""
    before = wrapper.init_device
    worker.instrument()
    assert wrapper.init_device is before


def test_worker_that_cannot_be_told_of_still_starts(wrapper, errors):
    """What we cannot read is counted; vLLM's own answer comes back."""
    one = Worker()
    del one.rank
    assert wrapper(one).init_device() == "ready"
    assert errors == {"vllm.worker": 1}


def test_failure_of_the_device_itself_is_not_ours(wrapper):
    """It goes to vLLM, and nothing is told."""
    one = Worker()
    one.init_device = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        wrapper(one).init_device()
    assert sources() == []


def test_device_time_without_cuda_is_said(wrapper, monkeypatch, caplog):
    """The option is on, and there is nothing that could be timed."""
    on = dataclasses.replace(get_settings(), vllm_device_time=True)
    monkeypatch.setattr(worker, "get_settings", lambda: on)
    one = Worker()
    wrapper(one).init_device()
    assert "needs CUDA devices, this is cpu" in caplog.text
    assert "execute_model" not in vars(one)


def test_device_time_is_off_unless_asked_for(wrapper):
    """A worker's methods stay its own."""
    one = Worker()
    wrapper(one).init_device()
    assert "execute_model" not in vars(one)


def test_device_time_on_cuda_wraps_the_worker(wrapper, monkeypatch):
    """The events are torch's, with timing."""
    made = []
    stream = Stream()
    torch = ModuleType("torch")
    torch.cuda = SimpleNamespace(
        get_device_properties=lambda device: SimpleNamespace(uuid="5f3a"),
        Event=lambda **given: made.append(given) or stream.event(),
    )
    monkeypatch.setitem(sys.modules, "torch", torch)
    on = dataclasses.replace(get_settings(), vllm_device_time=True)
    monkeypatch.setattr(worker, "get_settings", lambda: on)
    one = Worker(SimpleNamespace(type="cuda", index=0))
    wrapper(one).init_device()
    run_step(one, 1)
    assert made == [{"enable_timing": True}] * 2


@pytest.fixture
def stream():
    return Stream()


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture
def timed(stream, recorder):
    """Return a worker whose steps are timed."""

    def make(**given):
        one = Worker(**given)
        worker.time_steps(one, StepTimes(recorder, "1f0c3/0", stream.event))
        return one

    return make


def run_step(one, step):
    output = SimpleNamespace() if step is None else SimpleNamespace(axonize_step=step)
    return one.execute_model(output) or one.sample_tokens(None)


def test_step_is_told_once_its_marks_were_passed(timed, stream, recorder):
    """Not when the host is done with it: that would mean to wait for the device."""
    one = timed()
    assert run_step(one, 1) == "tokens"
    assert run_step(one, 2) == "tokens"
    assert recorder.emitted == []
    stream.passed = 4
    run_step(one, 3)
    assert recorder.emitted == [(Kind.STEP_DEVICE, 0, ("1f0c3/0", ((1, 2_000_000), (2, 2_000_000))))]
    assert one.calls == ["execute_model", "sample_tokens"] * 3


def test_step_that_answers_at_once_ends_with_the_first_call(timed, stream, recorder):
    """As pooling models do."""
    one = timed(answers_at_once=True)
    assert run_step(one, 1) == "output"
    assert stream.recorded == 2
    stream.passed = 2
    run_step(one, 2)
    assert recorder.emitted == [(Kind.STEP_DEVICE, 0, ("1f0c3/0", ((1, 2_000_000),)))]


def test_step_without_a_number_is_not_measured(timed, stream, recorder):
    """The engine core has the option off, or the step schedules nothing."""
    assert run_step(timed(), None) == "tokens"
    assert stream.recorded == 0


def test_events_are_used_again(timed, stream, recorder):
    """A long-lived server makes as many as are under way at once."""
    one = timed()
    for step in range(100):
        stream.passed = stream.recorded - 2
        run_step(one, step)
    assert stream.made <= 6
    assert len(recorder.emitted) > 90


def test_step_that_fails_is_left_out(timed, stream, recorder):
    """Its error is vLLM's, and the next step is measured by its own marks."""
    one = timed()
    output = SimpleNamespace(axonize_step=1)
    one.execute_model(output)
    run_step(one, 2)
    stream.passed = 3
    run_step(one, 3)
    assert recorder.emitted == [(Kind.STEP_DEVICE, 0, ("1f0c3/0", ((2, 2_000_000),)))]


def test_device_that_stands_still_is_not_asked_for_ever(timed, stream, recorder):
    """Memory is bounded, and it is counted once."""
    one = timed()
    for step in range(MOST_PENDING + 50):
        run_step(one, step)
    assert recorder.errors == ["vllm.step_times"]
    assert stream.recorded == 2 * (MOST_PENDING + 1)


def test_events_that_fail_stop_the_times_only(timed, stream, recorder, monkeypatch):
    """The worker goes on as if nothing was asked of it."""
    monkeypatch.setattr(Event, "record", lambda self: 1 / 0)
    one = timed()
    assert [run_step(one, step) for step in range(3)] == ["tokens"] * 3
    assert recorder.errors == ["vllm.step_times"]
