"""One reading of a device: every field NVML has, in the units of ``GpuSample``, or None and NVML's reason.

A field that a device does not have is not asked for again; one that may not be read is, since permissions change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pynvml

from axonize_core.gpu.nvml_errors import LASTING, LOST, code

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    Fields = tuple[tuple[Callable[[Any], dict[str, Any]], tuple[str, ...]], ...]

__all__ = ["GPU_FIELDS", "OF_THE_GPU_ONLY", "SLICE_FIELDS", "FieldReader"]

_KIB, _MHZ = 1024, 1_000_000
_ALL_LINKS = 0xFFFFFFFF
"""As the scope of an NVLink field: the sum over all links (nvml.h); any other number is one link."""


def _utilization(handle: Any) -> dict[str, Any]:
    rates = pynvml.nvmlDeviceGetUtilizationRates(handle)
    return {"utilization": rates.gpu / 100, "memory_utilization": rates.memory / 100}


def _memory(handle: Any) -> dict[str, Any]:
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return {"memory_used_bytes": int(memory.used), "memory_total_bytes": int(memory.total)}


def _power(handle: Any) -> dict[str, Any]:
    return {"power_w": pynvml.nvmlDeviceGetPowerUsage(handle) / 1000}


def _temperature(handle: Any) -> dict[str, Any]:
    return {"temperature_c": float(pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU))}


def _sm_clock(handle: Any) -> dict[str, Any]:
    return {"sm_clock_hz": pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM) * _MHZ}


def _memory_clock(handle: Any) -> dict[str, Any]:
    return {"memory_clock_hz": pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM) * _MHZ}


def _throttle(handle: Any) -> dict[str, Any]:
    # Named throttle reasons before version 12.535 of the bindings.
    read = getattr(pynvml, "nvmlDeviceGetCurrentClocksEventReasons", None)
    return {"throttle_reasons": int((read or pynvml.nvmlDeviceGetCurrentClocksThrottleReasons)(handle))}


def _pcie_transmit(handle: Any) -> dict[str, Any]:
    kib = pynvml.nvmlDeviceGetPcieThroughput(handle, pynvml.NVML_PCIE_UTIL_TX_BYTES)
    return {"pcie_transmit_bytes_per_s": kib * _KIB}


def _pcie_receive(handle: Any) -> dict[str, Any]:
    kib = pynvml.nvmlDeviceGetPcieThroughput(handle, pynvml.NVML_PCIE_UTIL_RX_BYTES)
    return {"pcie_receive_bytes_per_s": kib * _KIB}


def _ecc_corrected(handle: Any) -> dict[str, Any]:
    kind, since = pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED, pynvml.NVML_AGGREGATE_ECC
    return {"ecc_corrected_errors": pynvml.nvmlDeviceGetTotalEccErrors(handle, kind, since)}


def _ecc_uncorrected(handle: Any) -> dict[str, Any]:
    kind, since = pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_AGGREGATE_ECC
    return {"ecc_uncorrected_errors": pynvml.nvmlDeviceGetTotalEccErrors(handle, kind, since)}


def _value(handle: Any, field: int, scope: int = 0) -> int:
    (found,) = pynvml.nvmlDeviceGetFieldValues(handle, [(field, scope)])
    if found.nvmlReturn != pynvml.NVML_SUCCESS:
        raise pynvml.NVMLError(found.nvmlReturn)
    wide = found.valueType in (pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG, pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG)
    return int(found.value.ullVal if wide else found.value.uiVal)


def _power_instant(handle: Any) -> dict[str, Any]:
    return {"power_instant_w": _value(handle, pynvml.NVML_FI_DEV_POWER_INSTANT) / 1000}


def _nvlink_transmit(handle: Any) -> dict[str, Any]:
    return {"nvlink_transmit_bytes": _value(handle, pynvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX, _ALL_LINKS) * _KIB}


def _nvlink_receive(handle: Any) -> dict[str, Any]:
    return {"nvlink_receive_bytes": _value(handle, pynvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX, _ALL_LINKS) * _KIB}


GPU_FIELDS: Fields = (
    (_utilization, ("utilization", "memory_utilization")),
    (_memory, ("memory_used_bytes", "memory_total_bytes")),
    (_power, ("power_w",)),
    (_power_instant, ("power_instant_w",)),
    (_temperature, ("temperature_c",)),
    (_sm_clock, ("sm_clock_hz",)),
    (_memory_clock, ("memory_clock_hz",)),
    (_throttle, ("throttle_reasons",)),
    (_pcie_transmit, ("pcie_transmit_bytes_per_s",)),
    (_pcie_receive, ("pcie_receive_bytes_per_s",)),
    (_nvlink_transmit, ("nvlink_transmit_bytes",)),
    (_nvlink_receive, ("nvlink_receive_bytes",)),
    (_ecc_corrected, ("ecc_corrected_errors",)),
    (_ecc_uncorrected, ("ecc_uncorrected_errors",)),
)
"""How to read a GPU, and which fields each call gives. Energy and processes need memory, and stand elsewhere."""
SLICE_FIELDS: Fields = ((_memory, ("memory_used_bytes", "memory_total_bytes")),)
"""All that NVML knows of a slice itself."""
OF_THE_GPU_ONLY = {
    name: "NVML tells it of the whole GPU only"
    for name in ("energy_j", "processes.utilization", *(name for _, names in GPU_FIELDS for name in names))
    if name not in ("utilization", "memory_used_bytes", "memory_total_bytes")
}
"""Why a slice has no other field."""


class FieldReader:
    """Reads one device. ``unavailable`` says why a field is None; ``broken`` fields are not asked for again."""

    def __init__(self, fields: Fields, unavailable: dict[str, str] | None = None) -> None:
        self.unavailable = unavailable or {}
        self._fields = fields
        self._missing: set[str] = set()

    def read(self, handle: Any) -> dict[str, Any]:
        """Return the fields the device has.

        Raises:
            pynvml.NVMLError: the device or the driver is gone.
        """
        found: dict[str, Any] = {}
        for read, names in self._fields:
            found.update(self.one(names, read, handle))
        return found

    def one(self, names: Collection[str], read: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
        """Return what one call gives, or nothing, with the reason kept under each of its names."""
        if not self._missing.isdisjoint(names):
            return {}
        try:
            found = read(*arguments)
        except pynvml.NVMLError as e:
            if code(e) in LOST and code(e) != pynvml.NVML_ERROR_NOT_FOUND:
                raise
            self.unavailable = {**self.unavailable, **dict.fromkeys(names, str(e))}
            if code(e) in LASTING:
                self._missing.update(names)
            return {}
        if not self.unavailable.keys().isdisjoint(names):
            self.unavailable = {name: why for name, why in self.unavailable.items() if name not in names}
        return found
