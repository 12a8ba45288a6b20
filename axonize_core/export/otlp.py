"""Built-in plugin: spans and GPU samples → OTLP over HTTP, by OpenTelemetry's own exporters.

The exporters read every ``OTEL_EXPORTER_OTLP_*`` variable themselves and retry what may be retried for
OTEL_EXPORTER_OTLP_TIMEOUT. What they give up on for want of an answer stays in a bounded queue; what the collector
refused for good is dropped and counted, or it would block what comes after it.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter, deque
from typing import TYPE_CHECKING, Any

import requests
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics.export import MetricExportResult
from opentelemetry.sdk.trace.export import SpanExportResult

from axonize_core.export.gpu_metrics import gpu_metrics
from axonize_core.hookspecs import hookimpl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.sdk.trace import ReadableSpan

    from axonize_core.events import GpuSample
    from axonize_core.plugins import AgentContext

__all__ = ["OtlpExport"]

BATCH_SPANS = 512
PERIOD_S = 0.5
SAMPLES_KEPT = 10_000
RETRY_S = (0.5, 30.0)
_RETRYABLE = {408, 429, 502, 503, 504}
logger = logging.getLogger(__name__)


class OtlpExport:
    """Exports on a thread of its own; hooks only append to bounded queues."""

    def __init__(self, context: AgentContext) -> None:
        self.counts: Counter[str] = Counter()
        self.last_error = ""
        self._capacity = context.settings.export_queue_capacity
        self._spans: deque[ReadableSpan] = deque()
        self._samples: deque[GpuSample] = deque(maxlen=SAMPLES_KEPT)
        self._wake = threading.Event()
        self._stopping = False
        self._last_status: int | None = None
        self._session = requests.Session()
        self._session.hooks["response"].append(self._saw_response)
        self._span_exporter = OTLPSpanExporter(session=self._session) if _wanted("OTEL_TRACES_EXPORTER") else None
        self._metric_exporter = OTLPMetricExporter(session=self._session) if _wanted("OTEL_METRICS_EXPORTER") else None
        self._thread = threading.Thread(target=self._run, name="axonize-export", daemon=True)
        self._thread.start()

    @hookimpl
    def axonize_spans(self, spans: Sequence[ReadableSpan]) -> None:
        """Queue spans; full drops the newest and counts it."""
        if self._span_exporter is None:
            return
        room = max(0, self._capacity - len(self._spans))
        self._spans.extend(spans[:room])
        self.counts["spans_queued"] += min(room, len(spans))
        self.counts["spans_dropped"] += max(0, len(spans) - room)
        if len(self._spans) >= BATCH_SPANS:
            self._wake.set()

    @hookimpl
    def axonize_gpu_samples(self, samples: Sequence[GpuSample]) -> None:
        """Queue samples; full drops the oldest."""
        if self._metric_exporter is not None:
            self._samples.extend(samples)

    @hookimpl
    def axonize_shutdown(self, timeout_s: float) -> None:
        """Export what is left, then stop; what does not fit into the time is counted as dropped."""
        self._stopping = True
        self._wake.set()
        self._thread.join(timeout_s)
        for exporter in (self._span_exporter, self._metric_exporter):
            if exporter is not None:
                exporter.shutdown()
        if self._spans:
            self.counts["spans_dropped"] += len(self._spans)
            logger.error("%d spans could not be exported before the end: %s", len(self._spans), self.last_error)

    def facts(self) -> dict[str, Any]:
        """Return the counters, for ``axonize doctor``."""
        return {**self.counts, "spans_waiting": len(self._spans), "last_error": self.last_error}

    def _saw_response(self, response: requests.Response, *_: Any, **__: Any) -> None:
        self._last_status = response.status_code

    def _run(self) -> None:
        retry_s = RETRY_S[0]
        while True:
            self._wake.wait(PERIOD_S)
            self._wake.clear()
            if self._export_all():
                retry_s = RETRY_S[0]
            elif not self._stopping:
                time.sleep(retry_s)
                retry_s = min(retry_s * 2, RETRY_S[1])
            if self._stopping:
                return

    def _export_all(self) -> bool:
        """Export until the queues are empty; False when the collector cannot be reached."""
        while self._spans:
            batch = [self._spans.popleft() for _ in range(min(BATCH_SPANS, len(self._spans)))]
            if not self._export_spans(batch):
                self._spans.extendleft(reversed(batch))
                return False
        samples = [self._samples.popleft() for _ in range(len(self._samples))]
        if samples and not self._export_samples(samples):
            self._samples.extendleft(reversed(samples))
            return False
        return True

    def _export_spans(self, batch: list[ReadableSpan]) -> bool:
        self._last_status = None
        assert self._span_exporter is not None  # noqa: S101 - nothing is queued without one
        done = self._span_exporter.export(batch) is SpanExportResult.SUCCESS
        return self._account("spans", len(batch), done=done)

    def _export_samples(self, samples: list[GpuSample]) -> bool:
        self._last_status = None
        assert self._metric_exporter is not None  # noqa: S101 - nothing is queued without one
        done = self._metric_exporter.export(gpu_metrics(samples)) is MetricExportResult.SUCCESS
        return self._account("samples", len(samples), done=done)

    def _account(self, what: str, count: int, *, done: bool) -> bool:
        """Count an export; True when the batch is settled, be it by a refusal for good."""
        if done:
            self.counts[f"{what}_exported"] += count
            return True
        self.last_error = f"HTTP {self._last_status}" if self._last_status else "no answer"
        if self._last_status is None or self._last_status in _RETRYABLE:
            self.counts["export_failures"] += 1
            return False
        self.counts[f"{what}_refused"] += count
        logger.error("the collector refused %d %s for good: %s", count, what, self.last_error)
        return True


def _wanted(variable: str) -> bool:
    return os.environ.get(variable, "otlp").strip().lower() not in ("none", "")


@hookimpl
def axonize_configure(context: AgentContext) -> None:
    """Begin to export."""
    context.plugins.register(OtlpExport(context), "axonize_core.export.otlp.OtlpExport")
