"""Which processes run on which GPU or slice, as the driver lists them, and how busy each keeps its GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pynvml

from axonize_core.events import GpuProcess
from axonize_core.gpu.nvml_errors import optional

if TYPE_CHECKING:
    from collections.abc import Iterable

    from axonize_core.gpu.nvml_topology import Device

__all__ = ["Running", "UtilizationOfProcesses", "read_processes"]

_MOST = 64
"""A GPU has a few processes; a list that is longer is cut, so that no metric grows without bound."""


class Running(msgspec.Struct, frozen=True):
    """The processes of one resource; ``mps`` says that they share it through MPS."""

    processes: tuple[GpuProcess, ...] = ()
    mps: bool = False

    def pids(self) -> frozenset[int]:
        """Return their ids, in the namespace of the driver."""
        return frozenset(process.pid for process in self.processes)


def read_processes(devices: Iterable[Device]) -> dict[str, Running]:
    """Return the processes of each resource; one is missing where the driver does not say."""
    found: dict[str, Running] = {}
    by_place: dict[tuple[str, int | None, int | None], list[Any]] = {}
    for device in devices:
        resource = device.resource
        if resource.kind == "mig":  # its GPU came before it
            place = (resource.gpu.uuid, resource.gi_id, resource.ci_id)
            if resource.gpu.uuid in found:
                found[resource.id] = _running(by_place.get(place, []), mps=False)
            # Without privileges the driver tells the processes of a slice, but not those of its GPU.
            elif (running := optional(pynvml.nvmlDeviceGetComputeRunningProcesses, device.handle)) is not None:
                found[resource.id] = _running(running, mps=False)
            continue
        compute = optional(pynvml.nvmlDeviceGetComputeRunningProcesses, device.handle)
        clients = optional(pynvml.nvmlDeviceGetMPSComputeRunningProcesses, device.handle) or []
        if compute is None:
            continue
        found[resource.id] = _running([*compute, *clients], mps=bool(clients))
        if resource.kind == "sliced":
            for process in compute:
                place = (resource.id, process.gpuInstanceId, process.computeInstanceId)
                by_place.setdefault(place, []).append(process)
    return found


def _running(processes: list[Any], *, mps: bool) -> Running:
    return Running(tuple(GpuProcess(int(p.pid), p.usedGpuMemory) for p in processes[:_MOST]), mps)


class UtilizationOfProcesses:
    """The share of multiprocessor time of each process on one GPU since the last call. Not known for slices."""

    def __init__(self) -> None:
        self._seen_us = 0

    def read(self, handle: Any) -> dict[str, dict[int, float]]:
        """Return the mean share by pid under ``shares``.

        Raises:
            pynvml.NVMLError: the device does not support it.
        """
        try:
            samples = pynvml.nvmlDeviceGetProcessUtilization(handle, self._seen_us)
        except pynvml.NVMLError_NotFound:  # nothing ran since
            return {"shares": {}}
        sums: dict[int, list[int]] = {}
        for sample in samples:
            if sample.timeStamp > self._seen_us and sample.pid:
                sums.setdefault(int(sample.pid), []).append(int(sample.smUtil))
        self._seen_us = max([self._seen_us, *(int(sample.timeStamp) for sample in samples)])
        return {"shares": {pid: sum(found) / len(found) / 100 for pid, found in sums.items()}}
