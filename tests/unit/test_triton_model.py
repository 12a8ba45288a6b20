"""A model from ``initialize`` to ``finalize``: the three ways to ask for Axonize, and what happens when we fail."""

from __future__ import annotations

import logging
import sys

import pytest

import axonize_triton
from axonize_core.recorder import get_recorder
from axonize_triton import model as model_module
from fix_triton_backend import ARGUMENTS, Stub


def make_model(pb_utils, **members):
    """Return a new class that answers every request."""

    class TritonPythonModel:
        def execute(self, requests):
            return [pb_utils.InferenceResponse() for _ in requests]

    for name, member in members.items():
        setattr(TritonPythonModel, name, member)
    return TritonPythonModel


def test_a_decorated_model_is_recorded(pb_utils, triton_recorded):
    """It is the same class, needs neither initialize nor finalize, and its requests and batches are told."""
    plain = make_model(pb_utils)
    model = axonize_triton.instrument(plain)
    assert model is plain
    stub = Stub(model)
    stub.execute(pb_utils.InferenceRequest("a"), pb_utils.InferenceRequest())
    stub.finalize()
    assert [r.request_id for r in triton_recorded.requests] == ["a", None]
    (batch,) = triton_recorded.batches
    assert (len(batch.request_seqs), batch.source.model, batch.source.engine) == (2, "add", "triton")


def test_its_own_methods_are_called_once(pb_utils, triton_recorded):
    """With what they were given; what they return and say of themselves stays."""
    called = []

    def initialize(self, args):
        """Get ready."""
        called.append(args)
        return "ready"

    model = axonize_triton.instrument(make_model(pb_utils, initialize=initialize, finalize=lambda _: called.append(0)))
    assert model.initialize.__doc__ == "Get ready."
    stub = Stub(model)
    assert stub.model.initialize(ARGUMENTS) == "ready"
    stub.finalize()
    assert called == [stub.arguments, ARGUMENTS, 0]


@pytest.mark.parametrize("ways", ["twice", "attached", "inherited", "with arguments"])
def test_asking_several_times_is_asking_once(pb_utils, triton_recorded, ways):
    """In any combination: one span for each request."""
    if ways == "twice":
        model = axonize_triton.instrument(axonize_triton.instrument(make_model(pb_utils)))
    elif ways == "attached":

        def initialize(self, args):
            axonize_triton.attach(self, args)
            axonize_triton.attach(self, args)

        model = axonize_triton.instrument(make_model(pb_utils, initialize=initialize))
    elif ways == "inherited":
        model = axonize_triton.instrument(type("Child", (axonize_triton.instrument(make_model(pb_utils)),), {}))
    else:
        model = axonize_triton.instrument(axonize_triton.instrument(device="cuda:3")(make_model(pb_utils)))
    Stub(model).execute(pb_utils.InferenceRequest("a"))
    assert [r.request_id for r in triton_recorded.flush().requests] == ["a"]
    assert len(triton_recorded.batches) == 1


def test_a_child_that_initializes_itself(pb_utils, triton_recorded):
    """Decorated like its parent, it is recorded once, whether or not it calls its parent's initialize."""

    def initialize(self, args):
        parent.initialize(self, args)

    parent = axonize_triton.instrument(make_model(pb_utils))
    child = axonize_triton.instrument(type("Child", (parent,), {"initialize": initialize}))
    Stub(child).execute(pb_utils.InferenceRequest("a"))
    assert len(triton_recorded.flush().requests) == 1


def test_attached_in_initialize(pb_utils, triton_recorded):
    """The class itself stays as it is."""

    def initialize(self, args):
        axonize_triton.attach(self, args, device="gpu:1", service_name="svc")

    stub = Stub(make_model(pb_utils, initialize=initialize))
    stub.execute(pb_utils.InferenceRequest("a"))
    (request,) = triton_recorded.flush().requests
    assert (request.source.service_name, request.source.device) == ("svc", ("cuda", 1, None))


def test_nothing_happens_before_initialize(monkeypatch):
    """A model's file is also imported to ask for its configuration, where there is no backend to change."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", None)
    monkeypatch.setattr(model_module, "get_recorder", lambda: pytest.fail("used"))

    @axonize_triton.instrument
    class TritonPythonModel:
        @staticmethod
        def auto_complete_config(config):
            return config

    assert TritonPythonModel.auto_complete_config(1) == 1


@pytest.mark.parametrize("switch", ["AXONIZE_DISABLED", "OTEL_SDK_DISABLED"])
def test_switched_off(pb_utils, triton_recorded, triton_environment, switch):
    """The instance stays as it was made."""
    triton_environment(switch, "true")
    stub = Stub(axonize_triton.instrument(make_model(pb_utils)))
    stub.execute(pb_utils.InferenceRequest("a"))
    assert vars(stub.model) == {}
    assert triton_recorded.flush().requests == []


def test_what_we_cannot_do_is_logged_and_counted(pb_utils, triton_recorded, triton_errors, triton_environment, caplog):
    """The model serves without us."""
    triton_environment("AXONIZE_TRITON_DEVICE", "the fast one")
    stub = Stub(axonize_triton.instrument(make_model(pb_utils)))
    assert len(stub.execute(pb_utils.InferenceRequest("a"))) == 1
    assert triton_errors.take() == {"triton.attach": 1}
    assert "'the fast one' is not like cuda:0 or cpu" in caplog.text


def test_finalize_hands_over_in_bounded_time(pb_utils, triton_recorded, monkeypatch):
    """Also where the model's own fails; what it raised is raised."""
    closed = []
    monkeypatch.setattr(get_recorder(), "close", closed.append)

    def finalize(self):
        raise OSError("model")

    stub = Stub(axonize_triton.instrument(make_model(pb_utils, finalize=finalize)))
    with pytest.raises(OSError, match="model"):
        stub.finalize()
    assert closed == [2.0]


def test_a_failing_flush_does_not_fail_finalize(pb_utils, triton_recorded, triton_errors, monkeypatch):
    """It is counted."""
    stub = Stub(axonize_triton.instrument(make_model(pb_utils)))
    with monkeypatch.context() as patch:
        patch.setattr(get_recorder(), "close", lambda _: 1 / 0)
        stub.finalize()
    assert triton_errors.take() == {"triton.finalize": 1}


def test_an_environment_that_breaks_the_backend_is_named(pb_utils, triton_recorded, monkeypatch, caplog):
    """The server says nothing of it."""
    monkeypatch.setattr(model_module, "numpy_pitfall", lambda: "numpy breaks it")
    Stub(axonize_triton.instrument(make_model(pb_utils)))
    assert caplog.record_tuples == [("axonize.triton", logging.ERROR, "axonize: numpy breaks it")]


def test_an_environment_that_cannot_be_looked_at(pb_utils, triton_recorded, triton_errors, monkeypatch, caplog):
    """Is counted, and the model recorded all the same."""
    monkeypatch.setattr(model_module, "numpy_pitfall", lambda: 1 / 0)
    stub = Stub(axonize_triton.instrument(make_model(pb_utils)))
    assert "execute" in vars(stub.model)
    assert triton_errors.take() == {"triton.pitfalls": 1}
    assert not caplog.records
