"""vLLM's scheduler as records, with call orders that a CPU engine never has, and with failures of our own."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import pytest

from axonize_core.recorder import get_recorder
from axonize_core.testing import FakeClock, capture_events
from axonize_vllm import requests, scheduler
from fix_vllm_engine import Request, Scheduler

TRACEPARENT = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"


pytestmark = pytest.mark.usefixtures("own_sources")


@pytest.fixture
def engine(monkeypatch, own_sources):
    """A recorded scheduler whose KV cache can be read; ``told`` are the members that its steps name, None: as before."""
    monkeypatch.setattr(scheduler, "missing", lambda capability: None)
    recorder, told = get_recorder(), []
    with capture_events() as captured:
        engine = Scheduler()
        with monkeypatch.context() as patch:
            append = recorder.append
            patch.setattr(recorder, "append", lambda record: (told.append(record.payload[4]), append(record)))
            scheduler.record(engine)
        engine.captured, engine.told = captured, told
        yield engine
    assert not recorder.errors


def run(engine, *, steps=1, ahead=0):
    """Run so many steps, planning ``ahead`` of them before the first output is taken over."""
    planned = [engine.schedule() for _ in range(ahead)]
    for _ in range(steps):
        planned.append(engine.schedule())
        engine.update_from_output(planned.pop(0), None)
    return planned


def check_sums(captured):
    """Hold phases against requests, and steps against tokens, for all that was captured."""
    for request in captured.requests:
        mine = [e for e in (*captured.prefills, *captured.decodes) if e.ref == request.ref]
        parts = sum(e.duration_ns for e in mine) + sum(duration for _, duration in request.preemptions)
        assert request.queue_ns + parts == request.duration_ns
        assert not request.incomplete
        steps = [step for step in captured.batches if request.ref.seq in step.request_seqs]
        contexts = [step.context_tokens[step.request_seqs.index(request.ref.seq)] for step in steps]
        assert all(after > before for before, after in pairwise(contexts)) or request.preemptions
    for step in captured.batches:
        assert step.schedule_ns + step.execute_ns + step.update_ns == step.duration_ns
    return {request.request_id: request for request in captured.requests}


def test_requests_and_steps(engine):
    """What a request said of itself, its steps, the engine's state after each, and its end."""
    engine.add_request(Request("chatcmpl-a-1234abcd", traceparent=TRACEPARENT, adapter="lora-1"))
    engine.add_request(Request("0_cmpl-b-1234abcd", prompt=3))
    run(engine, steps=2)
    engine.stop = {"chatcmpl-a-1234abcd": "length", "0_cmpl-b-1234abcd": "stop"}
    run(engine)
    found = check_sums(engine.captured.flush())
    a, b = found["chatcmpl-a"], found["cmpl-b"]
    assert (a.operation, b.operation) == ("chat", "text_completion")
    assert (a.finish_reason, a.input_tokens, a.output_tokens, a.cached_tokens) == ("length", 8, 3, 0)
    assert (a.ref.trace_id, a.parent_span_id) == (int("ab" * 16, 16), int("cd" * 8, 16))
    assert dict(a.attributes) == {"ai.adapters": ["lora-1"], "ai.kv_cache.blocks": 3}
    assert dict(b.attributes) == {"ai.request.choice.index": 0, "ai.kv_cache.blocks": 2}
    assert a.duration_ns > 250e6  # it came from the front end a while ago
    first, second, _ = engine.captured.batches
    assert (first.prefill_tokens, first.decode_tokens) == ((8, 3), (0, 0))
    assert (second.prefill_tokens, second.decode_tokens, second.context_tokens) == ((0, 0), (1, 1), (8, 3))
    assert (first.running, first.waiting, first.kv_cache_usage) == (2, 0, 0.25)
    assert a.source.device == ("workers", 0, None)


@pytest.mark.parametrize("ahead", [1, 2])
def test_steps_that_are_planned_before_the_last_one_ran(engine, ahead):
    """Async scheduling and pipelines: each output meets its own plan, and a step may have a member that ended."""
    engine.add_request(Request("a"))
    planned = run(engine, steps=3, ahead=ahead)
    engine.stop = {"a": "stop"}
    for output in planned:
        engine.update_from_output(output, None)
    found = check_sums(engine.captured.flush())
    assert found["a"].output_tokens == 4
    assert len(engine.captured.batches) == 3 + ahead
    starts = [step.start_ns for step in engine.captured.batches]
    assert starts == sorted(starts)
    assert all(step.request_seqs == (found["a"].ref.seq,) for step in engine.captured.batches)


def test_a_step_that_was_given_up(engine):
    """A plan without an output is forgotten when a later one has its own."""
    engine.add_request(Request("a"))
    run(engine)
    engine.schedule()
    run(engine)
    assert len(engine.captured.flush().batches) == 2


