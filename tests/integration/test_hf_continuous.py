"""Continuous batching of a real tiny model: the same outputs, and requests whose times are the library's own."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time

import pytest

import axonize_hf
from axonize_core.testing import capture_events

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
if not hasattr(transformers, "ContinuousBatchingConfig"):
    pytest.skip(f"transformers {transformers.__version__} sizes its cache by a GPU's memory", allow_module_level=True)

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12], [13, 14]]
METHODS = ("add_request", "add_requests", "cancel_request", "stop", "_generation_step")


def config(**more):
    return transformers.GenerationConfig(**{"max_new_tokens": 6, "do_sample": False, "eos_token_id": -1, **more})


def small(**more):
    return transformers.ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=16, page_size=16, **more)


def generate_batch(model, prompts=PROMPTS, *, generation_config=None, **options):
    return model.generate_batch(
        prompts, generation_config or config(), continuous_batching_config=small(), warmup=False, **options
    )


@contextlib.contextmanager
def serving(model, generation_config=None, **options):
    with model.continuous_batching_context_manager(
        generation_config or config(), continuous_batching_config=small(**options), warmup=False
    ) as manager:
        yield manager


def results(manager, count):
    """Return the finished outputs of so many requests by id."""
    found = {}
    deadline = time.monotonic() + 20
    while len(found) < count and time.monotonic() < deadline:
        output = manager.get_result(timeout=0.5)
        if output is not None and output.is_finished():
            found[output.request_id] = output
    return found


def ns(seconds):
    return round(seconds * 1e9)


def test_outputs_are_identical(llama, recorded):
    """A batch answers the same tokens, and shows no time stamps to who did not ask for them."""
    plain = generate_batch(llama)
    ours = generate_batch(axonize_hf.instrument(llama))
    assert list(ours) == list(plain)
    assert [o.generated_tokens for o in ours.values()] == [o.generated_tokens for o in plain.values()]
    assert {o.timestamps for o in ours.values()} == {None}
    assert not recorded.recorder.errors


def test_latencies_are_the_librarys_own(llama):
    """Queue, time to first token and time per token are those of the library's stamps, to the nanosecond."""
    axonize_hf.instrument(llama)
    with capture_events() as seen:
        outputs = generate_batch(llama, record_timestamps=True)
    requests = {event.request_id: event for event in seen.requests}
    assert requests.keys() == outputs.keys()
    for name, output in outputs.items():
        event, stamps, created = requests[name], [ns(t) for t in output.timestamps], ns(output.created_time)
        assert event.ttft_ns == stamps[0] - created
        assert event.queue_ns == ns(output.lifespan[0]) - created
        assert event.tpot_ns == (stamps[-1] - stamps[0]) / 5
        assert (event.input_tokens, event.output_tokens) == (len(output.prompt_ids), 6)
        assert (event.finish_reason, event.error, event.incomplete) == ("length", None, False)
    longest = sorted(b - a for o in outputs.values() for a, b in zip(o.timestamps, o.timestamps[1:], strict=False))
    assert max(event.itl_max_ns for event in seen.decodes) == pytest.approx(ns(longest[-1]), abs=2)


def test_steps_tell_their_members(llama):
    """Each engine step is a batch with the tokens it computed for each member; together they are what was computed."""
    axonize_hf.instrument(llama)
    with capture_events() as seen:
        generate_batch(llama)
    inputs = {event.ref.seq: event.input_tokens for event in seen.requests}
    prefilled, decoded = dict.fromkeys(inputs, 0), dict.fromkeys(inputs, 0)
    for batch in seen.batches:
        members = zip(batch.request_seqs, batch.prefill_tokens, batch.decode_tokens, batch.context_tokens, strict=True)
        for seq, prefill, decode, context in members:
            assert context == prefilled[seq] + decoded[seq]
            prefilled[seq], decoded[seq] = prefilled[seq] + prefill, decoded[seq] + decode
    assert prefilled == inputs
    assert set(decoded.values()) == {5}
    assert sorted(ref.seq for batch in seen.batches for ref in batch.joined) == sorted(inputs)
    assert [(event.steps, event.tokens) for event in seen.decodes] == [(5, 6)] * 3


