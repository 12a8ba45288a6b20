"""Recording without a word in the model's code: what the ``.pth`` file of ``axonize triton enable`` runs.

It runs at the start of every Python of that environment, so it looks at two facts and leaves: whether AXONIZE_TRITON
asks for it, and whether this process is the stub that Triton runs a model in. Triton tells the stub on its command line
which file the model is; when that was imported, its class is instrumented.
"""

from __future__ import annotations

import os
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

__all__ = ["install", "model_file"]

STUB = "triton_python_backend_stub"
_TRUE = {"1", "true", "yes", "on"}


def install() -> bool:
    """Wait for the model's file to be imported, if this is a stub and asked for. Never raises."""
    try:
        if os.environ.get("AXONIZE_TRITON", "").strip().lower() not in _TRUE:
            return False
        path = model_file()
        if path is None:
            return False
        sys.meta_path.insert(0, _Finder(path))
    except Exception:  # noqa: BLE001 - the model serves without us
        return False
    return True


def model_file(proc: Path = Path("/proc/self")) -> Path | None:
    """Return the model's file as the stub was told, None where this process is no stub."""
    if (proc / "exe").readlink().name != STUB:
        return None
    arguments = (proc / "cmdline").read_bytes().split(b"\0")
    return Path(os.fsdecode(arguments[1])).resolve() if len(arguments) > 1 and arguments[1] else None


class _Finder(MetaPathFinder):
    """Finds one file, once, as it would have been found, and gives it a loader that instruments afterwards."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        try:
            spec = PathFinder.find_spec(name, path, target)
            if spec is None or spec.origin is None or spec.loader is None or Path(spec.origin).resolve() != self._path:
                return None
            sys.meta_path.remove(self)
            spec.loader = _Instrumenting(spec.loader)
        except Exception:  # noqa: BLE001 - it is found as if we were not there
            return None
        return spec


class _Instrumenting(Loader):
    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        try:
            from axonize_triton.model import instrument  # noqa: PLC0415 - only a stub needs it

            model = getattr(module, "TritonPythonModel", None)
            if isinstance(model, type):
                instrument(model)
        except Exception:  # noqa: BLE001 - same
            return

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)
