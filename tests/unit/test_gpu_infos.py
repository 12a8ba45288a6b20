"""What is said of the three layers, and when."""

from __future__ import annotations

import msgspec
import pytest

from axonize_core.events import GpuSample, SourceInfo
from axonize_core.export import gpu_metrics as exporting
from axonize_core.export.gpu_metrics import gpu_metrics
from axonize_core.gpu.contexts import Context, Contexts, sharing
from axonize_core.gpu.identity import ComputeResource, PhysicalGpu
from axonize_core.gpu.infos import CONTEXT_INFO, GPU_INFO, REPEAT_NS, RESOURCE_INFO, Announcer
from axonize_core.gpu.sampler import Sampler
from axonize_core.settings import Settings
from axonize_core.testing import FakeClock

GPU = PhysicalGpu("GPU-1", "H100", 80, "570.1", "Hopper", "00000000:01:00.0", "NVIDIA", True)
WHOLE = ComputeResource("GPU-1", GPU, "sliced", memory_bytes=80)
SLICE = ComputeResource("MIG-1", GPU, "mig", "1g.10gb", 7, 0, 0, 1, 10, 0.125)
PROCESS = {"host.name": "h", "container.id": "c1", "k8s.pod.name": "llm-0", "ai.rank": "2"}


def source(instance="abcdefgh-1", device=("cuda", 0, None), pid=7):
    return SourceInfo(instance, "vllm", "chat", "m", "p", device, PROCESS, pid)


def said(infos):
    return [(i.name.removeprefix("axonize.gpu."), i.time_ns, int(i.present)) for i in infos]


def test_everything_is_said_once_then_on_a_change_then_every_minute():
    """A GPU before its slices, these before their contexts."""
    announcer, context = Announcer("measured"), Context(source(), 3, SLICE, "mig")
    first = announcer.update([WHOLE, SLICE], [context], [], 5)
    assert said(first) == [("info", 5, 1), ("compute_resource.info", 5, 1), ("context.info", 3, 1)]
    assert announcer.update([WHOLE, SLICE], [context], [], 6) == []
    changed = msgspec.structs.replace(context, sharing="time-slicing")
    assert said(announcer.update([WHOLE, SLICE], [changed], [], 7)) == [("context.info", 7, 1)]
    again = announcer.update([WHOLE, SLICE], [changed], [], 5 + REPEAT_NS)
    assert said(again) == [("info", 5 + REPEAT_NS, 1), ("compute_resource.info", 5 + REPEAT_NS, 1)]


def test_an_info_names_what_it_is_about():
    """The attributes of the contract; what is not known is left out."""
    announcer = Announcer("measured")
    gpu, resource, context = announcer.update([WHOLE, SLICE], [Context(source(), 3, SLICE, "mig")], [], 5)
    assert gpu.attributes == {
        "hw.id": "GPU-1",
        "hw.type": "gpu",
        "hw.name": "H100",
        "hw.model": "H100",
        "hw.vendor": "NVIDIA",
        "hw.driver_version": "570.1",
        "gpu.architecture": "Hopper",
        "gpu.memory.total_bytes": 80,
        "gpu.pci.bus_id": "00000000:01:00.0",
        "gpu.mig.enabled": True,
        "gpu.provenance": "measured",
    }
    assert resource.attributes == {
        "gpu.compute_resource.id": "MIG-1",
        "hw.id": "GPU-1",
        "gpu.compute_resource.kind": "mig",
        "gpu.mig.profile": "1g.10gb",
        "gpu.mig.gi_id": 7,
        "gpu.mig.ci_id": 0,
        "gpu.mig.placement.start": 0,
        "gpu.mig.placement.size": 1,
        "gpu.memory.total_bytes": 10,
        "gpu.sm.share": 0.125,
        "gpu.provenance": "measured",
    }
    assert context.attributes == {
        "gpu.context.id": "h/7.abcdefgh/cuda:0",
        "gpu.compute_resource.id": "MIG-1",
        "hw.id": "GPU-1",
        "gpu.device": "cuda:0",
        "host.name": "h",
        "process.pid": 7,
        "service.instance.id": "abcdefgh-1",
        "service.name": "chat",
        "ai.engine": "vllm",
        "ai.rank": 2,
        "container.id": "c1",
        "k8s.pod.name": "llm-0",
        "gpu.sharing": "mig",
        "gpu.provenance": "measured",
    }


def test_a_slice_that_is_made_again_says_0_then_1():
    """Its uuid is the same, its place or its driver is not."""
    for again in (
        msgspec.structs.replace(SLICE, placement_start=4),
        msgspec.structs.replace(SLICE, gi_id=9),
        msgspec.structs.replace(SLICE, incarnation=1),
    ):
        announcer = Announcer("measured")
        announcer.update([WHOLE, SLICE], [], [], 5)
        found = announcer.update([WHOLE, again], [], [], 9)
        assert said(found) == [("compute_resource.info", 9, 0), ("compute_resource.info", 10, 1)]
    assert said(announcer.update([WHOLE], [], [], 20)) == [("compute_resource.info", 20, 0)]
    assert said(announcer.update([], [], [], 30)) == [("info", 30, 0)]