@pytest.mark.parametrize("given_up", [1, scheduler.MOST_PLANS + 6])
def test_members_that_changed_in_a_step_that_was_given_up(engine, given_up):
    """The next one has the same, but nobody was told of them yet; also where so many were given up that some are forgotten."""
    engine.add_request(Request("a"))
    engine.add_request(Request("b"))
    run(engine, steps=3)
    engine.requests.pop("b")
    for _ in range(given_up):
        engine.schedule()
    run(engine, steps=2)
    assert [len(step.request_seqs) for step in engine.captured.flush().batches] == [2, 2, 2, 1, 1]


def test_a_preempted_request_while_a_step_is_in_flight(engine):
    """It is preempted when the step that has it runs still; what it lost is computed again."""
    engine.add_request(Request("a"))
    run(engine, steps=2)
    in_flight = engine.schedule()
    engine.preempt = {"a"}
    without = engine.schedule()
    engine.update_from_output(in_flight, None)
    engine.update_from_output(without, None)
    run(engine)
    engine.stop = {"a": "length"}
    run(engine)
    (request,) = check_sums(engine.captured.flush()).values()
    assert len(request.preemptions) == 1
    assert [p.recomputed_tokens for p in engine.captured.prefills] == [None, 10]
    assert request.output_tokens == 5


def test_drafts_are_verified_in_a_step(engine):
    """Of two drafts each, one is right: three positions computed, two tokens out."""
    engine.add_request(Request("a"))
    run(engine, steps=3)
    engine.drafts = {"a": [7, 7]}
    run(engine, steps=2)
    engine.drafts, engine.stop = {}, {"a": "length"}
    run(engine)
    (request,) = check_sums(engine.captured.flush()).values()
    assert (request.drafted_tokens, request.accepted_tokens, request.output_tokens) == (4, 2, 8)
    assert [step.decode_tokens for step in engine.captured.batches] == [(0,), (1,), (1,), (3,), (3,), (1,)]
    assert [told and told[0]["a"] for told in engine.told] == [8, 1, None, 3, None, 1]


def test_a_request_that_comes_again_under_its_id(engine):
    """With a prompt of one token its step looks like those of the one before it."""
    engine.add_request(Request("a"))
    run(engine, steps=2)
    engine.stop = {"a": "stop"}
    run(engine)
    engine._known.clear()
    engine.add_request(Request("a", prompt=1))
    run(engine, steps=3)
    engine.stop = {"a": "stop"}
    run(engine)
    requests = engine.captured.flush().requests
    assert [request.output_tokens for request in requests] == [3, 4]
    assert [told is not None for told in engine.told] == [True, True, False, True, False, False, False]


def test_an_abort_ends_a_request_once(engine):
    """The front end says it twice; one that never ran only queued, and unknown ones are nobody's."""
    engine.add_request(Request("a"))
    run(engine)
    engine.add_request(Request("b"))
    for _ in range(2):
        engine.finish_requests(["a", "b", "c"], "abort")
    run(engine)
    found = check_sums(engine.captured.flush())
    assert {name: r.finish_reason for name, r in found.items()} == {"a": "abort", "b": "abort"}
    assert found["b"].queue_ns == found["b"].duration_ns
    assert len(engine.captured.batches) == 1


@pytest.mark.parametrize("abort", [False, True])
def test_a_request_that_ends_in_its_first_step(engine, abort):
    """One token was all it was asked for, or its client left: where its prompt began is known all the same."""
    request = Request("a")
    request.num_computed_tokens = 6
    engine.add_request(request)
    engine.stop = {"a": "length"}
    planned = engine.schedule()
    if abort:
        engine.finish_requests(["a"], "abort")
    engine.update_from_output(planned, None)
    found = check_sums(engine.captured.flush())
    (step,) = engine.captured.batches
    assert (step.prefill_tokens, step.decode_tokens, step.context_tokens) == ((2,), (0,), (6,))
    assert (found["a"].cached_tokens, found["a"].output_tokens) == ((None, 0) if abort else (6, 1))


def test_steps_without_tokens_are_not_told(engine):
    """The engine runs them to get rid of what ended."""
    run(engine, steps=3)
    engine.add_request(Request("a"))
    engine.quiet = True
    run(engine, steps=2)
    assert engine.captured.flush().batches == []


def test_members_are_told_again_after_a_while(engine, monkeypatch):
    """A lost record costs the steps until then, not all that follow."""
    monkeypatch.setattr(scheduler, "MOST_REPEATS", 3)
    engine.add_request(Request("a"))
    run(engine, steps=9)
    assert [step.context_tokens for step in engine.captured.flush().batches] == [(0,), *((n,) for n in range(8, 16))]


