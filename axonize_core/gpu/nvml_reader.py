"""Reads one device after another into ``GpuSample``, with what must be remembered between two readings of it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec
import pynvml

from axonize_core.events import GpuSample
from axonize_core.gpu.energy import EnergyCounter
from axonize_core.gpu.nvml_fields import GPU_FIELDS, OF_THE_GPU_ONLY, SLICE_FIELDS, FieldReader
from axonize_core.gpu.nvml_gpm import SliceMonitor
from axonize_core.gpu.nvml_processes import Running, UtilizationOfProcesses

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from axonize_core.gpu.nvml_topology import Device

__all__ = ["NvmlReader", "refresh_of"]

REFRESH_LIMIT_S = 0.45
_REFRESH_POLL_S = 0.002
_REFRESHES = 3


class NvmlReader:
    """Samples of NVML's devices. Sampler's thread."""

    def __init__(self, clock: Callable[[], int] = time.time_ns) -> None:
        self.energy: dict[str, EnergyCounter] = {}
        self.refresh_ns: dict[str, int | None] = {}
        self._clock = clock
        self._fields: dict[str, FieldReader] = {}
        self._utilization: dict[str, UtilizationOfProcesses] = {}
        self._monitor = SliceMonitor()

    def sample(self, device: Device, running: Running | None, xids: dict[int, int] | None) -> GpuSample:
        """Read one device.

        Raises:
            pynvml.NVMLError: it is gone, or the driver is.
        """
        resource, sliced = device.resource, device.resource.kind == "mig"
        fields = self._fields.get(resource.id) or self._new_fields(resource.id, sliced)
        time_ns = self._clock()
        # The counter first: its time is that of the sample.
        found = self._slice(device, fields) if sliced else self._gpu(device, fields)
        found |= fields.read(device.handle)
        if running is not None:
            shares = {} if sliced else self._shares(device, fields)
            found["processes"] = tuple(
                msgspec.structs.replace(process, utilization=shares.get(process.pid)) for process in running.processes
            )
        if xids is not None and not sliced:
            found["xid_errors"] = tuple(sorted(xids.items()))
        return GpuSample(
            compute_resource=resource.id,
            physical_gpu=resource.gpu.uuid,
            name=resource.gpu.name,
            time_ns=time_ns,
            provenance="measured",
            unavailable=fields.unavailable,
            **found,
        )

    def _new_fields(self, resource_id: str, sliced: bool) -> FieldReader:
        fields = FieldReader(SLICE_FIELDS, OF_THE_GPU_ONLY) if sliced else FieldReader(GPU_FIELDS)
        self._fields[resource_id] = fields
        return fields

    def _gpu(self, device: Device, fields: FieldReader) -> dict[str, Any]:
        uuid = device.resource.id
        # Right around the one call: a microsecond is 0.7 mJ at 700 W.
        found = fields.one(("energy_j",), _energy_mj, device.handle)
        if not found:
            return {}
        time_ns = self._clock()
        counter = self.energy.setdefault(uuid, EnergyCounter())
        total_mj = counter.add(found["energy_mj"], time_ns)
        lag_ns = (self.refresh_ns.get(uuid) or 0) // 2
        return {
            "energy_j": total_mj / 1000,
            "energy_time_ns": time_ns - lag_ns,
            "energy_start_ns": counter.start_ns,
        }

    def _slice(self, device: Device, fields: FieldReader) -> dict[str, Any]:
        gi_id = device.resource.gi_id
        if gi_id is None:
            return {}
        names = ("utilization",)
        return fields.one(names, self._monitor.utilization, device.resource.gpu.uuid, device.gpu_handle, gi_id)

    def _shares(self, device: Device, fields: FieldReader) -> dict[int, float]:
        read = self._utilization.setdefault(device.resource.id, UtilizationOfProcesses()).read
        shares: dict[int, float] = fields.one(("processes.utilization",), read, device.handle).get("shares", {})
        return shares

    def measure_refresh(self, devices: Iterable[Device]) -> None:
        """Find out how far the energy counters lag, once for each GPU: up to half a second, mostly asleep."""
        new = {d.resource.id: d.handle for d in devices if d.resource.kind != "mig"}
        new = {uuid: handle for uuid, handle in new.items() if uuid not in self.refresh_ns}
        if new:
            self.refresh_ns.update(refresh_of(new))

    def keep(self, devices: Iterable[Device]) -> None:
        """Forget what is gone, but for the energy of GPUs, which may come back."""
        there = {device.resource.id: device.resource for device in devices}
        for uuid in self._fields.keys() - there.keys():
            del self._fields[uuid]
            self._utilization.pop(uuid, None)
        slices = ((r.gpu.uuid, r.gi_id) for r in there.values() if r.kind == "mig")
        self._monitor.keep({(uuid, gi_id) for uuid, gi_id in slices if gi_id is not None})

    def close(self) -> None:
        """Free what NVML holds for us."""
        self._monitor.close()
        self._fields.clear()


def _energy_mj(handle: Any) -> dict[str, Any]:
    return {"energy_mj": int(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))}


def refresh_of(handles: dict[str, Any], limit_s: float = REFRESH_LIMIT_S) -> dict[str, int | None]:
    """Return the time between two refreshes of each energy counter in ns; None where it did not move.

    A reading is on average half of it old. Watches the counters until each changed a few times.
    """
    changes: dict[str, list[int]] = {uuid: [] for uuid in handles}
    last: dict[str, int] = {}
    deadline = time.monotonic() + limit_s
    while any(len(found) <= _REFRESHES for found in changes.values()) and time.monotonic() < deadline:
        for uuid, handle in handles.items():
            try:
                value = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
            except pynvml.NVMLError:
                changes[uuid] = [0] * (_REFRESHES + 1)  # no counter: not waited for
                continue
            if last.setdefault(uuid, value) != value:
                last[uuid] = value
                changes[uuid].append(time.monotonic_ns())
        time.sleep(_REFRESH_POLL_S)
    return {uuid: _period(found) for uuid, found in changes.items()}


def _period(changes: list[int]) -> int | None:
    if len(changes) < 2 or not changes[-1]:  # noqa: PLR2004 - a period lies between two
        return None
    return (changes[-1] - changes[0]) // (len(changes) - 1)
