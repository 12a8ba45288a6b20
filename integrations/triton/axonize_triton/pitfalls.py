"""What makes a model in Triton's Python backend fail without a word, found before it does."""

from __future__ import annotations

import platform
import sys
import sysconfig
from pathlib import Path

__all__ = ["environment_pitfalls", "numpy_pitfall"]

_OWN = Path("/proc/self/exe")
_NUMPY_2 = 2
_NUMPY = (
    "numpy {version} breaks this Triton's Python backend: its tensors come back empty and every answer with them;"
    " install numpy<2 into the model's environment, or use a Triton built for numpy 2"
)


def numpy_pitfall(stub: Path = _OWN) -> str | None:
    """Say whether tensors lose their content on the way from this environment's numpy to this stub; None when not.

    The stub reads numpy's structures by way of pybind11, which before 2.12 takes every item to have no bytes where
    numpy is 2 or newer: in Python all looks well, and the server answers with nothing. Which pybind11 it was shows in
    how it imports numpy (seen in builds with 2.11.1, 2.12.0, 2.13.6 and 3.0.1).

    Args:
        stub: the program that runs the model; by default this process.
    """
    try:
        import numpy as np  # noqa: PLC0415 - the model's own
    except ImportError:
        return None
    if int(np.__version__.split(".")[0]) < _NUMPY_2:
        return None
    program = stub.read_bytes()
    return _NUMPY.format(version=np.__version__) if b"numpy.core.multiarray" in program else None


def environment_pitfalls(stub: Path | None = None) -> list[str]:
    """Return what will not work in this Python environment as that of a model; for ``axonize triton status``.

    Args:
        stub: the ``triton_python_backend_stub`` that is to use it, where it is known.
    """
    found = []
    if not sysconfig.get_config_var("Py_ENABLE_SHARED"):
        found.append(
            f"{sys.executable} was built without a shared libpython, which the stub loads: use a Python built with"
            " --enable-shared (Debian's, conda's, uv's and python.org's are)"
        )
    if sys.platform != "linux":
        found.append(f"Triton's Python backend runs on Linux; this is {sys.platform}")
    machine = platform.machine()
    if stub is not None and stub.is_file() and (other := _machine(stub)) not in (None, machine):
        found.append(f"{stub} is for {other}, this machine is {machine}")
    if stub is not None and stub.is_file() and (numpy := numpy_pitfall(stub)):
        found.append(numpy)
    return found


_MACHINES = {62: "x86_64", 183: "aarch64"}


def _machine(path: Path) -> str | None:
    """Return the architecture of an ELF file (``e_machine``)."""
    header = path.read_bytes()[:20]
    if header[:4] != b"\x7fELF":
        return None
    return _MACHINES.get(int.from_bytes(header[18:20], "little"), "another architecture")
