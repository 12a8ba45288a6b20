"""Pipelines that work off an input in chunks: one request per input, whatever its chunks are batched with."""

from __future__ import annotations

import pytest

import axonize_hf
from axonize_core.frames import Kind
from axonize_core.testing import capture_events
from fix_hf_pipelines import sound

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

LABELS = {"candidate_labels": ["a", "model", "gpus"]}
LONG = {"return_timestamps": True}
WINDOWS = {"chunk_length_s": 2, "stride_length_s": 0.5}


def runs(found):
    """Return (members, prompt tokens) of each run, the members as they were numbered."""
    numbers = {seq: n for n, (seq, _) in enumerate(found[Kind.REQUEST])}
    return [(tuple(numbers[seq] for seq in payload[1]), payload[2]) for _, payload in found[Kind.RUN]]


def same_answers(pipe, given, **options):
    """Compare the plain pipeline's answers with the instrumented one's, and return what that recorded."""
    made = [item.copy() if hasattr(item, "copy") else item for item in given]
    expected = pipe(made, **options)
    made = [item.copy() if hasattr(item, "copy") else item for item in given]
    assert axonize_hf.instrument(pipe)(made, **options) == expected


def test_chunks_share_a_batch_with_those_of_others(pipeline_for, recorded):
    """A request is one member of a batch with all its chunks in it; the tokens of its forwards add up to its own."""
    same_answers(pipeline_for("zero-shot-classification"), ["the model", "a b c"], **LABELS, batch_size=2)
    found = recorded.by_kind()
    assert runs(found) == [((0,), (14,)), ((0, 1), (7, 8)), ((1,), (16,))]
    assert [payload[1] for _, payload in found[Kind.REQUEST_END]] == [21, 24]


def test_spans_of_a_request_in_chunks(pipeline_for):
    """Its queue ends with its first chunk, its prefill lasts to the end of the last, and no token is claimed."""
    pipe = axonize_hf.instrument(pipeline_for("zero-shot-classification"))
    with capture_events() as seen:
        pipe("the model", **LABELS)
    ((request,), (prefill,)) = seen.requests, seen.prefills
    first, *_, last = seen.batches
    assert (len(seen.batches), prefill.steps, prefill.tokens) == (3, 3, 21)
    assert prefill.start_ns == request.start_ns + request.queue_ns
    assert first.start_ns - 1_000_000 < prefill.start_ns <= first.start_ns
    assert prefill.start_ns + prefill.duration_ns == last.start_ns + last.duration_ns
    assert (request.ttft_ns, request.output_tokens, seen.decodes) == (None, None, [])
    assert [len(batch.joined) for batch in seen.batches] == [1, 0, 0]


@pytest.mark.parametrize(("options", "members"), [
    ({"chunk_length_s": 1, "stride_length_s": 0.2}, [(0,)] * 5 + [(1,)] * 3),
    ({"chunk_length_s": 1, "stride_length_s": 0.2, "batch_size": 3}, [(0,), (0, 1), (1,)]),
    ({"return_timestamps": "char"}, [(0,), (1,)]),
])  # fmt: skip
def test_speech_recognition_in_forwards(options, members, pipeline_for, recorded):
    """Long audio is one request with a forward per chunk or batch of chunks, without tokens."""
    same_answers(pipeline_for("automatic-speech-recognition"), [sound(3), sound(2, seed=1)], **options)
    found = recorded.by_kind()
    assert [names for names, _ in runs(found)] == members
    assert [payload for _, payload in found[Kind.REQUEST_END]] == [(None, None, None, None, None)] * 2


@pytest.mark.parametrize(("options", "members"), [
    ({}, [(0,), (1,)]),
    ({"generate_kwargs": {"num_beams": 3}, "batch_size": 2}, [(0, 1)]),
    ({**WINDOWS, "batch_size": 3}, [(0, 1)]),
    ({"return_language": True}, [(0,), (1,)]),
])  # fmt: skip
def test_whisper_within_a_window(options, members, pipeline_for, recorded):
    """Speech of one window is one generate; its tokens are those of the transcription."""
    same_answers(pipeline_for("whisper"), [sound(1.5), sound(1, seed=1)], **options)
    found = recorded.by_kind()
    assert [names for names, _ in runs(found)] == members
    assert [payload[:3] for _, payload in found[Kind.REQUEST_END]] == [("length", None, 8)] * 2


@pytest.mark.parametrize("options", [LONG, {"return_timestamps": "word"}, {**WINDOWS, **LONG}, WINDOWS])
def test_whisper_long_form(options, pipeline_for, recorded):
    """Longer speech is still one request: its windows are nested generates, or chunks with a generate each."""
    same_answers(pipeline_for("whisper"), [sound(5)], **options)
    found = recorded.by_kind()
    assert [names for names, _ in runs(found)] == [(0,)] * (4 if "chunk_length_s" in options else 1)
    assert {payload[3] for _, payload in found[Kind.RUN]} == {"generate"}
    ((_, (reason, input_tokens, tokens, error, _)),) = found[Kind.REQUEST_END]
    assert (reason, input_tokens, error) == ("length" if options is WINDOWS else None, None, None)
    assert tokens >= 4 * 6


