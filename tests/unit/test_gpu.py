from __future__ import annotations

import itertools

import pynvml
import pytest

from axonize_core import attributes as names
from axonize_core.events import GpuSample, SourceInfo
from axonize_core.export.gpu_metrics import gpu_metrics
from axonize_core.gpu import providers
from axonize_core.gpu.identity import ComputeResource, PhysicalGpu, context_id
from axonize_core.gpu.sampler import Sampler
from axonize_core.gpu.simulated import SimulatedProvider
from axonize_core.plugins import AgentContext, Plugins
from axonize_core.settings import Settings
from axonize_core.testing import FakeClock

S = 1_000_000_000


def source(device=("cuda", 0, None)):
    return SourceInfo("i", "vllm", "s", "m", "p", device, {"host.name": "h"}, 7)


class Scripted:
    """A provider whose readings a test decides."""

    provenance = "measured"

    def __init__(self, readings):
        self.readings = iter(readings)
        self.resource = ComputeResource("GPU-1", PhysicalGpu("GPU-1", "Test"))
        self.closed = False

    def resources(self):
        return [self.resource]

    def sample(self, resource):
        reading = next(self.readings)
        if isinstance(reading, Exception):
            raise reading
        t_s, busy, power = reading
        return GpuSample("GPU-1", "GPU-1", "Test", t_s * S, "measured", utilization=busy, power_w=power)

    def resolve(self, source):
        return self.resource

    def close(self):
        self.closed = True


def test_means_are_taken_over_the_spans_own_time():
    """Samples inside the span count, those outside do not."""
    sampler = Sampler(Scripted([(1, 0.0, 10), (2, 0.5, 20), (3, 1.0, 40), (4, 0.2, 80)]), 1.0)
    for _ in range(4):
        sampler.sample_once()
    found = sampler.annotate(source(), 2 * S, 3 * S)
    assert found[names.GPU_UTILIZATION] == 0.75
    assert found[names.GPU_POWER_W] == 30
    assert names.GPU_MEMORY_BYTES not in found, "unsupported is absent, not 0"


def test_a_short_span_gets_the_reading_before_it():
    """Between two samples the older one holds; one that is too old says nothing."""
    sampler = Sampler(Scripted([(1, 0.25, 10), (2, 0.5, 20)]), 1.0)
    sampler.sample_once()
    sampler.sample_once()
    assert sampler.annotate(source(), 2 * S + 5, 2 * S + 9)[names.GPU_UTILIZATION] == 0.5
    assert sampler.annotate(source(), S + 5, S + 9)[names.GPU_UTILIZATION] == 0.25
    assert names.GPU_UTILIZATION not in sampler.annotate(source(), 60 * S, 61 * S)
    assert sampler.annotate(source(), 60 * S, 61 * S)[names.GPU_COMPUTE_RESOURCE] == "GPU-1"


def test_a_failing_device_is_counted_and_logged_once(caplog):
    """A lost GPU stops neither the sampler nor the others."""
    sampler = Sampler(Scripted([RuntimeError("lost"), RuntimeError("lost"), (3, 1.0, 1)]), 1.0)
    assert sampler.sample_once() == [] == sampler.sample_once()
    assert len(sampler.sample_once()) == 1
    assert sampler.failures["GPU-1"] == 2
    assert len(caplog.records) == 1


def test_the_thread_publishes_and_stops():
    """The sampler's thread hands every round over, and lets go of the provider at the end."""
    provider = SimulatedProvider()
    seen = []
    sampler = Sampler(provider, 0.001)
    sampler.start(seen.extend)
    while len(seen) < 3:
        pass
    sampler.stop()
    assert {s.provenance for s in seen} == {"simulated"}
    assert all(b.energy_j >= a.energy_j for a, b in itertools.pairwise(seen))


def test_without_a_provider_everything_is_unavailable():
    """No device: the provenance says so, and nothing else is said."""
    sampler = Sampler(None, 1.0)
    sampler.start(lambda _: pytest.fail("nothing to publish"))
    assert sampler.sample_once() == []
    assert sampler.annotate(source(), 1, 2) == {names.GPU_PROVENANCE: "unavailable"}
    sampler.stop()


def test_the_context_names_host_and_process():
    """Two processes that both say cuda:0 are told apart."""
    assert context_id(source()) == "h/7.i/cuda:0"


def test_samples_become_hardware_metrics():
    """Standard names and units; a null reading is no data point; energy is a monotonic sum."""
    provider = SimulatedProvider(FakeClock())
    sample = provider.sample(provider.resources()[0])
    bare = GpuSample("GPU-2", "GPU-2", "x", 5, "measured", power_w=3.0)
    metrics = {m.name: m for m in gpu_metrics([sample, bare]).resource_metrics[0].scope_metrics[0].metrics}
    assert set(metrics) == {"hw.gpu.utilization", "hw.gpu.memory.usage", "hw.power", "hw.energy", "hw.temperature"}
    assert len(metrics["hw.power"].data.data_points) == 2
    assert len(metrics["hw.energy"].data.data_points) == 1
    assert metrics["hw.energy"].data.is_monotonic
    assert metrics["hw.power"].data.data_points[0].attributes[names.GPU_PROVENANCE] == "simulated"
    assert not gpu_metrics([GpuSample("a", "a", "n", 1, "measured")]).resource_metrics[0].scope_metrics[0].metrics


def context(provider):
    return AgentContext(Settings(gpu_provider=provider), Plugins(), Sampler(None, 1.0))


def test_the_provider_is_what_was_asked_for(caplog, monkeypatch):
    """simulated only when asked; auto without a driver is nothing; nvml without one says so."""

    def no_driver():
        raise pynvml.NVMLError_LibraryNotFound

    monkeypatch.setattr(pynvml, "nvmlInit", no_driver)
    assert isinstance(providers.axonize_gpu_provider(context("simulated")), SimulatedProvider)
    assert providers.axonize_gpu_provider(context("none")) is None
    assert providers.axonize_gpu_provider(context("auto")) is None
    assert caplog.records == []
    assert providers.axonize_gpu_provider(context("nvml")) is None
    assert "NVML cannot be used" in caplog.text
