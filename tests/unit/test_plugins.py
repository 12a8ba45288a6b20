from __future__ import annotations

import pytest

from axonize_core import hookimpl
from axonize_core.plugins import FAILURES_BEFORE_DISABLED, Plugins, load_plugins


class Keeper:
    def __init__(self):
        self.seen = []
        self.configured = None

    @hookimpl
    def axonize_configure(self, context):
        self.configured = context

    @hookimpl
    def axonize_requests(self, events):
        self.seen += events

    def facts(self):
        return {"seen": len(self.seen)}


class Broken:
    @hookimpl
    def axonize_requests(self, events):
        raise ValueError("broken")


def test_one_plugins_failure_does_not_reach_the_others(caplog):
    """A failing plugin is counted, logged once, disabled after repeated failures; others get every event."""
    plugins, first, last = Plugins(), Keeper(), Keeper()
    plugins.register(first, "first")
    plugins.register(Broken(), "broken")
    plugins.register(last, "last")
    for i in range(FAILURES_BEFORE_DISABLED + 2):
        plugins.call("axonize_requests", events=[i])
    assert first.seen == last.seen == list(range(FAILURES_BEFORE_DISABLED + 2))
    assert plugins.failures["broken"] == FAILURES_BEFORE_DISABLED
    assert "broken" in plugins.disabled
    assert sum("failed in" in r.message for r in caplog.records) == 1
    assert plugins.facts()["facts"]["first"] == {"seen": 5}


def test_a_plugin_registered_late_is_configured_at_once():
    """Whoever comes late is told what the others were told."""
    plugins, early, late = Plugins(), Keeper(), Keeper()
    plugins.register(early)
    context = object()
    plugins.configure(context)
    plugins.register(late)
    assert early.configured is late.configured is context


def test_first_result_ends_the_call():
    """Of several providers the first that answers is taken."""

    class A:
        @hookimpl
        def axonize_gpu_provider(self, context):
            return "a"

    class B:
        @hookimpl(trylast=True)
        def axonize_gpu_provider(self, context):
            return "b"

    plugins = Plugins()
    plugins.register(B())
    plugins.register(A())
    assert plugins.call("axonize_gpu_provider", firstresult=True, context=None) == ["a"]
    assert plugins.call("axonize_gpu_provider", context=None) == ["a", "b"]


def test_load_plugins_takes_only_what_was_asked_for():
    """AXONIZE_LOAD_PLUGINS names what is loaded; built-ins are there in any case."""
    assert "server" in load_plugins(defaults=(), groups=("axonize.server",)).names()
    assert load_plugins((), defaults=(), groups=("axonize.server",)).names() == []
    assert load_plugins(()).names() == ["axonize_core.export.otlp", "axonize_core.gpu.providers", "axonize_core.spans"]


def test_a_plugin_that_cannot_be_imported_is_named(monkeypatch):
    """Somebody else's broken package does not stop ours, and doctor can say which it was."""
    from importlib import metadata

    entry = metadata.EntryPoint("bad", "no_such_module_at_all", "axonize")
    monkeypatch.setattr(metadata, "entry_points", lambda group: [entry])
    plugins = load_plugins(defaults=())
    assert "cannot be loaded" in plugins.disabled["bad"]


def test_a_misspelt_hook_fails_at_start():
    """A hook that does not exist is an error at once, not silence for ever."""
    import pluggy

    class Misspelt:
        @hookimpl
        def axonize_reqests(self, events): ...

    plugins = Plugins()
    plugins.register(Misspelt())
    with pytest.raises(pluggy.PluginValidationError):
        plugins.manager.check_pending()
