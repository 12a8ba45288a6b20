"""One thread that reads every compute resource at a fixed interval and keeps the last minutes.

Each round asks what there is, which process is on what, and what changed; then it reads. ``annotate`` answers what a
device did over a span's own time (``readings.py``).
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from axonize_core import attributes as names
from axonize_core.gpu.contexts import WORKERS, Contexts, sharing
from axonize_core.gpu.identity import context_id
from axonize_core.gpu.infos import Announcer
from axonize_core.gpu.readings import Readings, mean_of, mean_power_w

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from axonize_core.events import GpuInfo, GpuSample, SourceInfo
    from axonize_core.gpu.contexts import Context
    from axonize_core.gpu.identity import ComputeResource, Provider

__all__ = ["Sampler"]

KEPT_INTERVALS = 3
"""How many intervals a reading holds for spans after it."""
logger = logging.getLogger(__name__)
_UNAVAILABLE = {names.GPU_PROVENANCE: "unavailable"}
_NOTHING = Readings()


class _Identity(NamedTuple):
    source: SourceInfo
    attributes: dict[str, Any]
    resources: tuple[ComputeResource, ...]
    """Those of its workers by rank, where it is an engine of several; else its own or none."""

    @property
    def first(self) -> ComputeResource | None:
        return self.resources[0] if self.resources else None


class Sampler:
    """Samples of one provider; ``provider`` None annotates everything as unavailable.

    ``sample_once`` and ``announce`` run on the sampler's thread, ``annotate`` on the agent's main thread.
    """

    def __init__(self, provider: Provider | None, interval_s: float, clock: Callable[[], int] = time.time_ns) -> None:
        self.provider = provider
        self.failures: Counter[str] = Counter()
        self.contexts = Contexts(clock)
        self._clock = clock
        self._interval_s = interval_s
        self._oldest_ns = KEPT_INTERVALS * 1e9 * max(interval_s, 0.1)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._announcer: Announcer | None = None
        self._announce: Callable[[Sequence[GpuInfo]], Any] | None = None
        self._resources: list[ComputeResource] = []
        self._readings: dict[str, Readings] = {}
        self._identities: dict[int, _Identity] = {}
        self._last_window: tuple[Any, ...] = ()
        self._last_annotation: dict[str, Any] = {}

    def start(
        self,
        publish: Callable[[Sequence[GpuSample]], Any],
        announce: Callable[[Sequence[GpuInfo]], Any] | None = None,
    ) -> None:
        """Begin sampling; samples go to ``publish``, changes of identity to ``announce``, on the sampler's thread."""
        if self.provider is not None:
            self._announce = announce
            self._thread = threading.Thread(target=self._run, args=(publish,), name="axonize-sampler", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the thread, announce the contexts that went meanwhile, and let go of the provider."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(2.0)
        if self.provider is not None:
            try:
                self._announce_changes()
                self.provider.close()
            except Exception as e:  # noqa: BLE001 - a provider may be somebody else's
                self._failed("close", e)

    def _run(self, publish: Callable[[Sequence[GpuSample]], Any]) -> None:
        while not self._stop.is_set():
            started = time.monotonic()
            try:
                samples = self.sample_once()
                self._announce_changes()
                publish(samples)
            except Exception as e:  # noqa: BLE001 - same; the next round may work
                self._failed("resources", e)
            self._stop.wait(max(0.0, self._interval_s - (time.monotonic() - started)))

    def sample_once(self) -> list[GpuSample]:
        """Read every resource once and keep what was read; a failing resource is counted and left out."""
        if self.provider is None:
            return []
        self._resources = self.provider.resources()
        samples = []
        for resource in self._resources:
            try:
                samples.append(self.provider.sample(resource))
            except Exception as e:  # noqa: BLE001 - one lost device must not stop the others
                self._failed(resource.id, e)
        for sample in samples:
            kept = self._readings.get(sample.compute_resource, _NOTHING)
            self._readings[sample.compute_resource] = kept.adding(sample)
        self._resolve_again()
        return samples

    def announce(self) -> list[GpuInfo]:
        """Return what changed in the three layers since the last call; sampler's thread."""
        if self.provider is None:
            return []
        self._announcer = self._announcer or Announcer(self.provider.provenance)
        ended = self._worth_saying(self.contexts.take_ended())
        live = self._worth_saying(self.contexts.live())
        live = [msgspec.structs.replace(c, sharing=self._sharing(c, live)) for c in live]
        return self._announcer.update(self._resources, live, ended, self._clock())

    def _announce_changes(self) -> None:
        infos = self.announce()
        if infos and self._announce is not None:
            self._announce(infos)

    def _worth_saying(self, contexts: list[Context]) -> list[Context]:
        """Return the contexts with their resources; without those on a CPU that no provider knows."""
        found = [msgspec.structs.replace(c, resource=self.identity(c.source)[1]) for c in contexts]
        return [c for c in found if c.resource is not None or c.source.device[0] != "cpu"]

    def _sharing(self, context: Context, live: list[Context]) -> str:
        ask = getattr(self.provider, "processes", None)
        try:
            pids, mps = ask(context.resource) if ask is not None and context.resource is not None else (None, False)
        except Exception as e:  # noqa: BLE001 - same
            self._failed("processes", e)
            pids, mps = None, False
        return sharing(context, live, pids, mps=mps)

    def _resolve_again(self) -> None:
        """Ask what the devices of live contexts are that are not known yet, or whose resource is gone.

        What was certain stays: a process reads its variables once, and slices that come later change nothing.
        """
        there = {resource.id: resource for resource in self._resources}
        identities = {}
        for context in self.contexts.live():
            known = self._identities.get(id(context.source))
            old = known.first if known is not None and known.source is context.source else None
            new = there.get(old.id) if old is not None else None
            if known is None or old is None or new is None or not new.same_as(old):
                known = self._identify(context.source)
            identities[id(context.source)] = known
        self._identities = identities

    def identity(self, source: SourceInfo) -> tuple[dict[str, Any], ComputeResource | None]:
        """Return the attributes that name a source's device, and the compute resource."""
        known = self._known(source)
        return known.attributes, known.first

    def context(self, source: SourceInfo) -> str:
        """Return the id of a source's context; of an engine with workers, that of the first."""
        return context_id(self._drivers(source)[0])

    def _known(self, source: SourceInfo) -> _Identity:
        known = self._identities.get(id(source))
        if known is None or known.source is not source:
            known = self._identify(source)
            self._identities[id(source)] = known
        return known

    def _drivers(self, source: SourceInfo) -> list[SourceInfo]:
        """Return who drives the devices of a source: itself, or the workers of its engine, by rank."""
        workers = self.contexts.workers(source.resource.get("ai.engine.id")) if source.device[0] == WORKERS else []
        return workers or [source]

    def _identify(self, source: SourceInfo) -> _Identity:
        found = [resource for driver in self._drivers(source) if (resource := self._resolve(driver)) is not None]
        resources = tuple({resource.id: resource for resource in found}.values())
        attributes = self._identity(resources[0] if resources else None)
        if len(resources) > 1:
            attributes = {**attributes, names.GPU_COMPUTE_RESOURCES: [resource.id for resource in resources]}
        return _Identity(source, attributes, resources)

    def _resolve(self, source: SourceInfo) -> ComputeResource | None:
        try:
            return self.provider.resolve(source) if self.provider else None
        except Exception as e:  # noqa: BLE001 - without an answer the device is unknown, and spans go on
            self._failed("resolve", e)
            return None

    def _failed(self, what: str, error: Exception) -> None:
        if not self.failures[what]:
            logger.error("GPU provider failed: %s: %r", what, error)
        self.failures[what] += 1

    def _identity(self, resource: ComputeResource | None) -> dict[str, Any]:
        if resource is None or self.provider is None:
            return _UNAVAILABLE
        return {
            names.HW_ID: resource.gpu.uuid,
            names.GPU_COMPUTE_RESOURCE: resource.id,
            names.GPU_PROVENANCE: self.provider.provenance,
        }

    def annotate(self, source: SourceInfo, start_ns: int, end_ns: int) -> dict[str, Any]:
        """Return identity and mean readings of a source's device over ``[start_ns, end_ns]`` (epoch).

        Of several devices: the sum of memory and power, the mean of utilisation, where all of them were read.
        """
        _, identity, resources = self._known(source)
        if len(resources) > 1:
            return {**identity, **_together([self._over(r, source, {}, start_ns, end_ns) for r in resources])}
        return self._over(resources[0], source, identity, start_ns, end_ns) if resources else dict(identity)

    def _over(
        self, resource: ComputeResource, source: SourceInfo, identity: dict[str, Any], start_ns: int, end_ns: int
    ) -> dict[str, Any]:
        readings = self._readings.get(resource.id)
        if readings is None:
            return dict(identity)
        of_gpu = readings if resource.kind != "mig" else self._readings.get(resource.gpu.uuid, _NOTHING)
        segment = of_gpu.segment(start_ns, end_ns, self._oldest_ns)
        window = (source, readings, of_gpu, segment, *readings.window(start_ns, end_ns, self._oldest_ns))
        # Engine steps are short and samples rare: the next span mostly asks for the same window and rise.
        if segment is None or window != self._last_window:
            means = _means(readings.samples[window[-2] : window[-1]])
            power = self._power(resource, of_gpu, start_ns, end_ns)
            self._last_window, self._last_annotation = window, {**identity, **means, **power}
        return self._last_annotation.copy()

    def _power(self, resource: ComputeResource, readings: Readings, start_ns: int, end_ns: int) -> dict[str, Any]:
        """Return the mean power of a GPU; of a slice its part by multiprocessors, since only the GPU is measured."""
        power_w = mean_power_w(readings, start_ns, end_ns, self._oldest_ns) if readings.times else None
        if power_w is None or self.provider is None:
            return {}
        if resource.kind != "mig":
            return {names.GPU_POWER_W: round(power_w, 3), names.GPU_POWER_PROVENANCE: self.provider.provenance}
        if resource.sm_share is None:
            return {}
        return {names.GPU_POWER_W: round(power_w * resource.sm_share, 3), names.GPU_POWER_PROVENANCE: "apportioned"}

    def facts(self) -> dict[str, Any]:
        """Return what ``axonize doctor`` shows of the devices: what is there, and which fields are not, and why."""
        devices = {
            uuid: {"name": readings.samples[-1].name, "unavailable": dict(readings.samples[-1].unavailable)}
            for uuid, readings in list(self._readings.items())
        }
        tell = getattr(self.provider, "facts", None)
        try:
            own = dict(tell()) if tell is not None else {}
        except Exception as e:  # noqa: BLE001 - a provider may be somebody else's
            self._failed("facts", e)
            own = {}
        return {
            "contexts": len(self.contexts.live()),
            "contexts_dropped": self.contexts.dropped,
            "devices": devices,
            **own,
        }


def _together(parts: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, combine in ((names.GPU_UTILIZATION, fmean), (names.GPU_MEMORY_BYTES, sum), (names.GPU_POWER_W, sum)):
        values = [part[name] for part in parts if name in part]
        if len(values) == len(parts):
            found[name] = combine(values)
    kinds = {part.get(names.GPU_POWER_PROVENANCE) for part in parts}
    if names.GPU_POWER_W in found:
        found[names.GPU_POWER_PROVENANCE] = kinds.pop() if len(kinds) == 1 else "apportioned"
    return found


def _means(samples: tuple[GpuSample, ...]) -> dict[str, Any]:
    found = ((name, mean_of(samples, field), kind) for name, field, kind in _MEANS)
    return {name: kind(value) for name, value, kind in found if value is not None}


_MEANS: tuple[tuple[str, str, Callable[[float], float]], ...] = (
    (names.GPU_UTILIZATION, "utilization", float),
    (names.GPU_MEMORY_BYTES, "memory_used_bytes", int),
)
