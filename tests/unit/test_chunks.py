"""Requests whose input is worked off in chunks, one run each."""

from __future__ import annotations

from array import array

import pytest

from axonize_core.chunks import as_one
from axonize_core.events import SourceInfo
from axonize_core.frames import Hello, Kind, Record, Records
from axonize_core.runs import Run
from axonize_core.testing import CountingIds
from axonize_core.timeline import Timeline

SOURCE = SourceInfo("inst", "transformers", "svc", "tiny", "hf", ("cpu", 0, None), {}, 42)


def run(start_ns, *times, mode="generate", new_tokens=None, incomplete=False):
    """Return an ended run: its start, its steps, its end."""
    *steps, end_ns = times
    made = Run(SOURCE, (1,), (4,), mode, start_ns, 0, array("q", steps), end_ns, new_tokens)
    made.incomplete = incomplete
    return made


def test_no_run_and_one():
    """Without runs there is nothing; a single run stays itself."""
    only = run(10, 20, mode="forward")
    assert as_one([]) is None
    assert as_one([only]) is only


def test_forwards_are_one_phase():
    """Forwards of chunks last from the first's start to the last's end, without tokens; one that lost records marks all."""
    whole = as_one([run(10, 20, mode="forward"), run(30, 45, mode="forward", incomplete=True)])
    assert (whole.start_ns, whole.first_visible_ns(), whole.prefill_steps) == (10, 45, 2)
    assert whole.last_visible_ns(None) is None
    assert whole.incomplete


def test_generates_have_the_first_chunks_first_token():
    """The first token is the first chunk's, the last is seen at the end, and steps add up over the chunks."""
    whole = as_one([run(10, 11, 20, 30, 40, new_tokens=3), run(50, 51, 60, 70, new_tokens=2)])
    assert (whole.first_visible_ns(), whole.last_visible_ns(5)) == (20, 70)
    assert (whole.prefill_steps, whole.decode_steps(5)) == (2, 3)
    assert whole.tpot_ns(6) == pytest.approx(10)
    assert whole.gap_statistics(5) is None


def test_a_first_chunk_that_made_no_token():
    """A generate whose tokens are unknown leaves the first token unknown, not early."""
    whole = as_one([run(10, 11, 20, new_tokens=None), run(50, 51, 60, new_tokens=1)])
    assert (whole.first_visible_ns(), whole.last_visible_ns(1), whole.tpot_ns(1)) == (None, None, None)


def test_a_request_in_chunks():
    """Queue ends with the first chunk; the prefill covers all of them, and so does each step's share of the input."""
    timeline = Timeline(Hello(1, "v", 42, "inst", {}, "f"), CountingIds())
    records = [
        (Kind.REQUEST, 10, [1, 400, "r", None, "classification", None, None], 500),
        *[
            record
            for handle, start_ns, tokens in ((11, 1000, 7), (12, 2000, 5))
            for record in (
                (Kind.RUN, handle, [1, [10], [tokens], "forward"], start_ns),
                (Kind.RUN_TIMES, handle, [-(start_ns + 300)], start_ns + 300),
                (Kind.RUN_END, handle, [None, None], start_ns + 301),
            )
        ],
        (Kind.REQUEST_END, 10, [None, 12, None, None, None], 2500),
    ]
    sources = [(1, ("transformers", "svc", "tiny", "hf", ("cpu", 0, None), None))]
    events = timeline.feed(Records(0, 0, 0, 0, [Record(*record) for record in records], sources))
    ((request,), (prefill,)) = events.requests, events.prefills
    assert (request.queue_ns, request.duration_ns, request.ttft_ns) == (600, 2100, None)
    assert (prefill.start_ns, prefill.duration_ns, prefill.steps, prefill.tokens) == (1000, 1300, 2, 12)
    assert events.decodes == []
    assert [batch.prefill_tokens for batch in events.batches] == [(7,), (5,)]
    assert [len(batch.joined) for batch in events.batches] == [1, 0]
