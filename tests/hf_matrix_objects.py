"""The rows of the objects: what people do with a model or a pipeline besides calling it."""

from __future__ import annotations

import copy
import functools
import io
import json
import pickle
import tempfile
from pathlib import Path
from typing import Any

import torch

import axonize_hf
import hf_matrix_models as models
from hf_matrix_case import Case, Expected
from hf_matrix_generate import GREEDY, IDS, ONE, generate

__all__ = ["CASES"]

NONE = Expected(requests=0, prompt=(), tokens=(), counted=False)


def _deepcopy(model: Any) -> Any:
    return _twin(copy.deepcopy(model))


def _pickle(model: Any) -> Any:
    return _twin(pickle.loads(pickle.dumps(model)))


def _saved(model: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return _twin(torch.load(buffer, weights_only=False))


def _twin(model: Any) -> Any:
    """Return the class of a copy and what it generates."""
    return type(model), generate(model, **GREEDY)


def _save_pretrained(model: Any) -> Any:
    """Save and load; return the class that stands in the config and what the loaded model generates."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        config = json.loads(Path(folder, "config.json").read_text())
        loaded = type(model).from_pretrained(folder).eval()
    return config["architectures"], generate(loaded, **GREEDY)


def _compiled_decode(model: Any) -> Any:
    model.forward = torch.compile(model.forward, backend="eager", fullgraph=True)
    return generate(model, cache_implementation="static", **GREEDY)


def _compiled_encoder(model: Any) -> Any:
    model.compile(backend="eager", fullgraph=True)
    with torch.no_grad():
        return model(input_ids=IDS[:1]).logits


def _uninstrumented(model: Any) -> Any:
    axonize_hf.uninstrument(model)
    return _twin(model)


def _pipe_uninstrumented(pipe: Any) -> Any:
    axonize_hf.uninstrument(pipe)
    return type(pipe), type(pipe.model), pipe("the model", **GREEDY)


def _pipe_deepcopy(pipe: Any) -> Any:
    return _pipe_twin(copy.deepcopy(pipe))


def _pipe_pickle(pipe: Any) -> Any:
    return _pipe_twin(pickle.loads(pickle.dumps(pipe)))


def _pipe_twin(pipe: Any) -> Any:
    return type(pipe), type(pipe.model), pipe("the model", **GREEDY)


def _text_pipe() -> Any:
    return models.pipe("text-generation")


def _classifier() -> Any:
    return models.pipe("text-classification").model


CASES = [
    Case("model", "copy.deepcopy", models.causal_lm, _deepcopy, NONE),
    Case("model", "pickle", models.causal_lm, _pickle, NONE),
    Case("model", "torch.save, torch.load", models.causal_lm, _saved, NONE),
    Case("model", "save_pretrained, from_pretrained", models.causal_lm, _save_pretrained, NONE),
    Case(
        "model",
        "torch.compile(forward, fullgraph=True)",
        functools.partial(models.causal_lm, 1),
        _compiled_decode,
        ONE._replace(counted=False),
    ),
    Case(
        "model",
        "compile(fullgraph=True) of an encoder",
        _classifier,
        _compiled_encoder,
        Expected((9,), operation="classification", counted=False),
    ),
    Case("model", "uninstrument", models.causal_lm, _uninstrumented, NONE),
    Case("pipeline", "copy.deepcopy", _text_pipe, _pipe_deepcopy, NONE),
    Case("pipeline", "pickle", _text_pipe, _pipe_pickle, NONE),
    Case("pipeline", "uninstrument", _text_pipe, _pipe_uninstrumented, NONE),
]
