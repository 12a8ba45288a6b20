"""Plugins among each other: what one does wrong costs that plugin only."""

from __future__ import annotations

import threading
import time

import pytest

from axonize_core import hookimpl
from axonize_core import spans as spans_plugin
from axonize_core.frames import Hello, Kind, Record, Records
from axonize_core.pipeline import Pipeline
from axonize_core.plugins import FAILURES_BEFORE_DISABLED, SLOW_CALL_NS, Plugins
from axonize_core.settings import Settings
from axonize_core.testing import CapturedEvents


class Keeper:
    def __init__(self):
        self.seen = []
        self.configured = None

    @hookimpl
    def axonize_configure(self, context):
        self.configured = context

    @hookimpl
    def axonize_requests(self, events):
        self.seen += events

    def facts(self):
        return {"seen": len(self.seen)}


class Raises:
    """Fails in requests with whatever it is given."""

    def __init__(self, error):
        self.error = error

    @hookimpl
    def axonize_requests(self, events):
        raise self.error


class UnprintableError(Exception):
    def __repr__(self):
        raise ValueError("no text")

    __str__ = __repr__


@pytest.mark.parametrize(
    "error", [ValueError("broken"), SystemExit(3), UnprintableError(), RecursionError()], ids=lambda e: type(e).__name__
)
def test_one_plugins_failure_does_not_reach_the_others(caplog, error):
    """A failing plugin is counted, logged once, disabled after repeated failures; others get every event."""
    plugins, first, last = Plugins(), Keeper(), Keeper()
    plugins.register(first, "first")
    plugins.register(Raises(error), "broken")
    plugins.register(last, "last")
    for i in range(FAILURES_BEFORE_DISABLED + 2):
        plugins.call("axonize_requests", events=[i])
    assert first.seen == last.seen == list(range(FAILURES_BEFORE_DISABLED + 2))
    assert plugins.failures == {"broken": FAILURES_BEFORE_DISABLED}
    assert type(error).__name__ in plugins.disabled["broken"]
    assert "failed in axonize_requests" in plugins.disabled["broken"]
    assert sum("failed in axonize_requests: " in r.message and r.exc_info is not None for r in caplog.records) == 1
    assert plugins.names() == ["first", "last"]
    assert plugins.facts()["facts"]["first"] == {"seen": 5}


