"""``execute`` as records: at once, in a coroutine, with errors of every kind, and with failures of our own."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest

import axonize_triton
from axonize_triton import execution
from axonize_triton.execution import is_traced
from fix_triton_backend import FINAL, Stub

CALLER = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"
TRITONS = "00-" + "ab" * 16 + "-" + "ce" * 8 + "-01"


def serve(execute, **more):
    """Run a model with this ``execute``, recorded."""
    return Stub(axonize_triton.instrument(type("TritonPythonModel", (), {"execute": execute})), **more)


def told(triton_recorded):
    """Return each request's id and error, in the order in which they ended."""
    return [(r.request_id, r.error) for r in triton_recorded.flush().requests]


def test_a_batch(pb_utils, triton_recorded):
    """What the model returns is returned; one batch has all requests, and each its own span."""
    answers = [pb_utils.InferenceResponse() for _ in range(3)]
    stub = serve(lambda _, requests: answers)
    assert stub.execute(*map(pb_utils.InferenceRequest, "abc")) is answers
    assert told(triton_recorded) == [("a", None), ("b", None), ("c", None)]
    (batch,) = triton_recorded.batches
    assert batch.request_seqs == tuple(r.ref.seq for r in triton_recorded.requests)
    assert not batch.incomplete


def test_a_coroutine(pb_utils, triton_recorded):
    """It stays one, and is over when it is."""

    async def execute(self, requests):
        await asyncio.sleep(0.01)
        return [pb_utils.InferenceResponse() for _ in requests]

    stub = serve(execute)
    assert asyncio.iscoroutinefunction(stub.model.execute)
    stub.execute(pb_utils.InferenceRequest("a"))
    assert told(triton_recorded) == [("a", None)]
    assert triton_recorded.requests[0].duration_ns >= 10_000_000


@pytest.mark.parametrize("is_async", [False, True])
def test_what_the_model_raises(pb_utils, triton_recorded, is_async):
    """Goes on as it is, and is the error of all of the batch."""

    def execute(self, requests):
        raise pb_utils.TritonModelException("model")

    async def execute_async(self, requests):
        raise pb_utils.TritonModelException("model")

    stub = serve(execute_async if is_async else execute)
    with pytest.raises(pb_utils.TritonModelException, match="model"):
        stub.execute(*map(pb_utils.InferenceRequest, "ab"))
    assert told(triton_recorded) == [("a", "TritonModelException"), ("b", "TritonModelException")]


def test_responses_with_errors(pb_utils, triton_recorded):
    """Only those that hold one are errors."""

    def execute(self, requests):
        bad = pb_utils.InferenceResponse(error=pb_utils.TritonError("bad"))
        return [bad if r.request_id() == "b" else pb_utils.InferenceResponse() for r in requests]

    stub = serve(execute)
    stub.execute(*map(pb_utils.InferenceRequest, "abc"))
    stub.execute(*map(pb_utils.InferenceRequest, "de"))
    assert told(triton_recorded) == [("a", None), ("b", "TritonError"), ("c", None), ("d", None), ("e", None)]


def test_an_error_that_is_used_again(pb_utils, triton_recorded):
    """A model may keep one for all of its bad requests."""

    def initialize(self, args):
        self.error = pb_utils.TritonError("kept")

    def execute(self, requests):
        made = pb_utils.InferenceResponse(error=pb_utils.TritonError("made"))
        answers = {"m": made, "k": pb_utils.InferenceResponse(error=self.error)}
        return [answers.get(r.request_id()[0], pb_utils.InferenceResponse()) for r in requests]

    model = axonize_triton.instrument(type("Model", (), {"initialize": initialize, "execute": execute}))
    stub = Stub(model)
    for batch in (["m1"], ["k1"], ["ok1", "k2"], ["m2", "k3"], ["ok2"]):
        stub.execute(*map(pb_utils.InferenceRequest, batch))
    assert {name for name, error in told(triton_recorded) if error} == {"m1", "m2", "k1", "k2", "k3"}


def test_an_error_of_another_model(pb_utils, triton_recorded):
    """The error of a called model's answer, given on as it is."""
    theirs = pb_utils.InferenceResponse(error=pb_utils.TritonError("theirs"))
    stub = serve(lambda _, requests: [pb_utils.InferenceResponse(error=theirs.error())])
    for name in "abc":
        stub.execute(pb_utils.InferenceRequest(name))
    assert told(triton_recorded) == [("a", "TritonError"), ("b", "TritonError"), ("c", "TritonError")]
    assert pb_utils.InferenceResponse().error() is None


def test_an_error_that_is_never_used(pb_utils, triton_recorded):
    """Makes no error of a good answer, nor of the next one with an error a good one."""

    def execute(self, requests):
        pb_utils.TritonError("forgotten")
        error = pb_utils.TritonError("bad") if requests[0].request_id() == "bad" else None
        return [pb_utils.InferenceResponse(error=error)]

    stub = serve(execute)
    for name in ("ok", "bad", "ok", "bad"):
        stub.execute(pb_utils.InferenceRequest(name))
    assert told(triton_recorded) == [("ok", None), ("bad", "TritonError")] * 2


def test_errors_are_asked_for_only_where_one_was_made(pb_utils, triton_recorded, monkeypatch):
    """Asking each response takes time; what an execution that failed made, none can hold any more."""
    asked = []
    has_error = pb_utils.InferenceResponse.has_error
    monkeypatch.setattr(pb_utils.InferenceResponse, "has_error", lambda self: asked.append(1) or has_error(self))

    def execute(self, requests):
        if requests[0].request_id() == "raises":
            pb_utils.TritonError("made")
            raise ValueError
        error = pb_utils.TritonError("bad") if requests[0].request_id() == "bad" else None
        return [pb_utils.InferenceResponse(error=error) for _ in requests]

    stub = serve(execute)
    with contextlib.suppress(ValueError):
        stub.execute(pb_utils.InferenceRequest("raises"))
    for name in ("ok", "bad", "ok", "ok"):
        stub.execute(pb_utils.InferenceRequest(name))
    assert len(asked) == 1
    told(triton_recorded)


