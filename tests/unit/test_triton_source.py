"""What a model's instance says of itself, and what device that is."""

from __future__ import annotations

import pytest

from axonize_core.recorder import get_recorder
from axonize_triton.source import device_of, model_source
from fix_triton_backend import ARGUMENTS


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("cuda:2", ("cuda", 2, None)),
        (" GPU:1 ", ("cuda", 1, None)),
        ("cuda", ("cuda", 0, None)),
        ("cpu", ("cpu", 0, None)),
        (None, ("cuda", 3, None)),
        ("", ("cuda", 3, None)),
    ],
)
def test_the_device(given, expected):
    """What is given wins over the instance group."""
    assert device_of({"model_instance_kind": "GPU", "model_instance_device_id": "3"}, given) == expected


def test_a_cpu_instance_has_an_id_too():
    """Which names no device."""
    assert device_of({"model_instance_kind": "CPU", "model_instance_device_id": "1"}, None) == ("cpu", 0, None)


@pytest.mark.parametrize("given", ["cuda:x", "tpu:0", "0", "cuda:0,1"])
def test_a_device_that_cannot_be_read(given):
    """Is named."""
    with pytest.raises(ValueError, match=repr(given)):
        device_of({}, given)


def source(**more):
    source_id = model_source({**ARGUMENTS, **more.pop("args", {})}, more.get("device"), more.get("service_name"))
    return source_id, dict(get_recorder().sources)[source_id]


def test_what_a_source_says(triton_environment):
    """Name, version and instance of the model; who has no service name is unknown."""
    _, (engine, service, model, provider, device, attributes) = source()
    assert (engine, service, model, provider) == ("triton", "unknown_service:triton", "add", "triton")
    assert (device, dict(attributes)) == (("cpu", 0, None), {"ai.model.version": "1", "ai.model.instance": "add_0_0"})


def test_two_instances_are_two_sources(triton_environment):
    """And the same one is one, however often it is asked for."""
    first, _ = source()
    assert source()[0] == first
    assert source(args={"model_instance_name": "add_0_1"})[0] != first


def test_the_environment(triton_environment):
    """The service name of the code wins over the environment's, the device of the environment over the code's."""
    triton_environment("OTEL_SERVICE_NAME", "of-environment")
    triton_environment("AXONIZE_TRITON_DEVICE", "cuda:1")
    assert source(device="cpu")[1][1:5:3] == ("of-environment", ("cuda", 1, None))
    assert source(service_name="of-code")[1][1] == "of-code"
