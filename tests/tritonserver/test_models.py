"""Models of every kind in a real server, one request at a time or one batch: what their spans say."""

from __future__ import annotations

import threading

import pytest

from triton_capture import by_model, key_of, members, model_of

CALLER = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"


def test_a_request(triton):
    """Its answer is the model's; its span says whose it is, and claims nothing that nobody knows."""
    assert triton.infer("plain", 3, "one").values == [6]
    request = triton.capture.named("one", 1)["one"]
    assert request.attributes.keys() == {
        *("ai.phase", "ai.request.id", "ai.request.seq", "gen_ai.latency.e2e", "gen_ai.operation.name"),
        *("gen_ai.provider.name", "gen_ai.request.model", "gpu.provenance"),
    }
    assert (request["gen_ai.provider.name"], request["gen_ai.operation.name"]) == ("triton", "inference")
    told = {name: request.resource[name] for name in ("ai.engine", "ai.model.version", "ai.model.instance")}
    assert told == {"ai.engine": "triton", "ai.model.version": "1", "ai.model.instance": "plain_0_0"}
    (prefill,) = triton.capture.children(request).values()
    assert (prefill.phase, prefill.start_ns, prefill.end_ns) == ("prefill", request.start_ns, request.end_ns)


def test_a_batch(triton):
    """Requests that Triton executes together are one batch, linked to each of them."""
    asked = [
        threading.Thread(target=triton.infer, args=("slow", at), kwargs={"request_id": f"batch-{at}"})
        for at in range(6)
    ]
    for thread in asked:
        thread.start()
    for thread in asked:
        thread.join()
    requests = triton.capture.named("batch-", 6).values()
    (batch,) = {id(b): b for b in map(triton.capture.wait_for_batch, requests)}.values()
    assert batch["ai.batch.size"] == 6
    assert set(members(batch)) == {key_of(r) for r in requests}
    assert set(batch.links) == {(r.trace_id, r.span_id) for r in requests}
    assert len({r.trace_id for r in requests} | {batch.trace_id}) == 7


def test_a_model_that_attaches_itself(triton):
    """Twice, which counts once; with a service name of its own."""
    assert triton.infer("attached", 3, "att").values == [4]
    request = triton.capture.named("att", 1)["att"]
    assert request.resource["service.name"] == "attached-service"


def test_an_ensemble(triton):
    """Each of its models has its own span, in the caller's trace, with the request's id."""
    answer = triton.infer("together", 3, headers={"traceparent": CALLER}, request_id="ens")
    assert answer.values == [7]
    triton.capture.wait(lambda c: sum(s["ai.request.id"] == "ens" for s in c.of("request")) == 2)
    found = [s for s in triton.capture.of("request") if s["ai.request.id"] == "ens"]
    assert [model_of(s) for s in sorted(found, key=lambda s: s.start_ns)] == ["plain", "attached"]
    assert {(s.trace_id, s.parent_id) for s in found} == {("ab" * 16, "cd" * 8)}


@pytest.mark.parametrize("has_caller", [True, False])
def test_a_model_that_calls_another(triton, has_caller):
    """Both calls hang below its one span, in the caller's trace, or in one of its own."""
    name = f"bls-{has_caller}"
    headers = {"traceparent": CALLER} if has_caller else {}
    assert triton.infer("caller", 3, name, headers=headers).values == [12]
    request = triton.capture.named(name, 1)[name]
    calls = lambda c: [s for s in c.of("request") if s["ai.request.id"] == f"of-{name}"]  # noqa: E731
    triton.capture.wait(lambda c: len(calls(c)) == 2)
    assert {(s.trace_id, s.parent_id) for s in calls(triton.capture)} == {(request.trace_id, request.span_id)}
    assert request.parent_id == ("cd" * 8 if has_caller else "")
    batch = triton.capture.wait_for_batch(request)
    assert batch.start_ns <= min(s.start_ns for s in calls(triton.capture))


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (-1, "TritonError"),
        (0, None),
        (-2, "ValueError"),
        (-3, "TritonModelException"),
        (-4, "TritonError"),
        (-40, None),
        (-4, "TritonError"),
        (-6, None),
        (-7, "TritonError"),
        (-5, None),
        (-1, "TritonError"),
    ],
)
def test_errors(triton, value, error, request):
    """Whichever way a model fails, its caller hears of it as before, and the span has it."""
    name = f"err-{request.node.callspec.id}"
    answer = triton.infer("fragile", value, name)
    assert bool(answer.error) == bool(error)
    span = triton.capture.named(name, 1)[name]
    assert (span.error, span["error.type"]) == (error, error)
    assert triton.capture.wait_for_batch(span)["ai.batch.size"] == 1
    assert span.resource["service.name"] == "fragile-service"


def test_two_instances(triton):
    """Are two processes with a source each; every request is of one of them."""
    for at in range(20):
        threads = [threading.Thread(target=triton.infer, args=("two", at, f"two-{at}-{k}")) for k in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    requests = triton.capture.named("two-", 40).values()
    instances = {(r.resource["ai.model.instance"], r.resource["service.instance.id"]) for r in requests}
    assert {name for name, _ in instances} == {"two_0_0", "two_0_1"}
    assert len(instances) == 2


def test_a_model_without_a_word_of_us(triton):
    """Is not recorded, nor does it know of us."""
    assert triton.infer("bare", 3, "bare-1").values == [6]
    triton.infer("plain", 3, "after-bare")
    triton.capture.named("after-bare", 1)
    assert "bare" not in by_model(triton.capture.of("request"))


def test_one_agent(triton):
    """For all models of a server."""
    assert len(triton.surroundings.agents()) == 1
    assert len(triton.stub_pids()) == 13
