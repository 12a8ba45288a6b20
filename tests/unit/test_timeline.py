from __future__ import annotations

import pytest

from axonize_core.frames import Hello, Kind, Record, Records
from axonize_core.live import parse_traceparent
from axonize_core.testing import CountingIds
from axonize_core.timeline import EXPIRY_NS, Timeline

TRACEPARENT = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"
WALL = 1_700_000_000_000_000_000


class Engine:
    """Speaks frames to a timeline as an inference process would."""

    def __init__(self):
        self.timeline = Timeline(Hello(1, "v", 42, "inst", {"host.name": "h"}, "f"), CountingIds())
        self.seq = 0
        self.dropped = 0
        self.sources = [(1, ("transformers", "svc", "tiny", "hf", ("cpu", 0, None), (("zone", "a"),)))]

    def frame(self, *records, mono_ns=0):
        frame = Records(self.seq, WALL + mono_ns, mono_ns, self.dropped, [Record(*r) for r in records], self.sources)
        self.seq, self.sources = self.seq + 1, []
        return self.timeline.feed(frame)


def request(seq, t_ns, *, arrived_ns=0, traceparent=None, source=1, input_tokens=None, attributes=None):
    return (
        Kind.REQUEST,
        seq,
        [source, arrived_ns, f"r{seq}", traceparent, "text_completion", input_tokens, attributes],
        t_ns,
    )


def generate(handle, seqs, times, new_tokens, *, error=None, mode="generate"):
    """A run whose first time is its start and whose last is its end."""
    start, *steps, end = times
    return [
        (Kind.RUN, handle, [1, list(seqs), [4] * len(seqs), mode], start),
        (Kind.RUN_TIMES, handle, [*steps, -end], end),
        (Kind.RUN_END, handle, [new_tokens, error], end + 1),
    ]


def end(seq, t_ns, *, output_tokens=None, error=None, reason="length"):
    return (Kind.REQUEST_END, seq, [reason, 4, output_tokens, error, [["k", 1]]], t_ns)


def test_many_events_are_as_those_events_one_by_one():
    """Members of one step ended at one instant end as if each had said so."""
    engine = Engine()
    opened = [request(seq, 1000) for seq in (10, 11, 12)]
    ends = ["length", 4, 3, None, None], ["stop", 4, 2, None, None], "not a payload"
    events = engine.frame(*opened, (Kind.MANY, 3, [Kind.REQUEST_END, [10, 11, 12], ends], 1900), mono_ns=2000)
    assert [(r.ref.seq, r.finish_reason, r.output_tokens, r.duration_ns) for r in events.requests] == [
        (10, "length", 3, 900),
        (11, "stop", 2, 900),
    ]
    assert engine.timeline.orphan_records == 1, "the one that could not be read spoils no other"
    engine.frame((Kind.MANY, 2, [99, [1, 2], None], 2100), (Kind.MANY, 1, [6], 2200), mono_ns=2300)
    assert (engine.timeline.unknown_records, engine.timeline.orphan_records) == (2, 2)
    engine.frame((Kind.MANY, 3, [99, [1, 2, 3], [0]], 2400), mono_ns=2500)
    assert (engine.timeline.unknown_records, engine.timeline.orphan_records) == (3, 3), "a payload each, or it is said"


def test_a_request_has_queue_prefill_decode_that_add_up():
    """Phases are differences of one clock: queue + prefill + decode ends where the last token was seen."""
    engine = Engine()
    events = engine.frame(
        request(10, 1000, arrived_ns=400),
        *generate(11, [10], [1500, 1510, 1600, 1700, 1800], 3),
        end(10, 1900, output_tokens=3),
        mono_ns=2000,
    )
    (r,), (p,), (d,) = events.requests, events.prefills, events.decodes
    assert r.start_ns == WALL + 400
    assert (r.queue_ns, p.duration_ns, d.duration_ns) == (1100, 100, 200)
    assert r.ttft_ns == 1200 == r.queue_ns + p.duration_ns
    assert r.duration_ns == 1500
    assert p.start_ns == r.start_ns + r.queue_ns
    assert d.start_ns == p.start_ns + p.duration_ns
    assert (r.input_tokens, r.output_tokens, d.tokens, d.steps, p.steps) == (4, 3, 3, 2, 1)
    assert r.tpot_ns == 100
    assert (d.itl_p50_ns, d.itl_max_ns) == (100, 100)
    assert r.attributes == (("k", 1),)
    assert not (r.incomplete or p.incomplete or d.incomplete)
    assert r.source.resource["zone"] == "a"
    assert r.source.service_name == "svc"


