from __future__ import annotations

from axonize_core import hookimpl
from axonize_core.frames import Hello, Kind, Record, Records
from axonize_core.pipeline import Pipeline
from axonize_core.plugins import Plugins
from axonize_core.settings import Settings
from axonize_core.testing import CapturedEvents, CountingIds, FakeClock

HELLO = Hello(1, "v", 42, "inst", {}, "f")
SOURCES = [(1, ("transformers", "svc", "tiny", "hf", ("cpu", 0, None), None))]
REQUEST = Record(Kind.REQUEST, 7, [1, 0, "r", None, "chat", 3, None], 10)
END = Record(Kind.REQUEST_END, 7, ["stop", 3, 4, None, None], 20)


def make(*plugins):
    manager = Plugins()
    for plugin in plugins:
        manager.register(plugin)
    return Pipeline(Settings(), manager, CountingIds())


def test_events_of_many_frames_are_handed_over_in_one_call():
    """Hooks take sequences: what came in since the last dispatch is one call per kind."""
    calls = []

    class Counter:
        @hookimpl
        def axonize_requests(self, events):
            calls.append(len(events))

    pipeline = make(Counter())
    timeline = pipeline.connect(HELLO)
    pipeline.feed(timeline, Records(0, 0, 0, 0, [REQUEST, END], SOURCES))
    pipeline.feed(timeline, Records(1, 0, 0, 0, [REQUEST, END]))
    pipeline.dispatch()
    pipeline.dispatch()
    assert calls == [2]


def test_facts_count_what_was_lost_and_why():
    """Drops, unknown kinds, orphans and lost engines are all visible."""
    pipeline = make()
    first, second = pipeline.connect(HELLO), pipeline.connect(HELLO)
    pipeline.feed(first, Records(0, 0, 0, 5, [Record(99, 1, None, 1), END], SOURCES, {"hf.generate": 2}))
    pipeline.feed(second, Records(0, 0, 0, 1, [REQUEST], SOURCES))
    facts = pipeline.facts()
    assert facts["requests_live"] == 1
    assert facts["process_errors"] == {"hf.generate": 2}
    assert facts["counts"]["records_dropped"] == 6
    pipeline.disconnect(first, "engine_lost")
    counts = pipeline.facts()["counts"]
    assert counts["records_dropped"] == 6
    assert counts["engines_lost"] == 1
    assert counts["records_unknown"] == 1
    assert counts["records_orphaned"] == 1


def test_closing_ends_what_is_open_and_tells_the_plugins():
    """An agent that stops ends live requests as errors, then lets plugins hand over."""
    captured, told = CapturedEvents(), []

    class Last:
        @hookimpl
        def axonize_shutdown(self, timeout_s):
            told.append(timeout_s)

    pipeline = make(captured, Last())
    pipeline.feed(pipeline.connect(HELLO), Records(0, 0, 0, 0, [REQUEST], SOURCES))
    pipeline.close(3.0)
    assert [r.error for r in captured.requests] == ["agent_stopped"]
    assert told == [3.0]


def test_the_shipped_fakes_do_what_they_say():
    """A fake clock moves only when told; ids count."""
    clock, ids = FakeClock(5), CountingIds()
    assert clock() == 5
    assert clock.advance(3) == 8 == clock()
    assert (ids.generate_trace_id(), ids.generate_trace_id(), ids.generate_span_id()) == (1, 2, 1)
    assert CapturedEvents().flush().requests == []


def test_what_several_processes_of_an_engine_say_is_joined():
    """The front end's reason reaches the engine's request, a worker's device time its step; doctor has a row."""
    captured = CapturedEvents()
    pipeline = make(captured)
    told = (("ai.engine.id", "e/0"), ("ai.capabilities", "scheduler,frontend"))
    source = [(1, ("vllm", "svc", "tiny", "vllm", ("workers", 0, None), told))]
    processes = {
        name: pipeline.connect(Hello(1, "v", pid, name, {}, "f"))
        for pid, name in enumerate(("core", "front", "worker"))
    }

    def tell(name, *records):
        pipeline.feed(processes[name], Records(0, 0, 0, 0, [Record(*record) for record in records], source))

    tell("front", (Kind.ANSWER, 1, ["a", "opened", 3, "r", 0, None, "chat", 8, None], 5))
    tell("worker", (Kind.STEP_DEVICE, 0, ["e/0", [[1, 70]]], 40))
    tell(
        "core",
        (Kind.REQUEST, 7, [1, 0, "r", None, "chat", 8, None, "a"], 10),
        (Kind.STEP, 1, [1, 20, 30, 80, [{"a": 8}, [], []], [["a", 0, 8]], None, None, 1, 0, None], 90),
        (Kind.REQUEST_END, 7, ["abort", 8, 1, None, None], 95),
    )
    pipeline.dispatch()
    assert (captured.requests, captured.batches) == ([], [])
    engines = pipeline.facts()["engines"]
    assert [engine["ai.capabilities"] for engine in engines] == ["scheduler,frontend"] * 3
    assert (
        engines[0] | {"engine": "vllm", "model": "tiny", "ai.engine.id": "e/0", "ai.engine.version": ""} == engines[0]
    )
    pipeline.feed(
        processes["front"], Records(1, 0, 0, 0, [Record(Kind.ANSWER, 1, ["a", "ended", "stop", 1, 0.1, 0.2, None], 99)])
    )
    pipeline.disconnect(processes["front"], None)
    pipeline.close(1.0)
    assert [(r.finish_reason, r.output_tokens) for r in captured.requests] == [("stop", 1)]
    assert [(b.engine_step, b.device_ns) for b in captured.batches] == [(1, 70)]


def test_nobody_is_missing_while_the_agent_did_not_listen():
    """Hooks that took long: what the engine said meanwhile was not read yet, and its request is told once, whole."""
    captured, now = CapturedEvents(), [0.0]
    manager = Plugins()
    manager.register(captured)
    pipeline = Pipeline(Settings(), manager, CountingIds(), clock=lambda: now[0])
    front, core = (pipeline.connect(Hello(1, "v", pid, str(pid), {}, "f")) for pid in (1, 2))
    said = [
        Record(Kind.ANSWER, 1, ["a", "opened", 3, "r", 0, None, "chat", 8, None], 5),
        Record(Kind.ANSWER, 1, ["a", "ended", "stop", 1, 0.1, 0.2, None], 99),
    ]
    opened = Record(Kind.REQUEST, 7, [1, 0, "r", None, "chat", 8, None, "a"], 10)
    ended = Record(Kind.REQUEST_END, 7, ["abort", 8, 0, None, None], 95)

    def listen(seconds):
        for _ in range(10 * seconds):
            now[0] += 0.1
            pipeline.dispatch()

    source = [(1, ("vllm", "svc", "tiny", "vllm", ("workers", 0, None), (("ai.role", "engine"),)))]
    pipeline.feed(core, Records(0, 0, 0, 0, [], source))
    pipeline.feed(front, Records(0, 0, 0, 0, said, SOURCES))
    now[0] += 60.0
    pipeline.dispatch()
    assert captured.requests == []
    pipeline.feed(core, Records(1, 0, 0, 0, [opened, ended]))
    listen(10)
    assert [(r.finish_reason, r.incomplete) for r in captured.requests] == [("stop", False)]
    other = [Record(record.kind, 1, ["b", *record.payload[1:]], record.t_ns) for record in said]
    pipeline.feed(front, Records(1, 0, 0, 0, other))
    listen(10)
    assert [(r.engine_id, r.incomplete) for r in captured.requests[1:]] == [("b", True)]
