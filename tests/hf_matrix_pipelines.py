"""The rows of the pipelines: every kind of task with every kind of input."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

from torch.utils.data import Dataset
from transformers.pipelines.pt_utils import KeyDataset

import hf_matrix_models as models
from hf_matrix_case import UNCHECKED, Case, Expected

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["CASES", "as_list", "batched", "single"]

TEXTS = ["the model served this request", "a b", "one of our gpus on the model"]
WORDS = (5, 2, 7)
NEW = 6
GREEDY = {"max_new_tokens": NEW, "do_sample": False}
ANSWERED = Expected(prompt=WORDS, tokens=(NEW,) * 3, requests=3, finish="length")
ENCODED = Expected(prompt=WORDS, requests=3)
SEEN = Expected(prompt=(None,) * 3, requests=3)


class Kind(NamedTuple):
    """A kind of pipeline: its task, what it is given three times, the call's options and what is expected.

    ``parts`` names the parts of the pipeline where a task has several kinds of model.
    """

    task: str
    given: Callable[[], list[Any]]
    options: dict[str, Any]
    expected: Expected
    parts: str | None = None


def _texts() -> list[Any]:
    return list(TEXTS)


def _chats() -> list[Any]:
    return [[{"role": "user", "content": text}] for text in TEXTS]


def _masked() -> list[Any]:
    return [f"{text} <mask>" for text in TEXTS]


def _questions() -> list[Any]:
    return [{"question": text, "context": "this is the request on one of our gpus"} for text in TEXTS]


def _sounds() -> list[Any]:
    return [models.rng_sound(seconds) for seconds in (0.3, 0.2, 0.4)]


def _speeches() -> list[Any]:
    return [models.rng_sound(3, seed) for seed in range(3)]


def _images() -> list[Any]:
    return [models.image(seed) for seed in range(3)]


def _is(operation: str, expected: Expected) -> Expected:
    return expected._replace(operation=operation)


_SPEECH = _is("automatic_speech_recognition", SEEN)
_FEW = {"generate_kwargs": {"max_new_tokens": 4}}
_CHUNKS = _SPEECH._replace(prefill_steps=UNCHECKED)
_WHISPER = _CHUNKS._replace(tokens=UNCHECKED, finish=UNCHECKED)
_LABELS = {"candidate_labels": ["request", "model"]}
KINDS = {
    "text-generation": Kind("text-generation", _texts, GREEDY, ANSWERED),
    "text-generation, chats": Kind("text-generation", _chats, GREEDY, _is("chat", ANSWERED)),
    "text2text-generation": Kind("text2text-generation", _texts, GREEDY, ANSWERED),
    "summarization": Kind("summarization", _texts, {**GREEDY, "min_length": 0}, ANSWERED),
    "translation": Kind("translation_en_to_fr", _texts, GREEDY, ANSWERED),
    "text-classification": Kind("text-classification", _texts, {}, _is("classification", ENCODED)),
    "token-classification": Kind("token-classification", _texts, {}, _is("classification", ENCODED)),
    "zero-shot-classification": Kind(
        "zero-shot-classification",
        _texts,
        _LABELS,
        _is("classification", ENCODED._replace(prompt=UNCHECKED, prefill_steps=UNCHECKED)),
    ),
    "question-answering": Kind(
        "question-answering", _questions, {}, _is("question_answering", ENCODED._replace(prompt=UNCHECKED))
    ),
    "fill-mask": Kind("fill-mask", _masked, {}, _is("fill_mask", ENCODED._replace(prompt=(6, 3, 8)))),
    "feature-extraction": Kind("feature-extraction", _texts, {}, _is("embeddings", ENCODED)),
    "speech recognition (CTC)": Kind("automatic-speech-recognition", _sounds, {}, _SPEECH, "ctc"),
    "speech recognition (CTC), chunks": Kind(
        "automatic-speech-recognition", _sounds, {"chunk_length_s": 0.1}, _CHUNKS, "ctc"
    ),
    "speech recognition (Whisper)": Kind("automatic-speech-recognition", _sounds, _FEW, _WHISPER, "seq2seq"),
    "speech recognition (Whisper), long form": Kind(
        "automatic-speech-recognition", _speeches, _FEW, _WHISPER, "seq2seq"
    ),
    "speech recognition (Whisper), chunks": Kind(
        "automatic-speech-recognition", _speeches, {**_FEW, "chunk_length_s": 1.5}, _WHISPER, "seq2seq"
    ),
    "audio-classification": Kind("audio-classification", _sounds, {}, _is("classification", SEEN)),
    "image-classification": Kind("image-classification", _images, {}, _is("classification", SEEN)),
    "image-feature-extraction": Kind("image-feature-extraction", _images, {}, _is("embeddings", SEEN)),
}


class _Given(Dataset[Any]):
    """A data set of the three inputs, each in a row of its own."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return {"input": self.items[index]}


def single(pipe: Any, items: list[Any], options: dict[str, Any]) -> Any:
    if pipe.task == "question-answering":
        return pipe(**items[0], **options)
    return pipe(items[0], **options)


def as_list(pipe: Any, items: list[Any], options: dict[str, Any]) -> Any:
    if pipe.task == "question-answering":
        return pipe(
            question=[item["question"] for item in items], context=[item["context"] for item in items], **options
        )
    return pipe(items, **options)


def batched(pipe: Any, items: list[Any], options: dict[str, Any]) -> Any:
    return as_list(pipe, items, {**options, "batch_size": 2})


def _dataset(pipe: Any, items: list[Any], options: dict[str, Any]) -> Any:
    return list(pipe(KeyDataset(_Given(items), "input"), **options))


def _generator(pipe: Any, items: list[Any], options: dict[str, Any]) -> Any:
    return list(pipe((item for item in items), **options))


def _worker(pipe: Any, items: list[Any], options: dict[str, Any]) -> Any:
    return list(pipe(KeyDataset(_Given(items), "input"), num_workers=1, **options))


INPUTS = {
    "one input": single, "list": as_list, "batch_size=2": batched, "data set": _dataset, "generator": _generator,
    "num_workers=1": _worker,
}  # fmt: skip


def _case(name: str, kind: Kind, mode: str) -> Case:
    def use(pipe: Any) -> Any:
        return INPUTS[mode](pipe, kind.given(), dict(kind.options))

    make = functools.partial(models.pipe, kind.task, kind.parts)
    return Case(name, mode, make, use, _first(kind.expected) if mode == "one input" else kind.expected)


def _first(expected: Expected) -> Expected:
    """Return what is expected of the first input alone."""
    prompt = expected.prompt if expected.prompt is UNCHECKED else expected.prompt[:1]
    tokens = expected.tokens[:1] if isinstance(expected.tokens, tuple) else expected.tokens
    return expected._replace(requests=1, prompt=prompt, tokens=tokens)


CASES = [_case(name, kind, mode) for name, kind in KINDS.items() for mode in INPUTS]
