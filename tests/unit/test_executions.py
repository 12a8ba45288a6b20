"""Records → events where a batch is executed at once, and answers come one by one, or all, or never."""

from __future__ import annotations

import json

import pytest

from axonize_core import attributes as names
from axonize_core.executions import FINAL, RESPONSE, caller
from axonize_core.frames import Hello, Kind, Record, Records
from axonize_core.testing import CountingIds
from axonize_core.timeline import EXPIRY_NS, Timeline

MODEL = ("triton", "svc", "add", "triton", ("cpu", 0, None), None)
OURS = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"
THEIRS = "00-" + "ab" * 16 + "-" + "ce" * 8 + "-01"


class Stub:
    """Speaks frames to a timeline as a model's process would."""

    def __init__(self):
        self.timeline = Timeline(Hello(1, "v", 42, "inst", {}, "f"), CountingIds())
        self.seq = 0

    def tell(self, *records, mono_ns=0):
        sources = [] if self.seq else [(1, MODEL)]
        told = [Record(*record) for record in records]
        events = self.timeline.feed(Records(self.seq, mono_ns, mono_ns, 0, told, sources))
        self.seq += 1
        return events


def begin(handle, seqs, at, *, ids=None, contexts=None, parameters=None, samples=None):
    payload = [1, seqs, ids or [""] * len(seqs), contexts, parameters, samples]
    return (Kind.EXECUTE, handle, payload, at)


def end(handle, at, *, error=None, answered=True, failed=None):
    return (Kind.EXECUTE_END, handle, [error, answered, failed], at)


def response(seq, at, flags=RESPONSE, error=None):
    return (Kind.RESPONSE, seq, [flags, error] if error else flags, at)


def test_an_execution_answers_all_of_its_batch():
    """Its requests share one batch and its time; nothing is claimed of what was before it."""
    stub = Stub()
    parameters = [json.dumps({"traceparent": OURS, "more": 1}), "{}"]
    told = begin(5, [6, 7], 100, ids=["mine", ""], parameters=parameters, samples=8), end(5, 180)
    events = stub.tell(*told)
    first, second = events.requests
    assert (first.request_id, second.request_id) == ("mine", None)
    assert (first.ref.trace_id, first.parent_span_id) == (int("ab" * 16, 16), int("cd" * 8, 16))
    assert (first.queue_ns, first.duration_ns, first.ttft_ns, first.error) == (None, 80, None, None)
    assert [(p.start_ns, p.duration_ns, p.steps) for p in events.prefills] == [(100, 80, 1)] * 2
    assert events.decodes == []
    assert (first.cached_tokens, first.input_tokens) == (None, None)
    (batch,) = events.batches
    assert (batch.request_seqs, batch.duration_ns, batch.samples, len(batch.joined)) == ((6, 7), 80, 8, 2)


def test_responses_that_come_one_by_one():
    """The first ends the prefill, the last ends the request, also when the execution is long over."""
    stub = Stub()
    events = stub.tell(begin(5, [6], 100), response(6, 150), end(5, 160, answered=None))
    assert (events.requests, len(events.batches)) == ([], 1)
    stub.tell(response(6, 250), response(6, 450))
    events = stub.tell(response(6, 500, FINAL))
    (request,), (prefill,), (decode,) = events.requests, events.prefills, events.decodes
    assert (request.ttft_ns, request.duration_ns, request.tpot_ns, request.output_tokens) == (50, 400, None, None)
    assert dict(request.attributes) == {names.RESPONSES: 3}
    assert (prefill.duration_ns, decode.duration_ns) == (50, 350)
    assert (decode.responses, decode.tokens, decode.itl_p50_ns, decode.itl_max_ns) == (3, None, 200, 200)


def test_a_batch_begins_with_its_requests():
    """Whatever becomes of the wall clock before it is told: all of its times are by the frame in which it began."""
    stub = Stub()
    stub.tell(begin(5, [6], 100))
    told = [Record(*end(5, 180))]
    events = stub.timeline.feed(Records(1, 1000, 5, 0, told, []))
    assert stub.timeline.epoch_ns == 995
    assert events.batches[0].start_ns == events.requests[0].start_ns == 100


def test_the_last_response_may_come_before_the_execution_is_over():
    """In any order: the request ends once."""
    stub = Stub()
    events = stub.tell(
        begin(5, [6, 7], 100), response(6, 150, RESPONSE | FINAL), end(5, 200, answered=None), response(7, 300, FINAL)
    )
    assert [(r.ref.seq, r.duration_ns) for r in events.requests] == [(6, 50), (7, 200)]
    assert (len(events.prefills), len(events.decodes)) == (2, 0)
    assert stub.timeline.live_requests() == 0


def test_a_response_that_is_sent_and_returned():
    """A model that does both ends its request with what it sent."""
    stub = Stub()
    events = stub.tell(begin(5, [6], 100), response(6, 150, RESPONSE | FINAL), end(5, 200))
    assert [r.duration_ns for r in events.requests] == [50]


def test_some_answer_at_once_and_some_later():
    """A model that uses senders for some of its requests gives nothing for these."""
    stub = Stub()
    events = stub.tell(begin(5, [6, 7], 100), end(5, 200, answered=[0]))
    assert [r.ref.seq for r in events.requests] == [6]
    assert [r.ref.seq for r in stub.tell(response(7, 300, RESPONSE | FINAL)).requests] == [7]


