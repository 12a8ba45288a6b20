"""What the table says of vLLM, held against the sources of every tested version."""

from __future__ import annotations

import ast
from importlib import metadata

import pytest

import vllm_sources
from axonize_vllm._supported import CAPABILITIES, TESTED, has

pytestmark = pytest.mark.timeout(1200)  # the wheels are downloaded once, 650 MB in all

POINTS = sorted({point for capability in CAPABILITIES for point in capability.points}, key=str)


@pytest.fixture(scope="module", params=TESTED)
def version(request):
    return request.param


@pytest.fixture(scope="module")
def sources(version):
    """The folder with the sources of a version; skips with pip's reason where they cannot be had."""
    try:
        return vllm_sources.sources_path(version)
    except vllm_sources.CannotDownloadError as e:
        pytest.skip(f"vLLM {version}: {e}")


def _is_there(entry, version):
    found = tuple(map(int, version.split(".")[:2]))
    return entry.since <= found and (entry.before is None or found < entry.before)


@pytest.mark.parametrize("capability", CAPABILITIES, ids=lambda c: c.name)
def test_a_capability_has_its_points(sources, version, capability):
    """All its points are there in the versions that have it; where the table says no, at least one is not."""
    faults = {p.path: vllm_sources.fault(sources, p) for p in capability.points if _is_there(p, version)}
    if has(capability.name, version):
        assert [found for found in faults.values() if found] == []
    else:
        assert any(faults.values())


def test_a_point_is_absent_where_the_table_says_so(sources, version):
    """Outside its versions a point is not there: the table does not give away what could be used."""
    outside = [p for p in POINTS if not _is_there(p, version)]
    assert [p.path for p in outside if vllm_sources.fault(sources, p) is None] == []


def test_the_groups_of_entry_points_are_read(sources):
    """Each group that our wheel registers in stands in vLLM's module of plugins."""
    tree = ast.parse((sources / "vllm/plugins/__init__.py").read_text())
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    groups = {e.group for e in metadata.distribution("axonize").entry_points if e.group.startswith("vllm.")}
    # None in vllm.stat_logger_plugins: any class there switches vLLM's statistics on, asked for or not.
    assert groups == {"vllm.general_plugins"}
    assert groups <= texts


def _with_one_wrong_name(point):
    """Yield the point with one name changed: its module, class, member, or one parameter."""
    owner, _, name = point.path.partition(".")
    yield point._replace(module=f"{point.module}_")
    yield point._replace(path=f"{owner}_.{name}")
    yield point._replace(path=f"{owner}.{name}_")
    for k, parameter in enumerate(point.parameters or ()):
        yield point._replace(parameters=(*point.parameters[:k], f"{parameter}_", *point.parameters[k + 1 :]))


def test_one_wrong_name_is_a_fault(sources, version):
    """Whichever name of the table is changed, the check of that point fails."""
    wrong = [changed for point in POINTS if _is_there(point, version) for changed in _with_one_wrong_name(point)]
    assert len(wrong) > 3 * len(POINTS) - 20
    assert [changed for changed in wrong if vllm_sources.fault(sources, changed) is None] == []


def test_parameters_in_another_order_are_a_fault(sources):
    """The order of parameters counts, and so does one that is not there."""
    point = next(p for p in POINTS if p.path == "Scheduler.update_from_output")
    assert vllm_sources.fault(sources, point) is None
    assert vllm_sources.fault(sources, point._replace(parameters=point.parameters[::-1])) == (
        "Scheduler.update_from_output(scheduler_output, model_runner_output) in vllm.v1.core.sched.scheduler"
        " instead of (model_runner_output, scheduler_output)"
    )
    assert vllm_sources.fault(sources, point._replace(parameters=(*point.parameters, "more"))) is not None
