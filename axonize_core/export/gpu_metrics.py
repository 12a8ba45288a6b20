"""GPU samples as OTel metrics of the hardware semantic conventions (``hw.*``), and what is there as info gauges.

Where the conventions have no name, ours begin with ``gpu.``. A null reading is no data point, never 0.
"""

from __future__ import annotations

import socket
import uuid
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

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
from axonize_core.events import GpuInfo, GpuSample
from axonize_core.gpu.process import process_identity
from axonize_core.settings import get_settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["FIELDS", "Field", "gpu_metrics"]


class Field(NamedTuple):
    """One field of a sample: the metric it is a point of, its unit, whether it counts, and the point's attributes."""

    field: str
    metric: str
    unit: str
    counts: bool = False
    attributes: tuple[tuple[str, str], ...] = ()


_TX, _RX = (("network.io.direction", "transmit"),), (("network.io.direction", "receive"),)
_NVLINK = (("gpu.link", "nvlink"),)
FIELDS = (
    Field("utilization", "hw.gpu.utilization", "1"),
    Field("memory_utilization", "gpu.memory.io.utilization", "1"),
    Field("memory_used_bytes", "hw.gpu.memory.usage", "By"),
    Field("memory_total_bytes", "hw.gpu.memory.limit", "By"),
    Field("power_w", "hw.power", "W"),
    Field("power_instant_w", "gpu.power.instant", "W"),
    Field("energy_j", "hw.energy", "J", counts=True),
    Field("temperature_c", "hw.temperature", "Cel"),
    Field("sm_clock_hz", "gpu.clock.frequency", "Hz", attributes=(("gpu.clock.domain", "sm"),)),
    Field("memory_clock_hz", "gpu.clock.frequency", "Hz", attributes=(("gpu.clock.domain", "memory"),)),
    Field("throttle_reasons", "gpu.clock.event_reasons", "1"),
    Field("pcie_transmit_bytes_per_s", "gpu.pcie.throughput", "By/s", attributes=_TX),
    Field("pcie_receive_bytes_per_s", "gpu.pcie.throughput", "By/s", attributes=_RX),
    Field("nvlink_transmit_bytes", "hw.gpu.io", "By", counts=True, attributes=(*_NVLINK, *_TX)),
    Field("nvlink_receive_bytes", "hw.gpu.io", "By", counts=True, attributes=(*_NVLINK, *_RX)),
    Field("ecc_corrected_errors", "hw.errors", "{error}", counts=True, attributes=(("error.type", "corrected"),)),
    Field("ecc_uncorrected_errors", "hw.errors", "{error}", counts=True, attributes=(("error.type", "uncorrected"),)),
)
_UNITS = {f.metric: (f.unit, f.counts) for f in FIELDS} | {
    "gpu.process.memory.usage": ("By", False),
    "gpu.process.utilization": ("1", False),
}


def gpu_metrics(items: Sequence[GpuSample | GpuInfo]) -> MetricsData:
    """Return one metric per field that any sample has, and one per kind of info."""
    points: dict[str, list[NumberDataPoint]] = {}
    for item in items:
        found = _info_points(item) if isinstance(item, GpuInfo) else _sample_points(item)
        for metric, point in found:
            points.setdefault(metric, []).append(point)
    scope = ScopeMetrics(InstrumentationScope("axonize", __version__), [_metric(*pair) for pair in points.items()], "")
    return MetricsData([ResourceMetrics(_resource(), [scope], "")])


@lru_cache(maxsize=1)
def _resource() -> Resource:
    """Return who says it, and on which machine: one id per agent, since two agents may see the same GPU.

    In a pod the host's name is the pod's: the node's comes from the downward API, or from OTEL_RESOURCE_ATTRIBUTES.
    """
    said = {**process_identity(), **get_settings().resource}
    machine = {name: said[name] for name in ("host.name", "host.id", "k8s.node.name") if said.get(name)}
    return Resource(
        {
            "host.name": socket.gethostname(),
            **machine,
            "service.name": "axonize-agent",
            "service.instance.id": str(uuid.uuid4()),
            "service.version": __version__,
        }
    )


def _metric(name: str, points: list[NumberDataPoint]) -> Metric:
    unit, counts = _UNITS.get(name, ("1", False))
    data = Sum(points, AggregationTemporality.CUMULATIVE, is_monotonic=True) if counts else Gauge(points)
    return Metric(name, "", unit, data)


def _info_points(info: GpuInfo) -> Iterable[tuple[str, NumberDataPoint]]:
    yield info.name, NumberDataPoint(info.attributes, 0, info.time_ns, int(info.present))


def _sample_points(sample: GpuSample) -> Iterable[tuple[str, NumberDataPoint]]:
    shared = _attributes(sample)
    for field, metric, _, counts, attributes in FIELDS:
        value = getattr(sample, field)
        if value is None:
            continue
        start_ns = (sample.energy_start_ns or 0) if counts else 0
        own = {**shared, **dict(attributes)} if attributes else shared
        yield metric, NumberDataPoint(own, start_ns, sample.time_ns, value)
    for xid, count in sample.xid_errors or ():
        own = {**shared, "error.type": f"xid-{xid}"}
        yield "hw.errors", NumberDataPoint(own, sample.energy_start_ns or 0, sample.time_ns, count)
    for process in sample.processes or ():
        of_process: dict[str, Any] = {**shared, "process.pid": process.pid}
        if process.memory_bytes is not None:
            yield "gpu.process.memory.usage", NumberDataPoint(of_process, 0, sample.time_ns, process.memory_bytes)
        if process.utilization is not None:
            yield "gpu.process.utilization", NumberDataPoint(of_process, 0, sample.time_ns, process.utilization)


def _attributes(sample: GpuSample) -> dict[str, str]:
    return {
        names.HW_ID: sample.physical_gpu,
        names.HW_NAME: sample.name,
        "hw.type": sample.hw_type,
        names.GPU_COMPUTE_RESOURCE: sample.compute_resource,
        names.GPU_PROVENANCE: sample.provenance,
    }
