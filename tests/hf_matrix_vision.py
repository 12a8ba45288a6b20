"""The rows of the pipelines that see, hear or speak, with the tiny models the other tests make them of."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import transformers as hf

import hf_matrix_models as models
from fix_hf_pipelines import Makers, picture, sound
from hf_matrix_case import UNCHECKED, Case, Expected
from hf_matrix_pipelines import as_list, batched, single

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["CASES"]


class Kind(NamedTuple):
    """A task: its input by number, the call's options, the operation, and whether tokens are generated."""

    given: Callable[[int], Any]
    options: dict[str, Any]
    operation: str
    generates: bool = False


def _shot(number: int) -> Any:
    return picture(90 + number)


def _noise(number: int) -> Any:
    return sound(1, number)


def _text(number: int) -> Any:
    return ["the model", "a b", "one of our gpus"][number]


def _page(number: int) -> Any:
    boxes = [["served", [0, 0, 10, 10]], ["this", [20, 0, 30, 10]], ["request", [40, 0, 60, 10]]]
    return {"image": None, "question": _text(number), "word_boxes": boxes}


def _labelled(number: int) -> Any:
    return {"image": _shot(number), **LABELS}


def _chat(number: int) -> Any:
    content = [{"type": "image", "image": _shot(number)}, {"type": "text", "text": "the model"}]
    return [{"role": "user", "content": content}]


LABELS = {"candidate_labels": ["request", "model"]}
KINDS = {
    "object-detection": Kind(_shot, {"threshold": 0.0}, "object_detection"),
    "image-segmentation": Kind(_shot, {}, "image_segmentation"),
    "depth-estimation": Kind(_shot, {}, "depth_estimation"),
    "zero-shot-image-classification": Kind(_shot, LABELS, "classification"),
    "zero-shot-object-detection": Kind(_labelled, {}, "object_detection"),
    "zero-shot-audio-classification": Kind(_noise, LABELS, "classification"),
    "document-question-answering": Kind(_page, {}, "question_answering"),
    "image-to-text": Kind(_shot, {}, "generate_content", generates=True),
    "image-text-to-text": Kind(_chat, {}, "chat", generates=True),
    "text-to-audio": Kind(_text, {}, "generate_content"),
}
INPUTS = {"one input": single, "list": as_list, "batch_size=2": batched}


def _make(task: str) -> Any:
    """Return a pipeline for a task.

    Raises:
        LookupError: this version of transformers has none.
    """
    folder = tempfile.TemporaryDirectory()
    try:
        pipe = getattr(Makers(hf, models.tokenizer(), Path(folder.name)), task.replace("-", "_"))()
    except pytest.skip.Exception as e:
        raise LookupError(str(e)) from e
    pipe.made_in = folder
    return pipe


def _case(task: str, kind: Kind, mode: str) -> Case:
    def use(pipe: Any) -> Any:
        return INPUTS[mode](pipe, [kind.given(number) for number in range(3)], dict(kind.options))

    expected = Expected(operation=kind.operation, requests=1 if mode == "one input" else 3, prefill_steps=UNCHECKED)
    if kind.generates:
        expected = expected._replace(tokens=UNCHECKED, finish=UNCHECKED)
    return Case(task, mode, functools.partial(_make, task), use, expected)


CASES = [_case(task, kind, mode) for task, kind in KINDS.items() for mode in INPUTS]
