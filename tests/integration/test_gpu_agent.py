"""A real agent on a scripted machine: identity, samples and annotations as a collector gets them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fix_nvml import ENGINE

AXONIZE = Path(sys.executable).parent / "axonize"


class Engine:
    """A process that says cuda:0, on the slice its container was given."""

    def __init__(self, environment, slice_uuid, pod):
        env = {**environment, "CUDA_VISIBLE_DEVICES": slice_uuid, "POD_NAME": pod}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, "-c", ENGINE], env=env, **pipes)

    def request(self, name):
        self.process.stdin.write(f"{name}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def end(self):
        self.process.communicate(timeout=30)


@pytest.fixture
def environment(nvml_environment, tmp_path, otlp_sink):
    kept = {n: v for n, v in nvml_environment.items() if not n.startswith("OTEL_") and n != "AXONIZE_AGENT"}
    return {
        **kept,
        "AXONIZE_RUNTIME_DIR": str(tmp_path / "run"),
        "AXONIZE_GPU_PROVIDER": "nvml",
        "AXONIZE_GPU_INTERVAL_MS": "100",
        "OTEL_EXPORTER_OTLP_ENDPOINT": otlp_sink.url,
    }


def values(attributes):
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in attributes}


def points(sink, metric):
    """Return (attributes, time, value) of a metric's points, in order of time."""
    found = [p for m in sink.metrics if m.name == metric for p in m.gauge.data_points or m.sum.data_points]
    return sorted(
        ((values(p.attributes), p.time_unix_nano, p.as_int or p.as_double) for p in found), key=lambda point: point[1]
    )


def test_two_pods_on_slices_of_one_gpu_are_told_apart(machine, environment, otlp_sink):
    """Both say cuda:0: their spans, contexts and samples name their own slice; each change is followed."""
    gpu = machine.add_gpu(0, refresh_ms=20, temperature="!3")
    slices = [machine.add_slice(0, gi, "1g.10gb", start) for start, gi in enumerate((7, 8))]
    machine.write()
    engines = [Engine(environment, uuid, f"pod-{i}") for i, uuid in enumerate(slices)]
    try:
        instances = [engine.request("first") for engine in engines]
        otlp_sink.wait(lambda sink: len({s["service.instance.id"] for s in sink.resources}) == 2)
        otlp_sink.wait(lambda sink: len(points(sink, "axonize.gpu.context.info")) >= 2)
        engines[0].request("second")
        doctor = subprocess.run([AXONIZE, "doctor", "--json"], env=environment, capture_output=True, check=False)
        gone = machine.slices.pop(slices[1])
        machine.write()
        otlp_sink.wait(lambda sink: any(not v for _, _, v in points(sink, "axonize.gpu.compute_resource.info")))
        machine.slices[slices[1]] = {**gone, "start": 5}
        machine.write()
        otlp_sink.wait(lambda sink: len(points(sink, "axonize.gpu.compute_resource.info")) >= 4)
    finally:
        for engine in engines:
            engine.end()
    otlp_sink.wait(lambda sink: sum(not v for _, _, v in points(sink, "axonize.gpu.context.info")) >= 2)

    said = {}
    for span, resource in zip(otlp_sink.spans, otlp_sink.resources, strict=True):
        own = values(span.attributes)
        if span.name != "queue":
            assert own["hw.id"] == gpu
            said.setdefault(resource["service.instance.id"], set()).add(own["gpu.compute_resource.id"])
        if span.name == "prefill" and resource["service.instance.id"] == instances[0]:
            assert own["gpu.provenance"] == "measured"
    assert said == {instance: {uuid} for instance, uuid in zip(instances, slices, strict=True)}
    contexts = {a["service.instance.id"]: a for a, _, v in points(otlp_sink, "axonize.gpu.context.info") if v}
    assert [contexts[i]["gpu.compute_resource.id"] for i in instances] == slices
    assert [contexts[i]["k8s.pod.name"] for i in instances] == ["pod-0", "pod-1"]
    assert {a["gpu.device"] for a in contexts.values()} == {"cuda:0"}
    assert len({a["gpu.context.id"] for a in contexts.values()}) == 2
    of_slice = [
        (a["gpu.mig.placement.start"], v)
        for a, _, v in points(otlp_sink, "axonize.gpu.compute_resource.info")
        if a["gpu.compute_resource.id"] == slices[1]
    ]
    assert of_slice[:3] == [(1, 1), (1, 0), (5, 1)]
    assert {a["gpu.compute_resource.id"] for a, _, _ in points(otlp_sink, "hw.energy")} == {gpu}
    assert {a["hw.id"] for a, _, _ in points(otlp_sink, "hw.gpu.memory.usage")} == {gpu}
    memory = {a["gpu.compute_resource.id"] for a, _, _ in points(otlp_sink, "hw.gpu.memory.usage")}
    assert memory == {gpu, *slices}
    lines = [finding["text"] for finding in json.loads(doctor.stdout)]
    assert any("temperature_c" in line and line.endswith(": Not Supported") for line in lines), lines
