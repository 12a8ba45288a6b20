"""What front ends know of requests is joined to what engines know of them."""

from __future__ import annotations

import msgspec
import pytest

from axonize_core import answers as module
from axonize_core import attributes as names
from axonize_core.answers import MISSING_S, WAIT_S, Answer, Answers
from axonize_core.events import RequestEvent, RequestRef, SourceInfo
from axonize_core.testing import CountingIds

CORE = SourceInfo("core", "vllm", "svc", "tiny", "vllm", ("workers", 0, None), {}, 42)
FRONT = SourceInfo("front", "vllm", "svc", "tiny", "vllm", ("workers", 0, None), {}, 41)
TRACEPARENT = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"


class Setting:
    """Answers with a clock that moves when told to."""

    def __init__(self, *, engine_here=True):
        self.now = 0.0
        self.answers = Answers(CountingIds(), lambda: self.now)
        if engine_here:
            self.answers.meet([msgspec.structs.replace(CORE, resource={"ai.role": "engine"})])

    def open(self, name="a", *, at=1_000, traceparent=None):
        facts = (5, "caller", 900, traceparent, "chat", 8, [["k", 1]])
        self.answers.hear([Answer(FRONT, name, "opened", at, facts)])

    def end(self, name="a", *, at=5_000, reason="stop", tokens=3, error=None):
        self.answers.hear([Answer(FRONT, name, "ended", at, (reason, tokens, 0.25, 0.5, error))])


def request(name="a", *, reason="abort", tokens=5, error=None):
    return RequestEvent(
        CORE, RequestRef(7, 1, 2), 0, "r", "chat", 1, 2, output_tokens=tokens, finish_reason=reason, error=error,
        engine_id=name,
    )  # fmt: skip


def test_the_front_ends_reason_and_tokens_win():
    """A stop string is the front end's finding; what the engine computed beyond it is told apart."""
    setting = Setting()
    setting.open()
    setting.end()
    (joined,) = setting.answers.join([request()])
    assert (joined.finish_reason, joined.output_tokens, joined.source) == ("stop", 3, CORE)
    assert dict(joined.attributes) == {
        names.FINISH_REASON_SOURCE: "frontend",
        names.FRONTEND_TTFT_S: 0.25,
        names.FRONTEND_E2E_S: 0.5,
        names.DISCARDED_TOKENS: 2,
        names.FRONTEND_INSTANCE: "front",
    }
    assert setting.answers.due(closing=True) == []


def test_requests_do_not_wait_where_there_is_no_front_end():
    """Requests of engines without one, and those of other integrations, go at once."""
    setting = Setting()
    plain = request(name=None)
    assert setting.answers.join([plain, request()]) == [plain, request()]


def test_a_request_waits_a_moment_for_its_front_end():
    """Both ship by themselves: whoever comes second completes it."""
    setting = Setting()
    setting.open()
    assert setting.answers.join([request()]) == []
    assert setting.answers.due() == []
    setting.end(reason=None, tokens=None)
    (joined,) = setting.answers.due()
    assert (joined.finish_reason, joined.output_tokens) == ("abort", 5)
    assert names.FINISH_REASON_SOURCE not in dict(joined.attributes)
    assert setting.answers.due(closing=True) == []


@pytest.mark.parametrize(("opened", "closing"), [(True, False), (False, False), (False, True)])
def test_a_front_end_that_says_nothing_is_not_waited_for_long(opened, closing):
    """It is counted; the request is as the engine told it."""
    setting = Setting()
    setting.open("other")
    if opened:
        setting.open()
    assert setting.answers.join([request()]) == []
    setting.now = 0.0 if closing else WAIT_S
    assert [r for r in setting.answers.due(closing=closing) if r.engine_id == "a"] == [request()]
    assert setting.answers.counts["requests_without_front_end"] == 1
    setting.end()
    setting.now = 100
    assert [r for r in setting.answers.due() if r.engine_id == "a"] == []


