"""Records → events where requests join and leave a running batch, and where the device was timed."""

from __future__ import annotations

import pytest

from axonize_core.frames import Hello, Kind, Record, Records
from axonize_core.testing import CountingIds
from axonize_core.timeline import Timeline


class Engine:
    """Speaks one frame to a timeline as an inference process would."""

    def frame(self, *records, mono_ns):
        timeline = Timeline(Hello(1, "v", 42, "inst", {}, "f"), CountingIds())
        sources = [(1, ("transformers", "svc", "tiny", "hf", ("cpu", 0, None), None))]
        events = timeline.feed(Records(0, mono_ns, mono_ns, 0, [Record(*r) for r in records], sources))
        assert not timeline.orphan_records
        return events


def request(seq, t_ns, *, arrived_ns=0, attributes=None):
    return (Kind.REQUEST, seq, [1, arrived_ns, None, None, "text_completion", 4, attributes], t_ns)


def generate(times, run_end):
    """A run of the requests 10, 12 and 99, whose first time is its start and whose last is its end."""
    start, *begins, last = times
    return [
        (Kind.RUN, 11, [1, [10, 12, 99], [4, 4, 4], "generate"], start),
        (Kind.RUN_TIMES, 11, [*begins, -last], last),
        (Kind.RUN_END, 11, run_end, last),
    ]


def end(seq, t_ns, *, output_tokens=None):
    return (Kind.REQUEST_END, seq, ["length", 4, output_tokens, None, [["k", 1]]], t_ns)


def steps(handle, members, times, context, run_end=(None, None)):
    """A continuous run: ``members`` is {seq: prompt tokens of each step}, the last time is its end."""
    start, *_, last = times
    return [
        (Kind.RUN, handle, [1, list(members), list(members.values()), "continuous", context], start),
        (Kind.RUN_TIMES, handle, [*times[:-1], -last], last),
        (Kind.RUN_END, handle, list(run_end), last),
    ]


def done(seq, t_ns, times, output_tokens):
    times_s = times and [t and t / 1e9 for t in times]
    return (Kind.REQUEST_END, seq, ["length", 4, output_tokens, None, None, times_s], t_ns)


def test_requests_join_and_leave_a_running_batch():
    """A request's times are those its engine stamped; the steps it was in are counted and tell all their members."""
    engine = Engine()
    events = engine.frame(
        request(10, 1000, arrived_ns=900),
        *steps(20, {10: 4}, [1000, 1050], [0]),
        request(11, 1040, arrived_ns=1040),
        *steps(21, {10: 0, 11: 3}, [1100, 1150], [4, 0]),
        *steps(22, {10: 0, 11: 0}, [1200, 1300, 1350], [5, 3]),
        done(10, 1400, [990, 1060, 1160, 1260, 1360], 4),
        done(11, 1500, [1090, 1161, 1261, 1361], 3),
        mono_ns=2000,
    )
    first, second = events.requests
    assert (first.queue_ns, first.ttft_ns, first.tpot_ns, first.duration_ns) == (90, 160, 100, 500)
    assert (second.queue_ns, second.ttft_ns) == (50, 121)
    assert [(p.steps, p.duration_ns, p.tokens) for p in events.prefills] == [(1, 70, 4), (1, 71, 4)]
    assert [(d.steps, d.tokens, d.itl_max_ns) for d in events.decodes] == [(3, 4, 100), (2, 3, 100)]
    assert [(b.request_seqs, b.prefill_tokens, b.decode_tokens, b.context_tokens) for b in events.batches] == [
        ((10,), (4,), (0,), (0,)),
        ((10, 11), (0, 3), (1, 0), (4, 0)),
        ((10, 11), (0, 0), (1, 1), (5, 3)),
        ((10, 11), (0, 0), (1, 1), (6, 4)),
    ]
    assert [[ref.seq for ref in b.joined] for b in events.batches] == [[10], [11], [], []]
    assert [b.duration_ns for b in events.batches] == [50, 50, 100, 50]


