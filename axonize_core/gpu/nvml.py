"""NVIDIA GPUs through NVML (nvidia-ml-py, the package that provides ``import pynvml``).

A reading the device does not support is None, never 0. A MIG-sliced GPU is not resolved to a slice yet: its work
stays unattributed rather than wrongly attributed.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

import pynvml

from axonize_core.events import GpuSample
from axonize_core.gpu.identity import ComputeResource, PhysicalGpu

if TYPE_CHECKING:
    from collections.abc import Callable

    from axonize_core.events import SourceInfo

__all__ = ["NvmlProvider"]


class NvmlProvider:
    """The GPUs of this machine.

    Raises:
        pynvml.NVMLError: at creation, when there is no driver.
    """

    provenance = "measured"

    def __init__(self) -> None:
        pynvml.nvmlInit()
        driver = _text(pynvml.nvmlSystemGetDriverVersion())
        self._handles: dict[str, Any] = {}
        self._resources: dict[str, ComputeResource] = {}
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            memory = _supported(partial(_total_bytes, handle))
            uuid, name = _text(pynvml.nvmlDeviceGetUUID(handle)), _text(pynvml.nvmlDeviceGetName(handle))
            self._handles[uuid] = handle
            self._resources[uuid] = ComputeResource(uuid, PhysicalGpu(uuid, name, memory, driver))

    def resources(self) -> list[ComputeResource]:
        """Return the GPUs in NVML's order."""
        return list(self._resources.values())

    def sample(self, resource: ComputeResource) -> GpuSample:
        """Read one GPU. NVML gives percent, milliwatts, millijoules, bytes and degrees Celsius."""
        handle = self._handles[resource.id]
        utilization = _supported(lambda: pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)
        power_mw = _supported(lambda: pynvml.nvmlDeviceGetPowerUsage(handle))
        energy_mj = _supported(lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))
        return GpuSample(
            compute_resource=resource.id,
            physical_gpu=resource.gpu.uuid,
            name=resource.gpu.name,
            time_ns=time.time_ns(),
            provenance=self.provenance,
            utilization=None if utilization is None else utilization / 100,
            memory_used_bytes=_supported(lambda: pynvml.nvmlDeviceGetMemoryInfo(handle).used),
            power_w=None if power_mw is None else power_mw / 1000,
            energy_j=None if energy_mj is None else energy_mj / 1000,
            temperature_c=_supported(lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)),
        )

    def resolve(self, source: SourceInfo) -> ComputeResource | None:
        """Return the GPU with the source's uuid, or the only one there is.

        An index alone does not name a GPU (CUDA_VISIBLE_DEVICES renumbers them), so it is not guessed from.
        """
        kind, _, uuid = source.device
        if kind != "cuda":
            return None
        if uuid is not None:
            return self._resources.get(uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}")
        if len(self._resources) != 1:
            return None
        only = next(iter(self._resources.values()))
        return None if self._is_sliced(only) else only

    def _is_sliced(self, resource: ComputeResource) -> bool:
        mode = _supported(lambda: pynvml.nvmlDeviceGetMigMode(self._handles[resource.id])[0])
        return bool(mode)

    def close(self) -> None:
        """Shut NVML down."""
        pynvml.nvmlShutdown()


def _total_bytes(handle: Any) -> int:
    return int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _supported(read: Callable[[], Any]) -> Any:
    """Return the reading, or None when the device has none."""
    try:
        return read()
    except pynvml.NVMLError:
        return None
