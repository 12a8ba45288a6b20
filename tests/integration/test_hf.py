"""A real tiny model, instrumented: the same outputs, and the records that tell its requests."""

from __future__ import annotations

import contextvars
import copy
import functools
import threading
import time

import pytest

import axonize_hf
from axonize_core.frames import Kind
from axonize_hf.call import read_call

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 5, 6, 7], [0, 0, 0, 0, 11, 12, 13, 14, 15]])
MASK = (IDS != 0).long()
GREEDY = {"max_new_tokens": 7, "do_sample": False}
MODES = {
    "greedy": GREEDY,
    "sampled": {"max_new_tokens": 7, "do_sample": True, "temperature": 0.8},
    "beam": {"max_new_tokens": 7, "num_beams": 3},
    "several sequences": {"max_new_tokens": 7, "do_sample": True, "num_return_sequences": 2},
    "static cache": {**GREEDY, "cache_implementation": "static", "disable_compile": True},
    "no cache": {**GREEDY, "use_cache": False},
    "dict": {**GREEDY, "return_dict_in_generate": True, "output_scores": True},
    "chunked prefill": {**GREEDY, "prefill_chunk_size": 4},
}


def generate(model, ids=IDS, **options):
    torch.manual_seed(7)
    output = model.generate(ids, attention_mask=(ids != 0).long(), **options)
    return getattr(output, "sequences", output)


@pytest.mark.parametrize("mode", MODES)
def test_outputs_are_identical(mode, llama, recorded):
    """An instrumented model generates the same tokens in every mode, and two requests in one run are recorded."""
    plain = generate(llama, **MODES[mode])
    instrumented = generate(axonize_hf.instrument(llama), **MODES[mode])
    assert torch.equal(plain, instrumented)
    counts = {Kind.REQUEST: 2, Kind.RUN: 1, Kind.RUN_END: 1, Kind.REQUEST_END: 2}
    assert recorded.counts() == counts


@pytest.mark.parametrize("assisted", [False, True])
def test_speculation_is_recorded_as_such(assisted, llama, recorded):
    """Prompt lookup and assisted decoding give the same tokens; the assistant's own steps are not the run's."""
    assistant = axonize_hf.instrument(copy.deepcopy(llama))
    options = {"assistant_model": assistant} if assisted else {"prompt_lookup_num_tokens": 2}
    plain = generate(llama, IDS[:1], **GREEDY, **options)
    recorded.take()
    assert torch.equal(plain, generate(axonize_hf.instrument(llama), IDS[:1], **GREEDY, **options))
    found = recorded.by_kind()
    ((_, (_, _, _, mode, times)),) = found[Kind.RUN]
    assert (mode, len(found[Kind.REQUEST])) == ("speculative", 1)
    assert len(times) - 1 <= GREEDY["max_new_tokens"]


def test_records_tell_the_call(llama, recorded):
    """Prompt lengths come without padding, steps and their sentinel in order, tokens counted up to the end token."""
    tokens = generate(llama, **GREEDY)[:, IDS.shape[1] :].tolist()
    end = tokens[0][3]
    ended = [row.index(end) + 1 if end in row else len(row) for row in tokens]
    generate(axonize_hf.instrument(llama), **GREEDY, eos_token_id=end)
    found = recorded.by_kind()
    seqs = tuple(seq for seq, _ in found[Kind.REQUEST])
    ((run, (_, members, prompt_tokens, mode, times)),) = found[Kind.RUN]
    assert (members, prompt_tokens, mode) == (seqs, (9, 5), "generate")
    assert times[:-1] == sorted(times[:-1])
    assert -times[-1] >= times[-2]
    assert found[Kind.RUN_END] == [(run, (len(times) - 1, None))]
    reasons = ["stop" if end in row else "length" for row in tokens]
    ends = [
        (seq, (reason, n, out, None, None)) for seq, n, out, reason in zip(seqs, (9, 5), ended, reasons, strict=True)
    ]
    assert found[Kind.REQUEST_END] == ends


def test_steps_count_tokens(llama, recorded):
    """A step is recorded for each token, and one more for each further chunk of the prompt."""
    axonize_hf.instrument(llama)
    for options, steps in (({}, 7), ({"prefill_chunk_size": 4}, 9), ({"num_beams": 3}, 7)):
        generate(llama, IDS[:1], **GREEDY, **options)
        found = recorded.by_kind()
        assert len(found[Kind.RUN][0][1][-1]) - 1 == steps
        assert found[Kind.RUN_END][0][1] == (7, None)


