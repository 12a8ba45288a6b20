"""What is sent: in a stream, from threads, out of order, with errors; cancelled, asked for again; tokens and calls."""

from __future__ import annotations

import asyncio
import gc
import json
import threading

import pytest

import axonize_triton
from axonize_core import attributes as names
from axonize_core.recorder import get_recorder
from axonize_triton import senders as senders_module
from fix_triton_backend import FINAL, RESCHEDULE, Stub, cancel, sent

CALLER = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"


def serve(execute, *, decoupled=True, **more):
    """Run a model with this ``execute``, recorded."""
    model = axonize_triton.instrument(type("TritonPythonModel", (), {"execute": execute}))
    return Stub(model, decoupled=decoupled, **more)


def responses(request):
    """How many responses a request had, as it says itself."""
    return dict(request.attributes).get(names.RESPONSES)


def test_a_stream_in_execute(pb_utils, triton_recorded):
    """Each response counts, the empty one at the end does not; all of them reach Triton as they were."""
    answers = [pb_utils.InferenceResponse() for _ in range(3)]

    def execute(self, requests):
        sender = requests[0].get_response_sender()
        for answer in answers:
            sender.send(answer)
        sender.send(flags=FINAL)

    request = pb_utils.InferenceRequest("a")
    assert serve(execute).execute(request) is None
    assert sent(request) == [*((answer, 0) for answer in answers), (None, FINAL)]
    (told,) = triton_recorded.flush().requests
    assert (told.request_id, told.error, responses(told)) == ("a", None, 3)
    assert (len(triton_recorded.prefills), triton_recorded.decodes[0].responses, len(triton_recorded.batches)) == (
        1,
        3,
        1,
    )


def test_a_full_queue(pb_utils, triton_recorded):
    """Responses go on to Triton; those that no room was left for are counted as dropped, and the others recorded."""
    recorder = get_recorder()
    before = recorder.dropped_total()

    def execute(self, requests):
        sender = requests[0].get_response_sender()
        sender.send(pb_utils.InferenceResponse())
        recorder._set_limit(0)
        sender.send(pb_utils.InferenceResponse())
        sender.send(pb_utils.InferenceResponse())
        recorder._set_limit(recorder.capacity)
        sender.send(pb_utils.InferenceResponse(), FINAL)

    request = pb_utils.InferenceRequest("a")
    serve(execute).execute(request)
    assert [flags for _, flags in sent(request)] == [0, 0, 0, FINAL]
    assert recorder.dropped_total() - before == 2
    (told,) = triton_recorded.flush().requests
    assert (told.error, responses(told)) == (None, 2)


def test_threads_that_answer_later(pb_utils, triton_recorded):
    """From any thread and long after; each request has its own responses."""
    threads = []

    def answer(sender, count):
        for at in range(count):
            sender.send(pb_utils.InferenceResponse(), flags=FINAL if at == count - 1 else 0)

    def execute(self, requests):
        for request in requests:
            count = int(request.request_id())
            threads.append(threading.Thread(target=answer, args=(request.get_response_sender(), count)))

    serve(execute).execute(*map(pb_utils.InferenceRequest, "321"))
    assert triton_recorded.flush().requests == []
    assert len(triton_recorded.batches) == 1
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {(r.request_id, responses(r)) for r in triton_recorded.flush().requests} == {("3", 3), ("2", 2), ("1", 1)}


def test_a_coroutine_that_answers(pb_utils, triton_recorded):
    """As Triton's models for a loop are written."""

    async def execute(self, requests):
        await asyncio.gather(*map(self.answer, requests))

    async def answer(_, request):
        sender = request.get_response_sender()
        await asyncio.sleep(0)
        sender.send(pb_utils.InferenceResponse(), FINAL)

    stub = serve(execute)
    type(stub.model).answer = answer
    stub.execute(*map(pb_utils.InferenceRequest, "ab"))
    assert {r.request_id for r in triton_recorded.flush().requests} == {"a", "b"}


