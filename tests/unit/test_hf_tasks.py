"""What a pipeline's task and a model's name say about the operation."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from axonize_hf.tasks import TASKS, Task, model_operation, task_of

GUIDE = Path(__file__).resolve().parents[2] / "docs/huggingface.md"


def pipe_of(task, *, generates=True, name="MyOwnPipeline"):
    model = SimpleNamespace(can_generate=lambda: generates)
    return type(name, (), {"task": task, "model": model})()


@pytest.mark.parametrize(("task", "expected"), [
    ("text-generation", Task("text_completion", generates=True)),
    ("translation_en_to_fr", Task("text_completion", generates=True)),
    ("image-classification", Task("classification")),
    ("fill-mask", Task("fill_mask")),
    ("my-own-task", Task("my_own_task", generates=True)),
])  # fmt: skip
def test_a_task_by_its_name(task, expected):
    """Known tasks have an operation of the GenAI convention where it has one, others their own name."""
    assert task_of(pipe_of(task)) == expected


@pytest.mark.parametrize(("name", "operation"), [
    ("TextGenerationPipeline", "text_completion"),
    ("Text2TextGenerationPipeline", "text_completion"),
    ("ZeroShotImageClassificationPipeline", "classification"),
    ("MyOwnPipeline", "my_own"),
])  # fmt: skip
def test_a_task_by_its_class(name, operation):
    """A pipeline made from its class has no task's name, but its class does."""
    assert task_of(pipe_of("", name=name)).operation == operation


def test_a_subclass_of_a_known_pipeline():
    """A class of one's own is what it was made from; a task of one's own keeps its name."""
    known = type(pipe_of("", name="TextClassificationPipeline"))
    mine = type("Mine", (known,), {})()
    assert task_of(mine) == TASKS["text-classification"]
    mine.task = "mood-of-text"
    assert task_of(mine) == Task("mood_of_text")


def test_only_a_model_that_can_generates():
    """Speech recognition generates with one model and not with the other."""
    task = "automatic-speech-recognition"
    assert task_of(pipe_of(task)).generates
    assert not task_of(pipe_of(task, generates=False)).generates
    assert not task_of(SimpleNamespace(task=task, model=None)).generates


@pytest.mark.parametrize(("name", "operation"), [
    ("BertModel", "embeddings"),
    ("BertForSequenceClassification", "classification"),
    ("Wav2Vec2ForCTC", "automatic_speech_recognition"),
    ("BertForMaskedLM", "fill_mask"),
    ("DetrForObjectDetection", "object_detection"),
])  # fmt: skip
def test_a_model_by_its_head(name, operation):
    """A model that is called itself reports what its head is for."""
    assert model_operation(name) == operation


def test_the_guide_names_every_task():
    """The guide's table has every operation, and the tasks behind those that several share."""
    table = GUIDE.read_text().partition("| task |")[2].partition("\n\n")[0]
    shared = [task.operation for task in TASKS.values()]
    for name, task in TASKS.items():
        if shared.count(task.operation) > 1:
            assert f"`{task.operation}`" in table, name
    for name in ("text-generation", "summarization", "any-to-any", "image-feature-extraction"):
        assert name in table


def test_operations_are_words():
    """Every operation is words in lower case."""
    assert all(re.fullmatch("[a-z]+(_[a-z]+)*", task.operation) for task in TASKS.values())
