"""The sampler beside a provider that misbehaves, and what doctor is told."""

from __future__ import annotations

import pytest

from axonize_core.events import GpuProcess, GpuSample, SourceInfo
from axonize_core.export.gpu_metrics import gpu_metrics
from axonize_core.gpu import contexts
from axonize_core.gpu.contexts import Contexts
from axonize_core.gpu.identity import ComputeResource, PhysicalGpu
from axonize_core.gpu.infos import CONTEXT_INFO
from axonize_core.gpu.report import gpu_lines
from axonize_core.gpu.sampler import Sampler

GPU = ComputeResource("GPU-1", PhysicalGpu("GPU-1", "H100"))
S = 1_000_000_000


def source(instance="i", kind="cuda"):
    return SourceInfo(instance, "vllm", "s", "m", "p", (kind, 0, None), {"host.name": "h"}, 7)


class Provider:
    """A device; every call may be told to fail."""

    provenance = "measured"

    def __init__(self, **failing):
        self.failing = failing
        self.times = iter(range(1, 100))
        self.there = [GPU]
        self.resolved = 0

    def _call(self, name, value):
        if name in self.failing:
            raise self.failing[name]
        return value

    def resources(self):
        return self._call("resources", self.there)

    def sample(self, resource):
        t = next(self.times)
        energy = GpuSample("GPU-1", "GPU-1", "H100", t * S, "measured", energy_j=t * 100.0)
        return self._call("sample", energy)

    def resolve(self, asked):
        self.resolved += 1
        return self._call("resolve", GPU if asked.device[0] == "cuda" else None)

    def processes(self, resource):
        return self._call("processes", ({7}, False))

    def facts(self):
        return self._call("facts", {"driver_open": True})

    def close(self):
        self._call("close", None)


@pytest.mark.parametrize("what", ["resolve", "processes", "facts", "close"])
def test_no_failure_of_a_provider_leaves_the_sampler(what, caplog):
    """It is counted, logged once, and what it would have said is unknown."""
    sampler = Sampler(Provider(**{what: RuntimeError("broken")}), 1.0)
    sampler.contexts.appear([source()])
    sampler.sample_once()
    infos = sampler.announce()
    sampler.facts()
    sampler.stop()
    assert sampler.failures[what] >= 1
    assert len(caplog.records) == 1
    (context,) = [i for i in infos if i.name == CONTEXT_INFO]
    sharing = {"resolve": "unknown", "processes": "unknown"}.get(what, "exclusive")
    assert context.attributes["gpu.sharing"] == sharing


def test_a_round_that_fails_is_followed_by_the_next():
    """The thread goes on; what it could not read is counted."""
    provider = Provider(resources=RuntimeError("later"))
    sampler, seen, said = Sampler(provider, 0.001), [], []
    sampler.start(seen.extend, said.extend)
    while not sampler.failures["resources"]:
        pass
    provider.failing.clear()
    while not seen:
        pass
    sampler.stop()
    assert {info.attributes["hw.id"] for info in said} == {"GPU-1"}


def test_what_was_certain_is_not_asked_again():
    """A process reads its variables once; only when its resource is gone is there a new question."""
    provider = Provider()
    sampler, asked = Sampler(provider, 1.0), source()
    sampler.contexts.appear([asked])
    for _ in range(3):
        sampler.sample_once()
    assert provider.resolved == 1
    provider.there = []
    sampler.sample_once()
    assert provider.resolved == 2


def test_spans_in_one_rise_of_the_counter_share_their_power():
    """Engine steps are many: the second of the same second is looked up, and one across two rises is not."""
    sampler = Sampler(Provider(), 1.0)
    for _ in range(3):
        sampler.sample_once()
    asked = source()
    found = [sampler.annotate(asked, start, end) for start, end in ((S + 5, S + 9), (S + 10, S + 20), (S + 5, 3 * S))]
    assert [f["gpu.power.mean_w"] for f in found] == [100.0, 100.0, 100.0]
    found[0]["gpu.power.mean_w"] = 0
    assert sampler.annotate(asked, S + 10, S + 20)["gpu.power.mean_w"] == 100.0, "each span has its own attributes"


def test_a_cpu_that_no_provider_knows_is_not_announced():
    """It would be a context of nothing."""
    sampler = Sampler(Provider(), 1.0)
    sampler.contexts.appear([source(kind="cpu")])
    assert [i for i in sampler.announce() if i.name == CONTEXT_INFO] == []


def test_ended_contexts_are_bounded(monkeypatch):
    """Where nobody takes them, the newest are dropped and counted."""
    monkeypatch.setattr(contexts, "MOST_ENDED", 2)
    found = Contexts()
    for n in range(4):
        found.appear([source(f"{n}")])
        found.go([source(f"{n}")])
    found.go([source("never came")])
    assert (len(found.take_ended()), found.dropped) == (2, 2)


def test_doctor_says_what_is_missing_and_what_was_lost():
    """One line per reason; what no slice has is left out."""
    lines = gpu_lines(
        {
            "devices": {
                "GPU-1": {"name": "T4", "unavailable": {"b": "Not Supported", "a": "Not Supported", "c": "No"}},
                "MIG-1": {"name": "H100", "unavailable": {"power_w": "whole GPU"}},
            },
            "contexts_dropped": 3,
            "driver_open": False,
            "failed": {"GPU 2": "GPU is lost"},
            "counts": {"driver_lost": 1},
            "energy_counters": {"GPU-1": {"wraps": 2}},
        }
    )
    assert list(lines) == [
        ("note", "T4 GPU-1 has no a, b: Not Supported"),
        ("note", "T4 GPU-1 has no c: No"),
        ("problem", "contexts dropped: 3"),
        ("problem", "the NVIDIA driver is away; it is looked for at least every 30 s"),
        ("problem", "GPU 2: GPU is lost"),
        ("note", "driver lost: 1 times"),
        ("note", "energy counter of GPU-1: 2 wraps"),
    ]


def test_processes_become_metrics():
    """A pid per point; what is not known of one is no point."""
    processes = (GpuProcess(7, 1000, 0.5), GpuProcess(8, None, None))
    sample = GpuSample("GPU-1", "GPU-1", "H100", 5, "measured", processes=processes)
    metrics = gpu_metrics([sample]).resource_metrics[0].scope_metrics[0].metrics
    found = {m.name: [(p.attributes["process.pid"], p.value) for p in m.data.data_points] for m in metrics}
    assert found == {"gpu.process.memory.usage": [(7, 1000)], "gpu.process.utilization": [(7, 0.5)]}