def test_a_model_that_is_not_decoupled_may_use_senders(pb_utils, triton_recorded):
    """For any of its requests."""

    def execute(self, requests):
        for request in requests:
            request.get_response_sender().send(pb_utils.InferenceResponse(), FINAL)

    serve(execute, decoupled=False).execute(*map(pb_utils.InferenceRequest, "ab"))
    assert [(r.request_id, responses(r)) for r in triton_recorded.flush().requests] == [("a", 1), ("b", 1)]


def test_a_sender_asked_for_twice(pb_utils, triton_recorded):
    """Triton makes a new one each time: both are of the same request."""

    def execute(self, requests):
        (request,) = requests
        request.get_response_sender().send(pb_utils.InferenceResponse())
        gc.collect()
        request.get_response_sender().send(pb_utils.InferenceResponse(), FINAL)

    serve(execute).execute(pb_utils.InferenceRequest("a"))
    assert [responses(r) for r in triton_recorded.flush().requests] == [2]


def test_a_request_where_an_earlier_one_was_in_memory(pb_utils, triton_recorded):
    """The last response of the earlier one, which is gone but for its sender, is not the end of the later one."""
    kept = []

    def execute(self, requests):
        kept.append(requests[0].get_response_sender())
        if len(kept) == 2:
            kept[0].send(pb_utils.InferenceResponse(), FINAL)
            requests[0].get_response_sender().send(pb_utils.InferenceResponse(), FINAL)

    stub = serve(execute)
    request = pb_utils.InferenceRequest("a")
    stub.execute(request)
    request._answers = pb_utils.InferenceRequest("b")._answers  # the same object in memory, another request
    stub.execute(request)
    assert [r.request_id for r in triton_recorded.flush().requests] == ["a", "b"]


def test_errors_in_a_stream(pb_utils, triton_recorded):
    """One that a response holds is the request's; the others are none."""

    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            sender.send(pb_utils.InferenceResponse())
            error = pb_utils.TritonError("bad") if request.request_id() == "b" else None
            sender.send(pb_utils.InferenceResponse(error=error), FINAL)

    serve(execute).execute(*map(pb_utils.InferenceRequest, "abc"))
    assert [(r.request_id, r.error) for r in triton_recorded.flush().requests] == [
        ("a", None),
        ("b", "TritonError"),
        ("c", None),
    ]


def test_an_error_and_more_after_it(pb_utils, triton_recorded):
    """An error that is still at hand when its response is sent is not looked for in those of others for ever."""
    asked = []
    has_error = pb_utils.InferenceResponse.has_error
    pb_utils.InferenceResponse.has_error = lambda self: asked.append(1) or has_error(self)

    def execute(self, requests):
        sender = requests[0].get_response_sender()
        error = pb_utils.TritonError("bad")
        sender.send(pb_utils.InferenceResponse(error=error))
        del error
        for _ in range(5):
            sender.send(pb_utils.InferenceResponse())
        sender.send(flags=FINAL)

    serve(execute).execute(pb_utils.InferenceRequest("a"))
    assert [r.error for r in triton_recorded.flush().requests] == ["TritonError"]
    assert len(asked) == 2


def test_what_the_sender_raises(pb_utils, triton_recorded):
    """Goes to the model: a sender is closed by its final response."""

    def execute(self, requests):
        sender = requests[0].get_response_sender()
        sender.send(pb_utils.InferenceResponse(), FINAL)
        sender.send(pb_utils.InferenceResponse())

    stub = serve(execute)
    with pytest.raises(pb_utils.TritonModelException, match="closed"):
        stub.execute(pb_utils.InferenceRequest("a"))
    assert [(r.request_id, r.error) for r in triton_recorded.flush().requests] == [("a", None)]


