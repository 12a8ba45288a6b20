"""Pipelines of every kind of task, instrumented: the same answers, one request per input, nothing invented."""

from __future__ import annotations

import copy
import pickle

import pytest

import axonize_hf
from axonize_core.frames import Kind
from axonize_hf.tasks import TASKS
from fix_hf_pipelines import picture, sound

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

LABELS = {"candidate_labels": ["a", "model", "gpus"]}
SPEECH = "automatic-speech-recognition"
OLD = {"text2text-generation", "summarization", "translation"}
PAGE = {
    "image": None,
    "question": "the model",
    "word_boxes": [["served", [0, 0, 10, 10]], ["this", [20, 0, 30, 10]], ["request", [40, 0, 60, 10]]],
}
QUESTION = {"question": "the model", "context": "on one of our gpus"}


def chat():
    content = [{"type": "image", "image": picture()}, {"type": "text", "text": "the model"}]
    return [{"role": "user", "content": content}]


# Task: (what to give, options, forwards of one input, tokens of each forward or None, operation)
CASES = {
    "fill-mask": ("the model w0", {}, 1, 3, "fill_mask"),
    "token-classification": ("the model a b c", {}, 1, 5, "classification"),
    "question-answering": (QUESTION, {}, 1, 7, "question_answering"),
    "zero-shot-classification": ("the model", LABELS, 3, 7, "classification"),
    "image-classification": (picture, {}, 1, None, "classification"),
    "image-feature-extraction": (picture, {}, 1, None, "embeddings"),
    "object-detection": (picture, {"threshold": 0.0}, 1, None, "object_detection"),
    "image-segmentation": (picture, {}, 1, None, "image_segmentation"),
    "depth-estimation": (picture, {}, 1, None, "depth_estimation"),
    "zero-shot-image-classification": (picture, LABELS, 1, None, "classification"),
    "zero-shot-object-detection": (lambda: {"image": picture(), **LABELS}, {}, 3, 1, "object_detection"),
    "image-text-to-text": (chat, {}, 1, 6, "chat"),
    "document-question-answering": (lambda: dict(PAGE), {}, 1, 5, "question_answering"),
    "text2text-generation": ("the model served", {}, 1, 3, "text_completion"),
    "summarization": ("the model served", {}, 1, 3, "text_completion"),
    "translation": ("the model served", {}, 1, 3, "text_completion"),
    "image-to-text": (picture, {}, 1, None, "generate_content"),
    "audio-classification": (lambda: sound(1), {}, 1, None, "classification"),
    "zero-shot-audio-classification": (lambda: sound(1), LABELS, 1, None, "classification"),
    SPEECH: (lambda: sound(1), {}, 1, None, "automatic_speech_recognition"),
    "whisper": (lambda: sound(1), {}, 1, None, "automatic_speech_recognition"),
    "text-to-audio": ("the model", {}, 1, 2, "generate_content"),
    "music": ("the model", {"forward_params": {"do_sample": False, "max_new_tokens": 6}}, 1, 2, "generate_content"),
}
GENERATE = {"image-text-to-text", "whisper", "music", "image-to-text", *OLD}


def fresh(given):
    return given() if callable(given) else given


def answer(pipe, given, **options):
    """Return what the pipeline says with seed 0, as something that compares."""
    torch.manual_seed(0)
    return plain(pipe(given, **options))


