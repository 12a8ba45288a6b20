"""NVML's provider against the scripted library, through the real pynvml."""

from __future__ import annotations

import time

import pynvml
import pytest

from axonize_core.events import SourceInfo
from axonize_core.gpu import nvml_reader
from axonize_core.gpu.nvml import NvmlProvider
from axonize_core.gpu.nvml_gpm import SHORTEST_S
from axonize_core.gpu.nvml_reader import refresh_of
from fix_nvml import MODELS


@pytest.fixture
def clock():
    """Seconds that move when told to."""

    class Clock:
        now = 0.0

        def __call__(self):
            return self.now

    return Clock()


@pytest.fixture
def provider(machine, clock, monkeypatch):
    """A provider of the machine as it is when this is called; it does not wait for the counter's refresh."""
    monkeypatch.setattr(nvml_reader, "REFRESH_LIMIT_S", 0.0)
    monkeypatch.setattr(nvml_reader.NvmlReader, "measure_refresh", lambda self, devices: None)
    made = []

    def make():
        machine.write()
        made.append(NvmlProvider(clock))
        return made[-1]

    yield make
    for one in made:
        one.close()


def look(provider, clock):
    """Return the resources after another second."""
    clock.now += 1.0
    return provider.resources()


def test_a_gpu_is_named_in_full(machine, provider):
    """Everything NVML says of a GPU stands in its identity."""
    machine.add_gpu(3, "A100")
    (resource,) = provider().resources()
    assert resource.kind == "full"
    assert resource.gpu.name == "NVIDIA A100-SXM4-40GB"
    assert resource.gpu.architecture == "Ampere"
    assert resource.gpu.pci_bus_id == "00000000:13:00.0"
    assert resource.gpu.driver_version == "570.86.15"
    assert resource.gpu.memory_bytes == 40 * 1024**3
    assert resource.gpu.mig_enabled is False


def test_readings_have_units(machine, provider):
    """Milliwatts become watts, percent a share, MHz Hz, KiB bytes."""
    gpu = machine.add_gpu(0, power="250500")
    machine.processes.append({"gpu": gpu, "pid": 42, "memory": 1000, "sm": 30})
    one = provider()
    (resource,) = one.resources()
    sample = one.sample(resource)
    assert (sample.utilization, sample.memory_utilization) == (0.4, 0.2)
    assert (sample.power_w, sample.power_instant_w) == (250.5, 250.5)
    assert (sample.memory_used_bytes, sample.memory_total_bytes) == (1024**3, 80 * 1024**3)
    assert (sample.sm_clock_hz, sample.memory_clock_hz) == (1_410_000_000, 1_593_000_000)
    assert (sample.pcie_transmit_bytes_per_s, sample.nvlink_receive_bytes) == (102_400, 8192)
    assert (sample.ecc_corrected_errors, sample.throttle_reasons, sample.temperature_c) == (1, 4, 45.0)
    assert [(p.pid, p.memory_bytes, p.utilization) for p in sample.processes] == [(42, 1000, 0.3)]
    assert sample.unavailable == {}


@pytest.mark.parametrize(("error", "reason"), [("!3", "Not Supported"), ("!4", "Insufficient Permissions")])
def test_an_unsupported_field_is_none_with_nvmls_reason(machine, provider, error, reason):
    """Never 0; the other fields are still read."""
    machine.add_gpu(0, temperature=error)
    one = provider()
    sample = one.sample(one.resources()[0])
    assert sample.temperature_c is None
    assert sample.unavailable == {"temperature_c": reason}
    assert sample.power_w == 100.0


def test_a_permission_that_is_given_later_is_used(machine, provider):
    """What may not be read is asked again; its reason goes when it may."""
    machine.add_gpu(0, ecc_corrected="!4")
    one = provider()
    (resource,) = one.resources()
    assert one.sample(resource).unavailable == {"ecc_corrected_errors": "Insufficient Permissions"}
    machine.gpus[0]["ecc_corrected"] = 9
    machine.write()
    sample = one.sample(resource)
    assert (sample.ecc_corrected_errors, sample.unavailable) == (9, {})