def test_nothing_runs_per_token(llama, recorded):
    """What runs of ours in a step of decoding is the same for one request and for three."""
    axonize_hf.instrument(llama)
    calls = {}
    for prompts in (PROMPTS[:1], PROMPTS):
        for tokens in (4, 12):
            calls[len(prompts), tokens] = _calls_of_ours(llama, prompts, tokens)
    per_step = [(calls[size, 12] - calls[size, 4]) / 8 for size in (1, 3)]
    assert per_step[0] == per_step[1] > 0


def _calls_of_ours(model, prompts, tokens):
    """Return how many functions of the integration were called in the manager's thread."""
    found = []

    def profile(frame, event, _):
        if event == "call" and "axonize_hf" in frame.f_code.co_filename:
            found.append(frame.f_code.co_name)

    before = sys.getprofile()
    threading.setprofile(profile)
    try:
        generate_batch(model, prompts, generation_config=config(max_new_tokens=tokens))
    finally:
        threading.setprofile(before)
    return len(found)


def test_requests_come_and_go(llama):
    """Requests that are added while others run join their steps; ids, contexts and end tokens are each one's own."""
    plain = generate_batch(llama, PROMPTS[:1])["req_0"].generated_tokens
    axonize_hf.instrument(llama)
    with capture_events() as seen, serving(llama, config(max_new_tokens=40)) as manager:
        manager.add_request(PROMPTS[1], request_id="long")
        with axonize_hf.request(request_id="mine", attributes={"tier": "gold"}):
            manager.add_request(
                PROMPTS[0], request_id="theirs", max_new_tokens=6, eos_token_id=plain[3], streaming=True
            )
        assert results(manager, 2)["theirs"].generated_tokens == plain[: plain.index(plain[3]) + 1]
    events = {event.request_id: event for event in seen.requests}
    assert (events["mine"].finish_reason, events["mine"].output_tokens) == ("stop", plain.index(plain[3]) + 1)
    assert events["mine"].attributes == (("tier", "gold"),)
    assert (events["long"].finish_reason, events["long"].output_tokens) == ("length", 40)
    assert {len(batch.request_seqs) for batch in seen.batches} == {1, 2}


def test_contexts_reach_their_inputs(llama):
    """One context per input, in the inputs' order, whatever order the library serves them in."""
    axonize_hf.instrument(llama)
    contexts = [axonize_hf.RequestContext(request_id=f"r{len(prompt)}") for prompt in PROMPTS]
    with capture_events() as seen, axonize_hf.requests(contexts):
        generate_batch(llama)
    assert {event.request_id: event.input_tokens for event in seen.requests} == {"r3": 3, "r5": 5, "r2": 2}


def test_several_sequences_are_one_request(llama):
    """All sequences that a prompt asks for count for its one request, which ends with the last of them."""
    axonize_hf.instrument(llama)
    options = config(num_return_sequences=3, do_sample=True)
    with capture_events() as seen:
        outputs = generate_batch(llama, PROMPTS[:2], generation_config=options)
    assert len(outputs) == 6
    assert [(event.output_tokens, event.input_tokens) for event in seen.requests] == [(18, 3), (18, 5)]
    assert {len(batch.request_seqs) for batch in seen.batches} == {2}


def test_callbacks_and_a_cancelled_request(llama):
    """Results handed to callbacks of an event loop are recorded too; a cancelled request ends as such."""
    axonize_hf.instrument(llama)

    async def serve(manager):
        done = asyncio.get_running_loop().create_future()
        manager.register_result_handler("heard", lambda output: output.is_finished() and done.set_result(output))
        manager.add_request(PROMPTS[1], request_id="dropped", max_new_tokens=200)
        manager.add_request(PROMPTS[0], request_id="heard")
        output = await asyncio.wait_for(done, 20)
        manager.cancel_request("dropped")
        return output

    with capture_events() as seen, serving(llama) as manager:
        assert len(asyncio.run(serve(manager)).generated_tokens) == 6
    events = {event.request_id: event for event in seen.requests}
    assert (events["heard"].finish_reason, events["heard"].output_tokens) == ("length", 6)
    assert (events["dropped"].finish_reason, events["dropped"].output_tokens) == ("cancelled", None)
    assert events["dropped"].queue_ns > 0