def test_an_embedding_has_no_answer(engine):
    """A pooling model's request has no output tokens."""
    engine.add_request(Request("embd-a", pooling=True))
    engine.stop = {"embd-a": "stop"}
    run(engine)
    (request,) = engine.captured.flush().requests
    assert (request.operation, request.output_tokens) == ("embeddings", None)
    assert len(engine.captured.prefills) == 1


def test_an_error_of_the_engine_is_an_error(engine):
    """Finish reason error."""
    engine.add_request(Request("a"))
    engine.stop = {"a": "error"}
    run(engine)
    assert engine.captured.flush().requests[0].error == "engine_error"


def test_a_live_request_that_gets_more_input_is_the_same(engine):
    """A streaming session adds its request again for each input."""
    request = Request("a")
    engine.add_request(request)
    engine.add_request(request)
    engine.stop = {"a": "stop"}
    run(engine)
    assert len(engine.captured.flush().requests) == 1


def test_what_waits_is_handed_over_between_steps_now_and_then(monkeypatch):
    """After a step, on the engine's thread; not before the time that the last hand-over named."""
    recorder, asked = get_recorder(), []
    monkeypatch.setattr(recorder, "ship_here", lambda: asked.append(len(asked)) or (len(asked) > 2) * 2**62)
    with capture_events() as captured:
        engine = Scheduler()
        scheduler.record(engine)
        engine.add_request(Request("a"))
        assert asked == []
        run(engine, steps=6)
        assert asked == [0, 1, 2]
        captured.flush()