def test_first_and_last_token_of_chunks(pipeline_for):
    """The first token is seen in the first chunk, the last before the answer; between them no gaps are claimed."""
    pipe = axonize_hf.instrument(pipeline_for("whisper"))
    with capture_events() as seen:
        pipe(sound(5), **WINDOWS)
    ((request,), (prefill,), (decode,)) = seen.requests, seen.prefills, seen.decodes
    assert request.ttft_ns == request.queue_ns + prefill.duration_ns
    assert (prefill.steps, decode.steps, decode.tokens) == (4, 28, 32)
    assert request.duration_ns >= request.ttft_ns + decode.duration_ns
    assert decode.itl_p50_ns is None
    assert len(seen.batches) == 32


def test_windows_over_a_long_text(pipeline_for, recorded):
    """A text longer than the model's window is one request with a forward per window."""
    pipe = pipeline_for("token-classification", stride=2, aggregation_strategy="simple")
    pipe.tokenizer.model_max_length = 8
    same_answers(pipe, ["a b the model served this request on one of our gpus"])
    found = recorded.by_kind()
    assert runs(found) == [((0,), (8,)), ((0,), (6,))]
    assert found[Kind.REQUEST_END][0][1][1] == 14


@pytest.fixture
def sentences(hf, classifier):
    """A pipeline of one's own that classifies each sentence, and a note of what it prepared."""
    prepared = []

    class Sentences(hf.pipelines.base.ChunkPipeline):
        def _sanitize_parameters(self, **_):
            return {}, {}, {}

        def preprocess(self, text):
            parts = text.split(".")
            for n, part in enumerate(parts):
                prepared.append(part)
                if part == "bad":
                    raise ValueError("a bad sentence")
                yield {"is_last": n == len(parts) - 1, **self.tokenizer(part, return_tensors="pt")}

        def _forward(self, inputs):
            last = inputs.pop("is_last")
            return {"is_last": last, "logits": self.model(**inputs).logits}

        def postprocess(self, outputs):
            return [output["logits"].argmax(-1).tolist() for output in outputs]

    pipe = Sentences(model=classifier.model, tokenizer=classifier.tokenizer, task="sentences")
    return pipe, prepared


def test_chunks_are_prepared_one_by_one(sentences, recorded):
    """Nothing is prepared before it is needed: a chunk, its forward, the next chunk, then the next input."""
    pipe, prepared = sentences
    results = iter(axonize_hf.instrument(pipe)(text for text in ["a.b", "the model"]))
    assert prepared == []
    assert len(next(results)) == 2
    assert prepared == ["a", "b"]
    found = recorded.by_kind()
    assert [payload[2] for _, payload in found[Kind.RUN]] == [(1,), (1,)]
    assert (len(found[Kind.REQUEST]), len(found[Kind.REQUEST_END])) == (1, 1)
    assert len(next(results)) == 1
    assert next(results, None) is None


def test_a_chunk_that_fails(sentences, recorded):
    """A chunk that cannot be prepared fails its request; what was run before is kept, and other inputs are not hit."""
    pipe, _ = sentences
    axonize_hf.instrument(pipe)
    with pytest.raises(ValueError, match="a bad sentence"):
        pipe(["a", "b.bad.a"])
    found = recorded.by_kind()
    assert len(found[Kind.RUN]) == 2
    assert [payload[3] for _, payload in found[Kind.REQUEST_END]] == [None, "ValueError"]


def test_abandoned_chunks(sentences, recorded):
    """An iterator dropped between two inputs ends what had begun with unknown outcome."""
    pipe, prepared = sentences
    results = iter(axonize_hf.instrument(pipe)((text for text in ["a", "b.a.b", "the"]), batch_size=2))
    next(results)
    del results
    found = recorded.by_kind()
    assert prepared == ["a", "b"]
    assert [payload[3] for _, payload in found[Kind.REQUEST_END]] == [None, None]
    assert len(found[Kind.REQUEST]) == 2


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("batch_size", [1, 2])
def test_chunks_from_a_worker_process(batch_size, pipeline_for, recorded):
    """Chunks that a worker prepared are put together again: one request per input, from its first forward on."""
    options = {**LABELS, "num_workers": 1, "batch_size": batch_size}
    same_answers(pipeline_for("zero-shot-classification"), ["the model", "a b c"], **options)
    found = recorded.by_kind()
    assert [payload[1] for _, payload in found[Kind.REQUEST_END]] == [21, 24]
    batched = [((0,), (14,)), ((0, 1), (7, 8)), ((1,), (16,))]
    assert (
        runs(found)
        == ([((n,), (tokens,)) for n, tokens in ((0, 7), (1, 8)) for _ in range(3)], batched)[batch_size - 1]
    )


@pytest.mark.parametrize("broken", ["open_request", "tokens_of", "batch_of", "count_outputs", "close_request"])
def test_a_failure_of_ours_stays_ours(broken, pipeline_for, recorded, monkeypatch):
    """Whatever of ours breaks is counted, and the answers are the plain pipeline's."""
    pipe = pipeline_for("zero-shot-classification")
    expected = pipe(["the model", "a b c"], **LABELS, batch_size=2)
    axonize_hf.instrument(pipe)

    def fail(*_):
        raise RuntimeError(broken)

    monkeypatch.setattr(f"axonize_hf.session.{broken}", fail)
    assert pipe(["the model", "a b c"], **LABELS, batch_size=2) == expected
    assert sum(recorded.recorder.errors.values()) >= 2
    records = recorded.take()
    assert all(payload[1] for kind, _, payload in records if kind == Kind.RUN)
    assert [kind for kind, *_ in records].count(Kind.REQUEST) == (0 if broken == "open_request" else 2)
