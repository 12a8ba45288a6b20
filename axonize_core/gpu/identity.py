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

__all__ = ["ComputeResource", "PhysicalGpu", "Provider", "context_id"]


class PhysicalGpu(msgspec.Struct, frozen=True):
    """One device as NVML names it; ``uuid`` is ``GPU-…``."""

    uuid: str
    name: str
    memory_bytes: int | None = None
    driver_version: str | None = None


class ComputeResource(msgspec.Struct, frozen=True):
    """What work runs on: a full GPU (``id`` is the GPU's uuid) or a MIG instance (``MIG-…``)."""

    id: str
    gpu: PhysicalGpu
    kind: str = "gpu"


class Provider(Protocol):
    """A kind of device. All calls come from the agent; none may take longer than a few milliseconds."""

    provenance: str

    def resources(self) -> list[ComputeResource]:
        """Return what there is on this machine."""

    def sample(self, resource: ComputeResource) -> GpuSample:
        """Read one resource; a field that the device does not support is None."""

    def resolve(self, source: SourceInfo) -> ComputeResource | None:
        """Return the resource a source's device is, or None when that is not certain."""

    def close(self) -> None:
        """Let go of the driver."""


def context_id(source: SourceInfo) -> str:
    """Return what the process calls its device, made unique: ``host/pid/cuda:0``."""
    kind, index, _ = source.device
    host = source.resource.get("host.name") or socket.gethostname()
    return f"{host}/{source.pid}/{kind}:{index}"