@pytest.mark.parametrize(
    ("step_ms", "ahead", "every_ms"), [(1, 0, 75), (1, 3, 75), (10, 0, 70), (20, 0, 60), (20, 1, 60), (60, 0, 60)]
)
def test_an_engine_hands_over_before_our_thread_would_wake(step_ms, ahead, every_ms, monkeypatch):
    """As seldom as it may, for one more step would be too late; and once after a pause."""
    recorder, clock, asked = get_recorder(), FakeClock(10**12), []

    def ship_here():
        asked.append(clock())
        return clock() + 76_000_000

    monkeypatch.setattr(recorder, "ship_here", ship_here)
    monkeypatch.setattr(recorder, "clock", clock)
    with capture_events():
        engine = Scheduler()
        plan = engine.schedule
        engine.schedule = lambda: (clock.advance(step_ms * 1_000_000), plan())[1]
        scheduler.record(engine)
        engine.add_request(Request("a"))
        planned = run(engine, steps=1000, ahead=ahead)
        clock.advance(10**10)
        for output in planned:
            engine.update_from_output(output, None)
        run(engine, steps=1000)
    gaps_ms = [(after - before) // 10**6 for before, after in pairwise(asked[3:])]
    assert gaps_ms.count(every_ms) >= len(gaps_ms) - 3, gaps_ms
    assert sorted(gaps_ms)[-2] <= 76, gaps_ms


def test_a_preemption_of_one_that_was_in_no_step(engine):
    """It is told though the step has the very members of the one before."""
    for name in "ab":
        engine.add_request(Request(name))
    run(engine, steps=2)
    engine.skip = {"b"}
    run(engine, steps=3)
    engine.preempt = {"b"}
    run(engine)
    engine.skip, engine.stop = set(), {"a": "length", "b": "length"}
    run(engine)
    found = check_sums(engine.captured.flush())
    assert [len(found[name].preemptions) for name in "ab"] == [0, 1]
    assert [len(step.request_seqs) for step in engine.captured.batches] == [2, 2, 1, 1, 1, 1, 2]


def test_too_many_members_wait(engine, monkeypatch):
    """While the agent is away, steps with many members are dropped and counted before they fill the memory."""
    dropped = get_recorder().dropped_total()
    monkeypatch.setattr(scheduler, "MOST_MEMBERS", -1)
    engine.add_request(Request("a"))
    run(engine, steps=2)
    assert engine.captured.flush().batches == []
    assert get_recorder().dropped_total() - dropped >= 2
    monkeypatch.setattr(scheduler, "MOST_MEMBERS", 1000)
    run(engine, steps=3)
    monkeypatch.setattr(scheduler, "MOST_MEMBERS", -1)
    engine.drafts = {"a": [7]}
    run(engine)
    monkeypatch.setattr(scheduler, "MOST_MEMBERS", 1000)
    engine.drafts = {}
    run(engine, steps=2)
    assert [told is None for told in engine.told] == [False, True, True, False, True]


def test_a_released_scheduler_is_as_it_was():
    """Nothing of ours stays on it."""
    engine = Scheduler()
    before = set(vars(engine))
    with capture_events():
        scheduler.record(engine)
    assert set(vars(engine)) - before == {"add_request", "schedule", "update_from_output", "finish_requests"}
    scheduler.release(engine)
    assert set(vars(engine)) == before


def test_failures_of_ours_stay_ours(monkeypatch):
    """Whatever breaks in our code, the engine's methods do what they always did, and it is counted."""
    with capture_events() as captured:
        engine = Scheduler()
        scheduler.record(engine)
        monkeypatch.setattr(requests, "opened", lambda *args: 1 / 0)
        engine.add_request(Request("a"))
        monkeypatch.setattr(scheduler._Requests, "changes", lambda *args, **named: 1 / 0)
        output = engine.schedule()
        assert engine.update_from_output(output, None)[0].outputs[0].request_id == "a"
        monkeypatch.setattr(scheduler._Requests, "end_finished", lambda *args: 1 / 0)
        engine.finish_requests(["a"], "abort")
        assert engine.requests == {}
        assert captured.flush().requests == []
    errors = get_recorder().errors
    assert [errors.pop(f"vllm.{where}") for where in ("add_request", "step", "finish_requests")] == [1, 1, 1]


def test_members_of_a_step_that_we_failed_to_record_are_told_in_the_next(engine, monkeypatch):
    """Nobody was told of them, though the step after has the same."""
    for name in "ab":
        engine.add_request(Request(name))
    run(engine, steps=3)
    engine.drafts = {"a": [7]}
    with monkeypatch.context() as patch:
        patch.setattr(scheduler, "_drafts", lambda *args: 1 / 0)
        run(engine)
    run(engine)
    engine.captured.flush()
    assert [told and dict(told[0]) for told in engine.told] == [
        {"a": 8, "b": 8},
        {"a": 1, "b": 1},
        None,
        {"a": 2, "b": 1},
    ]
    assert get_recorder().errors.pop("vllm.step") == 1


@pytest.mark.parametrize("closed", [False, True])
def test_steps_whose_device_time_is_measured_are_numbered_in_their_plans(closed, monkeypatch, own_sources):
    """Workers read it there; plans that take no attribute cost the device times, and nothing else."""

    class Plan(SimpleNamespace):
        def __setattr__(self, name, value):
            raise AttributeError(name)

    monkeypatch.setattr(scheduler, "get_settings", lambda: SimpleNamespace(vllm_device_time=True))
    with capture_events() as captured:
        engine = Scheduler()
        if closed:
            plan = engine.schedule
            engine.schedule = lambda: Plan(**vars(plan()))
        scheduler.record(engine)
        engine.add_request(Request("a"))
        planned = run(engine, steps=2, ahead=1)
        captured.flush()
    assert [getattr(output, "axonize_step", None) for output in planned] == [None if closed else 3]
    assert [step.engine_step for step in captured.batches] == [1, 2]
    assert get_recorder().errors.pop("vllm.step_number", 0) == (3 if closed else 0)


def test_every_scheduler_made_from_now_on_is_recorded(fake_vllm, caplog):
    """The class that vLLM picks is recorded without being changed, once; one that cannot be is left alone."""

    class Config:
        picked = Scheduler

        def get_scheduler_cls(self):
            return self.picked

    fake_vllm("vllm.config.scheduler", SchedulerConfig=Config)
    scheduler.instrument()
    scheduler.instrument()
    found = Config().get_scheduler_cls()
    assert issubclass(found, Scheduler)
    assert (found.__name__, found.__module__) == (Scheduler.__name__, Scheduler.__module__)
    with capture_events():
        assert "schedule" in vars(found())
    assert "schedule" not in vars(Scheduler())
    assert scheduler._recorded_class(found) is found
    broken = scheduler._recorded_class(type("Broken", (), {}))()
    assert vars(broken) == {}
    Config.picked = closed = type("Closed", (), {"__init_subclass__": lambda *_, **__: 1 / 0})
    assert Config().get_scheduler_cls() is closed
    assert ["not recorded" in record.message for record in caplog.records] == [True, True]
    assert get_recorder().errors.pop("vllm.scheduler") == 2


@pytest.mark.parametrize(
    ("engine_id", "expected"),
    [
        ("cmpl-my-req-1-0-9ce0e4f7", ("cmpl-my-req-1-0", None)),
        ("1_chatcmpl-x-9ce0e4f7", ("chatcmpl-x", 1)),
        ("0-9ce0e4f7", ("0", None)),
        ("mine", ("mine", None)),
        ("", ("", None)),
    ],
)
def test_the_callers_id(engine_id, expected):
    """vLLM's own id is the caller's with a random end, and a number before it for each of several answers."""
    assert requests.caller_id(engine_id) == expected
