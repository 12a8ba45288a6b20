"""A machine that changes at random, and processes that come and go on it, against what the agent makes of it.

Whatever happens, no context resolves to a resource that its process is not on, no two processes on different slices
share one, and the points that were said are a history without overlap.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from axonize_core.events import SourceInfo
from axonize_core.gpu.identity import context_id
from axonize_core.gpu.infos import CONTEXT_INFO, RESOURCE_INFO
from axonize_core.gpu.nvml import NvmlProvider
from axonize_core.gpu.nvml_reader import NvmlReader
from axonize_core.gpu.process import ENVIRONMENT, PID_NAMESPACE
from axonize_core.gpu.sampler import Sampler

PROFILES = (("1g.10gb", 1), ("2g.20gb", 2), ("3g.40gb", 4))
ROOM = 8


class Fleet(RuleBasedStateMachine):
    """Two GPUs; on each any mix of slices, or none. Processes say as much of their device as real ones do."""

    machine = None
    """The scripted NVML; the test puts it here."""

    def __init__(self):
        super().__init__()
        machine = self.machine
        machine.gpus.clear()
        machine.slices.clear()
        machine.processes.clear()
        machine.add_gpu(0)
        machine.add_gpu(1)
        machine.write()
        self.now_s, self.count = 0.0, 0
        self.truth: dict[str, tuple[SourceInfo, str]] = {}
        self.points = []
        self.provider = NvmlProvider(lambda: self.now_s)
        self.sampler = Sampler(self.provider, 1.0, clock=lambda: int(self.now_s * 1e9))

    def teardown(self):
        self.points += self.sampler.announce()
        self.sampler.stop()
        history_does_not_overlap(self.points)

    def taken(self, uuid):
        return any(resource == uuid for _, resource in self.truth.values())

    @rule(gpu=st.integers(0, 1), profile=st.sampled_from(PROFILES), start=st.integers(0, ROOM - 1))
    def create(self, gpu, profile, start):
        """Make a slice where there is room and no full GPU is in use; ids are the lowest free, as drivers give."""
        name, size = profile
        uuid = self.machine.gpus[gpu]["uuid"]
        own = [s for s in self.machine.slices.values() if s["gpu"] == uuid]
        clash = any(s["start"] < start + size and start < s["start"] + s["size"] for s in own)
        if clash or start + size > ROOM or self.taken(uuid):
            return
        gi = next(n for n in range(1, 20) if n not in {s["gi"] for s in own})
        self.machine.add_slice(gpu, gi, name, start)
        self.machine.write()

    @rule(data=st.data())
    @precondition(lambda self: self.machine.slices)
    def destroy(self, data):
        """Destroy a slice that no process is on; the last one of a GPU may end MIG mode."""
        free = [uuid for uuid in self.machine.slices if not self.taken(uuid)]
        if not free:
            return
        gpu = self.machine.slices.pop(data.draw(st.sampled_from(sorted(free))))["gpu"]
        if not any(s["gpu"] == gpu for s in self.machine.slices.values()) and data.draw(st.booleans()):
            number = next(n for n, g in self.machine.gpus.items() if g["uuid"] == gpu)
            self.machine.gpus[number].update(mig_mode=0, utilization=1)
        self.machine.write()

    @rule(data=st.data(), says=st.sampled_from(["uuid", "gpu", "variable", "prefix", "nothing", "pod"]))
    def appear(self, data, says):
        """Start a process that calls its resource cuda:0 and gives one kind of evidence, or none."""
        full = [g["uuid"] for g in self.machine.gpus.values() if g["mig_mode"] == 0]
        there = sorted([*self.machine.slices, *full])
        if not there:
            return
        resource = data.draw(st.sampled_from(there))
        self.count += 1
        device, process = self.evidence(says, resource)
        source = SourceInfo(
            f"{self.count:08}", "vllm", "s", "m", "p", device, {"host.name": "h", "says": says, **process}, 1
        )
        self.truth[context_id(source)] = (source, resource)
        self.sampler.contexts.appear([source])

    def evidence(self, says, resource):
        own = {PID_NAMESPACE: self.provider._agent[PID_NAMESPACE]}
        own |= {"container.id": self.provider._agent["container.id"]} if "container.id" in self.provider._agent else {}
        variable = f"{ENVIRONMENT}CUDA_VISIBLE_DEVICES"
        gpu = self.machine.slices[resource]["gpu"] if resource in self.machine.slices else resource
        if says == "uuid":
            return ("cuda", 0, resource.replace("MIG-", "GPU-")), {"container.id": "elsewhere"}
        if says == "gpu":
            return ("cuda", 0, gpu), {**own, variable: resource}
        if says == "pod":
            return ("cuda", 0, None), {"container.id": "pod", f"{ENVIRONMENT}NVIDIA_VISIBLE_DEVICES": resource}
        if says == "nothing":  # its container shows it one device, the agent does not know which
            return ("cuda", 0, None), {"container.id": "pod", variable: "0"}
        return ("cuda", 0, None), {**own, variable: resource if says == "variable" else resource[:-1]}

    @rule(data=st.data())
    @precondition(lambda self: self.truth)
    def go(self, data):
        """End a process."""
        source, _ = self.truth.pop(data.draw(st.sampled_from(sorted(self.truth))))
        self.sampler.contexts.go([source])

    @rule()
    def look(self):
        """A second passes."""
        self.now_s += 1.0
        self.sampler.sample_once()
        self.points += self.sampler.announce()

    @invariant()
    def everybody_is_where_the_agent_says(self):
        """What is resolved is true, and clear evidence is resolved at once, however old the agent's last look."""
        for source, resource in self.truth.values():
            found = self.sampler.identity(source)[1]
            assert found is None or found.id == resource
            assert found is not None or source.resource["says"] in ("nothing", "prefix")


def history_does_not_overlap(points):
    """Assert that each thing appears before it goes, that times rise, and that no context is on two resources."""
    on: dict[tuple[str, str], int] = {}
    for point in points:
        if point.name not in (RESOURCE_INFO, CONTEXT_INFO):
            continue
        names = {RESOURCE_INFO: "gpu.compute_resource.id", CONTEXT_INFO: "gpu.context.id"}
        key = (point.name, point.attributes[names[point.name]])
        assert point.present or key in on, f"{key} went before it came"
        assert key not in on or point.time_ns >= on[key]
        if point.present:
            on[key] = point.time_ns
        else:
            del on[key]


def test_no_two_contexts_ever_resolve_to_the_same_wrong_resource(machine, monkeypatch):
    """Over 50 random histories of up to 30 changes."""
    monkeypatch.setattr(NvmlReader, "measure_refresh", lambda self, devices: None)
    monkeypatch.setattr(Fleet, "machine", machine)
    case = Fleet.TestCase
    case.settings = settings(
        max_examples=50,
        stateful_step_count=30,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        database=None,
    )
    case("runTest").runTest()