def test_a_sender_has_what_the_real_one_has(pb_utils, triton_recorded):
    """Also what is not known here."""
    found = []

    def execute(self, requests):
        sender = requests[0].get_response_sender()
        found.append((sender.is_cancelled(), sender._state["closed"]))
        sender.send(flags=FINAL)

    serve(execute).execute(pb_utils.InferenceRequest("a"))
    assert found == [(False, False)]


@pytest.mark.parametrize("asks", ["sender", "request"])
def test_a_cancelled_request(pb_utils, triton_recorded, asks):
    """Is known once the model has asked, by its sender or by the request."""

    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            (sender if asks == "sender" else request).is_cancelled()
            sender.send(flags=FINAL)

    requests = [pb_utils.InferenceRequest(name) for name in "ab"]
    cancel(requests[1])
    serve(execute).execute(*requests)
    assert [(r.request_id, r.finish_reason) for r in triton_recorded.flush().requests] == [
        ("a", None),
        ("b", "cancelled"),
    ]


def test_a_request_of_nobody_is_left_alone(pb_utils, triton_recorded):
    """One that was never executed here: its sender is Triton's own."""
    serve(lambda _, requests: None)
    request = pb_utils.InferenceRequest("other")
    cancel(request)
    assert request.is_cancelled() is True
    request.set_release_flags(RESCHEDULE)
    request.get_response_sender().send(flags=FINAL)
    axonize_triton.tokens(request, output=1)
    assert "traceparent" not in axonize_triton.call(request)["parameters"]
    assert triton_recorded.flush().requests == []


@pytest.mark.parametrize("decoupled", [True, False])
def test_an_iterative_sequence(pb_utils, triton_recorded, decoupled):
    """The request comes back, as another object: it is one request, in as many executions."""

    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            sender.send(pb_utils.InferenceResponse())
            self.times = getattr(self, "times", 0) + 1
            if self.times < 3:
                request.set_release_flags(RESCHEDULE)
            else:
                sender.send(flags=FINAL)

    stub = serve(execute, decoupled=decoupled)
    first = pb_utils.InferenceRequest("a", correlation_id=7)
    for _ in range(3):
        again = pb_utils.InferenceRequest("a", correlation_id=7)
        again._answers = first._answers
        stub.execute(again)
    (told,) = triton_recorded.flush().requests
    assert (told.request_id, responses(told), len(triton_recorded.batches)) == ("a", 3, 3)


def test_a_request_without_any_name_that_comes_back(pb_utils, triton_recorded):
    """Cannot be told from others, and is taken for none of them."""

    def execute(self, requests):
        requests[0].set_release_flags(RESCHEDULE)

    stub = serve(execute)
    stub.execute(pb_utils.InferenceRequest())
    stub.execute(pb_utils.InferenceRequest())
    assert len({seq for batch in triton_recorded.flush().batches for seq in batch.request_seqs}) == 2


def test_the_backend_is_changed_once(pb_utils, triton_recorded):
    """However many models a process has: what is sent counts once."""

    def execute(self, requests):
        requests[0].get_response_sender().send(pb_utils.InferenceResponse(), FINAL)

    for name in "ab":
        serve(execute).execute(pb_utils.InferenceRequest(name))
    assert [(r.request_id, responses(r)) for r in triton_recorded.flush().requests] == [("a", 1), ("b", 1)]


def test_an_older_backend(pb_utils, triton_recorded):
    """One that knows no rescheduling is recorded as well."""
    del pb_utils.InferenceRequest.set_release_flags
    serve(lambda _, requests: requests[0].get_response_sender().send(flags=FINAL)).execute(
        pb_utils.InferenceRequest("a")
    )
    assert len(triton_recorded.flush().requests) == 1


def test_tokens(pb_utils, triton_recorded):
    """As many as the model says; the last word counts."""

    def execute(self, requests):
        (request,) = requests
        sender = request.get_response_sender()
        axonize_triton.tokens(request, input=5)
        for count in (2, 4):
            axonize_triton.tokens(request, output=count)
            sender.send(pb_utils.InferenceResponse())
        sender.send(flags=FINAL)

    serve(execute).execute(pb_utils.InferenceRequest("a"))
    (told,) = triton_recorded.flush().requests
    assert (told.input_tokens, told.output_tokens, responses(told)) == (5, 4, 2)