def test_ctrl_c_stays_the_users():
    """Only KeyboardInterrupt passes: it is what a person typed."""
    plugins = Plugins()
    plugins.register(Raises(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        plugins.call("axonize_requests", events=[1])


def test_failures_count_per_hook():
    """A plugin that fails in one hook is disabled even if another of its hooks works each time."""

    class Half(Raises):
        @hookimpl
        def axonize_batches(self, events):
            return None

    plugins = Plugins()
    plugins.register(Half(ValueError()), "half")
    for _ in range(FAILURES_BEFORE_DISABLED):
        plugins.call("axonize_batches", events=[1])
        plugins.call("axonize_requests", events=[1])
    assert "half" in plugins.disabled


def test_a_passing_failure_does_not_disable():
    """Failures that are not in a row are counted, and the plugin goes on."""

    class Sometimes:
        calls = 0

        @hookimpl
        def axonize_requests(self, events):
            self.calls += 1
            if self.calls % FAILURES_BEFORE_DISABLED:
                raise ValueError("sometimes")

    plugins = Plugins()
    plugins.register(Sometimes(), "sometimes")
    for _ in range(9):
        plugins.call("axonize_requests", events=[1])
    assert plugins.disabled == {}
    assert plugins.failures["sometimes"] == 6


def test_what_cannot_be_configured_is_disabled_at_once():
    """Without its configuration a plugin cannot work: it is not given any event."""

    class Unconfigurable(Keeper):
        @hookimpl
        def axonize_configure(self, context):
            raise OSError("no such directory")

    plugins, keeper = Plugins(), Unconfigurable()
    plugins.register(keeper, "sink")
    plugins.configure(object())
    plugins.call("axonize_requests", events=[1])
    assert "no such directory" in plugins.disabled["sink"]
    assert keeper.seen == []


def test_no_plugin_can_change_what_the_next_one_sees():
    """A plugin that empties or sorts its events gets an error; the others get what came."""

    class Greedy:
        @hookimpl(tryfirst=True)
        def axonize_requests(self, events):
            events.clear()

    plugins, keeper = Plugins(), Keeper()
    plugins.register(keeper)
    plugins.register(Greedy(), "greedy")
    plugins.call("axonize_requests", events=[1, 2])
    assert keeper.seen == [1, 2]
    assert plugins.failures["greedy"] == 1


def test_a_plugin_registered_late_is_configured_at_once():
    """Whoever comes late is told what the others were told."""
    plugins, early, late = Plugins(), Keeper(), Keeper()
    plugins.register(early)
    context = object()
    plugins.configure(context)
    plugins.register(late)
    assert early.configured is late.configured is context


class Provider:
    provenance = "measured"

    def resources(self):
        return []

    def sample(self, resource):
        raise NotImplementedError

    def resolve(self, source):
        return None

    def close(self):
        pass


def test_first_result_ends_the_call():
    """Of several providers the first that answers with one is taken; what is no provider is a failure."""
    a, b = Provider(), Provider()

    class A:
        @hookimpl
        def axonize_gpu_provider(self, context):
            return a

    class B:
        @hookimpl(trylast=True)
        def axonize_gpu_provider(self, context):
            return b

    class Odd:
        @hookimpl(tryfirst=True)
        def axonize_gpu_provider(self, context):
            return "cuda"

    plugins = Plugins()
    for plugin, name in ((B(), "b"), (A(), "a"), (Odd(), "odd")):
        plugins.register(plugin, name)
    assert plugins.call("axonize_gpu_provider", firstresult=True, context=None) == [a]
    assert plugins.call("axonize_gpu_provider", context=None) == [a, b]
    assert plugins.failures == {"odd": 2}


def test_a_provider_that_fails_leaves_spans_without_a_device():
    """A third party's GPU provider that raises is counted; requests still become spans."""

    class Failing(Provider):
        def resources(self):
            raise OSError("driver gone")

        def resolve(self, source):
            raise OSError("driver gone")

        def close(self):
            raise OSError("driver gone")

    class Provides:
        @hookimpl
        def axonize_gpu_provider(self, context):
            return Failing()

    captured = CapturedEvents()
    pipeline = _serve_one(Provides(), captured)
    facts = pipeline.facts()
    pipeline.close(1)
    assert [span.attributes["gpu.provenance"] for span in captured.spans] == ["unavailable"]
    assert {"resolve", "resources"} <= set(facts["gpu_failures"])
    assert facts["disabled"] == {}


def _serve_one(*plugins):
    """Return a pipeline with the built-in spans and these plugins that has seen one request."""
    manager = Plugins()
    for plugin in (spans_plugin, *plugins):
        manager.register(plugin)
    pipeline = Pipeline(Settings(), manager)
    timeline = pipeline.connect(Hello(1, "v", 42, "inst", {}, "f"))
    source = [(1, ("transformers", "svc", "tiny", "hf", ("cpu", 0, None), None))]
    request = Record(Kind.REQUEST, 7, [1, 0, "r", None, "chat", 3, None], 10)
    end = Record(Kind.REQUEST_END, 7, ["stop", 3, 4, None, None], 20)
    pipeline.feed(timeline, Records(0, 0, 0, 0, [request, end], source))
    pipeline.dispatch()
    return pipeline


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        ([], "returned 0 results for 1 events"),
        ([{}, {}], "returned 2 results for 1 events"),
        ("x", "not str"),
        (7, "not int"),
        ([["tenant", "acme"]], "a mapping or None per event, not list"),
        ([{1: "x"}], "1 is no attribute name"),
        ([{"k": object}], "is no attribute value"),
        ([{"k": None}], "None of 'k' is no attribute value"),
        ([{"k": 2**63}], "64-bit int"),
        ([{"k": [1, {}]}], "is no attribute value"),
    ],
)
def test_span_attributes_of_the_wrong_shape_are_left_out(returned, says):
    """What a plugin returns is checked before it is used: the span exists, without it, and the failure has a reason."""

    class Odd:
        @hookimpl
        def axonize_span_attributes(self, events):
            return returned

    class Good:
        @hookimpl
        def axonize_span_attributes(self, events):
            return [{"tenant": "acme", "tags": ["a", "b"]} for _ in events]

    captured, odd = CapturedEvents(), Odd()
    pipeline = _serve_one(Good(), odd, captured)
    facts = pipeline.facts()
    pipeline.close(1)
    (span,) = captured.spans
    assert span.attributes["tenant"] == "acme"
    assert "k" not in span.attributes
    (record,) = (r for r in facts["plugin_records"] if r["failures"])
    assert record["name"].endswith("Odd")
    assert says in record["reason"]


