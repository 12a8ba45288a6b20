"""What the agent tells of the three layers: info points on every change, and once a minute.

Each is a gauge of 1 while something is there and 0 when it is gone. A slice that is made again under its old uuid
says 0 and then 1: for the registry that is a new generation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from axonize_core import attributes as names
from axonize_core.events import GpuInfo
from axonize_core.gpu.identity import context_id, device_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from axonize_core.gpu.contexts import Context
    from axonize_core.gpu.identity import ComputeResource, PhysicalGpu

__all__ = ["CONTEXT_INFO", "GPU_INFO", "RESOURCE_INFO", "Announcer"]

GPU_INFO = "axonize.gpu.info"
RESOURCE_INFO = "axonize.gpu.compute_resource.info"
CONTEXT_INFO = "axonize.gpu.context.info"
REPEAT_NS = 60_000_000_000
_PROCESS = (
    "host.name",
    "service.instance.id",
    "service.name",
    "container.id",
    "k8s.pod.name",
    "k8s.pod.uid",
    "k8s.namespace.name",
    "k8s.node.name",
)


class _Present(NamedTuple):
    """Something that is there: what makes it the same thing, since when, and what is said of it."""

    generation: object
    since_ns: int
    attributes: dict[str, Any]


class Announcer:
    """Remembers what was said of what, to say only what is new. Sampler's thread."""

    def __init__(self, provenance: str) -> None:
        self._provenance = provenance
        self._said: dict[tuple[str, str], tuple[_Present, int]] = {}

    def update(
        self, resources: Iterable[ComputeResource], contexts: Iterable[Context], ended: Iterable[Context], now_ns: int
    ) -> list[GpuInfo]:
        """Return what to say now: gone contexts at the time they went, everything else as of ``now_ns`` (epoch).

        GPUs come before their slices and these before contexts, so that nothing refers to what was not said.
        """
        found: list[GpuInfo] = []
        for context in ended:
            found += self._ended(context)
        there = self._layers(list(resources), contexts, now_ns)
        # Contexts go before the slices they were on, and these before their GPU.
        for key in reversed([key for key in self._said if key not in there]):
            found.append(self._gone(key, now_ns))
        for key, present in there.items():
            found += self._there(key, present, now_ns)
        return found

    def _layers(
        self, resources: list[ComputeResource], contexts: Iterable[Context], now_ns: int
    ) -> dict[tuple[str, str], _Present]:
        there: dict[tuple[str, str], _Present] = {}
        for resource in resources:
            there[GPU_INFO, resource.gpu.uuid] = _Present(None, now_ns, self._gpu(resource.gpu))
        for resource in resources:
            if resource.kind != "sliced":
                present = _Present(resource, now_ns, self._resource(resource))
                there[RESOURCE_INFO, resource.id] = present
        for context in contexts:
            there[CONTEXT_INFO, context_id(context.source)] = self._context(context)
        return there

    def _there(self, key: tuple[str, str], present: _Present, now_ns: int) -> list[GpuInfo]:
        if key not in self._said:
            return [self._say(key, present, present.since_ns)]
        said, said_ns = self._said[key]
        if not _same(said.generation, present.generation):
            # One nanosecond apart, so that their order is kept by their times.
            return [self._gone(key, now_ns), self._say(key, present, now_ns + 1)]
        if said.attributes != present.attributes or now_ns - said_ns >= REPEAT_NS:
            return [self._say(key, present, now_ns)]
        return []

    def _say(self, key: tuple[str, str], present: _Present, time_ns: int) -> GpuInfo:
        self._said[key] = (present, time_ns)
        return GpuInfo(key[0], time_ns, True, present.attributes)

    def _gone(self, key: tuple[str, str], now_ns: int) -> GpuInfo:
        present, said_ns = self._said.pop(key)
        return GpuInfo(key[0], max(now_ns, said_ns + 1), False, present.attributes)

    def _ended(self, context: Context) -> list[GpuInfo]:
        """Return the end of a context, and its beginning where it was too short to have been seen."""
        key = (CONTEXT_INFO, context_id(context.source))
        beginning = [] if key in self._said else [self._say(key, self._context(context), context.since_ns)]
        return [*beginning, self._gone(key, context.until_ns or context.since_ns)]

    def _gpu(self, gpu: PhysicalGpu) -> dict[str, Any]:
        return _known(
            {
                names.HW_ID: gpu.uuid,
                "hw.type": gpu.hw_type,
                names.HW_NAME: gpu.name,
                "hw.model": gpu.name,
                "hw.vendor": gpu.vendor,
                "hw.driver_version": gpu.driver_version,
                "gpu.architecture": gpu.architecture,
                "gpu.memory.total_bytes": gpu.memory_bytes,
                "gpu.pci.bus_id": gpu.pci_bus_id,
                "gpu.mig.enabled": gpu.mig_enabled,
                names.GPU_PROVENANCE: self._provenance,
            }
        )

    def _resource(self, resource: ComputeResource) -> dict[str, Any]:
        return _known(
            {
                names.GPU_COMPUTE_RESOURCE: resource.id,
                names.HW_ID: resource.gpu.uuid,
                "gpu.compute_resource.kind": resource.kind,
                "gpu.mig.profile": resource.mig_profile,
                "gpu.mig.gi_id": resource.gi_id,
                "gpu.mig.ci_id": resource.ci_id,
                "gpu.mig.placement.start": resource.placement_start,
                "gpu.mig.placement.size": resource.placement_size,
                "gpu.memory.total_bytes": resource.memory_bytes,
                "gpu.sm.share": resource.sm_share,
                names.GPU_PROVENANCE: self._provenance,
            }
        )

    def _context(self, context: Context) -> _Present:
        source, resource = context.source, context.resource
        rank = source.resource.get("ai.rank", "")
        attributes = {
            names.GPU_CONTEXT: context_id(source),
            names.GPU_COMPUTE_RESOURCE: resource.id if resource else None,
            names.HW_ID: resource.gpu.uuid if resource else None,
            "gpu.device": device_name(source),
            "process.pid": source.pid,
            **{name: source.resource.get(name) for name in _PROCESS},
            "service.instance.id": source.instance_id,
            "service.name": source.service_name,
            names.ENGINE: source.engine,
            "ai.rank": int(rank) if rank.isdigit() else None,
            "gpu.sharing": context.sharing,
            names.GPU_PROVENANCE: self._provenance,
        }
        return _Present(resource, context.since_ns, _known(attributes))


def _known(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if value not in (None, "")}


def _same(before: Any, now: Any) -> bool:
    """Say whether two generations are one; resources know what makes them the same."""
    return before.same_as(now) if before is not None and now is not None else before is now