def test_calls_of_other_models(pb_utils, triton_recorded):
    """All of one request's calls hang below its one span, in the trace of its caller; parameters go along."""
    calls = []

    def execute(self, requests):
        calls.extend(axonize_triton.call(r, {"beam": 2}) for r in requests for _ in range(2))
        return [pb_utils.InferenceResponse() for _ in requests]

    called = pb_utils.InferenceRequest("a", {"traceparent": CALLER}), pb_utils.InferenceRequest("b")
    serve(execute, decoupled=False).execute(*called)
    first, second = triton_recorded.flush().requests
    contexts = [c["parameters"]["traceparent"] for c in calls]
    expected = [f"00-{r.ref.trace_id:032x}-{r.ref.span_id:016x}-01" for r in (first, second)]
    assert contexts == [expected[0], expected[0], expected[1], expected[1]]
    assert first.ref.trace_id == int("ab" * 16, 16)
    assert {c["parameters"]["beam"] for c in calls} == {2}
    assert all(c["trace"].get_context() is None for c in calls)


def test_a_call_with_a_context_of_its_own(pb_utils, triton_recorded):
    """What the model says itself stays; a caller who wants no trace gets none of the called model either."""
    calls = []

    def execute(self, requests):
        calls.append(axonize_triton.call(requests[0], {"traceparent": "mine"}))
        calls.append(axonize_triton.call(requests[0]))
        return [pb_utils.InferenceResponse()]

    serve(execute, decoupled=False).execute(pb_utils.InferenceRequest("a", {"traceparent": CALLER[:-2] + "00"}))
    assert calls[0]["parameters"] == {"traceparent": "mine"}
    assert calls[1]["parameters"]["traceparent"].endswith("-00")
    assert not triton_recorded.flush().requests[0].ref.sampled


def test_nothing_recorded(pb_utils):
    """Without us, calls and tokens are as if they were not there."""
    request = pb_utils.InferenceRequest("a", {}, json.dumps({"traceparent": CALLER}))
    axonize_triton.tokens(request, output=1)
    assert axonize_triton.call(request)["parameters"] == {}
    assert axonize_triton.call(request, {"beam": 1})["parameters"] == {"beam": 1}


def failing(*_, **__):
    raise RuntimeError("ours")


def test_failures_of_ours(pb_utils, triton_recorded, triton_errors, monkeypatch):
    """The model streams, asks, reschedules and calls as it would alone; each failure is counted by its place."""
    requests = [pb_utils.InferenceRequest(name) for name in "ab"]

    def execute(self, given):
        sender = given[0].get_response_sender()
        known = given[0].__class__._axonize_senders
        monkeypatch.setattr(senders_module, "_failed", failing)
        pb_utils.TritonError("so that responses are looked at")
        sender.send(pb_utils.InferenceResponse())
        monkeypatch.setattr(known, "find", failing)
        cancel(given[0])
        assert given[0].is_cancelled() is True
        given[0].set_release_flags(0)
        given[0].set_release_flags("no flags")
        axonize_triton.tokens(given[0], output=1)
        assert axonize_triton.call(given[0], {"x": 1})["parameters"] == {"x": 1}
        sender.send(flags=FINAL)
        given[1].get_response_sender().send(flags=FINAL)

    serve(execute).execute(*requests)
    assert [flags for _, flags in sent(requests[0])] == [0, FINAL]
    assert [flags for _, flags in sent(requests[1])] == [FINAL]
    assert requests[0]._answers[4]["flags"] == "no flags"
    places = ("send", "is_cancelled", "set_release_flags", "tokens", "call", "get_response_sender")
    assert triton_errors.take() == dict.fromkeys([f"triton.{place}" for place in places], 1)
