"""Which devices a process counts as 0, 1, 2 …: CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER as CUDA reads them.

By the CUDA programming guide ("CUDA Environment Variables") and the MIG user guide ("CUDA Device Enumeration"): an
entry that is not valid ends the list, a repeated one empties it, an unset variable shows everything, an empty one
nothing; where any MIG device is seen, one MIG device is all a process gets. What they leave open is None here.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from axonize_core.gpu.identity import ComputeResource

    # What an entry names, to tell repetitions, and the resource it is for certain.
    _Entry = tuple[str, ComputeResource | None]

__all__ = ["visible_devices"]

_NUMBER = re.compile(r"[+-]?\d+")
_OLD_MIG = re.compile(r"MIG-(GPU-[0-9a-f-]+)/(\d+)/(\d+)")


def visible_devices(
    variable: str | None, order: str | None, resources: Iterable[ComputeResource]
) -> list[ComputeResource | None] | None:
    """Return what each ordinal means.

    Args:
        variable: CUDA_VISIBLE_DEVICES of the process, None where it is not set.
        order: CUDA_DEVICE_ORDER of the process, None where it is not set (FASTEST_FIRST).
        resources: everything the process could see.

    Returns:
        The resource of each ordinal, None for one that is there but not certain; None instead of the list when not
        even the number of devices is.
    """
    usable = sorted((r for r in resources if r.kind != "sliced"), key=lambda r: r.gpu.pci_bus_id or "")
    if variable is None:
        return _everything(usable, order)
    entries = [entry.strip() for entry in variable.split(",")]
    if entries[0].startswith("MIG-"):
        return _listed(entries, lambda entry: _slice(entry, usable))[:1]
    if entries[0].startswith("GPU-"):
        return _single_slice(_listed(entries, lambda entry: _gpu(entry, usable)))
    return _by_index(entries, usable, order)


def _everything(usable: list[ComputeResource], order: str | None) -> list[ComputeResource | None]:
    slices = [r for r in usable if r.kind == "mig"]
    if slices:  # CUDA takes the first MIG device it finds, and no full GPU beside it
        return [slices[0] if len(slices) == 1 else None]
    return [resource if _ordered(usable, order) else None for resource in usable]


def _by_index(
    entries: list[str], usable: list[ComputeResource], order: str | None
) -> list[ComputeResource | None] | None:
    if _index(entries[0]) < 0:
        return []
    if len(usable) > 1 and any(r.kind == "mig" for r in usable):
        return None  # how CUDA numbers GPUs beside sliced ones is not specified
    ordered = _ordered(usable, order)

    def find(entry: str) -> _Entry | None:
        index = _index(entry)
        if not 0 <= index < len(usable):
            return None
        return str(index), usable[index] if ordered else None

    return _listed(entries, find)


def _index(entry: str) -> int:
    """Return the number an entry begins with, as strtoul reads it; -1 where there is none."""
    match = _NUMBER.match(entry)
    return int(match[0]) if match else -1


def _listed(entries: Sequence[str], find: Callable[[str], _Entry | None]) -> list[ComputeResource | None]:
    """Return what the entries before the first invalid one name; nothing when one is repeated."""
    found: dict[str, ComputeResource | None] = {}
    for entry in entries:
        named = find(entry)
        if named is None:
            break
        if named[0] in found:
            return []
        found[named[0]] = named[1]
    return list(found.values())


def _gpu(entry: str, usable: list[ComputeResource]) -> _Entry | None:
    """Return the GPU with that uuid or unambiguous prefix; its slice where it has only one."""
    uuids = {r.gpu.uuid for r in usable if r.gpu.uuid.startswith(entry)} if entry.startswith("GPU-") else set()
    if len(uuids) != 1:
        return None
    (uuid,) = uuids
    resources = [r for r in usable if r.gpu.uuid == uuid]
    return uuid, resources[0] if len(resources) == 1 else None


def _slice(entry: str, usable: list[ComputeResource]) -> _Entry | None:
    """Return the slice with that uuid or unambiguous prefix, or in the form of drivers before R470."""
    if match := _OLD_MIG.fullmatch(entry):
        gpu, gi, ci = match[1], int(match[2]), int(match[3])
        found = [r for r in usable if (r.gpu.uuid, r.gi_id, r.ci_id) == (gpu, gi, ci)]
    else:
        found = [r for r in usable if r.kind == "mig" and r.id.startswith(entry)] if entry.startswith("MIG-") else []
    return (found[0].id, found[0]) if len(found) == 1 else None


def _single_slice(found: list[ComputeResource | None]) -> list[ComputeResource | None]:
    """Cut the list to one device where a sliced GPU is in it; which one, is certain if there is no other."""
    if all(r is not None and r.kind == "full" for r in found):
        return found
    return found if len(found) == 1 else [None]


def _ordered(usable: list[ComputeResource], order: str | None) -> bool:
    """Say whether CUDA's order is that of the bus: it was asked for, or all GPUs are of one model.

    FASTEST_FIRST ranks by a heuristic that is not public; among GPUs of one model it keeps the order of the bus.
    """
    if len(usable) > 1 and not all(r.gpu.pci_bus_id for r in usable):
        return False
    return (order or "").strip().upper() == "PCI_BUS_ID" or len({r.gpu.name for r in usable}) <= 1
