"""docs/hooks.md against the hookspecs, and its examples."""

from __future__ import annotations

import inspect
import re
import types
from collections import Counter
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from axonize_core import hookspecs
from axonize_core.events import (
    BatchEvent,
    DecodeEvent,
    GpuInfo,
    GpuSample,
    PrefillEvent,
    RequestEvent,
    RequestRef,
    SourceInfo,
)
from axonize_core.plugins import AgentContext, Plugins
from axonize_core.settings import Settings

TEXT = (Path(__file__).resolve().parents[2] / "docs/hooks.md").read_text()
SPECS = {name: function for name, function in vars(hookspecs).items() if name.startswith("axonize_")}
SECTIONS = dict(re.findall(r"^### `(axonize_\w+)\([^\n]*\n(.*?)(?=^### |\Z)", TEXT, re.MULTILINE | re.DOTALL))

SOURCE = SourceInfo("inst", "transformers", "svc", "tiny", "hf", ("cpu", 0, None), {}, 1)
REF = RequestRef(7, 1, 2)
SEC = 10**9
EVENTS = {
    "axonize_requests": RequestEvent(SOURCE, REF, 0, "r-1", "chat", 0, 2 * SEC, ttft_ns=SEC, output_tokens=120),
    "axonize_prefills": PrefillEvent(SOURCE, REF, 0, SEC, tokens=12),
    "axonize_decodes": DecodeEvent(SOURCE, REF, 0, SEC, itl_max_ns=2 * SEC),
    "axonize_batches": BatchEvent(SOURCE, 1, 1, 2, 0, SEC, (7, 8), (12, 3), (0, 0), (0, 0)),
    "axonize_gpu_samples": GpuSample("GPU-1", "GPU-1", "H200", 0, "measured", temperature_c=40.0),
    "axonize_gpu_infos": GpuInfo(
        "axonize.gpu.compute_resource.info", 0, False, {"gpu.compute_resource.id": "MIG-1", "hw.id": "GPU-1"}
    ),
}


def _blocks(text):
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_every_hook_has_a_section_and_no_other():
    """Names, in the order of the specification."""
    assert list(SECTIONS) == list(SPECS)


@pytest.mark.parametrize("name", SPECS)
def test_a_section_says_what_the_specification_says(name):
    """Arguments and the first line of the docstring; then thread, what it gets and returns, and an example."""
    arguments = ", ".join(inspect.signature(SPECS[name]).parameters)
    first_line = SPECS[name].__doc__.splitlines()[0]
    assert f"### `{name}({arguments})`\n\n{first_line}\n" in TEXT
    for part in ("- *thread*: ", "- *gets*: ", "- *returns*: "):
        assert part in SECTIONS[name], part
    assert f"def {name}(" in _blocks(SECTIONS[name])[0]


def test_the_first_plugin_and_its_test_run():
    """The plugin at the top of the page does what the test on the page asserts."""
    plugin, use = (_blocks(TEXT)[0], next(block for block in _blocks(TEXT) if "capture_events(" in block))
    module = types.ModuleType("my_plugin")
    exec(plugin, vars(module))
    exec(use, {"my_plugin": module})


def _plugins(name, **seen):
    """Return a manager with the example of a hook's section in it, and its namespace."""
    namespace = {"hookimpl": hookspecs.hookimpl, **seen}
    module = types.ModuleType("example")
    vars(module).update(namespace)
    exec(_blocks(SECTIONS[name])[0], vars(module))
    plugins = Plugins()
    plugins.register(module)
    assert plugins.disabled == {}
    return plugins, module


@pytest.mark.parametrize(
    ("hook", "variable", "expected"),
    [
        ("axonize_requests", "slow", ["r-1"]),
        ("axonize_prefills", "tokens", [12]),
        ("axonize_decodes", "stalls", [7]),
        ("axonize_batches", "sizes", [2]),
        ("axonize_gpu_samples", "hottest", [40.0]),
        ("axonize_gpu_infos", "gone", ["MIG-1"]),
    ],
)
def test_the_examples_of_events_work(hook, variable, expected):
    """Each example takes real events and finds in them what it looks for."""
    found = []
    plugins, _ = _plugins(hook, **{variable: found})
    (argument,) = inspect.signature(SPECS[hook]).parameters
    plugins.call(hook, **{argument: [EVENTS[hook]]})
    assert plugins.failures == Counter()
    assert found == expected


def test_the_example_of_configure_works():
    """It registers an object that is configured from the plugin's own settings and speaks of itself."""
    plugins, _ = _plugins("axonize_configure")
    settings = Settings.from_env({"AXONIZE_PLUGIN_COUNTER_EVERY": "3", "OTHER": "x"})
    plugins.configure(AgentContext(settings, plugins, None))
    plugins.call("axonize_requests", events=[EVENTS["axonize_requests"]])
    assert plugins.manager.get_plugin("my-plugin.Counter").every == 3
    assert plugins.facts()["facts"] == {"my-plugin.Counter": {"requests_counted": 1}}


def test_the_example_of_span_attributes_works():
    """One mapping per event."""
    plugins, _ = _plugins("axonize_span_attributes")
    assert plugins.call("axonize_span_attributes", events=[EVENTS["axonize_requests"]]) == [[{"app.slo_met": False}]]


def test_the_example_of_a_provider_works():
    """It is taken as a provider where it says so."""
    plugins, _ = _plugins("axonize_gpu_provider")
    for choice, found in (("simulated", 1), ("none", 0)):
        context = AgentContext(Settings(gpu_provider=choice), plugins, None)
        assert len(plugins.call("axonize_gpu_provider", firstresult=True, context=context)) == found


def test_the_examples_of_spans_and_shutdown_work():
    """They hear of what they should."""
    names, ended = set(), []
    plugins, _ = _plugins("axonize_spans", names=names)
    plugins.call("axonize_spans", spans=[types.SimpleNamespace(name="request")])
    plugins, _ = _plugins("axonize_shutdown", ended=ended)
    plugins.call("axonize_shutdown", timeout_s=2.0)
    assert (names, ended) == ({"request"}, [2.0])


def test_the_example_of_a_command_works():
    """The command is there and runs."""
    plugins, _ = _plugins("axonize_register_commands")
    group = click.Group()
    plugins.call("axonize_register_commands", cli=group)
    assert CliRunner().invoke(group, ["hello"]).output == "hello\n"


def test_capture_events_raises_what_a_plugin_did_wrong():
    """A test with a failing plugin fails, and says why."""
    from axonize_core.testing import capture_events

    class Misspelt:
        @hookspecs.hookimpl
        def axonize_reqests(self, events): ...

    with pytest.raises(AssertionError, match="did you mean 'axonize_requests'"), capture_events(Misspelt()):
        pass
