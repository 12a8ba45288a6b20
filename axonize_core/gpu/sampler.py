"""One thread that reads every compute resource at a fixed interval and keeps the last minutes.

``annotate`` answers what a device did over a span's own time. Samples hold until the next one: a span shorter than
the interval gets the reading that was current when it began.
"""

from __future__ import annotations

import logging
import threading
from bisect import bisect_left, bisect_right
from collections import Counter
from statistics import fmean
from typing import TYPE_CHECKING, Any

from axonize_core import attributes as names

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from axonize_core.events import GpuSample, SourceInfo
    from axonize_core.gpu.identity import ComputeResource, Provider

__all__ = ["Sampler"]

KEPT_SAMPLES = 600
KEPT_INTERVALS = 3
"""How many intervals a reading holds for spans after it."""
logger = logging.getLogger(__name__)
_UNAVAILABLE = {names.GPU_PROVENANCE: "unavailable"}


class Sampler:
    """Samples of one provider; ``provider`` None annotates everything as unavailable.

    ``sample_once`` runs on the sampler's thread; ``annotate`` on the agent's main thread.
    """

    def __init__(self, provider: Provider | None, interval_s: float) -> None:
        self.provider = provider
        self.failures: Counter[str] = Counter()
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._samples: dict[str, tuple[list[int], list[GpuSample]]] = {}
        self._resolved: dict[int, tuple[SourceInfo, dict[str, Any], ComputeResource | None]] = {}
        self._last_window: tuple[Any, ...] = ()
        self._last_annotation: dict[str, Any] = {}

    def start(self, publish: Callable[[Sequence[GpuSample]], Any]) -> None:
        """Begin sampling; every round is handed to ``publish`` on the sampler's thread."""
        if self.provider is not None:
            self._thread = threading.Thread(target=self._run, args=(publish,), name="axonize-sampler", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the thread and let go of the provider."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(2.0)
        if self.provider is not None:
            try:
                self.provider.close()
            except Exception as e:  # noqa: BLE001 - a provider may be somebody else's
                self._failed("close", e)

    def _run(self, publish: Callable[[Sequence[GpuSample]], Any]) -> None:
        while not self._stop.is_set():
            try:
                publish(self.sample_once())
            except Exception as e:  # noqa: BLE001 - same; the next round may work
                self._failed("resources", e)
            self._stop.wait(self._interval_s)

    def sample_once(self) -> list[GpuSample]:
        """Read every resource once and keep what was read; a failing resource is counted and left out."""
        samples = []
        for resource in self.provider.resources() if self.provider else ():
            try:
                samples.append(self.provider.sample(resource))  # type: ignore[union-attr] # there is one inside the loop
            except Exception as e:  # noqa: BLE001 - one lost device must not stop the others
                self._failed(resource.id, e)
        for sample in samples:
            self._keep(sample)
        return samples

    def _keep(self, sample: GpuSample) -> None:
        times, kept = self._samples.get(sample.compute_resource, ([], []))
        # New lists every time: annotate reads them from another thread without a lock.
        self._samples[sample.compute_resource] = (
            [*times[-KEPT_SAMPLES + 1 :], sample.time_ns],
            [*kept[-KEPT_SAMPLES + 1 :], sample],
        )

    def identity(self, source: SourceInfo) -> tuple[dict[str, Any], ComputeResource | None]:
        """Return the attributes that name a source's device, and the compute resource."""
        known = self._resolved.get(id(source))
        if known is None or known[0] is not source:
            resource = self._resolve(source)
            known = (source, self._identity(resource), resource)
            self._resolved[id(source)] = known
        return known[1], known[2]

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
        """Return identity and mean readings of a source's device over ``[start_ns, end_ns]`` (epoch)."""
        identity, resource = self.identity(source)
        samples = self._samples.get(resource.id) if resource else None
        if samples is None:
            return dict(identity)
        window = (source, samples, *self._window(samples[0], start_ns, end_ns))
        # Engine steps are short and samples rare: the next span mostly asks for the same window.
        if window != self._last_window:
            readings = _means(samples[1][window[2] : window[3]])
            self._last_window, self._last_annotation = window, {**identity, **readings}
        return self._last_annotation.copy()

    def _window(self, times: list[int], start_ns: int, end_ns: int) -> tuple[int, int]:
        """Return the range of samples inside a span, or else of the one that held when it began."""
        first, last = bisect_left(times, start_ns), bisect_right(times, end_ns)
        if first < last:
            return first, last
        first = max(0, first - 1)
        # A reading that is too old says nothing about the span.
        too_old = abs(start_ns - times[first]) > KEPT_INTERVALS * 1e9 * max(self._interval_s, 0.1)
        return first, first if too_old else first + 1


def _means(samples: list[GpuSample]) -> dict[str, Any]:
    found = {}
    for name, field, kind in _MEANS:
        values = [v for s in samples if (v := getattr(s, field)) is not None]
        if values:
            found[name] = kind(values[0] if len(values) == 1 else fmean(values))
    return found


_MEANS: tuple[tuple[str, str, Callable[[float], float]], ...] = (
    (names.GPU_UTILIZATION, "utilization", float),
    (names.GPU_MEMORY_BYTES, "memory_used_bytes", int),
    (names.GPU_POWER_W, "power_w", float),
)
