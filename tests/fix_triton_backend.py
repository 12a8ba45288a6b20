"""A stand-in for Triton's Python backend: ``pb_utils``, and the stub that runs a model.

As strict as the real one where it matters: requests take no attributes, every sender is a new object, a sender is
closed by its final response, an error is kept without the object that was given, and ``error()`` makes one without
``__init__``. The real one runs in tests/tritonserver.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
from collections import Counter
from types import ModuleType

import pytest

from axonize_core.recorder import get_recorder
from axonize_core.settings import get_settings
from axonize_core.testing import capture_events

FINAL, RESCHEDULE = 1, 2
ARGUMENTS = {
    "model_config": "{}",
    "model_instance_kind": "CPU",
    "model_instance_name": "add_0_0",
    "model_instance_device_id": "0",
    "model_repository": "/models/add",
    "model_version": "1",
    "model_name": "add",
}


def make_pb_utils() -> ModuleType:
    """Return a new ``triton_python_backend_utils``, whose classes may be changed."""

    class TritonError:
        def __init__(self, message):
            self._message = message

        def message(self):
            return self._message

    class TritonModelException(Exception):  # noqa: N818 - Triton's name
        pass

    class InferenceResponse:
        def __init__(self, output_tensors=(), error=None):
            self._message = None if error is None else error.message()

        def has_error(self):
            return self._message is not None

        def error(self):
            if self._message is None:
                return None
            error = TritonError.__new__(TritonError)
            error._message = self._message
            return error

    class Trace:
        def __init__(self, context):
            self._context = context

        def get_context(self):
            return self._context

    class InferenceResponseSender:
        def __init__(self, state):
            self._state = state

        def send(self, response=None, flags=0):
            if self._state["closed"]:
                raise TritonModelException("Unable to send response. Response sender has been closed.")
            if response is None and not flags & FINAL:
                raise TritonModelException("Inference Response object must be provided when not final")
            self._state["closed"] = bool(flags & FINAL)
            self._state["sent"].append((response, flags))

        def is_cancelled(self):
            return self._state["cancelled"]

    class InferenceRequest:
        __slots__ = ("__weakref__", "_answers")

        def __init__(self, request_id="", parameters=None, context=None, correlation_id=0):
            state = {"closed": False, "cancelled": False, "sent": [], "flags": 0}
            self._answers = (request_id, json.dumps(parameters or {}), context, correlation_id, state)

        def request_id(self):
            return self._answers[0]

        def parameters(self):
            return self._answers[1]

        def trace(self):
            return Trace(self._answers[2])

        def correlation_id(self):
            return self._answers[3]

        def get_response_sender(self):
            return InferenceResponseSender(self._answers[4])

        def is_cancelled(self):
            return self._answers[4]["cancelled"]

        def set_release_flags(self, flags):
            self._answers[4]["flags"] = flags

    module = ModuleType("triton_python_backend_utils")
    for one in (TritonError, TritonModelException, InferenceResponse, InferenceRequest):
        setattr(module, one.__name__, one)
    module.TRITONSERVER_RESPONSE_COMPLETE_FINAL = FINAL
    module.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE = RESCHEDULE
    return module


def sent(request):
    """Return what was sent for a request: ``(response, flags)`` each."""
    return request._answers[4]["sent"]


def cancel(request):
    """Cancel a request."""
    request._answers[4]["cancelled"] = True


class Stub:
    """Runs a model as Triton's does: ``initialize`` where it has one, ``execute`` looked up for each batch."""

    def __init__(self, model, *, decoupled=False, **arguments):
        config = {"model_transaction_policy": {"decoupled": True}} if decoupled else {}
        self.model, self.decoupled = model(), decoupled
        self.arguments = {**ARGUMENTS, "model_config": json.dumps(config), **arguments}
        if hasattr(self.model, "initialize"):
            self.model.initialize(self.arguments)

    def execute(self, *requests):
        """Execute a batch; what it returns is what Triton takes."""
        returned = self.model.execute(list(requests))
        if inspect.iscoroutine(returned):
            returned = asyncio.run(returned)
        assert returned is None or (isinstance(returned, list) and len(returned) == len(requests))
        return returned

    def finalize(self):
        """End the model."""
        if hasattr(self.model, "finalize"):
            self.model.finalize()


@pytest.fixture
def pb_utils(monkeypatch):
    """A backend of the test's own, which a model's process could import."""
    module = make_pb_utils()
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", module)
    return module


@pytest.fixture
def triton_errors(monkeypatch):
    """Failures of our own code that were counted in this test; ``take()`` returns and forgets them."""

    class Errors(Counter):
        def take(self):
            taken = dict(self)
            self.clear()
            return taken

    monkeypatch.setattr(get_recorder(), "errors", Errors())
    return get_recorder().errors


@pytest.fixture
def triton_environment(monkeypatch):
    """``set("AXONIZE_...", value)`` for what reads it from now on."""

    def change(name, value):
        monkeypatch.setenv(name, value)
        get_settings.cache_clear()

    for name in ("AXONIZE_TRITON", "AXONIZE_TRITON_DEVICE", "AXONIZE_TRITON_DETAIL", "OTEL_SERVICE_NAME"):
        monkeypatch.delenv(name, raising=False)
    get_settings.cache_clear()
    yield change
    get_settings.cache_clear()


@pytest.fixture
def triton_recorded(pb_utils, triton_errors, triton_environment):
    """What is recorded in a test; a failure of our own code that it does not take from ``triton_errors`` fails it."""
    with capture_events() as captured:
        yield captured
    assert not triton_errors
