"""Which processes call which resource "cuda:0" now: they appear with a process's first word and go with its last.

``appear`` and ``go`` run on the agent's main thread, ``resolve_all`` and ``take_ended`` on the sampler's.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

import msgspec

from axonize_core.gpu.identity import context_id

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from axonize_core.events import SourceInfo
    from axonize_core.gpu.identity import ComputeResource

__all__ = ["WORKERS", "Context", "Contexts", "sharing"]

_Resolve = "Callable[[SourceInfo], ComputeResource | None]"
MOST_ENDED = 10_000
WORKERS = "workers"
"""Device type of a process that drives none itself: its engine's workers do, each a process or source of its own."""


class Context(msgspec.Struct, frozen=True):
    """A process's device from ``since_ns`` to ``until_ns`` (epoch); ``resource`` None is not known."""

    source: SourceInfo
    since_ns: int
    resource: ComputeResource | None = None
    sharing: str = "unknown"
    until_ns: int | None = None


class Contexts:
    """The live contexts of all connected processes, one per process and device."""

    def __init__(self, clock: Callable[[], int] = time.time_ns) -> None:
        self._clock = clock
        self._live: dict[str, Context] = {}
        self._ended: deque[Context] = deque()
        self.dropped = 0

    def appear(self, sources: Iterable[SourceInfo]) -> None:
        """Take the sources of a process; those already known stay as they are, those without a device are left out."""
        live = dict(self._live)
        for source in sources:
            if source.device[0] == WORKERS:
                continue
            live.setdefault(context_id(source), Context(source, self._clock()))
        self._live = live

    def go(self, sources: Iterable[SourceInfo]) -> None:
        """End the contexts of a process."""
        live = dict(self._live)
        for key in {context_id(source) for source in sources}:
            context = live.pop(key, None)
            if context is None:
                continue
            if len(self._ended) < MOST_ENDED:
                self._ended.append(msgspec.structs.replace(context, until_ns=self._clock()))
            else:
                self.dropped += 1
        self._live = live

    def workers(self, engine: str | None) -> list[SourceInfo]:
        """Return the sources of an engine's workers, by rank."""
        found = [
            context.source
            for context in self._live.values()
            if engine
            and context.source.resource.get("ai.engine.id") == engine
            and context.source.resource.get("ai.role") == "worker"
        ]
        return sorted(found, key=lambda source: int(source.resource.get("ai.rank") or 0))

    def live(self) -> list[Context]:
        """Return the contexts of this moment, as far as they were told of; without their resources."""
        return list(self._live.values())

    def take_ended(self) -> list[Context]:
        """Return the contexts that ended since the last call."""
        return [self._ended.popleft() for _ in range(len(self._ended))]


def sharing(context: Context, neighbours: Iterable[Context], pids: Collection[int] | None, *, mps: bool) -> str:
    """Return how a context's resource is shared: exclusive, mig, time-slicing, mps or unknown.

    Args:
        context: whose resource it is.
        neighbours: all live contexts.
        pids: the processes the driver lists on the resource; None where it does not say.
        mps: whether it lists clients of MPS.
    """
    resource = context.resource
    if resource is None:
        return "unknown"
    if mps:
        return "mps"
    ours = {n.source.instance_id for n in neighbours if n.resource is not None and n.resource.id == resource.id}
    if max(len(ours), len(pids or ())) > 1:
        return "time-slicing"
    if resource.kind == "mig":
        return "mig"
    return "unknown" if pids is None else "exclusive"
