"""Recording without a word in the model's code: what runs in every Python, and what in a stub only."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

import pytest

from axonize_triton import boot

MODEL = "class TritonPythonModel:\n    def initialize(self, args):\n        pass\n"


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A repository with a model in it, importable as the stub does it; ``proc`` is what /proc says of that stub."""
    path = tmp_path / "models" / "add" / "1" / "model.py"
    path.parent.mkdir(parents=True)
    path.write_text(MODEL)
    monkeypatch.setattr(sys, "path", [*sys.path, str(path.parent.parent)])
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield path
    for name in [name for name, module in sys.modules.items() if str(tmp_path) in str(module)]:
        del sys.modules[name]


def proc(folder, *, exe="triton_python_backend_stub", arguments=()):
    """Return a folder like /proc/self."""
    folder.mkdir()
    (folder / "exe").symlink_to(f"/backends/python/{exe}")
    (folder / "cmdline").write_bytes(b"\0".join(str(a).encode() for a in (exe, *arguments)) + b"\0")
    return folder


def is_wrapped(module):
    return hasattr(module.TritonPythonModel.initialize, "_axonize_attached")


@pytest.fixture
def stub(model, tmp_path, monkeypatch):
    """This process as a stub that is about to import the model."""
    told = proc(tmp_path / "proc", arguments=(model, "shm", "x"))
    monkeypatch.setattr(boot.model_file, "__defaults__", (told,))
    monkeypatch.setenv("AXONIZE_TRITON", "1")


@pytest.mark.parametrize("value", [None, "", "0", "false", "no"])
def test_not_asked_for(stub, monkeypatch, value):
    """Nothing is looked at."""
    if value is None:
        monkeypatch.delenv("AXONIZE_TRITON")
    else:
        monkeypatch.setenv("AXONIZE_TRITON", value)
    monkeypatch.setattr(boot, "model_file", lambda: pytest.fail("asked"))
    assert boot.install() is False


def test_any_other_python(monkeypatch):
    """This one is no stub."""
    monkeypatch.setenv("AXONIZE_TRITON", "1")
    before = list(sys.meta_path)
    assert boot.install() is False
    assert sys.meta_path == before


@pytest.mark.parametrize(
    ("exe", "arguments", "expected"),
    [
        ("triton_python_backend_stub", ("/models/add/1/model.py", "shm"), Path("/models/add/1/model.py")),
        ("triton_python_backend_stub", (), None),
        ("triton_python_backend_stub", ("",), None),
        ("python3", ("/models/add/1/model.py",), None),
    ],
)
def test_which_file_the_model_is(tmp_path, exe, arguments, expected):
    """As the stub was told."""
    assert boot.model_file(proc(tmp_path / "proc", exe=exe, arguments=arguments)) == expected


def test_the_model_is_instrumented(stub, model):
    """As it is imported, under whichever name; what is imported before is left alone, and we are gone afterwards."""
    before = list(sys.meta_path)
    assert boot.install() is True
    (model.parent.parent / "other.py").write_text(MODEL)
    assert not is_wrapped(importlib.import_module("other"))
    module = importlib.import_module("1.model")
    assert is_wrapped(module)
    assert sys.meta_path == before
    assert Path(module.__file__) == model
    assert module.__spec__.loader.is_package("1.model") is False


def test_installed_twice(stub):
    """By two environments, say: it is wrapped once."""
    assert boot.install()
    assert boot.install()
    module = importlib.import_module("1.model")
    assert is_wrapped(module)
    assert not hasattr(module.TritonPythonModel.initialize.__wrapped__, "__wrapped__")


def test_reached_by_a_link(stub, model, tmp_path, monkeypatch):
    """A repository may be one; the file is what counts."""
    (tmp_path / "link").symlink_to(model.parent.parent)
    monkeypatch.setattr(sys, "path", [p if p != str(model.parent.parent) else str(tmp_path / "link") for p in sys.path])
    assert boot.install()
    assert is_wrapped(importlib.import_module("1.model"))


def test_a_module_created_by_its_loader(stub, model):
    """Python asks the loader first."""
    boot.install()
    spec = importlib.util.find_spec("1.model")
    assert spec.loader.create_module(spec) is None


@pytest.mark.parametrize("text", ["TritonPythonModel = 1\n", "x = 1\n"])
def test_a_file_without_a_model_class(stub, model, text):
    """Triton says what is wrong with it."""
    model.write_text(text)
    boot.install()
    importlib.import_module("1.model")


def test_a_model_that_cannot_be_imported(stub, model):
    """Fails as it would without us."""
    model.write_text("raise OSError('model')\n")
    boot.install()
    with pytest.raises(OSError, match="model"):
        importlib.import_module("1.model")


def failing(*_, **__):
    raise RuntimeError("ours")


def test_a_failure_of_ours(stub, model, monkeypatch):
    """Wherever it is, the model is imported, without us."""
    with monkeypatch.context() as patch:
        patch.setattr(boot, "model_file", failing)
        assert boot.install() is False
    boot.install()
    with monkeypatch.context() as patch:
        patch.setattr(boot.PathFinder, "find_spec", failing)
        assert sys.meta_path[0].find_spec("1.model", None) is None
    with monkeypatch.context() as patch:
        patch.setattr("axonize_triton.model.instrument", failing)
        assert not is_wrapped(importlib.import_module("1.model"))