def test_a_context_goes_when_its_process_went():
    """At that time, not when the agent looked; also one that came and went between two looks."""
    announcer = Announcer("measured")
    announcer.update([WHOLE, SLICE], [Context(source(), 3, SLICE)], [], 5)
    short = Context(source("zyxwvuts-2"), 11, SLICE, until_ns=12)
    found = announcer.update([WHOLE, SLICE], [], [Context(source(), 3, SLICE, until_ns=8), short], 20)
    assert said(found) == [("context.info", 8, 0), ("context.info", 11, 1), ("context.info", 12, 0)]


def test_a_context_that_turns_out_to_be_elsewhere_is_moved():
    """Its time on one resource ends before that on the other begins."""
    announcer = Announcer("measured")
    announcer.update([], [Context(source(), 3)], [], 5)
    found = announcer.update([WHOLE, SLICE], [Context(source(), 3, SLICE)], [], 9)
    assert said(found)[-2:] == [("context.info", 9, 0), ("context.info", 10, 1)]
    assert "gpu.compute_resource.id" not in found[-2].attributes


def test_contexts_appear_once_and_end_once():
    """Two models of a process on one device are one context."""
    clock = FakeClock(100)
    contexts = Contexts(clock)
    both = [source(), source(), source(device=("cuda", 1, None))]
    contexts.appear(both)
    clock.advance(10)
    contexts.appear(both)
    assert [(c.source.device[1], c.since_ns) for c in contexts.live()] == [(0, 100), (1, 100)]
    contexts.go(both)
    assert contexts.live() == []
    assert [c.until_ns for c in contexts.take_ended()] == [110, 110]
    assert contexts.take_ended() == []


@pytest.mark.parametrize(
    ("resource", "neighbours", "pids", "mps", "expected"),
    [
        (WHOLE, 1, {7}, False, "exclusive"),
        (WHOLE, 1, None, False, "unknown"),
        (WHOLE, 2, None, False, "time-slicing"),
        (WHOLE, 1, {7, 8}, False, "time-slicing"),
        (WHOLE, 2, {7, 8}, True, "mps"),
        (SLICE, 1, {7}, False, "mig"),
        (SLICE, 2, None, False, "time-slicing"),
        (None, 1, None, False, "unknown"),
    ],
)
def test_sharing_is_what_the_driver_and_the_agent_see(resource, neighbours, pids, mps, expected):
    """Several contexts on one resource are represented as such."""
    live = [Context(source(f"{n}"), 1, resource) for n in range(neighbours)]
    assert sharing(live[0], live, pids, mps=mps) == expected


def test_power_of_a_slice_is_its_part_of_the_gpus():
    """Labelled apportioned; utilisation and memory are its own."""

    class Sliced:
        provenance = "measured"
        resources = staticmethod(lambda: [WHOLE, SLICE])
        resolve = staticmethod(lambda source: SLICE)

        @staticmethod
        def sample(resource):
            own = {"utilization": 0.5} if resource is SLICE else {"power_w": 400.0}
            return GpuSample(resource.id, "GPU-1", "H100", 100, "measured", **own)

    sampler = Sampler(Sliced(), 1.0)
    sampler.sample_once()
    assert sampler.annotate(source(), 100, 200) == {
        "hw.id": "GPU-1",
        "gpu.compute_resource.id": "MIG-1",
        "gpu.provenance": "measured",
        "gpu.utilization.mean": 0.5,
        "gpu.power.mean_w": 50.0,
        "gpu.power.provenance": "apportioned",
    }


def test_infos_and_every_field_become_metrics():
    """Names of the conventions, one agent id; counters are cumulative since the agent's first reading."""
    sample = GpuSample(
        "GPU-1",
        "GPU-1",
        "H100",
        50,
        "measured",
        energy_j=9.0,
        energy_start_ns=40,
        nvlink_receive_bytes=5,
        ecc_corrected_errors=2,
        xid_errors=((79, 1),),
        sm_clock_hz=3,
    )
    infos = Announcer("measured").update([WHOLE, SLICE], [], [], 5)
    (resource,) = gpu_metrics([sample, *infos]).resource_metrics
    assert resource.resource.attributes["service.name"] == "axonize-agent"
    assert len(resource.resource.attributes["service.instance.id"]) == 36
    metrics = {m.name: m for m in resource.scope_metrics[0].metrics}
    assert set(metrics) == {
        "hw.energy", "hw.gpu.io", "hw.errors", "gpu.clock.frequency", GPU_INFO, RESOURCE_INFO,
    }  # fmt: skip
    assert metrics["hw.energy"].data.data_points[0].start_time_unix_nano == 40
    assert [p.attributes["error.type"] for p in metrics["hw.errors"].data.data_points] == ["corrected", "xid-79"]
    assert metrics["hw.gpu.io"].data.data_points[0].attributes["network.io.direction"] == "receive"
    assert metrics[RESOURCE_INFO].data.data_points[0].value == 1
    assert CONTEXT_INFO not in metrics


def test_the_agent_says_which_machine_it_is_on(monkeypatch):
    """In a pod the host's name is the pod's: node and host come from the environment; the service stays the agent."""
    monkeypatch.setenv("NODE_NAME", "node-7")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "host.name=rack-3,service.name=chat,container.id=c1")
    monkeypatch.setattr(exporting, "get_settings", Settings.from_env)
    said = exporting._resource.__wrapped__().attributes
    assert (said["host.name"], said["k8s.node.name"], said["service.name"]) == ("rack-3", "node-7", "axonize-agent")
    assert "container.id" not in said
