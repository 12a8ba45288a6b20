"""docs/gpus.md against the code, and the provider on it."""

from __future__ import annotations

import re
import types
from pathlib import Path

from axonize_core.events import GpuSample, SourceInfo
from axonize_core.export.gpu_metrics import FIELDS
from axonize_core.gpu.sampler import Sampler
from axonize_core.plugins import Plugins

TEXT = (Path(__file__).resolve().parents[2] / "docs/gpus.md").read_text()


def test_every_metric_is_in_the_table():
    """By the name it is sent under."""
    for field in FIELDS:
        assert f"`{field.metric}`" in TEXT, field.metric


def test_every_reading_is_sent():
    """No field of a sample stays in the agent, but those that say what it is."""
    about = {"compute_resource", "physical_gpu", "name", "time_ns", "provenance", "hw_type", "unavailable"}
    beside = {"energy_time_ns", "energy_start_ns", "xid_errors", "processes"}
    assert {field.field for field in FIELDS} == set(GpuSample.__struct_fields__) - about - beside


def test_the_provider_on_the_page_works(tmp_path):
    """A plugin of a few lines makes a CPU a resource: named, read, annotated with power, and announced."""
    module = types.ModuleType("cpu_provider")
    exec(re.search(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)[1], vars(module))
    module.COUNTER = tmp_path / "energy_uj"
    plugins = Plugins()
    plugins.register(module)
    assert plugins.call("axonize_gpu_provider", firstresult=True, context=None) == []
    module.COUNTER.write_text("1000000\n")
    (provider,) = plugins.call("axonize_gpu_provider", firstresult=True, context=None)
    sampler = Sampler(provider, 1.0)
    source = SourceInfo("i", "transformers", "s", "m", "p", ("cpu", 0, None), {}, 1)
    sampler.contexts.appear([source])
    (first,) = sampler.sample_once()
    module.COUNTER.write_text("3000000\n")
    (second,) = sampler.sample_once()
    found = sampler.annotate(source, first.time_ns, second.time_ns)
    assert found["gpu.compute_resource.id"] == "CPU-0"
    assert abs(found["gpu.power.mean_w"] / (2e9 / (second.time_ns - first.time_ns)) - 1) < 0.01
    assert [info.attributes["hw.id"] for info in sampler.announce()] == ["CPU-0"] * 3
