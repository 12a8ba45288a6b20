"""A simulated device, for machines without one; labelled ``simulated`` wherever it appears.

Its readings follow a smooth curve of time, so that charts and annotations have something to show. They say nothing
about the work that ran.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from axonize_core.events import GpuSample
from axonize_core.gpu.identity import ComputeResource, PhysicalGpu

if TYPE_CHECKING:
    from collections.abc import Callable

    from axonize_core.events import SourceInfo

__all__ = ["SimulatedProvider"]

_GIB = 1024**3
_MEMORY_BYTES = 16 * _GIB
_IDLE_W, _BUSY_W = 40.0, 260.0
_PERIOD_S = 20.0


class SimulatedProvider:
    """One simulated GPU that every source runs on."""

    provenance = "simulated"

    def __init__(self, clock: Callable[[], int] = time.time_ns) -> None:
        gpu = PhysicalGpu("GPU-simulated-0", "Simulated GPU", _MEMORY_BYTES, None)
        self._resource = ComputeResource(gpu.uuid, gpu)
        self._clock = clock
        self._energy_j = 0.0
        self._last_ns = clock()

    def resources(self) -> list[ComputeResource]:
        """Return the one device."""
        return [self._resource]

    def sample(self, resource: ComputeResource) -> GpuSample:
        """Return the curve's value now; energy is the integral of power."""
        now_ns = self._clock()
        busy = 0.5 + 0.4 * math.sin(2 * math.pi * now_ns / 1e9 / _PERIOD_S)
        power_w = _IDLE_W + (_BUSY_W - _IDLE_W) * busy
        self._energy_j += power_w * (now_ns - self._last_ns) / 1e9
        self._last_ns = now_ns
        return GpuSample(
            compute_resource=resource.id,
            physical_gpu=resource.gpu.uuid,
            name=resource.gpu.name,
            time_ns=now_ns,
            provenance=self.provenance,
            utilization=round(busy, 3),
            memory_used_bytes=int(_MEMORY_BYTES * (0.3 + 0.2 * busy)) // 2**20 * 2**20,
            power_w=round(power_w, 1),
            energy_j=round(self._energy_j, 3),
            temperature_c=round(35 + 35 * busy, 1),
        )

    def resolve(self, source: SourceInfo) -> ComputeResource | None:  # noqa: ARG002 - everything runs on it
        """Return the one device, whatever the source calls its own."""
        return self._resource

    def close(self) -> None:
        """Nothing to let go of."""