def plain(value):
    """Return arrays, tensors and images as nested lists and bytes."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return value.tolist()
    return value.tobytes() if hasattr(value, "tobytes") else value


@pytest.mark.parametrize("task", CASES)
def test_answers_are_identical(task, pipeline_for, recorded):
    """Alone, listed and batched the answers are the plain pipeline's; each input is one request of its task."""
    given, options, forwards, tokens, operation = CASES[task]
    pipe = pipeline_for(task)
    calls = [(lambda: fresh(given), {}), *[(lambda: [fresh(given)] * 3, {"batch_size": n}) for n in (1, 2)]]
    expected = [answer(pipe, make(), **more, **options) for make, more in calls]
    axonize_hf.instrument(pipe)
    for (make, more), known in zip(calls, expected, strict=True):
        assert answer(pipe, make(), **more, **options) == known
        found = recorded.by_kind()
        seqs = [seq for seq, _ in found[Kind.REQUEST]]
        inputs = 3 if more else 1
        assert [payload[4] for _, payload in found[Kind.REQUEST]] == [operation] * inputs
        assert [seq for seq, _ in found[Kind.REQUEST_END]] == seqs
        total = None if tokens is None else tokens * forwards
        assert [payload[1] for _, payload in found[Kind.REQUEST_END]] == [total] * inputs
        runs = [payload[1:4] for _, payload in found[Kind.RUN]]
        assert len(runs) == len(found[Kind.RUN_END]) == -(-inputs * forwards // more.get("batch_size", 1))
        assert {mode for *_, mode in runs} == {"generate" if task in GENERATE else "forward"}
        assert sum(sum(prompt) for _, prompt, _ in runs) == (total or 0) * inputs


def pickled(pipe):
    try:
        return pickle.dumps(pipe)
    except Exception as error:
        return type(error)


@pytest.mark.parametrize("task", CASES)
def test_pipelines_stay_what_they_are(task, pipeline_for, recorded):
    """Copies and pickles are plain and answer the same, and so does the pipeline after uninstrument.

    What the plain pipeline cannot (some models cannot be pickled), the instrumented one cannot for the same reason.
    """
    given, options, *_ = CASES[task]
    pipe = pipeline_for(task)
    cls, expected = type(pipe), answer(pipe, fresh(given), **options)
    plain_pickle = pickled(pipe)
    axonize_hf.instrument(pipe)
    twins = [pipe, copy.deepcopy(pipe)]
    if isinstance(plain_pickle, bytes):
        twins.append(pickle.loads(pickled(pipe)))
    else:
        assert pickled(pipe) is plain_pickle
    assert axonize_hf.uninstrument(pipe) is pipe
    for twin in twins:
        assert (type(twin), answer(twin, fresh(given), **options)) == (cls, expected)
    assert recorded.take() == []


@pytest.mark.parametrize(
    ("task", "tokens"),
    [("image-text-to-text", 4), ("whisper", 8), *((task, 4) for task in ("image-to-text", *sorted(OLD)))],
)
def test_generated_tokens_are_counted(task, tokens, pipeline_for, recorded):
    """Of images and speech the answer's tokens are counted as they are of text, without the prompt's."""
    given, options, *_ = CASES[task]
    pipe = axonize_hf.instrument(pipeline_for(task))
    pipe([fresh(given)] * 2, batch_size=2, **options)
    ends = [payload for _, payload in recorded.by_kind()[Kind.REQUEST_END]]
    assert [(reason, output) for reason, _, output, *_ in ends] == [("length", tokens)] * 2


def test_sound_is_no_text(pipeline_for, recorded):
    """Samples of generated sound are not counted as tokens, neither of a pipeline nor of its model."""
    pipe = axonize_hf.instrument(pipeline_for("music"))
    pipe("the model", **CASES["music"][1])
    with torch.no_grad():
        pipe.model.generate(torch.tensor([[5, 6]]), do_sample=False, max_new_tokens=6)
    found = recorded.by_kind()
    assert [payload for _, payload in found[Kind.RUN_END]] == [(None, None)] * 2
    assert [payload[:3] for _, payload in found[Kind.REQUEST_END]] == [(None, 2, None)] * 2


def test_every_task_of_this_version_is_known(hf):
    """The table names every task that the installed transformers has."""
    from transformers.pipelines import SUPPORTED_TASKS

    assert set(SUPPORTED_TASKS) - set(TASKS) == set()


def test_a_pipeline_made_from_its_class(hf, llama, tokenizer, recorded):
    """A pipeline without a task's name is recorded by the name of its class."""
    pipe = axonize_hf.instrument(hf.TextGenerationPipeline(model=llama, tokenizer=tokenizer))
    pipe.task = ""
    pipe("the model", max_new_tokens=2, do_sample=False)
    found = recorded.by_kind()
    assert found[Kind.REQUEST][0][1][4] == "text_completion"
    assert found[Kind.REQUEST_END][0][1] == ("length", 2, 2, None, None)


def test_a_pipeline_of_ones_own(hf, classifier, recorded):
    """A class and a task that nobody knows are recorded under the task's name."""

    class Mood(hf.TextClassificationPipeline):
        pass

    pipe = Mood(model=classifier.model, tokenizer=classifier.tokenizer, task="mood-of-text")
    plain_answer = pipe("the model")
    assert axonize_hf.instrument(pipe)("the model") == plain_answer
    found = recorded.by_kind()
    assert found[Kind.REQUEST][0][1][4] == "mood_of_text"
    assert found[Kind.RUN][0][1][3] == "forward"


def test_an_encoder_called_itself(pipeline_for, recorded):
    """A vision model without a pipeline reports its head's operation, and no tokens."""
    model = axonize_hf.instrument(pipeline_for("object-detection").model)
    with torch.no_grad():
        model(torch.rand(2, 3, 32, 32))
    found = recorded.by_kind()
    assert [(payload[4], payload[5]) for _, payload in found[Kind.REQUEST]] == [("object_detection", None)] * 2