def test_slices_are_resources_and_their_gpu_is_not(machine, provider):
    """Ids, profile, placement and share of each slice; the GPU around them is read but nothing runs on it."""
    gpu = machine.add_gpu(0)
    small = machine.add_slice(0, gi=7, profile="1g.10gb", start=0)
    large = machine.add_slice(0, gi=2, profile="3g.40gb", start=4)
    one = provider()
    resources = {r.id: r for r in one.resources()}
    assert {r.id: r.kind for r in resources.values()} == {gpu: "sliced", small: "mig", large: "mig"}
    found = resources[large]
    assert (found.mig_profile, found.gi_id, found.ci_id) == ("3g.40gb", 2, 0)
    assert (found.placement_start, found.placement_size) == (4, 4)
    assert found.sm_share == 60 / 132
    assert found.gpu.mig_enabled is True
    assert sum(r.sm_share for r in (resources[small], found)) < 1


def mixes(profiles, room=8, compute=7):
    """Yield every set of profiles that fits on a GPU, as the sizes of their memory and compute slices allow."""
    for i, (name, (_, size, _)) in enumerate(profiles):
        needed = int(name[0])
        if size <= room and needed <= compute:
            yield (name,)
            yield from ((name, *rest) for rest in mixes(profiles[i:], room - size, compute - needed))


@pytest.mark.parametrize("model", ["A100", "H100"])
def test_every_mix_of_slices_is_listed(machine, provider, clock, model):
    """Reconfigured again and again at run time: each slice with its profile and memory, never more than the GPU."""
    machine.add_gpu(0, model)
    machine.gpus[0]["mig_mode"] = 1
    one, profiles = provider(), sorted(MODELS[model][4].items())
    found = sorted(set(mixes(profiles)))
    assert len(found) > 20
    for mix in found:
        machine.slices.clear()
        start = 0
        for gi, profile in enumerate(mix, 1):
            machine.add_slice(0, gi, profile, start)
            start += dict(profiles)[profile][1]
        machine.write()
        gpu, *slices = look(one, clock)
        assert [s.mig_profile for s in slices] == list(mix)
        assert sum(s.memory_bytes for s in slices) < gpu.memory_bytes
        assert sum(s.sm_share for s in slices) <= 1


def test_a_slice_has_its_own_utilisation_where_gpm_is(machine, provider):
    """From the second reading on, and only on GPUs that have GPM; the rest says that it is the GPU's."""
    machine.add_gpu(0, "H100")
    machine.add_gpu(1, "A100")
    hopper = machine.add_slice(0, 7, "1g.10gb", 0, gpm_busy=62.5)
    ampere = machine.add_slice(1, 7, "1g.5gb", 0)
    one = provider()
    resources = {r.id: r for r in one.resources()}
    assert one.sample(resources[hopper]).utilization is None
    assert one.sample(resources[hopper]).utilization is None, "the window is too short for GPM"
    time.sleep(SHORTEST_S)
    sample = one.sample(resources[hopper])
    assert sample.utilization == 0.625
    assert (sample.power_w, sample.energy_j) == (None, None)
    assert "whole GPU" in sample.unavailable["power_w"]
    assert one.sample(resources[ampere]).unavailable["utilization"] == "Not Supported"


def test_what_the_unprivileged_may_not_see_is_none(machine, provider):
    """Without permission for GPU instances there is no placement, and the rest is there."""
    machine.add_gpu(0)
    machine.add_slice(0, 7, "1g.10gb", 0, info_error=4)
    found = provider().resources()[1]
    assert (found.placement_start, found.placement_size) == (None, None)
    assert (found.gi_id, found.mig_profile) == (7, "1g.10gb")


def test_slices_are_followed_while_they_change(machine, provider, clock):
    """Made, destroyed, and made again elsewhere under the same uuid: that is another slice."""
    machine.add_gpu(0)
    first = machine.add_slice(0, 7, "1g.10gb", 0)
    one = provider()
    before = one.resources()[1]
    del machine.slices[first]
    second = machine.add_slice(0, 9, "2g.20gb", 0)
    machine.write()
    assert [r.id for r in look(one, clock)][1:] == [second]
    del machine.slices[second]
    assert machine.add_slice(0, 7, "1g.10gb", 3) == first
    machine.write()
    after = look(one, clock)[1]
    assert after.id == before.id
    assert not after.same_as(before)