def test_tokens_are_what_the_model_says():
    """Only then is there a time per token."""
    stub = Stub()
    events = stub.tell(
        begin(5, [6], 100),
        (Kind.REQUEST_FACT, 6, ["tokens", [12, None]], 110),
        response(6, 200),
        (Kind.REQUEST_FACT, 6, ["tokens", [None, 5]], 300),
        response(6, 600, RESPONSE | FINAL),
    )
    (request,) = events.requests
    assert (request.input_tokens, request.output_tokens, request.tpot_ns) == (12, 5, 100)
    assert events.prefills[0].tokens == 12


def test_errors():
    """Raised: of all; a response with an error: of its request; in a stream: when it ends."""
    stub = Stub()
    raised = stub.tell(begin(5, [6, 7], 100), end(5, 200, error="ValueError", answered=None)).requests
    assert [(r.ref.seq, r.error) for r in raised] == [(6, "ValueError"), (7, "ValueError")]
    one = stub.tell(begin(8, [9, 10], 100), end(8, 200, failed=[[1, "TritonError"]])).requests
    assert [(r.ref.seq, r.error) for r in one] == [(9, None), (10, "TritonError")]
    later = stub.tell(begin(11, [12], 100), response(12, 150, RESPONSE, "TritonError"), response(12, 160, FINAL))
    assert [r.error for r in later.requests] == ["TritonError"]


def test_a_cancelled_request_says_so():
    """The model asked and was told."""
    stub = Stub()
    told = begin(5, [6], 100), (Kind.REQUEST_FACT, 6, ["cancelled", None], 110), response(6, 120, FINAL)
    assert stub.tell(*told).requests[0].finish_reason == "cancelled"


def test_a_request_may_be_given_its_span_by_the_model():
    """So that what it calls hangs below it: the model's process made the ids."""
    stub = Stub()
    told = begin(5, [6], 100), (Kind.REQUEST_FACT, 6, ["context", THEIRS], 110), end(5, 120)
    events = stub.tell(*told, (Kind.REQUEST_FACT, 99, ["context", THEIRS], 130))
    assert events.requests[0].ref.span_id == int("ce" * 8, 16)
    assert events.batches[0].joined[0].span_id == int("ce" * 8, 16)
    assert stub.timeline.orphan_records == 1
    stub.tell(
        begin(8, [9], 100), (Kind.REQUEST_FACT, 9, ["context", "nonsense"], 1), (Kind.REQUEST_FACT, 9, ["?", 1], 1)
    )


def test_an_iterative_sequence_is_one_request():
    """Executed again and again until it has its last response."""
    stub = Stub()
    stub.tell(begin(5, [6], 100), response(6, 110), end(5, 120, answered=None))
    events = stub.tell(begin(7, [6], 200), response(6, 210, RESPONSE | FINAL), end(7, 220, answered=None))
    (request,), (decode,) = events.requests, events.decodes
    assert (request.duration_ns, decode.responses, decode.steps) == (110, 2, 1)
    assert events.batches[0].joined == ()


def test_a_process_that_died_in_the_middle():
    """What ran and what streamed is told, as far as it got."""
    stub = Stub()
    tokens = (Kind.REQUEST_FACT, 6, ["tokens", [12, 3]], 140)
    stub.tell(begin(5, [6, 7], 100), tokens, response(6, 150))
    events = stub.timeline.close("engine_lost")
    assert [(r.ref.seq, r.error, r.duration_ns) for r in events.requests] == [
        (6, "engine_lost", 50),
        (7, "engine_lost", 0),
    ]
    assert (dict(events.requests[0].attributes), events.requests[0].output_tokens) == ({names.RESPONSES: 1}, 3)
    assert [(b.duration_ns, b.incomplete) for b in events.batches] == [(50, True)]


def test_a_last_response_that_never_comes():
    """After a while the request ends by itself; one that is executed still does not."""
    stub = Stub()
    stub.tell(begin(5, [6], 100), end(5, 200, answered=None), begin(7, [8], 300))
    assert stub.tell(mono_ns=EXPIRY_NS).requests == []
    (silent,) = stub.tell(mono_ns=EXPIRY_NS + 400).requests
    assert (silent.ref.seq, silent.error, silent.incomplete) == (6, "no_final_response", True)
    assert stub.timeline.live_requests() == 1


def test_responses_of_nobody_are_counted():
    """A response after the last one, or of a request whose begin was lost."""
    stub = Stub()
    stub.tell(response(6, 100), end(5, 100))
    stub.tell((Kind.REQUEST, 7, [1, 0, None, None, "chat", None, None], 100), begin(8, [7], 200), response(7, 300))
    assert stub.timeline.orphan_records == 4


@pytest.mark.parametrize(
    ("context", "parameters", "expected"),
    [
        (None, None, None),
        ({"traceparent": OURS}, {"traceparent": THEIRS}, OURS),
        (None, {"Traceparent": THEIRS}, THEIRS),
        ({"traceparent": OURS}, {"traceparent": THEIRS[:-2] + "00"}, OURS[:-2] + "00"),
        ({"traceparent": "bad"}, {"traceparent": 7}, None),
        ([1], {"other": 1}, None),
    ],
)
def test_the_callers_context(context, parameters, expected):
    """Triton's own span first, then what the caller sent; the caller's wish not to be sampled counts in both."""
    assert caller(context and json.dumps(context), parameters and json.dumps(parameters)) == expected


def test_what_is_no_json_is_no_context():
    """A parameter string that cannot be read costs nothing."""
    assert caller("{", "") is None
