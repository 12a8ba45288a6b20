"""Decoupled models in a real server: responses from execute, from threads, from a coroutine; cancelled; again."""

from __future__ import annotations

import pytest

from triton_client import Client
from triton_models import DECOUPLED

CALLER = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"
STREAMS = ("stream", "stream_thread", "stream_async")


@pytest.fixture
def client(triton):
    """A connection to the shared server."""
    with Client(triton.grpc_address) as client:
        yield client


@pytest.mark.parametrize("model", STREAMS)
def test_responses(triton, client, model):
    """Several requests on one stream: each has its own, its first response ends the prefill, its last the request."""
    with client.streaming() as stream:
        for count in (3, 1, 5):
            stream.ask(model, count, f"{model}-{count}-x", parameters={"traceparent": CALLER})
        assert sorted(stream.all_of(3)) == [0, 0, 0, 1, 1, 2, 2, 3, 4]
    for name, request in triton.capture.named(f"{model}-", 3).items():
        count = int(name.split("-")[1])
        parts = triton.capture.children(request)
        assert (request.error, request["ai.responses"], request.trace_id) == (None, count, "ab" * 16)
        first_s, whole_s = request["gen_ai.latency.time_to_first_token"], request["gen_ai.latency.e2e"]
        assert 0.002 < first_s <= whole_s
        assert whole_s >= 0.002 * count
        if "decode" in parts:
            assert parts["decode"]["ai.responses"] == count
            assert parts["prefill"].end_ns == parts["decode"].start_ns
            assert (count > 1) == (parts["decode"]["ai.responses.gap.p50_ms"] is not None)
        triton.capture.wait_for_batch(request)


def test_tokens_that_the_model_says(triton, client):
    """Stand on the request, and only then is there a time per token."""
    with client.streaming() as stream:
        stream.ask("stream", 4, "tok")
        stream.all_of()
    request = triton.capture.named("tok", 1)["tok"]
    assert (request["gen_ai.usage.input_tokens"], request["gen_ai.usage.output_tokens"]) == (7, 8)
    assert request["gen_ai.latency.time_per_output_token"] > 0
    assert triton.capture.children(request)["prefill"]["gen_ai.usage.input_tokens"] == 7


def test_an_error_in_the_middle(triton, client):
    """The stream goes on, and the request has had an error."""
    with client.streaming() as stream:
        stream.ask("stream", -4, "mid")
        assert stream.all_of() == [0, 1, "in the middle", 3]
    request = triton.capture.named("mid", 1)["mid"]
    assert (request.error, request["ai.responses"]) == ("TritonError", 4)


def test_cancelled(triton, client):
    """By the end of its stream: the model hears of it, and so do we."""
    with client.streaming() as stream:
        stream.ask("patient", 20, "gone")
        assert stream.take()[0] == "gone"
    with client.streaming() as stream:
        stream.ask("patient", 0, "stays")
        stream.all_of()
    gone = triton.capture.named("gone", 1)["gone"]
    assert gone["gen_ai.response.finish_reasons"] == ["cancelled"]
    assert gone["gen_ai.latency.e2e"] < 10
    assert triton.capture.named("stays", 1)["stays"]["gen_ai.response.finish_reasons"] is None


@pytest.mark.parametrize("sequence", [0, 42])
def test_an_iterative_sequence(triton, client, sequence):
    """A request that is executed four times is one request in four batches."""
    name = f"again-{sequence}"
    with client.streaming() as stream:
        # One that says at once that it is the sequence's end is executed once by this Triton, and never again.
        stream.ask("iterative", 4, name, sequence_id=sequence, sequence_start=bool(sequence))
        assert stream.all_of() == [1, 2, 3, 4]
    request = triton.capture.named(name, 1)[name]
    assert (request["ai.responses"], request.error) == (4, None)


def test_every_decoupled_model_was_here():
    """None is forgotten above."""
    assert set(DECOUPLED) == {*STREAMS, "patient", "iterative"}
