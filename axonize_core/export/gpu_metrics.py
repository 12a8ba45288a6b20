"""GPU samples as OTel metrics of the hardware semantic conventions (``hw.*``)."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from axonize_core import __version__
from axonize_core import attributes as names

if TYPE_CHECKING:
    from collections.abc import Sequence

    from axonize_core.events import GpuSample

__all__ = ["gpu_metrics"]

_FIELDS = (
    ("hw.gpu.utilization", "1", "utilization"),
    ("hw.gpu.memory.usage", "By", "memory_used_bytes"),
    ("hw.power", "W", "power_w"),
    ("hw.energy", "J", "energy_j"),
    ("hw.temperature", "Cel", "temperature_c"),
)


def gpu_metrics(samples: Sequence[GpuSample]) -> MetricsData:
    """Return one metric per field that any sample has; a null reading is no data point, never 0."""
    metrics = [m for name, unit, field in _FIELDS if (m := _metric(name, unit, field, samples)) is not None]
    scope = ScopeMetrics(InstrumentationScope("axonize", __version__), metrics, "")
    resource = Resource({"service.name": "axonize-agent", "host.name": socket.gethostname()})
    return MetricsData([ResourceMetrics(resource, [scope], "")])


def _metric(name: str, unit: str, field: str, samples: Sequence[GpuSample]) -> Metric | None:
    points = [
        NumberDataPoint(_attributes(sample), 0, sample.time_ns, value)
        for sample in samples
        if (value := getattr(sample, field)) is not None
    ]
    if not points:
        return None
    data = Sum(points, AggregationTemporality.CUMULATIVE, is_monotonic=True) if field == "energy_j" else Gauge(points)
    return Metric(name, "", unit, data)


def _attributes(sample: GpuSample) -> dict[str, str]:
    return {
        names.HW_ID: sample.physical_gpu,
        names.HW_NAME: sample.name,
        "hw.type": "gpu",
        names.GPU_COMPUTE_RESOURCE: sample.compute_resource,
        names.GPU_PROVENANCE: sample.provenance,
    }
