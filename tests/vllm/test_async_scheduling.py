"""vLLM's schedulers in the call orders of GPUs: steps are planned before the last one is over, in pipelines two ahead.

The classes are the real ones; the model's answers are made up. The same sums hold as for a served model.
"""

from __future__ import annotations

import random
from collections import defaultdict

import pytest

import vllm_sums
from axonize_core.recorder import get_recorder
from axonize_core.testing import capture_events
from vllm_capture import captured_span
from vllm_scheduler import Engine, make_config

pytestmark = pytest.mark.filterwarnings("ignore")
"""vLLM's imports warn of much."""


@pytest.fixture
def make(tiny, monkeypatch):
    """``make(asynchronous=..., drafts=..., ahead=...)`` is an engine whose scheduler is recorded as vLLM makes it."""
    from vllm.config.scheduler import SchedulerConfig

    from axonize_vllm import scheduler

    monkeypatch.setattr(SchedulerConfig, "get_scheduler_cls", SchedulerConfig.get_scheduler_cls)
    scheduler.instrument()
    with capture_events() as captured:

        def engine(*, asynchronous, drafts=0, ahead=0, seed=0, blocks=24):
            config = make_config(tiny, asynchronous=asynchronous, drafts=drafts, blocks=blocks)
            made = Engine(config, config.scheduler_config.get_scheduler_cls(), ahead=ahead, seed=seed)
            made.captured = captured
            return made

        yield engine


def check(engine):
    """Hold all sums against what the engine itself gave and scheduled; return the requests by id."""
    phases = defaultdict(list)
    for span in engine.captured.flush().spans:
        phases[span.name].append(captured_span(span))
    assert not get_recorder().errors
    stories = {s["ai.request.id"]: s for s in vllm_sums.check(phases, ahead=engine.late)}
    assert len(stories) == engine.asked
    assert {name: s.output_tokens for name, s in stories.items()} == {name: engine.tokens[name] for name in stories}
    batches = sorted(phases["batch"], key=lambda span: span["ai.batch.seq"])
    assert [b["ai.batch.prefill_tokens"] + b["ai.batch.decode_tokens"] for b in batches] == engine.scheduled
    assert {name: s["ai.preemptions"] or 0 for name, s in stories.items()} == {
        name: engine.preempted[name] for name in stories
    }
    return stories


@pytest.mark.parametrize("drafts", [0, 3])
@pytest.mark.parametrize(("asynchronous", "ahead"), [(False, 0), (True, 1), (False, 1), (False, 2)])
def test_the_sums_hold_in_every_order(make, asynchronous, ahead, drafts):
    """A random load with preemptions, aborts in between, stops that come as a surprise, and drafts."""
    engine, chance = make(asynchronous=asynchronous, drafts=drafts, ahead=ahead, seed=ahead), random.Random(5)
    names = []
    for _ in range(150):
        if chance.random() < 0.4:
            names.append(engine.ask(max_tokens=chance.choice([1, 2, 10, 60, 100])))
        if names and chance.random() < 0.05:
            engine.abort(chance.choice(names))
        engine.step()
    engine.drain()
    stories = check(engine)
    reasons = {s.finish_reason for s in stories.values()}
    assert reasons == {"abort", "length", "stop"}
    assert sum(engine.preempted.values()) > 2
    assert not asynchronous or sum(engine.late.values()) > 0
    assert not drafts or any(s["ai.speculative.accepted_tokens"] for s in stories.values())


def test_the_next_step_has_a_request_that_just_stopped(make):
    """Its token there is thrown away: a member of that step, no token of its own."""
    engine = make(asynchronous=True, ahead=1)
    engine._sample = lambda drafted: [7]
    name = engine.ask(prompt=[20] * 10)
    engine.drain()
    story = check(engine)[name]
    assert (story.finish_reason, story.output_tokens, len(story.parts), engine.late[name]) == ("stop", 1, 2, 1)


def test_a_request_is_preempted_while_its_step_runs(make):
    """The token of that step still counts, and its phases follow one another."""
    engine = make(asynchronous=True, ahead=1, blocks=5)
    engine._sample = lambda drafted: [20]
    for _ in range(2):
        engine.ask(prompt=[20 + engine.asked] * 60, max_tokens=30)
    engine.drain()
    stories = check(engine)
    assert sum(engine.preempted.values()) > 0
    assert [s.output_tokens for s in stories.values()] == [30, 30]
