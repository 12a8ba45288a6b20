"""Puts the versions of transformers that the matrix runs beside the one that is installed, sharing its torch."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["CannotInstallError", "installed_path"]

STAMP = ".requirements"
CACHE = Path(sys.prefix) / "hf-matrix"
"""One folder per version; it goes when the environment goes."""

# transformers insists on versions of these two, and on none of what torch brings.
COMPANIONS = {
    "4.46.3": ("tokenizers>=0.20,<0.21", "huggingface-hub>=0.23.2,<1"),
    "4.57.6": ("tokenizers>=0.22,<=0.23.0", "huggingface-hub>=0.34,<1"),
    "5.0.0": ("tokenizers>=0.22,<=0.23.0", "huggingface-hub>=1.3,<2"),
}
SHARED = ("peft==0.21.2", "accelerate==1.15.0", "pillow>=12,<14")


class CannotInstallError(Exception):
    """pip could not install a version, and why."""


def installed_path(version: str) -> list[str]:
    """Return what must come first on sys.path for this version; installs it into the cache if it is not there.

    Raises:
        CannotInstallError: pip failed, such as without a network.
    """
    shared = _folder("shared", SHARED)
    if metadata.version("transformers") == version:
        return [str(shared)]
    return [str(_folder(f"transformers-{version}", (f"transformers=={version}", *COMPANIONS[version]))), str(shared)]


def _folder(name: str, requirements: tuple[str, ...]) -> Path:
    """Return the cached folder with exactly these requirements; made aside and renamed, so it is whole or absent."""
    folder, stamp = CACHE / name, "\n".join(requirements)
    with _lock():
        if (folder / STAMP).exists() and (folder / STAMP).read_text() == stamp:
            return folder
        made = Path(tempfile.mkdtemp(dir=CACHE))
        try:
            _pip(made, requirements)
            (made / STAMP).write_text(stamp)
            shutil.rmtree(folder, ignore_errors=True)
            made.rename(folder)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    return folder


@contextlib.contextmanager
def _lock() -> Iterator[None]:
    """Keep other threads and processes from installing at the same time."""
    CACHE.mkdir(exist_ok=True)
    with (CACHE / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _pip(target: Path, requirements: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "-q", "--no-deps"]
    options = ["--no-compile", "--retries", "1", "--target", str(target)]
    env = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run([*command, *options, *requirements], capture_output=True, text=True, check=False, env=env)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise CannotInstallError((errors or done.stderr.splitlines() or ["pip failed"])[-1])
