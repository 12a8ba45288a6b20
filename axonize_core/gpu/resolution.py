"""Which compute resource a process's device is, from what the process and the driver say; None unless certain.

The evidence, best first: the uuid the framework read from the device; CUDA_VISIBLE_DEVICES, where the process sees
what the agent sees; NVIDIA_VISIBLE_DEVICES, where it is in another container. A driver that lists the process on
other resources only, contradicts: then nothing is certain. Pure functions over one snapshot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from axonize_core.gpu.process import ENVIRONMENT, PID_NAMESPACE
from axonize_core.gpu.visible_devices import visible_devices

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from axonize_core.events import SourceInfo
    from axonize_core.gpu.identity import ComputeResource

__all__ = ["resolve"]

INITIAL_PID_NAMESPACE = "4026531836"
"""PROC_PID_INIT_INO of the kernel: in this namespace a pid is the one the driver knows."""


def resolve(
    source: SourceInfo,
    resources: Sequence[ComputeResource],
    agent: Mapping[str, str],
    processes: Mapping[str, Collection[int]],
) -> ComputeResource | None:
    """Return the resource of a source's device.

    Args:
        source: who asks; ``resource`` holds what its process said of itself.
        resources: what there is on this machine.
        agent: what this process says of itself, as ``process_identity`` returns it.
        processes: the pids on each resource, by its id, as the driver lists them; empty where it does not.
    """
    kind, index, uuid = source.device
    if kind != "cuda":
        return None
    possible, found = [r for r in resources if r.kind != "sliced"], None
    if uuid is not None:
        possible, found = _by_uuid(uuid, possible)
    if found is None and possible:
        found = _by_visibility(source.resource, index, possible, resources, agent)
    if found is None and possible:
        return _by_process(source, possible, agent, processes)
    return None if found is None or _contradicted(found, source, agent, processes) else found


def _by_uuid(uuid: str, usable: list[ComputeResource]) -> tuple[list[ComputeResource], ComputeResource | None]:
    """Return what a uuid leaves possible, the slices of the GPU it names, and what it is for certain.

    CUDA gives 16 bytes without a prefix, those of the slice on newer drivers and those of its GPU on older ones.
    """
    bare = _bare(uuid)
    exact = next((r for r in usable if _bare(r.id) == bare), None)
    return [r for r in usable if _bare(r.gpu.uuid) == bare], exact


def _bare(uuid: str) -> str:
    return uuid.removeprefix("MIG-").removeprefix("GPU-").lower()


def _by_visibility(
    process: Mapping[str, str],
    index: int,
    possible: list[ComputeResource],
    resources: Sequence[ComputeResource],
    agent: Mapping[str, str],
) -> ComputeResource | None:
    visible = _seen_by(process, resources, agent)
    if visible is None:
        return None
    variable = process.get(f"{ENVIRONMENT}CUDA_VISIBLE_DEVICES")
    devices = visible_devices(variable, process.get(f"{ENVIRONMENT}CUDA_DEVICE_ORDER"), visible)
    found = devices[index] if devices is not None and index < len(devices) else None
    return found if found in possible else None


def _seen_by(
    process: Mapping[str, str], resources: Sequence[ComputeResource], agent: Mapping[str, str]
) -> Sequence[ComputeResource] | None:
    """Return what the process could see without its own variable; None where that is not known."""
    same_container = process.get("container.id") == agent.get("container.id")
    same_namespace = process.get(PID_NAMESPACE, agent.get(PID_NAMESPACE)) == agent.get(PID_NAMESPACE)
    if same_container and same_namespace:
        return resources
    given = process.get(f"{ENVIRONMENT}NVIDIA_VISIBLE_DEVICES", "")
    uuids = [part.strip() for part in given.split(",")]
    # "all" and numbers stand in base images and say nothing of what a device plugin mounted.
    known = {r.id: r for r in resources if r.kind != "sliced"}
    return [known[uuid] for uuid in uuids] if all(uuid in known for uuid in uuids) else None


def _by_process(
    source: SourceInfo,
    possible: list[ComputeResource],
    agent: Mapping[str, str],
    processes: Mapping[str, Collection[int]],
) -> ComputeResource | None:
    """Return the one resource the driver lists the process on; device 0 only, others need a second one."""
    if source.device[1] != 0 or not _comparable(source, agent):
        return None
    on = [r for r in possible if source.pid in processes.get(r.id, ())]
    elsewhere = sum(source.pid in pids for pids in processes.values()) > len(on)
    return on[0] if len(on) == 1 and not elsewhere else None


def _contradicted(
    found: ComputeResource, source: SourceInfo, agent: Mapping[str, str], processes: Mapping[str, Collection[int]]
) -> bool:
    if not _comparable(source, agent) or source.pid in processes.get(found.id, ()):
        return False
    return any(source.pid in pids for pids in processes.values())


def _comparable(source: SourceInfo, agent: Mapping[str, str]) -> bool:
    """Say whether process, agent and driver mean the same process by its pid."""
    return source.resource.get(PID_NAMESPACE) == agent.get(PID_NAMESPACE) == INITIAL_PID_NAMESPACE