def test_a_request_no_engine_told_of_is_told_by_its_front_end():
    """What a dead engine could not ship any more is not lost: it is there, incomplete, and counted."""
    setting = Setting()
    setting.open(traceparent=TRACEPARENT)
    setting.end(reason=None, tokens=None, error="EngineDeadError")
    assert setting.answers.due() == []
    setting.now = MISSING_S
    (alone,) = setting.answers.due()
    assert (alone.source, alone.ref.seq, alone.request_id) == (FRONT, 5, "caller")
    assert (alone.ref.trace_id, alone.parent_span_id) == (int("ab" * 16, 16), int("cd" * 8, 16))
    assert (alone.start_ns, alone.duration_ns, alone.input_tokens) == (900, 4_100, 8)
    assert (alone.incomplete, alone.error, alone.finish_reason) == (True, "engine_lost", None)
    assert dict(alone.attributes)["k"] == 1
    assert setting.answers.counts["requests_without_engine"] == 1
    assert setting.answers.join([request()]) == [], "an engine that is late makes no second request"
    assert setting.answers.due(closing=True) == []
    assert setting.answers.counts["requests_late"] == 1


def test_requests_of_an_engine_on_another_machine_are_left_to_its_agent():
    """Where no engine is, a front end's requests are told elsewhere: they are counted, not made up."""
    setting = Setting(engine_here=False)
    setting.open()
    setting.end()
    setting.now = MISSING_S
    assert setting.answers.due() == []
    assert setting.answers.counts == {"requests_of_engines_elsewhere": 1}


def test_what_an_engine_told_of_is_never_told_twice():
    """A front end that is later than the wait does not make a second request."""
    setting = Setting()
    setting.open("other")
    setting.answers.join([request()])
    setting.now = WAIT_S
    assert setting.answers.due() == [request()]
    setting.open()
    setting.end()
    setting.now = 100
    assert [r for r in setting.answers.due(closing=True) if r.engine_id == "a"] == []


def test_a_front_end_is_waited_for_before_it_says_anything():
    """It is known by its source, as soon as it is connected; an engine's own source is nobody to wait for."""
    setting = Setting()
    setting.answers.meet([msgspec.structs.replace(CORE, resource={"ai.role": "engine"})])
    assert setting.answers.join([request("first")]) == [request("first")]
    setting.answers.meet([msgspec.structs.replace(FRONT, resource={"ai.role": "frontend"})])
    assert setting.answers.join([request()]) == []
    setting.open()
    setting.end()
    assert [r.finish_reason for r in setting.answers.due()] == ["stop"]


def test_a_young_agent_waits_until_front_ends_are_connected():
    """Both come when the agent is up, in any order: all of a short run may be there before the front end's first word."""
    setting = Setting()
    setting.answers = Answers(CountingIds(), lambda: setting.now, first_s=5.0)
    assert setting.answers.join([request(), request("b")]) == []
    setting.now = WAIT_S
    assert setting.answers.due() == []
    setting.open()
    setting.end()
    assert [r.finish_reason for r in setting.answers.due()] == ["stop"]
    setting.now = 5.0
    assert setting.answers.due() == [request("b")]


def test_a_front_end_that_comes_after_its_first_request_tells_of_none_twice():
    """Its request went on without it."""
    setting = Setting()
    assert setting.answers.join([request()]) == [request()]
    setting.open()
    setting.end()
    assert setting.answers.due(closing=True) == []


def test_a_front_end_that_ended_is_not_waited_for():
    """What it had open ends with it."""
    setting = Setting()
    setting.open()
    setting.open("b")
    setting.end("b")
    setting.answers.gone("somebody else")
    assert setting.answers.join([request("c")]) == []
    setting.answers.gone("front")
    assert setting.answers.join([request("d")]) == [request("d")]
    (joined,) = setting.answers.join([request()])
    assert (joined.finish_reason, joined.error) == ("abort", None)
    setting.now = MISSING_S
    assert [(r.engine_id, r.error) for r in setting.answers.due()] == [("c", None), ("b", None)]


def test_what_is_open_is_bounded(monkeypatch):
    """A front end cannot fill the agent: what is too much is counted, and the oldest memories go."""
    monkeypatch.setattr(module, "MOST", 2)
    setting = Setting()
    for name in "abc":
        setting.open(name)
    assert setting.answers.counts["answers_dropped"] == 1
    setting.end("c")
    for name in "abc":
        setting.answers.join([request(name)])
    assert len(setting.answers.due(closing=True)) == 3