def test_contexts_reach_their_rows(llama, recorded):
    """Each row gets its own context: id, trace, arrival and attributes as a record can carry them."""
    arrived_ns = time.perf_counter_ns()
    parent = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"
    first = axonize_hf.RequestContext("r1", parent, arrived_ns, {"tier": "gold", "big": 2**80})
    axonize_hf.instrument(llama)
    with axonize_hf.requests([first]):
        generate(llama, **GREEDY)
    (_, one), (_, two) = recorded.by_kind()[Kind.REQUEST]
    assert one[1:] == (arrived_ns, "r1", parent, "text_completion", 9, (("tier", "gold"), ("big", str(2**80))))
    assert two[1] > arrived_ns
    assert two[2:] == (None, None, "text_completion", 5, None)


def test_context_follows_into_a_thread(llama, recorded):
    """A copied context carries the request into another thread; a thread of its own has none."""
    axonize_hf.instrument(llama)
    with axonize_hf.request(request_id="carried"):
        carried = functools.partial(contextvars.copy_context().run, generate, llama, IDS[:1], **GREEDY)
        bare = functools.partial(generate, llama, IDS[:1], **GREEDY)
        for target in (carried, bare):
            thread = threading.Thread(target=target)
            thread.start()
            thread.join()
    assert [payload[2] for _, payload in recorded.by_kind()[Kind.REQUEST]] == ["carried", None]


def test_errors_pass_through_and_are_recorded(llama, recorded):
    """What generate raises arrives unchanged, the run and its requests end with its class, and the next call works."""
    raised = KeyError("stop")

    def fail(ids, scores, **kwargs):
        raise raised

    axonize_hf.instrument(llama)
    with pytest.raises(KeyError) as caught:
        generate(llama, **GREEDY, stopping_criteria=[fail])
    assert caught.value is raised
    found = recorded.by_kind()
    assert [payload for _, payload in found[Kind.RUN_END]] == [(1, "KeyError")]
    assert [payload[0::3][:2] for _, payload in found[Kind.REQUEST_END]] == [("error", "KeyError")] * 2
    generate(llama, **GREEDY)
    assert recorded.counts()[Kind.REQUEST] == 2


def test_our_own_failure_is_counted_and_passed_over(llama, recorded, monkeypatch):
    """When reading the call's arguments fails on our side, the call goes on, unrecorded, and the failure is counted."""
    plain = generate(llama, **GREEDY)
    axonize_hf.instrument(llama)
    monkeypatch.setattr("axonize_hf.generation.read_call", None)
    assert torch.equal(plain, generate(llama, **GREEDY))
    assert recorded.take() == []
    assert recorded.recorder.errors == {"hf.generate.begin": 1}


def test_unreadable_output_still_ends_the_request(llama, recorded):
    """An output of a shape we do not know leaves the token counts unknown, and the request is ended all the same."""
    axonize_hf.instrument(llama)
    assert llama.generate(IDS, custom_generate=lambda model, ids, **_: {"answer": 42}, **GREEDY) == {"answer": 42}
    records = recorded.take()
    assert [payload for kind, _, payload in records if kind is Kind.RUN_END] == [(None, None)]
    assert [payload[:3] for kind, _, payload in records if kind is Kind.REQUEST_END] == [
        (None, 9, None),
        (None, 9, None),
    ]
    assert set(recorded.recorder.errors) == {"hf.generate.answer"}


@pytest.mark.parametrize(("same", "steps"), [(True, 7 + 7 * 7), (False, 7)])
def test_nested_generate_makes_no_request(same, steps, llama, recorded):
    """A generate inside a generate belongs to the outermost request; only the same model's steps are its steps."""
    axonize_hf.instrument(llama)
    other = llama if same else axonize_hf.instrument(copy.deepcopy(llama))

    def nest(ids, scores, **kwargs):
        with torch.no_grad():
            other.generate(IDS[:1], **GREEDY)
        return torch.zeros(len(ids), dtype=torch.bool)

    generate(llama, IDS[:1], **GREEDY, stopping_criteria=[nest])
    found = recorded.by_kind()
    assert [len(found[kind]) for kind in (Kind.REQUEST, Kind.RUN, Kind.RUN_END, Kind.REQUEST_END)] == [1, 1, 1, 1]
    assert len(found[Kind.RUN][0][1][-1]) - 1 == steps


