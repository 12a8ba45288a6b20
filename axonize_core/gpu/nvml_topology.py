"""What NVML lists: GPUs and, on those in MIG mode, the slices, as compute resources with their handles.

Asked again and again; what stays the same object is asked once: name, memory and attributes.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import msgspec
import pynvml

from axonize_core.gpu.identity import ComputeResource, PhysicalGpu
from axonize_core.gpu.nvml_errors import DRIVER_GONE, code, optional, text

__all__ = ["Device", "Topology", "read_topology"]

_PROFILE = re.compile(r" MIG (\S+)$")
_ARCHITECTURES = {
    getattr(pynvml, f"NVML_DEVICE_ARCH_{name.upper()}", None): name
    for name in ("Kepler", "Maxwell", "Pascal", "Volta", "Turing", "Ampere", "Ada", "Hopper", "Blackwell", "Rubin")
}
_MIG_CORES_PER_SM = {"Ampere": 64, "Hopper": 128, "Blackwell": 128}
"""FP32 lanes of the chips that can be sliced; those of Ampere are all GA100."""


class Device(NamedTuple):
    """A compute resource and the handle to ask about it; ``gpu_handle`` is that of the GPU around a slice."""

    resource: ComputeResource
    handle: Any
    gpu_handle: Any
    sms: int | None = None


class Topology(NamedTuple):
    """Everything there is, by id; ``failed`` says which GPU of NVML's list could not be read, and why."""

    devices: dict[str, Device]
    failed: dict[str, str]

    def resources(self) -> list[ComputeResource]:
        """Return the resources, each GPU before its slices."""
        return [device.resource for device in self.devices.values()]


def read_topology(before: Topology | None, incarnation: int) -> Topology:
    """Return what NVML lists now.

    Args:
        before: the last answer; what is still the same is taken from it.
        incarnation: of slices that are new (``ComputeResource``).

    Raises:
        pynvml.NVMLError: the driver is gone.
    """
    known = before.devices if before is not None else {}
    devices: dict[str, Device] = {}
    failed: dict[str, str] = {}
    driver = optional(pynvml.nvmlSystemGetDriverVersion)
    for index in range(pynvml.nvmlDeviceGetCount()):
        try:
            gpu = _gpu(index, None if driver is None else text(driver), known)
            slices = _slices(gpu, known, incarnation) if gpu.resource.kind == "sliced" else []
        except pynvml.NVMLError as e:
            if code(e) in DRIVER_GONE:
                raise
            failed[f"GPU {index}"] = str(e)
        else:
            devices.update((device.resource.id, device) for device in (gpu, *slices))
    return Topology(devices, failed)


def _gpu(index: int, driver: str | None, known: dict[str, Device]) -> Device:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    uuid = text(pynvml.nvmlDeviceGetUUID(handle))
    mode = optional(pynvml.nvmlDeviceGetMigMode, handle)
    sliced = bool(mode and mode[0])
    old = known.get(uuid)
    if old is not None and (old.resource.kind == "sliced") == sliced and old.resource.gpu.driver_version == driver:
        return old._replace(handle=handle, gpu_handle=handle)
    memory = optional(pynvml.nvmlDeviceGetMemoryInfo, handle)
    pci = optional(pynvml.nvmlDeviceGetPciInfo, handle)
    gpu = PhysicalGpu(
        uuid=uuid,
        name=text(pynvml.nvmlDeviceGetName(handle)),
        memory_bytes=None if memory is None else int(memory.total),
        driver_version=driver,
        architecture=_ARCHITECTURES.get(optional(pynvml.nvmlDeviceGetArchitecture, handle)),
        pci_bus_id=None if pci is None else text(pci.busId).lower(),
        vendor="NVIDIA",
        mig_enabled=None if mode is None else sliced,
    )
    resource = ComputeResource(uuid, gpu, "sliced" if sliced else "full", memory_bytes=gpu.memory_bytes, sm_share=1.0)
    return Device(resource, handle, handle, _multiprocessors(handle, gpu.architecture))


def _multiprocessors(handle: Any, architecture: str | None) -> int | None:
    cores, per_sm = optional(pynvml.nvmlDeviceGetNumGpuCores, handle), _MIG_CORES_PER_SM.get(architecture or "")
    return cores // per_sm if cores and per_sm else None


def _slices(gpu: Device, known: dict[str, Device], incarnation: int) -> list[Device]:
    """Return the slices of one GPU; the list of slots may have gaps."""
    found = []
    for slot in range(optional(pynvml.nvmlDeviceGetMaxMigDeviceCount, gpu.handle) or 0):
        try:
            handle = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu.handle, slot)
            found.append(_slice(gpu, handle, known, incarnation))
        except pynvml.NVMLError as e:
            # An empty slot, or a slice that went while we looked.
            if code(e) not in (pynvml.NVML_ERROR_NOT_FOUND, pynvml.NVML_ERROR_INVALID_ARGUMENT):
                raise
    return found


def _slice(gpu: Device, handle: Any, known: dict[str, Device], incarnation: int) -> Device:
    uuid = text(pynvml.nvmlDeviceGetUUID(handle))
    gi_id, ci_id = (optional(read, handle) for read in (pynvml.nvmlDeviceGetGpuInstanceId, _compute_instance_id))
    placement = _placement(gpu.handle, gi_id)
    name = _PROFILE.search(text(optional(pynvml.nvmlDeviceGetName, handle) or ""))
    profile = name[1] if name else None
    old = known.get(uuid)
    if old is not None and _where(old.resource) == (profile, gi_id, ci_id, *placement):
        resource = old.resource
        if resource.gpu is not gpu.resource.gpu:
            resource = msgspec.structs.replace(resource, gpu=gpu.resource.gpu)
        return old._replace(resource=resource, handle=handle, gpu_handle=gpu.handle)
    attributes = optional(pynvml.nvmlDeviceGetAttributes, handle)
    memory = optional(pynvml.nvmlDeviceGetMemoryInfo, handle)
    sms = attributes.multiprocessorCount if attributes is not None else None
    resource = ComputeResource(
        id=uuid,
        gpu=gpu.resource.gpu,
        kind="mig",
        mig_profile=profile,
        gi_id=gi_id,
        ci_id=ci_id,
        placement_start=placement[0],
        placement_size=placement[1],
        memory_bytes=None if memory is None else int(memory.total),
        sm_share=sms / gpu.sms if sms and gpu.sms else None,
        incarnation=incarnation,
    )
    return Device(resource, handle, gpu.handle, sms)


def _compute_instance_id(handle: Any) -> int:
    return int(pynvml.nvmlDeviceGetComputeInstanceId(handle))


def _placement(gpu_handle: Any, gi_id: int | None) -> tuple[int | None, int | None]:
    """Return first slice and number of slices; a driver tells them to the privileged only."""
    if gi_id is None:
        return None, None
    instance = optional(pynvml.nvmlDeviceGetGpuInstanceById, gpu_handle, gi_id)
    info = optional(pynvml.nvmlGpuInstanceGetInfo, instance) if instance is not None else None
    return (None, None) if info is None else (int(info.placement.start), int(info.placement.size))


def _where(resource: ComputeResource) -> tuple[str | int | None, ...]:
    return resource.mig_profile, resource.gi_id, resource.ci_id, resource.placement_start, resource.placement_size
