"""The shortest way through everything: a served model, five requests, and what the spans say of them."""

from __future__ import annotations

import pytest

import vllm_load


@pytest.fixture(scope="module")
def served(serve):
    """A server, the answers of five requests, and their request spans."""
    with serve() as server:
        asked = [{"prompt": "the quick brown fox " * (k + 1), "max_tokens": 8 + k} for k in range(5)]
        answers = vllm_load.run(server.base_url, asked, concurrency=2)
        server.capture.wait_for(len(asked))
        yield server, answers


def test_every_request_is_answered(served):
    """The server works with us in it: all tokens come, in pieces, to their end."""
    _, answers = served
    assert [a.error for a in answers] == [None] * 5
    assert [a.completion_tokens for a in answers] == [8, 9, 10, 11, 12]
    assert {a.finish_reason for a in answers} == {"length"}
    assert all(len(a.chunks_ns[0]) > 1 for a in answers)


def test_spans_say_what_the_api_said(served):
    """One request span for each answer, with its tokens and its reason to finish."""
    server, answers = served
    said = {f"cmpl-{a.request_id}-0": (a.prompt_tokens, a.completion_tokens, [a.finish_reason]) for a in answers}
    names = ("gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens", "gen_ai.response.finish_reasons")
    spans = server.capture.of("request")
    assert len(spans) == len(said)
    assert {s["ai.request.id"]: tuple(map(s.__getitem__, names)) for s in spans} == said


def test_every_request_has_its_phases(served):
    """Queue, prefill and decode are children of the request, inside of its time."""
    server, _ = served
    for request in server.capture.of("request"):
        for phase in ("queue", "prefill", "decode"):
            parts = [s for s in server.capture.of(phase) if s.parent_id == request.span_id]
            assert len(parts) == 1, phase
            assert request.start_ns <= parts[0].start_ns <= parts[0].end_ns <= request.end_ns


def test_the_processes_are_known(served):
    """On CPU one API server, one engine core and one worker, all different."""
    server, _ = served
    assert len({server.pid, *server.engine_pids, *server.worker_pids}) == 3
    assert len(server.engine_pids) == len(server.worker_pids) == 1
    assert len(server.surroundings.agents()) == 1
