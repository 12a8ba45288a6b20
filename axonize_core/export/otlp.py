"""Built-in plugin: spans and GPU samples → OTLP, through a disk queue.

```
hook → pending (memory, ≤ 0.5 s) → encoder thread → backlog (disk) → one sender thread a signal → collector
```

Hooks only append to a bounded queue. What is in the backlog survives the agent; see docs/export.md.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter, deque
from typing import TYPE_CHECKING, Any, TypeVar

from axonize_core.errors import ConfigurationError
from axonize_core.export.backlog import Backlog
from axonize_core.export.batch import pack
from axonize_core.export.disk_queue import DiskQueue
from axonize_core.export.encoder import encode_samples, encoded
from axonize_core.export.endpoint import Endpoint, queue_key
from axonize_core.export.lane import Lane
from axonize_core.export.queue_directory import QueueDirectory
from axonize_core.export.senders import make_sender
from axonize_core.export.span_encoder import encode_traces
from axonize_core.hookspecs import hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from opentelemetry.sdk.trace import ReadableSpan

    from axonize_core.events import GpuInfo, GpuSample
    from axonize_core.plugins import AgentContext
    from axonize_core.settings import Settings

__all__ = ["OtlpExport", "wanted_endpoints"]

BATCH_SPANS = 512
PERIOD_S = 0.5
SAMPLES_KEPT = 10_000
# Metrics get a small share of the bytes: they repeat, spans do not.
_METRICS_SHARE = 16
_WHAT = {"traces": "spans", "metrics": "samples"}
logger = logging.getLogger(__name__)
Item = TypeVar("Item")


class OtlpExport:
    """Owns the queue directory, the encoder thread and a lane for each signal that is wanted."""

    def __init__(self, context: AgentContext) -> None:
        self.counts: Counter[str] = Counter(spans_queued=0, samples_queued=0, export_failures=0)
        self._settings = context.settings
        self._spans: deque[ReadableSpan] = deque()
        self._samples: deque[GpuSample | GpuInfo] = deque()
        self._wake = threading.Event()
        self._stopping = False
        # What never reached a lane; the keys stay the same, so that another thread may read.
        self._lost = {signal: {"overrun": 0, "encoding": 0} for signal in _WHAT}
        endpoints = wanted_endpoints()
        self._directory, fallback = _claim(self._settings, endpoints)
        self._lanes = {e.signal: self._make_lane(e, fallback) for e in endpoints}
        self._thread = threading.Thread(target=self._run, name="axonize-encode", daemon=True)
        self._thread.start()
        for lane in self._lanes.values():
            lane.start()

    @hookimpl
    def axonize_spans(self, spans: Sequence[ReadableSpan]) -> None:
        """Queue spans; full drops the newest and counts it."""
        if "traces" in self._lanes:
            self._queue("traces", self._spans, spans, self._settings.export_queue_capacity)

    @hookimpl
    def axonize_gpu_samples(self, samples: Sequence[GpuSample]) -> None:
        """Queue samples; full drops the newest and counts it."""
        if "metrics" in self._lanes:
            self._queue("metrics", self._samples, samples, SAMPLES_KEPT)

    @hookimpl
    def axonize_gpu_infos(self, infos: Sequence[GpuInfo]) -> None:
        """Queue what changed of identity among the samples, with which it travels."""
        if "metrics" in self._lanes:
            self._queue("metrics", self._samples, infos, SAMPLES_KEPT)

    @hookimpl
    def axonize_shutdown(self, timeout_s: float) -> None:
        """Send what the time allows; the rest stays on disk for the next agent, or is counted as dropped."""
        deadline = time.monotonic() + timeout_s
        self._stopping = True
        self._wake.set()
        self._thread.join(timeout_s)
        ended = [lane.stop(deadline) for lane in self._lanes.values()]
        # A thread that still waits for an answer keeps the directory locked until the process ends.
        if self._directory is not None and all(ended) and not self._thread.is_alive():
            self._directory.release()
        for signal, lane in self.facts()["lanes"].items():
            if lane["dropped"]:
                logger.error("%s were dropped: %s", _WHAT[signal], lane["dropped"])

    def facts(self) -> dict[str, Any]:
        """Return the counters, for ``axonize doctor``: sums here, details by signal under ``lanes``."""
        lanes = {signal: lane.facts() for signal, lane in self._lanes.items()}
        sums: Counter[str] = Counter(self.counts)
        for signal, lane in lanes.items():
            what = _WHAT[signal]
            lane["dropped"].update({cause: count for cause, count in self._lost[signal].items() if count})
            sums[f"{what}_exported"] = lane["sent"]
            sums[f"{what}_refused"] = sum(lane["refused"].values())
            sums[f"{what}_dropped"] = sum(lane["dropped"].values())
            sums[f"{what}_waiting"] = lane["waiting"]
            sums["export_failures"] += lane["retries"]
        sums["spans_waiting"] += len(self._spans)
        sums["samples_waiting"] += len(self._samples)
        adopted = self._directory.adopted_segments if self._directory is not None else 0
        error = next((lane["last_error"] for lane in lanes.values() if lane["last_error"]), "")
        return {**sums, "segments_adopted": adopted, "last_error": error, "lanes": lanes}

    def _make_lane(self, endpoint: Endpoint, fallback: str) -> Lane:
        limit = self._settings.export_queue_bytes // (_METRICS_SHARE if endpoint.signal == "metrics" else 1)
        disk = None
        if self._directory is not None:
            try:
                disk = DiskQueue(self._directory.path / endpoint.signal, limit)
            except OSError as e:
                fallback = str(e)
        if fallback:
            logger.error("%s wait in memory only, because the disk queue does not work: %s", endpoint.items, fallback)
        backlog = Backlog(disk, fallback, max_age_s=self._settings.export_queue_age_s)
        return Lane(endpoint, backlog, make_sender(endpoint))

    def _queue(self, signal: str, pending: deque[Item], items: Sequence[Item], capacity: int) -> None:
        room = max(0, capacity - len(pending))
        pending.extend(items[:room])
        self.counts[f"{_WHAT[signal]}_queued"] += min(room, len(items))
        self._lost[signal]["overrun"] += max(0, len(items) - room)
        if len(pending) >= BATCH_SPANS:
            self._wake.set()

    def _run(self) -> None:
        while True:
            self._wake.wait(PERIOD_S)
            self._wake.clear()
            stopping = self._stopping
            try:
                self._encode("traces", self._spans, encode_traces)
                self._encode("metrics", self._samples, encode_samples)
            except Exception:  # an error of ours must not end the export
                self.counts["encoder_failures"] += 1
                logger.exception("the encoder failed")
            if stopping:
                return

    def _encode(self, signal: str, pending: deque[Item], encode: Callable[[Sequence[Item]], bytes]) -> None:
        """Move what is pending to its lane, 512 at a time."""
        while pending:
            items = [pending.popleft() for _ in range(min(BATCH_SPANS, len(pending)))]
            lane = self._lanes[signal]
            gzip_bytes = lane.endpoint.gzip_bytes(self._settings.export_gzip_bytes)
            for body, count in encoded(items, encode):
                if body is None:
                    self._lost[signal]["encoding"] += count
                else:
                    lane.put(pack(body, count, time.time_ns(), gzip_bytes))


def wanted_endpoints() -> list[Endpoint]:
    """Return the endpoints of the signals that OTEL_TRACES_EXPORTER and OTEL_METRICS_EXPORTER ask for."""
    wanted = (
        signal
        for signal in ("traces", "metrics")
        if os.environ.get(f"OTEL_{signal.upper()}_EXPORTER", "otlp").strip().lower() not in ("none", "")
    )
    return [Endpoint.from_env(signal) for signal in wanted]


def _claim(settings: Settings, endpoints: list[Endpoint]) -> tuple[QueueDirectory | None, str]:
    """Return the directory of the disk queue, or none and why."""
    if not endpoints:
        return None, ""
    if not settings.export_queue_bytes:
        return None, "AXONIZE_EXPORT_QUEUE_BYTES is 0"
    if settings.state_dir is None:
        return None, "neither AXONIZE_STATE_DIR nor HOME is set"
    try:
        # No headers here: they hold credentials.
        about = {"endpoints": {e.signal: e.shown_url for e in endpoints}}
        return QueueDirectory(settings.state_dir, queue_key(endpoints), about), ""
    except (OSError, ConfigurationError) as e:
        return None, str(e)


@hookimpl
def axonize_configure(context: AgentContext) -> None:
    """Begin to export."""
    context.plugins.register(OtlpExport(context), "axonize_core.export.otlp.OtlpExport")
