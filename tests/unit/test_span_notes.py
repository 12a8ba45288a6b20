"""What is said of a span beyond its times."""

from __future__ import annotations

import pytest

from axonize_server.span_notes import span_notes
from fix_api import api_preempted_trace, api_span, chunk_attributes


def _notes(**attributes):
    return " · ".join(note.plain for note in span_notes(api_span("x", 0, 1, span_id="a", attributes=attributes)))


def test_a_request_of_vllm_says_what_its_caller_got():
    """Cached, discarded and drafted tokens, preemptions, its adapter, and what the front end saw."""
    request = api_preempted_trace()["spans"][0]
    assert " · ".join(note.plain for note in span_notes(request)) == (
        "200 tokens in (128 cached) · 400 tokens out (3 discarded) · 31 of 40 drafts accepted"
        " · at the front end TTFT 75.7 ms, total 981 ms · preempted 1 × · 5 KV blocks · sql · choice 1 · stop"
    )


def test_prefills_name_theirchunk_attributes_and_their_batches():
    """The one after a preemption says what was computed again."""
    first, again = [s for s in api_preempted_trace()["spans"] if s["name"] == "prefill"]
    assert [note.plain for note in span_notes(first)] == [
        "200 tokens in (128 cached)",
        "2 steps",
        "chunks of 182 + 18 tokens",
        "in batches 710-711",
    ]
    assert next(note.plain for note in span_notes(again)) == "249 tokens recomputed"


def test_one_chunk_is_no_list():
    """The batch it was in is enough."""
    assert _notes(**{"ai.steps": 1}, **chunk_attributes((30, 44))) == "1 step · in batch 30"


@pytest.mark.parametrize(
    ("steps", "said"),
    [((7, 9, 10, 11), "7, 9-11"), (range(1, 20), "1-19"), (range(1, 20, 2), "1 … 19")],
    ids=["two ranges", "one range", "many ranges"],
)
def test_batches_are_said_as_ranges(steps, said):
    """Steps that follow one another are one range; of many ranges the ends remain."""
    assert _notes(**chunk_attributes(*((step, 1) for step in steps))).endswith(f" tokens · in batches {said}")


def test_manychunk_attributes_are_shortened():
    """The first ones and the last stand for all."""
    assert "chunks of 8 + 8 + 8 + 8 + … + 3 tokens" in _notes(**chunk_attributes(*((n, 8) for n in range(11)), (11, 3)))


def test_a_step_says_where_its_time_went_and_who_waits():
    """Zero is said, the unknown is not."""
    said = _notes(
        **{
            "ai.batch.size": 32,
            "ai.batch.prefill_tokens": 0,
            "ai.batch.decode_tokens": 32,
            "ai.batch.schedule_ms": 0.0757,
            "ai.batch.update_ms": 0.095,
            "ai.batch.running": 32,
            "ai.batch.waiting": 0,
            "ai.batch.kv_cache.usage": 0.3725,
            "ai.device_time_ms": 17.9,
        }
    )
    assert said == (
        "32 requests · prefill 0 · decode 32 · schedule 75.7 µs · update 95.0 µs"
        " · running 32 · waiting 0 · KV cache 37.2 % · on the device 17.9 ms"
    )


def test_accepted_drafts_without_a_count_of_the_drafted():
    """Where nobody tells how many were drafted, no share is claimed."""
    assert _notes(**{"ai.speculative.accepted_tokens": 12}) == "12 drafts accepted"
