"""NVIDIA GPUs through NVML (nvidia-ml-py, the package that provides ``import pynvml``), followed while they change.

A GPU that is lost or unplugged, a driver that is reloaded and slices that are made and destroyed show in
``resources`` a second later at most. A reading the device does not support is None, never 0.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pynvml

from axonize_core.gpu.nvml_errors import DRIVER_GONE, code
from axonize_core.gpu.nvml_processes import Running, read_processes
from axonize_core.gpu.nvml_reader import NvmlReader
from axonize_core.gpu.nvml_topology import Topology, read_topology
from axonize_core.gpu.process import process_identity
from axonize_core.gpu.resolution import resolve

if TYPE_CHECKING:
    from collections.abc import Callable

    from axonize_core.events import GpuSample, SourceInfo
    from axonize_core.gpu.identity import ComputeResource

__all__ = ["NvmlProvider"]

FOLLOW_S = 1.0
"""How often NVML is asked what there is; readings may be more frequent."""
BACKOFF_S = (1.0, 30.0)


class NvmlProvider:
    """The GPUs of this machine. ``resolve`` and ``processes`` may be called from any thread, the rest from one.

    Raises:
        pynvml.NVMLError: at creation, when there is no driver.
    """

    provenance = "measured"

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.counts: Counter[str] = Counter()
        self._clock = clock
        self._reader = NvmlReader()
        self._agent = process_identity()
        self._incarnation = 0
        self._open = False
        self._next_try, self._backoff_s = 0.0, BACKOFF_S[0]
        self._next_look = 0.0
        self._topology = Topology({}, {})
        self._running: dict[str, Running] = {}
        self._looking = threading.Lock()
        self._looked_for: set[str] = set()
        self._events: Any = None
        self._watched: set[str] = set()
        self._xids: dict[str, Counter[int]] = {}
        self._init()

    def resources(self) -> list[ComputeResource]:
        """Return the GPUs in NVML's order, each before its slices; nothing while the driver is away."""
        now = self._clock()
        if not self._open and now >= self._next_try:
            self._reopen(now)
        if self._open and now >= self._next_look:
            self._next_look = now + FOLLOW_S
            self._follow(now)
            devices = self._topology.devices.values()
            self._reader.keep(devices)
            self._watch_xids()
        return self._topology.resources()

    def sample(self, resource: ComputeResource) -> GpuSample:
        """Read one device. A driver that went is looked for in the next round.

        Raises:
            pynvml.NVMLError: it is lost, or the driver is.
            KeyError: it is gone.
        """
        try:
            gpu = resource.gpu.uuid
            # From the second reading on: the first one should not wait for it.
            if gpu in self._reader.energy and gpu not in self._reader.refresh_ns:
                self._reader.measure_refresh(self._topology.devices.values())
            return self._reader.sample(
                self._topology.devices[resource.id], self._running.get(resource.id), self._xids.get(gpu)
            )
        except pynvml.NVMLError:
            self._next_look = 0.0
            raise

    def resolve(self, source: SourceInfo) -> ComputeResource | None:
        """Return the resource a source's device is, or None when that is not certain.

        What there was before a process came says nothing of it: at its first question NVML is asked anew. Later
        there is no need, since a slice that is in use cannot be destroyed.
        """
        if self._open and source.device[0] == "cuda" and source.instance_id not in self._looked_for:
            self._looked_for.add(source.instance_id)
            with contextlib.suppress(pynvml.NVMLError):  # the sampler's thread finds out why
                self._look()
        processes = {uuid: running.pids() for uuid, running in self._running.items()}
        return resolve(source, self._topology.resources(), self._agent, processes)

    def processes(self, resource: ComputeResource) -> tuple[frozenset[int] | None, bool]:
        """Return the ids of the processes on a resource, None where the driver does not say, and whether by MPS."""
        running = self._running.get(resource.id)
        return (None, False) if running is None else (running.pids(), running.mps)

    def facts(self) -> dict[str, Any]:
        """Return what ``axonize doctor`` should show."""
        counters = {uuid: dict(counter.counts) for uuid, counter in list(self._reader.energy.items())}
        return {
            "driver_open": self._open,
            "counts": dict(self.counts),
            "failed": dict(self._topology.failed),
            "energy_counters": {uuid: counts for uuid, counts in counters.items() if counts},
            "energy_refresh_ms": {u: None if ns is None else ns / 1e6 for u, ns in self._reader.refresh_ns.items()},
        }

    def close(self) -> None:
        """Let go of the driver."""
        if self._open:
            self._shut()

    def _init(self) -> None:
        pynvml.nvmlInit()
        self._open = True
        with contextlib.suppress(pynvml.NVMLError):  # without events there are no XIDs
            self._events = pynvml.nvmlEventSetCreate()

    def _reopen(self, now: float) -> None:
        try:
            self._init()
        except pynvml.NVMLError:
            self._next_try = now + self._backoff_s
            self._backoff_s = min(self._backoff_s * 2, BACKOFF_S[1])
        else:
            self.counts["driver_opened_again"] += 1
            self._next_look, self._backoff_s = 0.0, BACKOFF_S[0]

    def _shut(self) -> None:
        """Close NVML; handles, samples and events are void afterwards, whether or not it says so."""
        self._open = False
        for free in (self._reader.close, self._free_events, pynvml.nvmlShutdown):
            with contextlib.suppress(pynvml.NVMLError):
                free()

    def _free_events(self) -> None:
        events, self._events = self._events, None
        self._watched.clear()
        if events is not None:
            pynvml.nvmlEventSetFree(events)

    def _follow(self, now: float) -> None:
        """Look what there is; when the driver went, once more with the one there is now."""
        try:
            self._look()
        except pynvml.NVMLError as e:
            if code(e) not in DRIVER_GONE:
                raise
            self._driver_went(now)

    def _driver_went(self, now: float) -> None:
        self.counts["driver_lost"] += 1
        # Slices do not outlive their driver: those under the next one are others, whatever their uuids.
        self._incarnation += 1
        self._shut()
        self._topology, self._running = Topology({}, {}), {}
        self._reopen(now)
        if self._open:
            self._look()

    def _look(self) -> None:
        """Read what there is and who runs on it; any thread."""
        with self._looking:
            topology = read_topology(self._topology, self._incarnation)
            running = read_processes(topology.devices.values())
            for what in topology.failed.keys() - self._topology.failed.keys():
                self.counts[f"{what} lost"] += 1
            self._topology, self._running = topology, running

    def _watch_xids(self) -> None:
        """Count the XIDs that came since the last look; GPUs that report none are left out."""
        if self._events is None:
            return
        for uuid, device in self._topology.devices.items():
            if device.resource.kind == "mig" or uuid in self._watched:
                continue
            self._watched.add(uuid)
            with contextlib.suppress(pynvml.NVMLError):
                pynvml.nvmlDeviceRegisterEvents(device.handle, pynvml.nvmlEventTypeXidCriticalError, self._events)
                self._xids.setdefault(uuid, Counter())
        with contextlib.suppress(pynvml.NVMLError):  # a timeout ends it: there are no more
            while True:
                event = pynvml.nvmlEventSetWait(self._events, 0)
                uuid = pynvml.nvmlDeviceGetUUID(event.device)
                self._xids.setdefault(uuid, Counter())[int(event.eventData)] += 1
