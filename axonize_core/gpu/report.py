"""What ``axonize doctor`` says of an agent's GPUs: fields a device lacks and why, what was lost, what was corrected."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["gpu_lines"]


def gpu_lines(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield level and text of each line for ``Sampler.facts()``; what slices never have is left out."""
    for uuid, device in facts["devices"].items():
        fields: dict[str, list[str]] = {}
        for field, why in device["unavailable"].items():
            fields.setdefault(why, []).append(field)
        for why, names in fields.items():
            if not uuid.startswith("MIG-"):
                yield "note", f"{device['name']} {uuid} has no {', '.join(sorted(names))}: {why}"
    if facts["contexts_dropped"]:
        yield "problem", f"contexts dropped: {facts['contexts_dropped']}"
    if facts.get("driver_open") is False:
        yield "problem", "the NVIDIA driver is away; it is looked for at least every 30 s"
    for what, why in facts.get("failed", {}).items():
        yield "problem", f"{what}: {why}"
    for what, count in facts.get("counts", {}).items():
        yield "note", f"{what.replace('_', ' ')}: {count} times"
    for uuid, counts in facts.get("energy_counters", {}).items():
        yield "note", f"energy counter of {uuid}: " + ", ".join(f"{n} {what}" for what, n in counts.items())
