"""What fails without a word in Triton's Python backend, and what is said of it."""

from __future__ import annotations

import platform
import sys
import sysconfig
from types import SimpleNamespace

import numpy as np
import pytest

from axonize_triton import pitfalls


class Tensor:
    def __init__(self, name, array):
        self.array = array

    def as_numpy(self):
        return self.array


def test_a_tensor_that_keeps_its_content():
    """Nothing is said."""
    assert pitfalls.numpy_pitfall(SimpleNamespace(Tensor=Tensor)) is None


def test_a_tensor_that_loses_it():
    """Says which numpy it is and what to do."""
    backend = SimpleNamespace(Tensor=lambda name, array: Tensor(name, array[:0]))
    said = pitfalls.numpy_pitfall(backend)
    assert said.startswith(f"numpy {np.__version__} breaks")
    assert "install numpy<2" in said


def test_without_numpy(monkeypatch):
    """There is nothing to break."""
    monkeypatch.setitem(sys.modules, "numpy", None)
    assert pitfalls.numpy_pitfall(SimpleNamespace()) is None


@pytest.fixture
def good(monkeypatch):
    """An environment in which everything works, to take one thing from."""
    monkeypatch.setattr(sysconfig, "get_config_var", lambda _: 1)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    return monkeypatch


def stub(tmp_path, machine, magic=b"\x7fELF"):
    path = tmp_path / "triton_python_backend_stub"
    path.write_bytes(magic.ljust(18, b"\0") + machine.to_bytes(2, "little"))
    return path


def test_an_environment_that_works(good, tmp_path):
    """Nothing is said, also not of a stub that is for this machine, or is no program at all, or is not there."""
    assert pitfalls.environment_pitfalls() == []
    assert pitfalls.environment_pitfalls(stub(tmp_path, 62)) == []
    assert pitfalls.environment_pitfalls(stub(tmp_path, 62, b"#!/b")) == []
    assert pitfalls.environment_pitfalls(tmp_path / "nowhere") == []


def test_a_python_without_a_shared_library(good):
    """The stub cannot load it."""
    good.setattr(sysconfig, "get_config_var", {"Py_ENABLE_SHARED": 0}.get)
    (said,) = pitfalls.environment_pitfalls()
    assert said.startswith(f"{sys.executable} was built without a shared libpython")


def test_another_system(good):
    """Triton's Python backend is for Linux."""
    good.setattr(sys, "platform", "darwin")
    assert pitfalls.environment_pitfalls() == ["Triton's Python backend runs on Linux; this is darwin"]


@pytest.mark.parametrize(("machine", "name"), [(183, "aarch64"), (243, "another architecture")])
def test_a_stub_for_another_machine(good, tmp_path, machine, name):
    """Both are named."""
    path = stub(tmp_path, machine)
    assert pitfalls.environment_pitfalls(path) == [f"{path} is for {name}, this machine is x86_64"]
