"""What fails without a word in Triton's Python backend, and what is said of it."""

from __future__ import annotations

import platform
import sys
import sysconfig

import pytest

from axonize_triton import pitfalls

np = pytest.importorskip("numpy")

OLD, NEW = b"\0numpy.core.multiarray\0", b"\0numpy._core\0numpy.core\0NumpyVersion\0multiarray\0"


@pytest.mark.parametrize(
    ("version", "program", "breaks"),
    [("2.4.6", OLD, True), ("2.4.6", NEW, False), ("1.26.4", OLD, False), ("10.0.0", OLD, True)],
)
def test_numpy(monkeypatch, tmp_path, version, program, breaks):
    """A stub built before numpy 2 takes no content from it: says which numpy it is and what to do."""
    monkeypatch.setattr(np, "__version__", version)
    (tmp_path / "stub").write_bytes(program)
    said = pitfalls.numpy_pitfall(tmp_path / "stub")
    assert (said is not None) is breaks
    assert not said or said.startswith(f"numpy {version} breaks this Triton")
    assert not said or "install numpy<2" in said


def test_this_python():
    """Is no stub."""
    assert pitfalls.numpy_pitfall() is None


def test_without_numpy(monkeypatch):
    """There is nothing to break."""
    monkeypatch.setitem(sys.modules, "numpy", None)
    assert pitfalls.numpy_pitfall() is None


@pytest.fixture
def good(monkeypatch):
    """An environment in which everything works, to take one thing from."""
    monkeypatch.setattr(sysconfig, "get_config_var", lambda _: 1)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    return monkeypatch


def stub(tmp_path, machine, magic=b"\x7fELF", rest=b""):
    path = tmp_path / "triton_python_backend_stub"
    path.write_bytes(magic.ljust(18, b"\0") + machine.to_bytes(2, "little") + rest)
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


def test_a_stub_that_numpy_breaks(good, tmp_path):
    """Is found before a server is started with it."""
    good.setattr(np, "__version__", "2.4.6")
    (said,) = pitfalls.environment_pitfalls(stub(tmp_path, 62, rest=OLD))
    assert said.startswith("numpy 2.4.6 breaks")