def test_some_answer_at_once_and_some_later(pb_utils, triton_recorded):
    """None stands for a request whose sender is used; later, and from wherever."""
    later = []

    def execute(self, requests):
        later.append(requests[1].get_response_sender())
        return [pb_utils.InferenceResponse(), None]

    serve(execute).execute(*map(pb_utils.InferenceRequest, "ab"))
    assert told(triton_recorded) == [("a", None)]
    later[0].send(pb_utils.InferenceResponse(), FINAL)
    assert told(triton_recorded) == [("a", None), ("b", None)]


def test_whose_requests_they_are(pb_utils, triton_recorded, monkeypatch):
    """Triton's context first, then what the caller sent; who says nothing begins a trace."""
    monkeypatch.setattr(execution, "is_traced", lambda: True)
    stub = serve(lambda _, requests: [pb_utils.InferenceResponse() for _ in requests])
    sends = {"traceparent": CALLER}
    context = json.dumps({"traceparent": TRITONS})
    stub.execute(
        pb_utils.InferenceRequest("both", sends, context),
        pb_utils.InferenceRequest("parameter", sends),
        pb_utils.InferenceRequest("none"),
    )
    stub.execute(pb_utils.InferenceRequest("alone", {}, context))
    parents = {r.request_id: r.parent_span_id for r in triton_recorded.flush().requests}
    assert parents == {"both": 0xCECECECECECECECE, "parameter": 0xCDCDCDCDCDCDCDCD, "none": 0, "alone": parents["both"]}


@pytest.mark.parametrize(("detail", "parent"), [("full", 0xCDCDCDCDCDCDCDCD), ("ids", 0)])
def test_what_is_read(pb_utils, triton_recorded, triton_environment, monkeypatch, detail, parent):
    """Triton's context not where it makes none; in the mode of ids nothing but ids."""
    triton_environment("AXONIZE_TRITON_DETAIL", detail)
    monkeypatch.setattr(execution, "is_traced", lambda: False)
    monkeypatch.setattr(pb_utils.InferenceRequest, "trace", lambda _: pytest.fail("asked"))
    if detail == "ids":
        monkeypatch.setattr(pb_utils.InferenceRequest, "parameters", lambda _: pytest.fail("asked"))
    stub = serve(lambda _, requests: [pb_utils.InferenceResponse() for _ in requests])
    for names in ("a", "bc"):
        stub.execute(*(pb_utils.InferenceRequest(name, {"traceparent": CALLER}) for name in names))
    found = triton_recorded.flush().requests
    assert [(r.request_id, r.parent_span_id) for r in found] == [("a", parent), ("b", parent), ("c", parent)]


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (b"/opt/tritonserver/bin/tritonserver\0--trace-config=mode=opentelemetry\0", True),
        (b"tritonserver\0--trace-config\0mode=opentelemetry", True),
        (b"tritonserver\0--trace-config\0mode=triton", False),
        (b"tritonserver\0--model-repository=/models", False),
        (b"some-other-parent", True),
        (b"/usr/bin/python\0-m\0supervise\0tritonserver", True),
        (None, True),
    ],
)
def test_whether_the_server_makes_contexts(tmp_path, command, expected):
    """As its command line says; where that is not known, they are asked for."""
    if command is not None:
        (tmp_path / "7").mkdir()
        (tmp_path / "7" / "cmdline").write_bytes(command)
    assert is_traced(tmp_path, 7) is expected


def test_the_parent_is_asked(tmp_path):
    """The process that started this one is no Triton here."""
    assert is_traced() is True


def failing(*_, **__):
    raise RuntimeError("ours")


@pytest.mark.parametrize("requests", [1, 2])
def test_a_failure_of_ours_before_the_model(pb_utils, triton_recorded, triton_errors, monkeypatch, requests):
    """The model answers, and it is counted."""
    monkeypatch.setattr(pb_utils.InferenceRequest, "request_id", failing)
    stub = serve(lambda _, requests: [pb_utils.InferenceResponse() for _ in requests])
    assert len(stub.execute(*map(pb_utils.InferenceRequest, "ab"[:requests]))) == requests
    assert triton_errors.take() == {"triton.execute": 1}


def test_a_failure_of_ours_after_the_model(pb_utils, triton_recorded, triton_errors, monkeypatch):
    """The answers go out; what the model raises is what is raised."""

    def execute(self, requests):
        monkeypatch.setattr(execution, "_answers", failing)
        monkeypatch.setattr(execution, "settle", failing)
        if requests[0].request_id() == "raises":
            raise ValueError("model")
        return [pb_utils.InferenceResponse(error=pb_utils.TritonError("bad"))]

    stub = serve(execute)
    assert stub.execute(pb_utils.InferenceRequest("a"))[0].has_error()
    with pytest.raises(ValueError, match="model"):
        stub.execute(pb_utils.InferenceRequest("raises"))
    assert triton_errors.take() == {"triton.execute_end": 2}


def test_an_error_that_cannot_be_noted(pb_utils, triton_recorded, triton_errors, monkeypatch):
    """Is an error of the model all the same."""
    monkeypatch.setattr("axonize_triton.failures.Made", failing)
    stub = serve(lambda _, requests: [pb_utils.InferenceResponse(error=pb_utils.TritonError("bad"))])
    assert stub.execute(pb_utils.InferenceRequest("a"))[0].has_error()
    assert triton_errors.take() == {"triton.error": 1}
