"""How busy a slice is, by GPM (GPU performance monitoring, Hopper and later): the mean between two of its samples.

NVML's utilisation is not defined for slices. GPM counts per GPU instance, without locks on profilers, so it says
nothing of a compute instance that shares its GPU instance with others.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pynvml

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["SliceMonitor"]

SHORTEST_S = 0.15
"""Between two samples nvml.h wants more than 100 ms; a shorter window is left to the next reading."""


class SliceMonitor:
    """GPM's samples of the slices of one machine. Sampler's thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._taken: dict[tuple[str, int], float] = {}
        self._supported: dict[str, bool] = {}
        self._samples: dict[tuple[str, int], tuple[Any, Any]] = {}
        self._begun: set[tuple[str, int]] = set()
        self._request: Any = None

    def utilization(self, gpu_uuid: str, gpu_handle: Any, gi_id: int) -> dict[str, float]:
        """Return the busy share of a GPU instance since the last reading; nothing on the first, or too soon.

        Raises:
            pynvml.NVMLError: NotSupported before Hopper; or the slice is gone.
        """
        if not self._supports(gpu_uuid, gpu_handle):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        key = (gpu_uuid, gi_id)
        if key not in self._samples:
            # Kept before they are used, so that they are freed whatever the first reading gives.
            self._samples[key] = (pynvml.nvmlGpmSampleAlloc(), pynvml.nvmlGpmSampleAlloc())
            self._begun.discard(key)
        if key in self._begun and self._clock() - self._taken[key] < SHORTEST_S:
            return {}
        self._taken[key] = self._clock()
        earlier, later = self._samples[key]
        pynvml.nvmlGpmMigSampleGet(gpu_handle, gi_id, later)
        self._samples[key] = (later, earlier)
        if key not in self._begun:
            self._begun.add(key)
            return {}
        return {"utilization": self._busy(earlier, later)}

    def _busy(self, earlier: Any, later: Any) -> float:
        if self._request is None:  # 19 kB, most of them for metrics nobody asks for
            self._request = pynvml.c_nvmlGpmMetricsGet_t()
        request = self._request
        request.version, request.numMetrics = pynvml.NVML_GPM_METRICS_GET_VERSION, 1
        request.sample1, request.sample2 = earlier, later
        request.metrics[0].metricId = pynvml.NVML_GPM_METRIC_GRAPHICS_UTIL
        pynvml.nvmlGpmMetricsGet(request)
        if request.metrics[0].nvmlReturn != pynvml.NVML_SUCCESS:
            raise pynvml.NVMLError(request.metrics[0].nvmlReturn)
        return float(request.metrics[0].value) / 100

    def _supports(self, gpu_uuid: str, gpu_handle: Any) -> bool:
        if gpu_uuid not in self._supported:
            support = pynvml.nvmlGpmQueryDeviceSupport(gpu_handle)
            self._supported[gpu_uuid] = bool(support.isSupportedDevice)
        return self._supported[gpu_uuid]

    def keep(self, slices: set[tuple[str, int]]) -> None:
        """Free the samples of slices that are gone."""
        for key in self._samples.keys() - slices:
            self._taken.pop(key, None)
            for sample in self._samples.pop(key):
                pynvml.nvmlGpmSampleFree(sample)

    def close(self) -> None:
        """Free everything; NVML must still be open."""
        self.keep(set())
        self._supported.clear()
