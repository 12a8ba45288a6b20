"""The three layers of GPU identity, and what a provider of GPUs offers.

Physical GPU (hardware) → compute resource (a full GPU or a MIG instance; the primary key of everything) → context
(what a process calls it, such as "cuda:0"). Every process may say "cuda:0"; no two of them may be confused.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:
    from axonize_core.events import GpuSample, SourceInfo

__all__ = ["ComputeResource", "PhysicalGpu", "Provider", "context_id", "device_name"]


class PhysicalGpu(msgspec.Struct, frozen=True):
    """One device as its driver names it; ``uuid`` is ``GPU-…``. Unknown is None."""

    uuid: str
    name: str
    memory_bytes: int | None = None
    driver_version: str | None = None
    architecture: str | None = None
    pci_bus_id: str | None = None
    vendor: str | None = None
    mig_enabled: bool | None = None
    hw_type: str = "gpu"
    """As OTel's ``hw.type``; a provider of something else says what."""


class ComputeResource(msgspec.Struct, frozen=True):
    """What work runs on: a full GPU (``id`` is the GPU's uuid) or a MIG instance (``MIG-…``).

    ``kind`` is ``full``, ``mig``, or ``sliced``: a GPU whose work runs on its slices. That one is read, since power
    and energy are known for it alone, but nothing is ever resolved to it. ``sm_share`` is the slice's part of the
    GPU's multiprocessors, 0 to 1. ``incarnation`` changes when the driver was away: what lies under the uuid then
    is another slice.
    """

    id: str
    gpu: PhysicalGpu
    kind: str = "full"
    mig_profile: str | None = None
    gi_id: int | None = None
    ci_id: int | None = None
    placement_start: int | None = None
    placement_size: int | None = None
    memory_bytes: int | None = None
    sm_share: float | None = None
    incarnation: int = 0

    def same_as(self, other: ComputeResource) -> bool:
        """Say whether both are one generation: a slice made again under its old uuid is not."""
        return self._generation() == other._generation()

    def _generation(self) -> tuple[object, ...]:
        place = (self.mig_profile, self.gi_id, self.ci_id, self.placement_start, self.placement_size)
        return (self.id, self.kind, *place, self.incarnation)


class Provider(Protocol):
    """A kind of device. None of its calls may take longer than a few milliseconds.

    Two more methods are used where a provider has them: ``processes(resource)`` returns the ids of the processes on
    a resource and whether they share it by MPS, ``facts()`` what ``axonize doctor`` should show.
    """

    provenance: str

    def resources(self) -> list[ComputeResource]:
        """Return what there is on this machine now; before every round of samples, on the sampler's thread."""

    def sample(self, resource: ComputeResource) -> GpuSample:
        """Read one resource; a field that the device does not support is None. Sampler's thread."""

    def resolve(self, source: SourceInfo) -> ComputeResource | None:
        """Return the resource a source's device is, or None when that is not certain. Any thread."""

    def close(self) -> None:
        """Let go of the driver."""


def device_name(source: SourceInfo) -> str:
    """Return what the process calls its device, ``cuda:0``."""
    kind, index, _ = source.device
    return f"{kind}:{index}"


def context_id(source: SourceInfo) -> str:
    """Return the device of one process, ``host/pid.instance/cuda:0``.

    Two containers may have the same host name and pid, and pids come back: the first 8 digits of the process's
    ``service.instance.id`` tell them apart.
    """
    host = source.resource.get("host.name") or socket.gethostname()
    return f"{host}/{source.pid}.{source.instance_id[:8]}/{device_name(source)}"
