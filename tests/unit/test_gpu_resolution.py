"""Which resource a process's device is, by the evidence there is; None where it is not certain."""

from __future__ import annotations

import pytest

from axonize_core.events import SourceInfo
from axonize_core.gpu.identity import ComputeResource, PhysicalGpu
from axonize_core.gpu.process import ENVIRONMENT, PID_NAMESPACE
from axonize_core.gpu.resolution import INITIAL_PID_NAMESPACE, resolve

UUID = "0f1e2d3c-0000-0000-0000-00000000000"
GPUS = [
    ComputeResource(u, PhysicalGpu(u, "H100", pci_bus_id=f"00000000:0{i}:00.0"))
    for i, u in enumerate((f"GPU-{UUID}1", f"GPU-{UUID}2"))
]
CUT = PhysicalGpu(f"GPU-{UUID}3", "H100", pci_bus_id="00000000:09:00.0", mig_enabled=True)
SLICES = [ComputeResource(f"MIG-{UUID}{i}", CUT, "mig", gi_id=i, ci_id=0) for i in (7, 8)]
SLICED = [ComputeResource(CUT.uuid, CUT, "sliced"), *SLICES]
HOST = {PID_NAMESPACE: INITIAL_PID_NAMESPACE}
POD = {"container.id": "c" * 64, PID_NAMESPACE: "4026532000"}


def source(uuid=None, index=0, kind="cuda", process=HOST, pid=7, **variables):
    environment = {ENVIRONMENT + name: value for name, value in variables.items()}
    return SourceInfo("i", "vllm", "s", "m", "p", (kind, index, uuid), {**process, **environment}, pid)


def found(asked, resources, agent=HOST, processes=None):
    resource = resolve(asked, resources, agent, processes or {})
    return resource.id if resource else None


@pytest.mark.parametrize("uuid", [GPUS[1].id, GPUS[1].id.removeprefix("GPU-"), f"GPU-{UUID.upper()}2"])
def test_the_uuid_of_the_framework_names_the_gpu(uuid):
    """With the prefix of NVML or without, whatever container it is in."""
    assert found(source(uuid), GPUS) == GPUS[1].id
    assert found(source(uuid, process=POD), GPUS) == GPUS[1].id


def test_bytes_of_a_slice_are_found_under_either_prefix():
    """CUDA does not say whether its 16 bytes are a GPU's or a slice's."""
    bare = SLICES[0].id.removeprefix("MIG-")
    for given in (bare, f"GPU-{bare}", f"MIG-{bare}"):
        assert found(source(given), SLICED) == SLICES[0].id


def test_the_uuid_of_a_sliced_gpu_needs_more():
    """Alone it leaves the slice open; the variable closes it, but not for a slice of another GPU."""
    assert found(source(CUT.uuid), SLICED) is None
    assert found(source(CUT.uuid, CUDA_VISIBLE_DEVICES=SLICES[1].id), SLICED) == SLICES[1].id
    assert found(source(GPUS[0].id, CUDA_VISIBLE_DEVICES=SLICES[1].id), [*GPUS, *SLICED]) == GPUS[0].id
    assert found(source("GPU-elsewhere", CUDA_VISIBLE_DEVICES="0"), GPUS) is None


def test_an_index_counts_in_what_the_process_sees():
    """cuda:0 and a Triton instance's device 0 are the first of CUDA_VISIBLE_DEVICES."""
    assert found(source(index=0), GPUS) == GPUS[0].id
    assert found(source(index=0, CUDA_VISIBLE_DEVICES="1"), GPUS) == GPUS[1].id
    assert found(source(index=1, CUDA_VISIBLE_DEVICES="1,0"), GPUS) == GPUS[0].id
    assert found(source(index=1, CUDA_VISIBLE_DEVICES="1"), GPUS) is None
    assert found(source(index=0, CUDA_VISIBLE_DEVICES=""), GPUS) is None
    assert found(source(kind="cpu"), GPUS) is None


def test_another_containers_index_is_not_ours():
    """Its GPU 0 may be any: only the uuids its runtime was given say which."""
    assert found(source(process=POD), GPUS) is None
    assert found(source(process=POD, NVIDIA_VISIBLE_DEVICES="all"), GPUS[:1]) is None
    assert found(source(process=POD, NVIDIA_VISIBLE_DEVICES="0"), GPUS[:1]) is None
    assert found(source(process=POD, NVIDIA_VISIBLE_DEVICES=GPUS[1].id), GPUS) == GPUS[1].id
    assert found(source(process=POD, NVIDIA_VISIBLE_DEVICES=SLICES[0].id), SLICED) == SLICES[0].id
    both = f"{GPUS[1].id},{GPUS[0].id}"
    asked = source(index=1, process=POD, NVIDIA_VISIBLE_DEVICES=both)
    assert found(asked, GPUS) == GPUS[1].id, "a container counts along the bus too"
    assert found(source(process=POD), GPUS, agent=POD) == GPUS[0].id, "its own agent sees what it sees"


def test_the_driver_finds_a_process_that_says_nothing():
    """A pid on one slice only; pids of other namespaces are not compared."""
    listed = {SLICES[1].id: {7}, SLICES[0].id: {8}}
    assert found(source(), SLICED, processes=listed) == SLICES[1].id
    assert found(source(index=1), SLICED, processes=listed) is None
    assert found(source(process=POD), SLICED, processes=listed) is None
    assert found(source(), [*SLICED, *GPUS], processes={**listed, GPUS[0].id: {7}}) is None


def test_a_contradiction_of_the_driver_leaves_nothing_certain():
    """A process that the driver sees elsewhere only is not where its variable says; one it does not see may be."""
    asked = source(CUDA_VISIBLE_DEVICES="0")
    assert found(asked, GPUS, processes={GPUS[1].id: {7}}) is None
    assert found(asked, GPUS, processes={GPUS[0].id: {7}, GPUS[1].id: {7}}) == GPUS[0].id
    assert found(asked, GPUS, processes={GPUS[1].id: {99}}) == GPUS[0].id