def test_turning_mig_off_gives_the_gpu_back(machine, provider, clock):
    """The GPU is a resource again, and the slices are gone."""
    machine.add_gpu(0)
    uuid = machine.add_slice(0, 7, "7g.80gb", 0)
    one = provider()
    assert [r.kind for r in one.resources()] == ["sliced", "mig"]
    del machine.slices[uuid]
    machine.gpus[0].update(mig_mode=0, utilization=10)
    machine.write()
    assert [r.kind for r in look(one, clock)] == ["full"]


def test_a_lost_gpu_leaves_the_others(machine, provider, clock):
    """GPU_IS_LOST takes one GPU out, with its reason, until it is back."""
    gone, stays = machine.add_gpu(0), machine.add_gpu(1)
    one = provider()
    lost = one.resources()[0]
    machine.gpus[0]["error"] = 15
    machine.write()
    with pytest.raises(pynvml.NVMLError_GpuIsLost):
        one.sample(lost)
    assert [r.id for r in one.resources()] == [stays], "a failed reading is reason to look at once"
    assert one.facts()["failed"] == {"GPU 0": "GPU is lost"}
    del machine.gpus[0]["error"]
    machine.write()
    assert [r.id for r in look(one, clock)] == [gone, stays]


def test_an_unplugged_gpu_is_gone(machine, provider, clock):
    """Its old handle says so, and the list is without it."""
    machine.add_gpu(0)
    stays = machine.add_gpu(1)
    one = provider()
    unplugged = one.resources()[0]
    del machine.gpus[0]
    machine.write()
    with pytest.raises(pynvml.NVMLError_GpuIsLost):
        one.sample(unplugged)
    assert [r.id for r in look(one, clock)] == [stays]


def test_a_reloaded_driver_is_opened_again(machine, provider, clock):
    """GPUs come back as themselves, slices as others, since no slice outlives its driver."""
    machine.add_gpu(0)
    machine.add_slice(0, 7, "1g.10gb", 0)
    machine.add_gpu(1)
    one = provider()
    gpu_before, slice_before, full_before = one.resources()
    machine.system.update(epoch=1, driver="575.1")
    machine.write()
    gpu, one_slice, full = look(one, clock)
    assert gpu.same_as(gpu_before)
    assert full.same_as(full_before)
    assert not one_slice.same_as(slice_before)
    assert full.gpu.driver_version == "575.1"
    assert one.sample(full).power_w == 100.0
    assert one.facts()["counts"] == {"driver_lost": 1, "driver_opened_again": 1}


def test_a_driver_that_is_away_is_looked_for_ever_more_rarely(machine, provider, clock):
    """There is nothing until it is back; then everything is."""
    machine.add_gpu(0)
    one = provider()
    assert len(one.resources()) == 1
    machine.system.update(epoch=1, init=9)
    machine.write()
    assert look(one, clock) == []
    del machine.system["init"]
    machine.write()
    assert one.resources() == [], "not asked again within the same second"
    assert [r.kind for r in look(one, clock)] == ["full"]


def test_no_driver_is_an_error_at_creation(machine, clock):
    """The plugin that makes the provider decides what that means."""
    machine.system["init"] = 9
    machine.write()
    with pytest.raises(pynvml.NVMLError_DriverNotLoaded):
        NvmlProvider(clock)


def test_xids_are_counted_since_the_agent_watches(machine, provider, clock):
    """Each XID with how often it came; a GPU that tells of none has None."""
    machine.add_gpu(0)
    machine.add_gpu(1, xid_seq=None)
    one = provider()
    first, second = one.resources()
    assert (one.sample(first).xid_errors, one.sample(second).xid_errors) == ((), None)
    machine.gpus[0].update(xid_seq=1, xid=79)
    machine.write()
    look(one, clock)
    assert one.sample(first).xid_errors == ((79, 1),)


def test_a_process_is_found_on_its_slice(machine, provider):
    """The driver names the GPU and compute instance of each process; MPS clients are told apart."""
    gpu = machine.add_gpu(0)
    small = machine.add_slice(0, 7, "1g.10gb", 0)
    shared = machine.add_gpu(1)
    machine.processes += [
        {"gpu": gpu, "pid": 11, "memory": 5, "gi": 7, "ci": 0},
        {"gpu": shared, "pid": 12, "memory": 6, "mps": 1},
    ]
    one = provider()
    resources = {r.id: r for r in one.resources()}
    assert one.processes(resources[small]) == ({11}, False)
    assert one.processes(resources[shared]) == ({12}, True)
    assert [p.pid for p in one.sample(resources[small]).processes] == [11]


