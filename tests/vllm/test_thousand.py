"""A thousand requests of one server, in which everything happens at once: none is missing, none is told twice."""

from __future__ import annotations

import random
from collections import Counter

import pytest

import vllm_load
import vllm_sums

REQUESTS = 1_000
CONCURRENCY = 48


def questions(seed):
    """Return prompts from one token to 400, of which some clients leave, early or late, and some stop at a string."""
    chance = random.Random(seed)
    for k in range(REQUESTS):
        prompt = random.Random(chance.choice([1, 2, 1000 + k])).choices(
            range(10, 500), k=chance.choice([1, 60, 400, 700])
        )
        question = {"request_id": f"t-{k}", "prompt": prompt, "max_tokens": chance.choice([1, 2, 8, 30, 150])}
        kind = chance.random()
        if kind < 0.06:
            question.update(abort_after=chance.randrange(1, 40), max_tokens=300)
        elif kind < 0.10:
            question.update(give_up_s=chance.choice([0.001, 0.05, 0.3]), max_tokens=300)
        elif kind < 0.25:
            question.update(stop=chance.sample(["a", "e", "o", " ", "he", "q"], 3), max_tokens=80)
        elif kind < 0.30:
            question.update(stream=False)
        yield question


@pytest.fixture(scope="module")
def run(crowded):
    """The answers to all of them, and what the spans tell."""
    crowded.capture.forget()
    unsampled = vllm_sums.unsampled(crowded.surroundings)
    answers = vllm_load.run(crowded.base_url, list(questions(7)), concurrency=CONCURRENCY)
    vllm_sums.settle(crowded.surroundings, unsampled)
    return answers, vllm_sums.check(crowded.capture.phases)


def test_the_sums_hold(run, crowded):
    """For every request and every step; nothing was dropped, unknown or failed."""
    answers, stories = run
    vllm_sums.check_answers(stories, answers)
    vllm_sums.check_agent(crowded.surroundings)


def test_none_is_missing_and_none_is_there_twice(run):
    """One span for each request that was understood: those whose clients left before that are the only ones without."""
    answers, stories = run
    told = Counter(story["ai.request.id"] for story in stories)
    assert max(told.values()) == 1
    missing = [a for a in answers if f"cmpl-{a.request_id}-0" not in told]
    assert all(a.aborted and not a.chunks_ns for a in missing), missing
    assert len(told) + len(missing) == REQUESTS


def test_everything_happened(run):
    """Preemption, recomputation, prefix-cache hits, aborts of clients that saw something and that saw nothing, stops."""
    answers, stories = run
    reasons = Counter(story.finish_reason for story in stories)
    assert min(reasons[reason] for reason in ("abort", "stop", "length")) > 20
    assert sum(story["ai.preemptions"] or 0 for story in stories) > 5
    assert any(story.recomputed for story in stories)
    assert any(story.cached for story in stories)
    assert any(a.aborted and not a.chunks_ns for a in answers)
    assert any(len(story.of("prefill")) > 2 for story in stories)