def test_the_total_length_limits_too(llama, recorded):
    """A row that ran into max_length finished by length."""
    axonize_hf.instrument(llama).generate(IDS[:1], attention_mask=MASK[:1], max_length=12, do_sample=False)
    assert [payload[:3] for _, payload in recorded.by_kind()[Kind.REQUEST_END]] == [("length", 9, 3)]


def test_embeddings_as_input(llama, recorded):
    """A prompt given as embeddings is counted, and all of the output is new."""
    embeds = llama.get_input_embeddings()(IDS[:1])
    axonize_hf.instrument(llama)
    llama.generate(inputs_embeds=embeds, attention_mask=MASK[:1], **GREEDY)
    found = recorded.by_kind()
    assert found[Kind.RUN][0][1][2] == (9,)
    assert found[Kind.REQUEST_END][0][1] == ("length", 9, 7, None, None)


def test_nothing_is_read_from_a_device(llama, recorded):
    """With the output on a device, one row's tokens follow from its shape; several rows' are unknown until read."""
    axonize_hf.instrument(llama)
    for rows, new_tokens, expected in ((1, 3, ("stop", 9, 3)), (1, 7, (None, 9, 7)), (2, 7, (None, 9, None))):
        output = torch.zeros((rows, 9 + new_tokens), dtype=torch.long, device="meta")  # reading it would raise
        returned = functools.partial(lambda output, *_, **__: output, output)
        assert llama.generate(IDS[:rows], custom_generate=returned, **GREEDY) is output
        assert [payload[:3] for _, payload in recorded.by_kind()[Kind.REQUEST_END]] == [expected] * rows


def test_encoder_decoder(t5, recorded):
    """An encoder-decoder's prompt is what its encoder reads; the decoder's start token is not new."""
    plain = generate(t5, **GREEDY)
    assert torch.equal(plain, generate(axonize_hf.instrument(t5), **GREEDY))
    found = recorded.by_kind()
    assert found[Kind.RUN][0][1][2] == (9, 5)
    assert len(found[Kind.RUN][0][1][-1]) - 1 == plain.shape[1] - 1
    assert found[Kind.RUN_END][0][1] == (plain.shape[1] - 1, None)
    assert all(payload[2] <= plain.shape[1] - 1 for _, payload in found[Kind.REQUEST_END])


def test_prompts_that_are_no_tokens(llama, t5):
    """Audio and other inputs have rows but no token count; no input at all is one row that begins with a token."""
    sound = torch.zeros((2, 80, 30))
    for args, kwargs in (((), {"input_features": sound}), ((sound,), {})):
        call = read_call(t5, t5.generate, args, kwargs)
        assert (call.rows, call.prompt_tokens, call.prefix) == (2, (None, None), 1)
    assert read_call(llama, llama.generate, (), {})[:3] == (1, 1, (None,))


def test_encoder_calls_are_forward_runs(bert, recorded):
    """A model that does not generate records one run of one step per call, one request per row, outputs unchanged."""
    plain = bert(input_ids=IDS, attention_mask=MASK).logits
    axonize_hf.instrument(bert)
    with torch.no_grad():
        assert torch.equal(plain, bert(input_ids=IDS, attention_mask=MASK).logits)
    found = recorded.by_kind()
    assert [payload[4:6] for _, payload in found[Kind.REQUEST]] == [("classification", 9), ("classification", 5)]
    ((_, (_, _, prompt_tokens, mode, times)),) = found[Kind.RUN]
    assert (prompt_tokens, mode, len(times)) == ((9, 5), "forward", 1)
    assert [payload for _, payload in found[Kind.RUN_END]] == [(None, None)]
    with pytest.raises(ValueError, match="specify"):
        bert()
    assert [payload[3] for _, payload in recorded.by_kind()[Kind.REQUEST_END]] == ["ValueError"]


def test_training_is_not_recorded(bert, recorded):
    """Calls in training mode are no inference."""
    axonize_hf.instrument(bert).train()
    bert(input_ids=IDS, attention_mask=MASK)
    assert recorded.take() == []