def test_a_failing_engine_ends_its_requests(llama):
    """When a step raises, its run and every request of it end with an error, and the caller gets the library's answer."""
    axonize_hf.instrument(llama)
    with capture_events() as seen, serving(llama) as manager:
        manager.add_request(PROMPTS[0])
        results(manager, 1)  # before that the library may still look at forward, to set its loop up
        llama.forward = None
        manager.add_request(PROMPTS[1])
        (output,) = results(manager, 1).values()
    assert output.error
    answered, event = seen.requests
    assert answered.error is None
    assert (event.finish_reason, event.error, event.output_tokens) == ("error", "_OTHER", 0)


def test_a_refused_request_is_recorded(llama, recorded):
    """A request that the full queue refuses raises what it did, and ends with that error."""
    axonize_hf.instrument(llama)
    manager = llama.init_continuous_batching(config(), small(max_queue_size=1))
    manager.input_queue.put_nowait(None)
    state = _state(manager)
    with pytest.raises(Exception, match=r"^$") as caught:
        manager.input_queue.put(state, timeout=0.01)
    kinds = [(kind.name, payload) for kind, _, payload in recorded.take()]
    assert [name for name, _ in kinds] == ["REQUEST", "REQUEST_END"]
    assert kinds[1][1][:4] == ("error", 3, None, type(caught.value).__name__)


def _state(manager):
    """Return a request as the manager makes it."""
    kept = []
    put, manager.input_queue.put = manager.input_queue.put, lambda state, **_: kept.append(state)
    manager.add_request(PROMPTS[0])
    manager.input_queue.put = put
    return kept[0]


def test_paged_generate_is_recorded_once(llama):
    """A generate that the library turns into continuous batching is one request per row."""
    plain = _paged(llama)
    axonize_hf.instrument(llama)
    with capture_events() as seen:
        assert torch.equal(_paged(llama), plain)
    assert [(event.input_tokens, event.output_tokens) for event in seen.requests] == [(3, 6)] * 2
    assert all(event.ttft_ns for event in seen.requests)


def _paged(model):
    ids, options = torch.tensor([[5, 6, 7], [8, 9, 10]]), config(cache_implementation="paged")
    return model.generate(ids, options, cache_implementation="paged", continuous_batching_config=small(), warmup=False)


def test_uninstrument_gives_managers_back(llama, recorded):
    """A manager, instrumented itself or by its model, has its own methods again, and records nothing."""
    plain = llama.init_continuous_batching(config(), small())
    before = dict(vars(plain))
    assert axonize_hf.instrument(plain) is plain
    wrapped = vars(plain)["add_request"]
    axonize_hf.instrument(plain)
    assert vars(plain)["add_request"] is wrapped
    axonize_hf.uninstrument(plain)
    assert vars(plain) == before
    axonize_hf.instrument(llama)
    with serving(llama) as manager:
        manager.add_request(PROMPTS[0], max_new_tokens=60)
        axonize_hf.uninstrument(llama)
        assert not vars(manager).keys() & set(METHODS)
        manager.add_request(PROMPTS[1])
        assert len(results(manager, 2)) == 2
    kinds = [kind.name for kind, _, _ in recorded.take()]
    assert (kinds.count("REQUEST"), kinds.count("REQUEST_END")) == (1, 1)
    assert kinds.count("RUN") == kinds.count("RUN_END")


def test_our_own_failure_is_counted_and_passed_over(llama, recorded, monkeypatch):
    """When reading the library's state fails on our side, requests are served as ever and the failures are counted."""
    plain = generate_batch(llama)
    axonize_hf.instrument(llama)
    for name in ("continuous._created_ns", "continuous_steps._members"):
        monkeypatch.setattr(f"axonize_hf.{name}", None)
    ours = generate_batch(llama)
    assert [o.generated_tokens for o in ours.values()] == [o.generated_tokens for o in plain.values()]
    assert recorded.take() == []
    assert recorded.recorder.errors["hf.continuous.arrive"] == 3
    assert recorded.recorder.errors["hf.continuous.step"] > 0
