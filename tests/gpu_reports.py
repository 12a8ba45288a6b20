"""Reports about GPUs as an agent sends them: the info points of ARCHITECTURE.md §8, and samples, as OTLP requests."""

from __future__ import annotations

import time
import uuid

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from own_spans import set_attributes

S = 10**9
GIB = 1 << 30
NAMES = {
    "gpu": "axonize.gpu.info",
    "compute_resource": "axonize.gpu.compute_resource.info",
    "context": "axonize.gpu.context.info",
}
PROFILES = ((1, "1g.10gb"), (2, "2g.20gb"), (4, "4g.40gb"))


def stable_uuid(*parts):
    return str(uuid.uuid5(uuid.NAMESPACE_OID, "/".join(map(str, parts))))


def gpu_info(node, index, *, mig=False):
    """The attributes of one physical GPU."""
    return {
        "hw.id": f"GPU-{stable_uuid(node, index)}",
        "hw.type": "gpu",
        "hw.name": "NVIDIA H100 80GB HBM3",
        "hw.model": "NVIDIA H100 80GB HBM3",
        "hw.vendor": "NVIDIA",
        "hw.driver_version": "570.86.15",
        "gpu.architecture": "hopper",
        "gpu.memory.total_bytes": 80 * GIB,
        "gpu.pci.bus_id": f"00000000:{0x10 + index:02X}:00.0",
        "gpu.mig.enabled": mig,
        "gpu.provenance": "measured",
    }


def full_info(gpu):
    """The one resource of a GPU that is not sliced."""
    taken = {name: gpu[name] for name in ("hw.id", "gpu.memory.total_bytes", "gpu.provenance")}
    return {"gpu.compute_resource.id": gpu["hw.id"], "gpu.compute_resource.kind": "full", "gpu.sm.share": 1.0, **taken}


def slice_info(gpu, gi, *, profile="1g.10gb", size=1, start=None):
    """A MIG slice of a GPU."""
    return {
        "gpu.compute_resource.id": f"MIG-{stable_uuid(gpu['hw.id'], gi)}",
        "hw.id": gpu["hw.id"],
        "gpu.compute_resource.kind": "mig",
        "gpu.mig.profile": profile,
        "gpu.mig.gi_id": gi,
        "gpu.mig.ci_id": 0,
        "gpu.mig.placement.start": gi if start is None else start,
        "gpu.mig.placement.size": size,
        "gpu.memory.total_bytes": size * 10 * GIB,
        "gpu.sm.share": size / 7,
        "gpu.provenance": "measured",
    }


def context_info(resource, host, pid, *, device="cuda:0", pod=None, engine="vllm", sharing="exclusive", **more):
    """A process that calls a resource by a name of its own."""
    return {
        "gpu.context.id": f"{host}/{pid}/{device}",
        "gpu.compute_resource.id": resource["gpu.compute_resource.id"],
        "hw.id": resource["hw.id"],
        "gpu.device": device,
        "host.name": host,
        "process.pid": pid,
        "service.instance.id": stable_uuid(host, pid),
        "service.name": "chat",
        "ai.engine": engine,
        "ai.rank": 0,
        "gpu.sharing": sharing,
        "gpu.provenance": "measured",
        **({"k8s.pod.name": pod, "k8s.namespace.name": "prod", "container.id": stable_uuid(pod)[:12]} if pod else {}),
        **more,
    }


def request(points, *, node="node-a", agent=None):
    """One OTLP request of info points: (layer, attributes, time_ns, present)."""
    made = ExportMetricsServiceRequest()
    resource = made.resource_metrics.add()
    set_attributes(
        resource.resource.attributes,
        {"service.name": "axonize-agent", "host.name": node, "service.instance.id": agent or f"agent-{node}"},
    )
    scope = resource.scope_metrics.add()
    scope.scope.name = "axonize"
    for layer, attributes, time_ns, present in points:
        metric = scope.metrics.add(name=NAMES[layer], unit="1")
        point = metric.gauge.data_points.add(time_unix_nano=time_ns, as_int=int(present))
        set_attributes(point.attributes, attributes)
    return made


def samples(readings, *, node="node-a", time_ns=None, agent=None):
    """One OTLP request of samples: resource attributes → {hw.* metric: value}."""
    made = ExportMetricsServiceRequest()
    resource = made.resource_metrics.add()
    set_attributes(
        resource.resource.attributes,
        {"service.name": "axonize-agent", "host.name": node, "service.instance.id": agent or f"agent-{node}"},
    )
    scope = resource.scope_metrics.add()
    for identity, values in readings:
        for name, value in values.items():
            point = scope.metrics.add(name=name).gauge.data_points.add(time_unix_nano=time_ns or time.time_ns())
            if isinstance(value, int):
                point.as_int = value
            else:
                point.as_double = value
            taken = {key: identity[key] for key in ("hw.id", "gpu.provenance")}
            named = {
                "hw.type": "gpu",
                "gpu.compute_resource.id": identity.get("gpu.compute_resource.id", identity["hw.id"]),
            }
            set_attributes(point.attributes, {**taken, **named})
    return made