def test_members_share_steps_and_are_linked_once():
    """Every step names its members; a request is linked in the step where it joins."""
    engine = Engine()
    events = engine.frame(request(1, 10), request(2, 11), *generate(3, [1, 2], [20, 21, 30, 40], 2), mono_ns=50)
    first, second = events.batches
    assert first.request_seqs == (1, 2)
    assert first.prefill_tokens == (4, 4)
    assert [ref.seq for ref in first.joined] == [1, 2]
    assert second.joined == ()
    assert second.decode_tokens == (1, 1)
    assert (first.seq, second.seq) == (1, 2)
    assert first.trace_id == second.trace_id
    assert engine.timeline.live_requests() == 2


def test_the_engines_trace_changes_every_minute():
    """No trace grows without bound."""
    engine = Engine()
    minute = 60_000_000_000
    events = engine.frame(request(1, 1), *generate(2, [1], [2, 3, 4 + minute, 5 + minute], 2), mono_ns=1)
    assert len({b.trace_id for b in events.batches}) == 2


def test_the_callers_trace_is_continued():
    """A valid traceparent is the parent; without one there is a new trace."""
    engine = Engine()
    events = engine.frame(request(1, 10, traceparent=TRACEPARENT), request(2, 10), end(1, 20), end(2, 20))
    first, second = events.requests
    assert first.ref.trace_id == int("ab" * 16, 16)
    assert first.parent_span_id == int("cd" * 8, 16)
    assert second.parent_span_id == 0
    assert second.ref.trace_id == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (TRACEPARENT, (int("ab" * 16, 16), int("cd" * 8, 16), True)),
        (TRACEPARENT[:-2] + "00", (int("ab" * 16, 16), int("cd" * 8, 16), False)),
        ("ff" + TRACEPARENT[2:], None),
        ("00-" + "0" * 32 + "-" + "cd" * 8 + "-01", None),
        ("00-" + "xy" * 16 + "-" + "cd" * 8 + "-01", None),
        ("garbage", None),
        (None, None),
        (7, None),
    ],
)
def test_traceparent_is_read_as_w3c_says(text, expected):
    """What is not valid is no parent."""
    assert parse_traceparent(text) == expected


def test_a_classification_has_a_prefill_and_no_tokens():
    """forward: prompt only; TTFT and TPOT stay unknown."""
    engine = Engine()
    events = engine.frame(
        request(1, 10),
        (Kind.RUN, 2, [1, [1], [4], "forward"], 20),
        (Kind.RUN_END, 2, [None, None], 35),
        end(1, 40),
    )
    (r,), (p,) = events.requests, events.prefills
    assert p.duration_ns == 15
    assert events.decodes == []
    assert (r.ttft_ns, r.tpot_ns, r.output_tokens) == (None, None, None)
    assert r.queue_ns == 10


def test_a_single_token_has_no_decode():
    """With one token there is nothing after the first."""
    engine = Engine()
    events = engine.frame(request(1, 10), *generate(2, [1], [20, 21, 30], 1), end(1, 40, output_tokens=1))
    assert events.decodes == []
    assert events.requests[0].tpot_ns is None


