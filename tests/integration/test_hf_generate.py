"""Every way to ``generate``: what each row got, in how many steps, and who proposed it."""

from __future__ import annotations

import copy
import threading

import pytest

import axonize_hf
from axonize_core.attributes import ACCEPTED_TOKENS, DRAFTED_TOKENS
from axonize_core.testing import capture_events

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 5, 6, 7]])
GREEDY = {"max_new_tokens": 7, "do_sample": False, "eos_token_id": 63}


def watch(model, *args, also=(), **options):
    """Generate with and without; fails unless both give the same; return what was heard of it."""
    plain = model.generate(*args, **options)
    for one in (model, *also):
        axonize_hf.instrument(one)
    with capture_events() as seen:
        ours = model.generate(*args, **options)
    axonize_hf.uninstrument(model)
    assert torch.equal(getattr(plain, "sequences", plain), getattr(ours, "sequences", ours))
    return seen


class Streamer(transformers.generation.streamers.BaseStreamer):
    def put(self, value):
        pass

    def end(self):
        pass


def twelve_tokens(ids, scores, **kwargs):
    return torch.full((len(ids),), ids.shape[1] >= 12)


@pytest.mark.parametrize(("options", "tokens", "reason", "prefill_steps", "decode_steps"), [
    ({}, 7, "length", 1, 6),
    ({"streamer": Streamer()}, 7, "length", 1, 6),
    ({"num_beams": 3, "num_return_sequences": 2}, 14, "length", 1, 6),
    ({"prefill_chunk_size": 4}, 7, "length", 3, 6),
    ({"stopping_criteria": [twelve_tokens]}, 3, "stop", 1, 2),
    ({"return_dict_in_generate": True, "output_scores": True, "use_cache": False}, 7, "length", 1, 6),
])  # fmt: skip
def test_steps_and_tokens(options, tokens, reason, prefill_steps, decode_steps, llama):
    """Tokens, steps of prompt and answer, and why it ended, in each mode."""
    seen = watch(llama, IDS, **GREEDY, **options)
    (event,), (prefill,), (decode,) = seen.requests, seen.prefills, seen.decodes
    assert (event.input_tokens, event.output_tokens, event.finish_reason) == (9, tokens, reason)
    assert (prefill.steps, decode.steps, decode.tokens) == (prefill_steps, decode_steps, tokens)
    assert len(seen.batches) == prefill_steps + decode_steps


def test_one_row_has_no_padding(t5):
    """A model whose tokens look like padding made them all the same, when there is but one row."""
    seen = watch(t5, IDS, **GREEDY)
    assert [(event.output_tokens, event.finish_reason) for event in seen.requests] == [(7, "length")]


@pytest.mark.parametrize("instrumented", [True, False])
def test_speculation_tells_what_was_accepted(instrumented, llama):
    """Accepted proposals are the tokens beyond one a step; an instrumented assistant tells what it proposed, too."""
    assistant = copy.deepcopy(llama)
    seen = watch(llama, IDS, **GREEDY, assistant_model=assistant, also=[assistant] if instrumented else [])
    (event,) = seen.requests
    said = dict(event.attributes)
    assert said[ACCEPTED_TOKENS] == 7 - len(seen.batches) > 0
    assert said.get(DRAFTED_TOKENS) == (said[ACCEPTED_TOKENS] if instrumented else None), (
        "all drafts of a twin are right"
    )
    assert (event.tpot_ns > 0, seen.decodes[0].itl_max_ns) == (True, None)


def test_prompt_lookup_tells_what_was_accepted(t5):
    """Tokens found in the prompt count as accepted; how many were proposed is not known."""
    seen = watch(t5, IDS, **GREEDY, prompt_lookup_num_tokens=2)
    assert [event.attributes for event in seen.requests] == [((ACCEPTED_TOKENS, 7 - len(seen.batches)),)]


@pytest.fixture
def whisper(hf):
    """A tiny Whisper with random weights that knows time stamps; half a second is a window."""
    config = hf.WhisperConfig(
        vocab_size=100,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_mel_bins=8,
        max_source_positions=50,
        max_target_positions=40,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=3,
        begin_suppress_tokens=None,
        suppress_tokens=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = hf.WhisperForConditionalGeneration(config).eval()
        features = torch.randn(1, 8, 350)
    made = hf.GenerationConfig(pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=3, max_length=40)
    made.no_timestamps_token_id, made.is_multilingual, made.return_timestamps = 50, False, False
    model.generation_config = made
    return model, features


def test_sound_of_one_window(whisper):
    """Whisper returns its answer without the prompt it made itself; steps say which of it is new."""
    model, features = whisper
    seen = watch(model, features[..., :100], max_new_tokens=6, do_sample=False)
    (event,) = seen.requests
    assert (event.input_tokens, event.output_tokens, len(seen.batches)) == (None, 6, 6)
    assert seen.decodes[0].itl_max_ns > 0


def test_long_sound_is_one_request(whisper):
    """Whisper's passes over long sound are the steps of one request: totals, but no times between tokens."""
    model, features = whisper
    mask = torch.ones(1, 350, dtype=torch.long)
    options = {"return_timestamps": True, "attention_mask": mask, "max_new_tokens": 6, "do_sample": False}
    seen = watch(model, features, **options)
    (event,), (decode,) = seen.requests, seen.decodes
    assert len(seen.batches) > event.output_tokens > 6
    assert 0 < event.ttft_ns < event.duration_ns
    assert (decode.itl_max_ns, event.finish_reason) == (None, None)


def test_a_generate_around_another_model(llama):
    """A model that lets another one answer has no steps of its own: its request has totals, and no made-up phases."""

    class Around(type(llama)):
        def generate(self, ids, **options):
            return inner.generate(ids, **options)

    inner = copy.deepcopy(llama)
    llama.__class__ = Around
    seen = watch(llama, IDS, **GREEDY)
    (event,) = seen.requests
    assert (event.output_tokens, event.ttft_ns, event.error) == (None, None, None)
    assert seen.decodes == []


def test_two_threads_at_once(llama):
    """Two generates at once in two threads are two requests with steps of their own."""
    axonize_hf.instrument(llama)
    both = threading.Barrier(2)

    def serve(tokens):
        both.wait()
        llama.generate(IDS, **{**GREEDY, "max_new_tokens": tokens})

    with capture_events() as seen:
        threads = [threading.Thread(target=serve, args=(tokens,)) for tokens in (5, 30)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(event.output_tokens for event in seen.requests) == [5, 30]
    assert sorted(decode.steps for decode in seen.decodes) == [4, 29]
