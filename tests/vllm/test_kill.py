"""A server that ends in the middle of a load, as it should and as it should not: no request disappears."""

from __future__ import annotations

import os
import random
import signal
import time
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

import vllm_load
import vllm_sums
from vllm_server import running_first

SHIPPED_NS = 100_000_000
"""What was recorded so long before a process was killed has left it."""
CONCURRENCY = 8
GIVE_UP_S = 30.0
"""vLLM 0.32 never answers what its front end takes in after the engine core left its loop, with or without Axonize."""
BEFORE = 800
"""Tokens that come before the signal: less than fits between the engine and an agent that gets no CPU time."""


def questions(count):
    chance = random.Random(3)
    for k in range(count):
        prompt = random.Random(k).choices(range(10, 500), k=chance.choice([5, 60, 300]))
        yield {"request_id": f"k-{k}", "prompt": prompt, "max_tokens": chance.choice([10, 40, 400])}


@pytest.fixture(scope="module", params=["SIGTERM", "SIGKILL"])
def ended(request, serve):
    """What a server was asked that got a signal: SIGTERM as a whole, SIGKILL its engine core.

    Without --shutdown-timeout vLLM answers SIGTERM by a SIGKILL of its engine core.
    """
    with serve("--block-size", "32", "--num-gpu-blocks-override", "160", "--shutdown-timeout", "30") as server:
        return run(server, request.param)


def run(server, name):
    """Ask until a good part is answered, send the signal, and wait until everything has ended."""
    seen = []
    asked = [{**question, "seen": seen, "give_up_s": GIVE_UP_S} for question in questions(200)]
    with ThreadPoolExecutor() as client, running_first():  # who sends the signal must not wait for a CPU either
        load = client.submit(vllm_load.run, server.base_url, asked, CONCURRENCY)
        while tokens_made(server) < BEFORE:
            assert not load.done(), "the load is over before the signal"
            time.sleep(0.05)
        if name == "SIGKILL":
            killed_ns = kill_at_work(server, load, seen)
        else:
            killed_ns = time.time_ns()
            os.kill(server.pid, signal.SIGTERM)
        answers = load.result()
    server.stop()
    server.surroundings.end_agents()
    return Ended(server, name, killed_ns, answers)


def kill_at_work(server, load, seen):
    """Kill the engine core while it has what its client saw early enough; return when it did its last, epoch ns.

    A front end that waited for a CPU passes on whole answers at once: those are done in the engine by then, and what it
    has instead is too new. So the engine is stopped first, until all that it made has come, and goes on where need be.
    """
    (engine,) = server.engine_pids
    while True:
        stopped_ns = time.time_ns()
        os.kill(engine, signal.SIGSTOP)
        let_all_come(server, seen)
        if any(not a.finish_reasons and seen_before(a, stopped_ns - SHIPPED_NS) for a in list(seen)):
            os.kill(engine, signal.SIGKILL)
            return stopped_ns
        os.kill(engine, signal.SIGCONT)
        assert not load.done(), "the load is over before the engine was killed at work"
        time.sleep(0.05)


def let_all_come(server, seen):
    """Wait until front end and client have passed on what a stopped engine made."""
    before, now = -1, 0
    while before != now:
        tokens_made(server)  # an answer of the front end: it had its turn
        time.sleep(0.05)
        before, now = now, sum(len(answer.chunks_ns.get(0, ())) for answer in list(seen))


def seen_before(answer, time_ns):
    """Return when its client saw pieces of an answer, ``perf_counter_ns``, of those that came before an epoch time."""
    return [t for t in answer.chunks_ns.get(0, ()) if answer.epoch_ns(t) < time_ns]


def tokens_made(server):
    """Return the tokens of all answers so far, as vLLM's own metrics count them."""
    with urllib.request.urlopen(f"{server.base_url}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:generation_tokens_total"))


class Ended:
    """What was asked of a server that is gone, and what the spans tell."""

    def __init__(self, server, name, killed_ns, answers):
        self.name, self.killed_ns, self.answers = name, killed_ns, answers
        self.stories = vllm_sums.check(server.capture.phases, lost=True)
        self.by_id = {story["ai.request.id"]: story for story in self.stories}
        self.engines = {batch.resource["service.instance.id"] for batch in server.capture.of("batch")}

    def of(self, answer):
        return self.by_id[f"cmpl-{answer.request_id}-0"]

    def told_by_engine(self, story):
        return story.span.resource["service.instance.id"] in self.engines


def test_every_request_has_one_span(ended):
    """Whoever got a piece of an answer is there once, and nobody whom the server did not take in."""
    told = Counter(story["ai.request.id"] for story in ended.stories)
    assert max(told.values()) == 1
    answered = {f"cmpl-{a.request_id}-0" for a in ended.answers if a.chunks_ns}
    taken = {f"cmpl-{a.request_id}-0" for a in ended.answers if a.status is not None}
    assert answered <= set(told) <= taken
    assert len(answered) >= CONCURRENCY


def test_whose_answer_was_whole_is_whole(ended):
    """The sums were held for these already; finish reason and tokens are the client's."""
    whole = [a for a in ended.answers if a.finish_reasons]
    assert whole
    for answer in whole:
        story = ended.of(answer)
        assert story.finish_reason == answer.finish_reason, story
        assert story.output_tokens == answer.completion_tokens or answer.completion_tokens is None, story


def test_whose_answer_was_cut_off_is_an_error(ended):
    """With the time it took until then, and what it cost; the engine may have ended some that were not sent any more."""
    cut = {f"cmpl-{a.request_id}-0" for a in ended.answers if not a.finish_reasons}
    found = [s for s in ended.stories if s["ai.request.id"] in cut and ended.told_by_engine(s)]
    assert bool(found) == (ended.name == "SIGKILL")
    assert all(story.span.duration_ns > 0 for story in found)
    open_at_the_end = [story for story in found if story.span["ai.incomplete"]]
    assert bool(open_at_the_end) == (ended.name == "SIGKILL")
    assert {story.span.error for story in open_at_the_end} <= {"engine_lost"}
    assert all(story.finish_reason == "length" for story in found if story not in open_at_the_end), found


def test_what_was_recorded_before_is_there(ended):
    """100 ms before the kill is early enough: the engine's own record of the request, and each token of it."""
    for answer in ended.answers:
        if seen := seen_before(answer, ended.killed_ns - SHIPPED_NS):
            story = ended.of(answer)
            assert ended.told_by_engine(story), story
            tokens = sum(s["gen_ai.usage.output_tokens"] for s in story.of("decode"))
            assert max(tokens, story.output_tokens) >= len(seen), (len(seen), story)


def test_an_engine_that_was_killed_says_so(ended):
    """What it had open is an error and incomplete; one that ended what it had to do leaves nothing incomplete.

    Those that came too late for it are the front end's alone.
    """
    incomplete = [story for story in ended.stories if story.span["ai.incomplete"] and ended.told_by_engine(story)]
    assert bool(incomplete) == (ended.name == "SIGKILL"), incomplete
    assert {story.span.error for story in incomplete} <= {"engine_lost"}
    late = [story for story in ended.stories if not ended.told_by_engine(story)]
    assert all(story.span.end_ns > ended.killed_ns - SHIPPED_NS for story in late), late
