"""What a pipeline's task is to us: the operation that its requests report, and whether it generates."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, NamedTuple

__all__ = ["TASKS", "Task", "model_operation", "task_of"]


class Task(NamedTuple):
    """A task: its ``gen_ai.operation.name``, and whether its forward calls ``generate`` of a model that has one.

    The operation is the GenAI convention's where that has one, ``classification`` for every kind of it, and else
    the task's own name.
    """

    operation: str
    generates: bool = False


TASKS = {
    "text-generation": Task("text_completion", generates=True),
    "text2text-generation": Task("text_completion", generates=True),
    "summarization": Task("text_completion", generates=True),
    "translation": Task("text_completion", generates=True),
    "any-to-any": Task("generate_content", generates=True),
    "image-text-to-text": Task("generate_content", generates=True),
    "image-to-text": Task("generate_content", generates=True),
    "text-to-audio": Task("generate_content", generates=True),
    "automatic-speech-recognition": Task("automatic_speech_recognition", generates=True),
    "document-question-answering": Task("question_answering", generates=True),
    "table-question-answering": Task("question_answering", generates=True),
    "visual-question-answering": Task("question_answering", generates=True),
    "question-answering": Task("question_answering"),
    "feature-extraction": Task("embeddings"),
    "image-feature-extraction": Task("embeddings"),
    "audio-classification": Task("classification"),
    "image-classification": Task("classification"),
    "text-classification": Task("classification"),
    "token-classification": Task("classification"),
    "video-classification": Task("classification"),
    "zero-shot-audio-classification": Task("classification"),
    "zero-shot-classification": Task("classification"),
    "zero-shot-image-classification": Task("classification"),
    "decision": Task("decision"),
    "depth-estimation": Task("depth_estimation"),
    "fill-mask": Task("fill_mask"),
    "image-segmentation": Task("image_segmentation"),
    "image-to-image": Task("image_to_image"),
    "keypoint-matching": Task("keypoint_matching"),
    "mask-generation": Task("mask_generation"),
    "object-detection": Task("object_detection"),
    "zero-shot-object-detection": Task("object_detection"),
}
"""The pipelines of transformers from 4.46 on, those that version 5 removed included."""

_BY_LETTERS = {name.replace("-", ""): task for name, task in TASKS.items()}
_HEADS = {"": "embeddings", "ctc": "automatic_speech_recognition", "masked_lm": "fill_mask"}


def task_of(pipe: Any) -> Task:
    """Return the task of any pipeline; an unknown one generates as its class does, or else if its model can."""
    task = _task(pipe.task, tuple(base.__name__.removesuffix("Pipeline") for base in type(pipe).__mro__))
    return task if not task.generates or _can_generate(pipe.model) else Task(task.operation)


def _can_generate(model: Any) -> bool:
    return bool(getattr(model, "can_generate", bool)())


@lru_cache(256)
def _task(name: str, classes: tuple[str, ...]) -> Task:
    """Return the task of a name, or of a class and its bases where that is empty: ``TextGeneration`` says it too."""
    inherited = next(filter(None, map(_known, classes)), None)
    if not name and inherited is not None:
        return inherited
    name = name or classes[0]
    return _known(name) or Task(_words(name), generates=inherited is None or inherited.generates)


def _known(name: str) -> Task | None:
    # Translation names its languages: translation_en_to_fr.
    return _BY_LETTERS.get(re.sub(r"^translation_.*", "translation", name).replace("-", "").lower())


def model_operation(class_name: str) -> str:
    """Return the operation of a model that is called itself, by its head: ``DetrForObjectDetection``."""
    head = class_name.rpartition("For")[2] if "For" in class_name else ""
    words = _words(head)
    return "classification" if words.endswith("classification") else _HEADS.get(words, words)


def _words(name: str) -> str:
    """Return ``ObjectDetection`` or ``object-detection`` as ``object_detection``; capitals together are one word."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).replace("-", "_").lower()
