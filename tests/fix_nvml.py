"""NVML without a GPU: a ``libnvidia-ml.so.1`` built from ``tests/nvml_stub``, and the machine that it plays.

The real ``pynvml`` loads it. In this process that works because the loader takes a library that is loaded already by
its soname; other processes get it by LD_LIBRARY_PATH.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import shutil
import subprocess
import uuid as uuids
from pathlib import Path

import pynvml
import pytest

SOURCES = Path(__file__).parent / "nvml_stub"
GIB = 1024**3
# Name, architecture, cores, memory, and the profiles of its slices: (SMs, memory slices, GiB); after the MIG user guide.
MODELS = {
    "A100": ("NVIDIA A100-SXM4-40GB", 7, 6912, 40, {"1g.5gb": (14, 1, 4.75), "2g.10gb": (28, 2, 9.75), "3g.20gb": (42, 4, 19.5), "4g.20gb": (56, 4, 19.5), "7g.40gb": (98, 8, 39.25)}),
    "H100": ("NVIDIA H100 80GB HBM3", 9, 16896, 80, {"1g.10gb": (16, 1, 9.75), "1g.20gb": (26, 2, 19.5), "2g.20gb": (32, 2, 19.5), "3g.40gb": (60, 4, 39.25), "4g.40gb": (64, 4, 39.25), "7g.80gb": (132, 8, 79)}),
    "T4": ("Tesla T4", 6, 2560, 16, {}),
}  # fmt: skip
ENGINE = """
import sys
from axonize_core.frames import Kind
from axonize_core.recorder import get_recorder
rec = get_recorder()
src = rec.source("vllm", "", "tiny", "hf", ("cuda", 0, None))
for line in sys.stdin:
    seq, run, times = rec.next_handle(), rec.next_handle(), []
    rec.emit(Kind.REQUEST, seq, (src, rec.clock(), line.strip(), None, "chat", 3, None))
    rec.emit(Kind.RUN, run, (src, (seq,), (3,), "generate", times))
    times += [rec.clock(), rec.clock(), -rec.clock()]
    rec.emit(Kind.RUN_END, run, (2, None))
    rec.emit(Kind.REQUEST_END, seq, ("length", 3, 2, None, None))
    assert rec.flush(30)
    print(rec.instance_id, flush=True)
"""
"""A process that says cuda:0 and serves a request for each line it is given."""


def gpu_uuid(number: int) -> str:
    return f"GPU-{uuids.UUID(int=0xA0000000000000000000000000000000 + number)}"


def mig_uuid(gpu: int, gi: int, ci: int = 0) -> str:
    """As drivers make them: from the GPU and the instance ids, so that a slice made again has its old uuid."""
    return f"MIG-{uuids.uuid5(uuids.NAMESPACE_OID, f'{gpu}/{gi}/{ci}')}"


class Machine:
    """The scripted machine; ``write`` makes a change visible to every process that has the library open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.system: dict = {"driver": "570.86.15", "epoch": 0}
        self.gpus: dict[int, dict] = {}
        self.slices: dict[str, dict] = {}
        self.processes: list[dict] = []

    def add_gpu(self, number: int, model: str = "H100", **more) -> str:
        """Put a GPU in; ``more`` overrides what it answers, None takes a field away."""
        name, architecture, cores, memory_gib, profiles = MODELS[model]
        self.gpus[number] = {
            "uuid": gpu_uuid(number),
            "name": name,
            "pci": f"00000000:{0x10 + number:02X}:00.0",
            "architecture": architecture,
            "cores": cores,
            "memory_total": memory_gib * GIB,
            "memory_used": GIB,
            "utilization": 40,
            "memory_utilization": 20,
            "power": "100000",
            "energy": 5_000_000,
            "temperature": 45,
            "sm_clock": 1410,
            "memory_clock": 1593,
            "reasons": 4,
            "pcie_tx": 100,
            "pcie_rx": 200,
            "nvlink_tx": 7,
            "nvlink_rx": 8,
            "ecc_corrected": 1,
            "ecc_uncorrected": 0,
            "xid_seq": 0,
            "mig_mode": 0 if profiles else "!3",
            "slots": 7 if profiles else 0,
            "gpm": int(architecture >= 9),
            **more,
        }
        return gpu_uuid(number)

    def add_slice(self, gpu: int, gi: int, profile: str, start: int, ci: int = 0, **more) -> str:
        """Make a slice; the GPU is in MIG mode from then on, and tells no utilisation as a whole."""
        model = next(m for m in MODELS.values() if m[0] == self.gpus[gpu]["name"])
        sms, size, memory_gib = model[4][profile]
        self.gpus[gpu].update(mig_mode=1, utilization="!3")
        uuid = mig_uuid(gpu, gi, ci)
        taken = {s["slot"] for s in self.slices.values() if s["gpu"] == gpu_uuid(gpu)}
        self.slices[uuid] = {
            "gpu": gpu_uuid(gpu),
            "uuid": uuid,
            "slot": next(n for n in itertools.count() if n not in taken),
            "gi": gi,
            "ci": ci,
            "name": f"{model[0]} MIG {profile}",
            "sms": sms,
            "start": start,
            "size": size,
            "memory_total": int(memory_gib * GIB),
            "memory_used": 64 * 1024**2,
            "gpm_busy": 25,
            **more,
        }
        return uuid

    def write(self) -> None:
        """Show it, in one step."""
        lines = [
            self._line("system", self.system),
            *(self._line("gpu", gpu) for gpu in self.gpus.values()),
            *(self._line("mig", one) for one in self.slices.values()),
            *(self._line("process", process) for process in self.processes),
        ]
        part = self.path.with_suffix(".part")
        part.write_text("\n".join(lines) + "\n")
        part.replace(self.path)

    @staticmethod
    def _line(kind: str, values: dict) -> str:
        return "\t".join([kind, *(f"{key}={value}" for key, value in values.items() if value is not None)])


def build_library(directory: Path) -> Path | None:
    """Compile the library; None where there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    library = directory / "libnvidia-ml.so.1"
    sources = sorted(map(str, SOURCES.glob("*.c")))
    flags = ["-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-Wl,-soname,libnvidia-ml.so.1"]
    subprocess.run([compiler, *flags, "-o", str(library), *sources, "-lm", "-lpthread"], check=True)
    return library


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory) -> Path:
    """The built library; its folder is what LD_LIBRARY_PATH needs."""
    library = build_library(tmp_path_factory.mktemp("nvml"))
    if library is None:
        pytest.skip("no C compiler: the scripted NVML cannot be built")
    return library


def _forget() -> None:
    """Make pynvml load its library again the next time."""
    pynvml.nvmlLib = None
    pynvml._nvmlGetFunctionPointer_cache.clear()
    pynvml._nvmlLib_refcount = 0


@pytest.fixture
def machine(nvml_library, tmp_path, monkeypatch) -> Machine:
    """An empty machine with a driver, which the pynvml of this process sees; ``add_gpu`` and ``write`` fill it."""
    ctypes.CDLL(str(nvml_library))
    machine = Machine(tmp_path / "machine.txt")
    monkeypatch.setenv("NVML_STUB_SCRIPT", str(machine.path))
    _forget()
    machine.write()
    yield machine
    _forget()


@pytest.fixture
def nvml_environment(nvml_library, machine) -> dict[str, str]:
    """The environment of another process that sees the machine."""
    return {**os.environ, "LD_LIBRARY_PATH": str(nvml_library.parent), "NVML_STUB_SCRIPT": str(machine.path)}