def test_a_request_that_never_ran_has_unknown_phases():
    """A failure before the first step leaves queue and prefill null."""
    engine = Engine()
    (r,) = engine.frame(request(1, 10), end(1, 15, error="ValueError", reason="error")).requests
    assert (r.queue_ns, r.ttft_ns) == (None, None)
    assert r.error == "ValueError"


@pytest.mark.parametrize("how", ["gap", "drop"])
def test_lost_records_mark_what_is_live(how):
    """A gap in frame numbers, or a growing drop count, makes everything live incomplete."""
    engine = Engine()
    engine.frame(request(1, 10), (Kind.RUN, 2, [1, [1], [4], "generate"], 20))
    if how == "gap":
        engine.seq += 1
    else:
        engine.dropped = 5
    events = engine.frame(
        (Kind.RUN_TIMES, 2, [21, 30, -40], 40), (Kind.RUN_END, 2, [2, None], 41), end(1, 50, output_tokens=2)
    )
    assert events.requests[0].incomplete
    assert all(b.incomplete for b in events.batches)
    assert events.prefills[0].incomplete
    later = engine.frame(request(3, 60), end(3, 61))
    assert not later.requests[0].incomplete


def test_a_killed_engine_ends_its_requests_with_an_error():
    """Open requests end at the last time known, incomplete, with what became of the engine."""
    engine = Engine()
    engine.frame(request(1, 10), (Kind.RUN, 2, [1, [1], [4], "generate"], 20), (Kind.RUN_TIMES, 2, [21, 30, 40], 40))
    engine.frame(request(5, 41))
    events = engine.timeline.close("engine_lost")
    by_seq = {r.ref.seq: r for r in events.requests}
    assert by_seq[1].error == "engine_lost"
    assert by_seq[1].incomplete
    assert by_seq[1].duration_ns == 30
    assert by_seq[5].duration_ns == 0
    assert len(events.batches) == 3
    assert engine.timeline.live_requests() == 0
    assert engine.timeline.close(None).requests == []


def test_a_request_left_open_by_a_polite_engine_is_not_finished():
    """Goodbye with open requests is no success either."""
    engine = Engine()
    engine.frame(request(1, 10), (Kind.RUN, 2, [1, [1], [4], "generate"], 20))
    (r,) = engine.timeline.close(None).requests
    assert r.error == "not_finished"


def test_unknown_kinds_and_orphans_are_counted():
    """A newer engine's records are skipped, an end without a beginning is counted, and neither raises."""
    engine = Engine()
    events = engine.frame((99, 1, None, 1), end(7, 10), (Kind.REQUEST, 8, "nonsense", 1), (Kind.RUN_TIMES, 3, [], 1))
    assert events.requests == []
    assert engine.timeline.unknown_records == 1
    assert engine.timeline.orphan_records == 3


def test_an_unknown_member_makes_the_run_incomplete():
    """A step whose member was lost still counts it, and says that something is missing."""
    engine = Engine()
    events = engine.frame(request(1, 10), *generate(3, [1, 2], [20, 21, 30], 1))
    (batch,) = events.batches
    assert batch.request_seqs == (1, 2)
    assert batch.incomplete


def test_what_lost_its_end_is_closed_after_a_while():
    """A lost end cannot leak state for ever."""
    engine = Engine()
    engine.frame(request(1, 10), (Kind.RUN, 2, [1, [1], [4], "generate"], 20))
    engine.dropped = 1
    assert engine.frame(mono_ns=100).requests == []
    events = engine.frame(mono_ns=EXPIRY_NS + 1000)
    assert events.requests[0].error == "records_lost"
    assert engine.timeline.live_requests() == 0
    assert engine.timeline._runs == {}


def test_a_source_without_a_service_names_the_engine():
    """service.name falls back as OTel says: unknown_service."""
    engine = Engine()
    engine.sources = [(1, ("transformers", "", "tiny", "hf", ("cpu", 0, None), None))]
    (r,) = engine.frame(request(1, 10), end(1, 11)).requests
    assert r.source.service_name == "unknown_service:transformers"