def test_tokens_without_times_leave_their_latencies_unknown():
    """An engine that does not stamp its tokens still tells when the request's first step began, and no more."""
    engine = Engine()
    events = engine.frame(
        request(10, 1000, arrived_ns=900),
        (Kind.RUN, 20, [1, [10, 99], [], "continuous", []], 1000),
        (Kind.RUN_TIMES, 20, [1000, -1050], 1050),
        (Kind.RUN_END, 20, [None, None], 1050),
        done(10, 1400, None, 4),
        mono_ns=2000,
    )
    (event,) = events.requests
    assert (event.queue_ns, event.ttft_ns, event.tpot_ns, event.output_tokens) == (100, None, None, 4)
    assert (events.prefills, events.decodes) == ([], [])
    assert [(b.prefill_tokens, b.decode_tokens, b.context_tokens) for b in events.batches] == [((), (), ())]


@pytest.mark.parametrize(("first_step", "queue_ns", "ttft_ns"), [(True, 100, 160), (False, None, None)])
def test_a_start_that_was_not_stamped_is_the_first_step(first_step, queue_ns, ttft_ns):
    """Times without a start begin with the first step the request was in; without one they tell nothing."""
    engine = Engine()
    events = engine.frame(
        request(10, 1000, arrived_ns=900),
        *(steps(20, {10: 4, 99: 1}, [1000, 1050], [0, 0]) if first_step else ()),
        done(10, 1400, [None, 1060, 1160], 2),
        mono_ns=2000,
    )
    (event,) = events.requests
    assert (event.queue_ns, event.ttft_ns) == (queue_ns, ttft_ns)


def test_a_run_adds_to_its_requests():
    """Attributes that are known at the end of a run go to its members, each its own; unknown members are passed over."""
    engine = Engine()
    said = [[["b", ["x"]]], None, [["c", 3]]]
    events = engine.frame(
        request(10, 1000, attributes=[["a", 1]]),
        request(12, 1000),
        *generate([1500, 1510, 1600, 1700], [2, None, said]),
        end(10, 1800),
        end(12, 1800),
        mono_ns=2000,
    )
    assert [r.attributes for r in events.requests] == [(("a", 1), ("b", ["x"]), ("k", 1)), (("k", 1),)]


def test_device_times_go_to_steps_and_phases():
    """What the device took stands on each step, and on a phase all of whose steps were measured."""
    engine = Engine()
    run = generate([1500, 1510, 1600, 1700, 1800, 1900], [3, None, None, [5, 6, 7]])
    events = engine.frame(request(10, 1000), *run, end(10, 1950, output_tokens=3), mono_ns=2000)
    (prefill,), (decode,) = events.prefills, events.decodes
    assert (prefill.steps, prefill.device_ns) == (2, 11)
    assert (decode.steps, decode.device_ns) == (2, None), "one of its two steps was not measured"
    assert [b.device_ns for b in events.batches] == [5, 6, 7, None]


@pytest.mark.parametrize(
    ("times", "ttft_ns", "steps"), [([1500, 1510, 1600, 1700], 700, [1]), ([1500, 1700], None, [])]
)
def test_a_generate_of_unknown_length_has_its_steps(times, ttft_ns, steps):
    """Where tokens and steps do not match, the second step still shows that the first answer was there."""
    engine = Engine()
    events = engine.frame(
        request(10, 1000, arrived_ns=900), *generate(times, [None, None]), end(10, 1800), mono_ns=2000
    )
    assert [event.ttft_ns for event in events.requests] == [ttft_ns]
    assert [event.steps for event in events.decodes] == steps
    assert [event.itl_max_ns for event in events.decodes] == [None] * len(steps)


def test_an_engine_that_stamps_the_first_and_the_last_token_only():
    """The times between tokens are not known then, but their mean is."""
    events = Engine().frame(request(10, 1000, arrived_ns=900), done(10, 5000, (1100, 2000, 4000), 5), mono_ns=6000)
    (ended,), (prefill,), (decode,) = events.requests, events.prefills, events.decodes
    assert (ended.queue_ns, ended.ttft_ns, ended.tpot_ns) == (200, 1100, 500)
    assert (prefill.duration_ns, decode.duration_ns, decode.tokens) == (900, 2000, 5)
    assert (decode.itl_p50_ns, decode.steps) == (None, None)
