"""CUDA_VISIBLE_DEVICES in all its forms."""

from __future__ import annotations

import pytest

from axonize_core.gpu.identity import ComputeResource, PhysicalGpu
from axonize_core.gpu.visible_devices import visible_devices


def full(name, bus, model="H100"):
    gpu = PhysicalGpu(f"GPU-{name}", model, pci_bus_id=f"00000000:{bus:02x}:00.0")
    return ComputeResource(gpu.uuid, gpu)


def sliced(name, bus, *slices):
    gpu = PhysicalGpu(f"GPU-{name}", "H100", pci_bus_id=f"00000000:{bus:02x}:00.0", mig_enabled=True)
    slices = [ComputeResource(f"MIG-{u}", gpu, "mig", gi_id=gi, ci_id=0) for u, gi in slices]
    return [ComputeResource(gpu.uuid, gpu, "sliced"), *slices]


A, B, C = full("aa11", 1), full("aa22", 2), full("bb33", 3)
ALL = [C, A, B]
"""Not in the order of the bus."""


def ids(found):
    return None if found is None else [None if r is None else r.id for r in found]


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        (None, ["GPU-aa11", "GPU-aa22", "GPU-bb33"]),
        ("", []),
        ("-1", []),
        ("0", ["GPU-aa11"]),
        ("2,0", ["GPU-bb33", "GPU-aa11"]),
        (" 1 , 0 ", ["GPU-aa22", "GPU-aa11"]),
        ("0,-1,2", ["GPU-aa11"]),
        ("0,7,2", ["GPU-aa11"]),
        ("0,x,2", ["GPU-aa11"]),
        ("0,,2", ["GPU-aa11"]),
        ("0,1,0", []),
        ("1gpu", ["GPU-aa22"]),
        ("GPU-bb33", ["GPU-bb33"]),
        ("GPU-b", ["GPU-bb33"]),
        ("GPU-aa", []),
        ("GPU-bb33,GPU-aa", ["GPU-bb33"]),
        ("GPU-bb33,GPU-aa22", ["GPU-bb33", "GPU-aa22"]),
        ("GPU-bb33,GPU-bb", []),
        ("GPU-zz,GPU-bb33", []),
        ("GPU-bb33,0", ["GPU-bb33"]),
        ("0,GPU-bb33", ["GPU-aa11"]),
        ("NoDevFiles", []),
    ],
)
def test_full_gpus_are_listed_as_cuda_lists_them(variable, expected):
    """Numbers count along the bus; an invalid entry ends the list, a repeated one empties it."""
    assert ids(visible_devices(variable, "PCI_BUS_ID", ALL)) == expected
    assert ids(visible_devices(variable, None, ALL)) == expected, "GPUs of one model: the same order"


def test_the_order_of_different_models_is_not_guessed():
    """FASTEST_FIRST ranks by a secret: numbers name nothing, uuids and PCI_BUS_ID still do."""
    mixed = [A, full("slow", 2, "T4")]
    assert ids(visible_devices("1,0", None, mixed)) == [None, None]
    assert ids(visible_devices(None, "FASTEST_FIRST", mixed)) == [None, None]
    assert ids(visible_devices("1", "PCI_BUS_ID", mixed)) == ["GPU-slow"]
    assert ids(visible_devices("GPU-slow", None, mixed)) == ["GPU-slow"]


def test_without_bus_ids_only_a_single_gpu_has_a_number():
    """The order is not known."""
    blind = [ComputeResource(u, PhysicalGpu(u, "H100")) for u in ("GPU-1", "GPU-2")]
    assert ids(visible_devices("0", "PCI_BUS_ID", blind)) == [None]
    assert ids(visible_devices("0", None, blind[:1])) == ["GPU-1"]


MIG = [*sliced("aa11", 1, ("one", 7), ("two", 9)), B]


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        ("MIG-one", ["MIG-one"]),
        ("MIG-t", ["MIG-two"]),
        ("MIG-", []),
        ("MIG-gone", []),
        ("MIG-one,MIG-two", ["MIG-one"]),
        ("MIG-GPU-aa11/9/0", ["MIG-two"]),
        ("MIG-GPU-aa11/3/0", []),
        ("GPU-aa11", [None]),
        ("GPU-aa22", ["GPU-aa22"]),
        ("GPU-aa22,GPU-aa11", [None]),
        (None, [None]),
        ("0", None),
        ("", []),
    ],
)
def test_of_slices_a_process_gets_one(variable, expected):
    """A slice by uuid, by prefix or in the old form; where CUDA would choose among several, nothing is certain."""
    assert ids(visible_devices(variable, None, MIG)) == expected


def test_the_only_slice_is_certain():
    """With nothing to choose from, also its GPU's uuid and a number name it."""
    only = sliced("aa11", 1, ("one", 7))
    for variable in (None, "0", "GPU-aa11", "MIG-one"):
        assert ids(visible_devices(variable, None, only)) == ["MIG-one"], variable
    assert ids(visible_devices(None, None, [*only, B])) == ["MIG-one"], "no full GPU beside a slice"