def test_a_plugins_own_time_is_measured():
    """Time is booked on the plugin that spent it, not on the one that called its hook; slow calls are counted."""
    plugins = Plugins()

    class Inner:
        @hookimpl
        def axonize_spans(self, spans):
            time.sleep(SLOW_CALL_NS / 1e9)

        @hookimpl
        def axonize_shutdown(self, timeout_s):
            time.sleep(SLOW_CALL_NS / 1e9)

    class Outer:
        @hookimpl
        def axonize_requests(self, events):
            plugins.call("axonize_spans", spans=events)

    plugins.register(Inner(), "inner")
    plugins.register(Outer(), "outer")
    plugins.call("axonize_requests", events=[1])
    plugins.call("axonize_shutdown", timeout_s=1.0)  # may take its time
    facts = {record["name"]: record for record in plugins.facts()["plugin_records"]}
    assert facts["inner"]["slowest_ms"] >= 100
    assert facts["inner"]["slow_calls"] == facts["outer"]["calls"] == 1
    assert facts["inner"]["calls"] == 2
    assert 0 < facts["outer"]["busy_ms"] < 50
    assert facts["outer"]["hooks"] == ["axonize_requests"]


def test_failures_in_two_threads_are_all_counted():
    """Samples come from another thread than events; no failure is lost between them."""

    class Broken:
        @hookimpl
        def axonize_requests(self, events):
            if events:
                raise ValueError("broken")

        @hookimpl
        def axonize_gpu_samples(self, samples):
            if samples:
                raise ValueError("broken")

    plugins = Plugins()
    plugins.register(Broken(), "broken")

    def fail(hook, name):
        for _ in range(200):
            plugins.call(hook, **{name: [1]})
            plugins.call(hook, **{name: []})  # never two failures in a row

    other = threading.Thread(target=fail, args=("axonize_gpu_samples", "samples"))
    other.start()
    fail("axonize_requests", "events")
    other.join()
    assert plugins.failures["broken"] == 400


def test_facts_that_cannot_be_sent_are_a_failure():
    """What a plugin says of itself goes over a socket: what cannot, or raises, is counted and left out."""

    class Odd(Keeper):
        def facts(self):
            return {"thread": threading.current_thread()}

    class Rude(Keeper):
        def facts(self):
            raise SystemExit

    plugins = Plugins()
    plugins.register(Odd(), "odd")
    plugins.register(Rude(), "rude")
    plugins.register(Keeper(), "fine")
    assert plugins.facts()["facts"] == {"fine": {"seen": 0}}
    assert plugins.failures == {"odd": 1, "rude": 1}


def test_objects_get_names_one_can_read():
    """Two unnamed objects of a class are told apart."""
    plugins = Plugins()
    plugins.register(Keeper())
    plugins.register(Keeper())
    first, second = plugins.names()
    assert first.endswith("test_plugins.Keeper")
    assert second == f"{first}#2"


# What is installed.