def test_the_unprivileged_ask_the_slice_for_its_processes(machine, provider):
    """Where a GPU's own list is closed, each slice still tells its own."""
    gpu = machine.add_gpu(0, processes_error=4)
    one_slice, other = (machine.add_slice(0, gi, "1g.10gb", gi - 7) for gi in (7, 8))
    machine.processes += [{"gpu": gpu, "pid": 10 + gi, "memory": 5, "gi": gi, "ci": 0} for gi in (7, 8)]
    one = provider()
    resources = {r.id: r for r in one.resources()}
    assert one.processes(resources[one_slice]) == ({17}, False)
    assert one.processes(resources[other]) == ({18}, False)
    assert one.processes(resources[gpu]) == (None, False)


def test_processes_that_may_not_be_listed_are_unknown(machine, provider):
    """None, not an empty list."""
    machine.add_gpu(0, processes_error=4)
    one = provider()
    (resource,) = one.resources()
    assert one.processes(resource) == (None, False)
    assert one.sample(resource).processes is None


def test_the_refresh_of_the_energy_counter_is_measured(machine):
    """A counter that moves every 40 ms is found to; one that stands still is not known."""
    machine.add_gpu(0, refresh_ms=40)
    machine.add_gpu(1, power="0")
    machine.add_gpu(2, energy=None)
    machine.write()
    pynvml.nvmlInit()
    handles = {str(i): pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(3)}
    found = refresh_of(handles, limit_s=2.0)
    pynvml.nvmlShutdown()
    assert found["0"] == pytest.approx(40e6, rel=0.2)
    assert (found["1"], found["2"]) == (None, None)


def test_the_refresh_is_measured_once_and_dates_the_readings(machine, clock):
    """After the first reading, so that this one does not wait; the next is dated half a refresh back."""
    machine.add_gpu(0, refresh_ms=30)
    machine.write()
    one = NvmlProvider(clock)
    (resource,) = one.resources()
    first = one.sample(resource)
    assert abs(first.energy_time_ns - first.time_ns) < 5_000_000
    sample = one.sample(resource)
    one.close()
    assert sample.time_ns - sample.energy_time_ns == pytest.approx(15e6, rel=0.3)
    assert one.facts()["energy_refresh_ms"][resource.id] == pytest.approx(30, rel=0.2)


def test_gpm_goes_with_the_slice(machine, provider, clock):
    """What NVML holds for a slice is freed when it is gone."""
    machine.add_gpu(0)
    uuid = machine.add_slice(0, 7, "1g.10gb", 0)
    one = provider()
    one.sample(one.resources()[1])
    assert len(one._reader._monitor._samples) == 1
    del machine.slices[uuid]
    machine.write()
    look(one, clock)
    assert one._reader._monitor._samples == {}


def test_a_wrapped_counter_goes_on(machine, provider):
    """A 32-bit counter of millijoules begins again after an hour or two: the total does not."""
    machine.add_gpu(0, energy=2**32 - 10, power="0", wrap_bits=32)
    one = provider()
    (resource,) = one.resources()
    before = one.sample(resource).energy_j
    machine.gpus[0]["energy"] = 2**32 + 20
    machine.write()
    time.sleep(0.02)
    assert one.sample(resource).energy_j - before == pytest.approx(0.03)
    assert one.facts()["energy_counters"] == {resource.id: {"wraps": 1}}


def test_two_pods_that_both_say_cuda_0_are_told_apart(machine, provider):
    """Each named its slice by uuid; the bytes torch gives have no prefix that says so."""
    machine.add_gpu(0)
    slices = [machine.add_slice(0, gi, "1g.10gb", start) for start, gi in enumerate((7, 8))]
    one = provider()
    one.resources()
    for uuid in slices:
        source = SourceInfo(uuid, "vllm", "s", "m", "p", ("cuda", 0, "GPU-" + uuid.removeprefix("MIG-")), {}, 1)
        assert one.resolve(source).id == uuid
