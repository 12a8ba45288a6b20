"""The plugin manager: who is loaded, and what happens to a plugin that fails."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

import pluggy

from axonize_core import hookspecs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from axonize_core.gpu.sampler import Sampler
    from axonize_core.settings import Settings

__all__ = ["AgentContext", "Plugins", "load_plugins"]

DEFAULT_PLUGINS = ("axonize_core.gpu.providers", "axonize_core.spans", "axonize_core.export.otlp")
FAILURES_BEFORE_DISABLED = 3
logger = logging.getLogger(__name__)


@dataclass
class AgentContext:
    """What plugins are configured with: the settings, the way to call hooks, and the GPU samples."""

    settings: Settings
    plugins: Plugins
    sampler: Sampler


class Plugins:
    """Calls hooks plugin by plugin, so that one that fails cannot stop the others."""

    def __init__(self) -> None:
        self.manager = pluggy.PluginManager("axonize")
        self.manager.add_hookspecs(hookspecs)
        self.failures: Counter[str] = Counter()
        self.disabled: dict[str, str] = {}
        self._in_a_row: Counter[str] = Counter()
        self._context: AgentContext | None = None

    def register(self, plugin: object, name: str | None = None) -> None:
        """Add a plugin; it takes part from the next call on. Registered late, it is configured at once."""
        name = self.manager.register(plugin, name)
        if self._context is not None:
            self.call("axonize_configure", only=name, context=self._context)

    def configure(self, context: AgentContext) -> None:
        """Tell all plugins, and those that come later, what they work with."""
        self.call("axonize_configure", context=context)
        self._context = context

    def names(self) -> list[str]:
        """Return the names of all plugins that take part."""
        return sorted(name for name, plugin in self.manager.list_name_plugin() if plugin is not None)

    def facts(self) -> dict[str, Any]:
        """Return names, failures and what plugins say of themselves, for ``axonize doctor``."""
        own = {n: p.facts() for n, p in self.manager.list_name_plugin() if hasattr(p, "facts")}
        return {"plugins": self.names(), "failures": dict(self.failures), "disabled": dict(self.disabled), "facts": own}

    def call(self, hook: str, *, firstresult: bool = False, only: str | None = None, **arguments: Any) -> list[Any]:
        """Call a hook of every plugin and return the results that are not None, in calling order."""
        results = []
        # pluggy keeps implementations in reverse order of calling.
        for impl in reversed(getattr(self.manager.hook, hook).get_hookimpls()):
            if impl.plugin_name in self.disabled or only not in (None, impl.plugin_name):
                continue
            try:
                result = impl.function(*[arguments[name] for name in impl.argnames])
            except Exception as e:  # noqa: BLE001 - a plugin's failure must not reach the others
                self._failed(impl.plugin_name, hook, e)
                continue
            self._in_a_row[impl.plugin_name] = 0
            if result is not None:
                results.append(result)
                if firstresult:
                    break
        return results

    def _failed(self, name: str, hook: str, error: Exception) -> None:
        if not self.failures[name]:
            logger.error("plugin %s failed in %s: %r", name, hook, error, exc_info=error)
        self.failures[name] += 1
        self._in_a_row[name] += 1
        if self._in_a_row[name] >= FAILURES_BEFORE_DISABLED:
            self.disabled[name] = f"{hook}: {error!r}"
            logger.error("plugin %s is disabled after %d failures in a row", name, FAILURES_BEFORE_DISABLED)


def load_plugins(
    only: Sequence[str] | None = None,
    *,
    defaults: Sequence[str] = DEFAULT_PLUGINS,
    groups: Sequence[str] = ("axonize",),
) -> Plugins:
    """Return a manager with the built-in plugins and those that are installed.

    Args:
        only: names of the entry points to load (AXONIZE_LOAD_PLUGINS); None loads all, empty loads none.
        defaults: built-in plugin modules; they come in through the same door as everyone's.
        groups: entry point groups to look into.
    """
    plugins = Plugins()
    for name in defaults:
        plugins.register(import_module(name), name)
    for entry in (e for group in groups for e in metadata.entry_points(group=group)):
        if only is None or entry.name in only:
            try:
                plugins.register(entry.load(), entry.name)
            except Exception as e:  # noqa: BLE001 - somebody else's package must not stop ours
                plugins.disabled[entry.name] = f"cannot be loaded: {e!r}"
                logger.error("plugin %s cannot be loaded: %r", entry.name, e)  # noqa: TRY400 - the line is enough
    plugins.manager.check_pending()
    return plugins
