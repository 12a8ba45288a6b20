"""Whose trace a request is in: by headers, by parameters, by Triton's own OpenTelemetry mode."""

from __future__ import annotations

import pytest

from triton_client import Client

SPAN, UNSAMPLED = "cd" * 8, "00"


def context(number, flags="01"):
    """Return a traceparent in a trace of its own."""
    return f"00-{number:032x}-{SPAN}-{flags}"


def ask(server, way, number, name, flags="01"):
    """Ask plain for something, saying the context in this way."""
    said = {"traceparent": context(number, flags)}
    if way == "http header":
        server.infer("plain", 1, name, headers=said)
    elif way == "http Header":
        server.infer("plain", 1, name, headers={"Traceparent": said["traceparent"]})
    elif way == "http parameter":
        server.infer("plain", 1, name, parameters=said)
    else:
        with Client(server.grpc_address) as client:
            client.infer("plain", 1, name, **{"headers" if way == "grpc header" else "parameters": said})


WAYS = ("http header", "http Header", "http parameter", "grpc header", "grpc parameter")


@pytest.mark.parametrize("way", WAYS)
def test_what_the_caller_sends(triton, way):
    """Is its parent."""
    name = f"way-{way}"
    ask(triton, way, 1 + WAYS.index(way), name)
    span = triton.capture.named(name, 1)[name]
    assert (span.trace_id, span.parent_id) == (f"{1 + WAYS.index(way):032x}", SPAN)


@pytest.mark.parametrize(
    "said", ["nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", 7, ""], ids=["text", "zeros", "number", "nothing"]
)
def test_what_is_no_context(triton, said, request):
    """Begins a trace of its own."""
    name = f"bad-{request.node.callspec.id}"
    triton.infer("plain", 1, name, parameters={"traceparent": said, "other": True})
    span = triton.capture.named(name, 1)[name]
    assert (len(span.trace_id), span.parent_id) == (32, "")


@pytest.mark.parametrize("server", ["triton", "triton_otel"])
@pytest.mark.parametrize("way", ["http header", "grpc header"])
def test_a_caller_that_wants_no_trace(server, way, request):
    """Gets none of the request, in Triton's OpenTelemetry mode too; the batch has it all the same."""
    server = request.getfixturevalue(server)
    before = len(server.capture.batches("plain"))
    ask(server, way, 77, f"unwanted-{way}", UNSAMPLED)
    ask(server, way, 78, f"wanted-{way}")
    server.capture.named(f"wanted-{way}", 1)
    server.capture.wait(lambda c: len(c.batches("plain")) >= before + 2)
    assert not [s for s in server.capture.of("request") if s["ai.request.id"] == f"unwanted-{way}"]


@pytest.mark.parametrize("way", ["http header", "grpc header"])
def test_below_tritons_own_span(triton_otel, way):
    """Ours is the child of the model's span, which is in the caller's trace.

    Triton's own gRPC front end lost the caller of 215 of 3,000 calls, and of none of 1,500 over HTTP: its request's span
    began a trace, and ours followed. Where Triton's spans say so it is asked again; whatever else it was fails here.
    """
    for attempt in range(3):
        name, trace = f"otel-{way}-{attempt}", 100 + 10 * WAYS.index(way) + attempt
        ask(triton_otel, way, trace, name)
        span = triton_otel.capture.named(name, 1)[name]
        triton_otel.capture.wait(lambda c, ours=span: sum(s.trace_id == ours.trace_id for s in c.tritons()) >= 3)
        theirs = {s.phase: s for s in triton_otel.capture.tritons() if s.trace_id == span.trace_id}
        assert theirs.keys() == {"InferRequest", "plain", "compute"}
        assert span.parent_id == theirs["plain"].span_id
        assert theirs["plain"].parent_id == theirs["InferRequest"].span_id
        assert theirs["plain"].start_ns <= span.start_ns <= span.end_ns <= theirs["plain"].end_ns
        if theirs["InferRequest"].parent_id:
            break
    assert (span.trace_id, theirs["InferRequest"].parent_id) == (f"{trace:032x}", SPAN)


def test_a_request_without_a_caller(triton_otel):
    """Begins with Triton's own span."""
    triton_otel.infer("plain", 1, "root")
    span = triton_otel.capture.named("root", 1)["root"]
    triton_otel.capture.wait(lambda c: any(s.span_id == span.parent_id for s in c.tritons()))


def test_calls_and_steps_are_in_one_trace(triton_otel):
    """Of an ensemble, and of a model that calls another: each below the span that Triton has for it."""
    said = {"traceparent": context(200)}
    triton_otel.infer("together", 3, "otel-ens", headers=said)
    assert triton_otel.infer("caller", 3, "otel-bls", headers={"traceparent": context(201)}).values == [12]
    triton_otel.capture.wait(lambda c: sum(s.trace_id in (f"{200:032x}", f"{201:032x}") for s in c.of("request")) == 5)
    for trace, models in ((f"{200:032x}", ["plain", "attached"]), (f"{201:032x}", ["caller", "plain", "plain"])):
        spans = sorted((s for s in triton_otel.capture.of("request") if s.trace_id == trace), key=lambda s: s.start_ns)
        ids = lambda c, trace=trace: {s.span_id: s.phase for s in c.tritons() if s.trace_id == trace}  # noqa: E731
        triton_otel.capture.wait(lambda c, spans=spans, ids=ids: {s.parent_id for s in spans} <= ids(c).keys())
        assert [ids(triton_otel.capture)[s.parent_id] for s in spans] == models
