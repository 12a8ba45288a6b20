"""The plugin manager: who is loaded, what each plugin costs, and what happens to one that fails."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from dataclasses import dataclass
from functools import partial
from importlib import import_module, metadata
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

import msgspec
import pluggy

from axonize_core import hookspecs
from axonize_core.plugin_checks import check_result, hooks_of, objections
from axonize_core.plugin_record import DISABLED, LOADED, NOT_ASKED_FOR, NOT_INSTALLED, Origin, PluginRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from axonize_core.gpu.sampler import Sampler
    from axonize_core.settings import Settings

__all__ = ["BUILT_IN_GROUPS", "AgentContext", "Plugins", "load_plugins"]

DEFAULT_PLUGINS = ("axonize_core.gpu.providers", "axonize_core.spans", "axonize_core.export.otlp")
BUILT_IN_GROUPS = ("axonize.server",)
FAILURES_BEFORE_DISABLED = 3
SLOW_CALL_NS = 100_000_000
"""A call this long holds up a whole tick of the agent."""
UNHURRIED = {"axonize_configure", "axonize_gpu_provider", "axonize_shutdown", "axonize_register_commands"}
"""Hooks that nothing waits for: they run before the first event or after the last."""
logger = logging.getLogger(__name__)
_Implementation = tuple[PluginRecord, "Callable[..., Any]", tuple[str, ...]]


@dataclass
class AgentContext:
    """What plugins are configured with: the settings, the way to call hooks, and the GPU samples."""

    settings: Settings
    plugins: Plugins
    sampler: Sampler


class _Nested(threading.local):
    """Time of the hooks that a plugin called meanwhile, in ns, of the calls under way in this thread."""

    ns = 0


class Plugins:
    """Calls hooks plugin by plugin, so that one that fails cannot stop the others. Any thread may call."""

    def __init__(self) -> None:
        self.manager = pluggy.PluginManager("axonize")
        self.manager.add_hookspecs(hookspecs)
        self.records: dict[str, PluginRecord] = {}
        self._lock = threading.Lock()
        self._nested = _Nested()
        self._implementations: dict[str, list[_Implementation]] = {}
        self._context: AgentContext | None = None

    @property
    def failures(self) -> Counter[str]:
        """How often each plugin failed, those that did."""
        return Counter({r.name: r.failures for r in self.records.values() if r.failures})

    @property
    def disabled(self) -> dict[str, str]:
        """Why each plugin that cannot take part does not."""
        return {r.name: r.reason for r in self.records.values() if r.is_missing()}

    def register(self, plugin: object, name: str | None = None, origin: Origin | None = None) -> None:
        """Add a plugin; it takes part from the next call on. Registered late, it is configured at once.

        One that cannot take part is refused, and ``disabled`` says why; nothing is raised.
        """
        record = PluginRecord(self._unused(name or _name(plugin), origin), origin or Origin())
        self.records[record.name] = record
        if known := self.manager.get_name(plugin):
            self._refuse(record, f"is the same object as {known}")
            return
        try:
            self.manager.register(plugin, record.name)
            self._implementations = {}
            record.hooks = hooks_of(self.manager, plugin)
            reason = objections(self.manager, plugin)
        except (ValueError, TypeError, AttributeError, pluggy.PluginValidationError) as e:
            reason = f"cannot be registered: {' '.join(str(e).split())}"
        if reason:
            self._refuse(record, reason)
        elif self._context is not None:
            self.call("axonize_configure", only=record.name, context=self._context)

    def load(self, name: str, load: Callable[[], object], origin: Origin | None = None) -> None:
        """Import a plugin and register it; one that cannot be imported is refused."""
        try:
            plugin = load()
        except BaseException as e:  # whatever somebody else's import does must not stop ours
            if isinstance(e, KeyboardInterrupt):
                raise
            self.refuse(name, f"cannot be loaded: {_text(e)}", origin)
        else:
            self.register(plugin, name, origin)

    def refuse(self, name: str, reason: str, origin: Origin | None = None) -> None:
        """Note a plugin that cannot take part, and why."""
        record = PluginRecord(self._unused(name, origin), origin or Origin())
        self.records[record.name] = record
        self._refuse(record, reason)

    def configure(self, context: AgentContext) -> None:
        """Tell all plugins, and those that come later, what they work with."""
        self.call("axonize_configure", context=context)
        self._context = context

    def names(self) -> list[str]:
        """Return the names of all plugins that take part."""
        return sorted(record.name for record in self.records.values() if record.state == LOADED)

    def facts(self) -> dict[str, Any]:
        """Return names, failures, costs and what plugins say of themselves, for doctor and ``axonize plugins``."""
        own = {name: found for name in self.names() if (found := self._own_facts(name)) is not None}
        return {
            "plugins": self.names(),
            "failures": dict(self.failures),
            "disabled": self.disabled,
            "plugin_records": [record.facts() for _, record in sorted(self.records.items())],
            "facts": own,
        }

    def call(self, hook: str, *, firstresult: bool = False, only: str | None = None, **arguments: Any) -> list[Any]:
        """Call a hook of every plugin and return the results that are not None, in calling order."""
        results = []
        # All plugins are given the same sequence: none may change what the next one sees.
        for name, value in arguments.items():
            if type(value) is list:
                arguments[name] = tuple(value)
        for record, function, names in self._implementations.get(hook) or self._find(hook):
            if record.state != LOADED or only not in (None, record.name):
                continue
            result = self._result(record, hook, function, [arguments[name] for name in names], arguments)
            if result is not None:
                results.append(result)
                if firstresult:
                    break
        return results

    def _result(
        self,
        record: PluginRecord,
        hook: str,
        function: Callable[..., Any],
        given: list[Any],
        arguments: dict[str, Any],
    ) -> Any:
        """Return what one plugin answers, checked; None where it failed."""
        try:
            result = self._timed(record, hook, function, given)
            if result is not None:
                check_result(hook, result, arguments)
        except BaseException as e:  # a plugin's failure, sys.exit() included, must not reach the others
            if isinstance(e, KeyboardInterrupt):
                raise
            self._failed(record, hook, e)
            return None
        if record.in_a_row:
            record.in_a_row.pop(hook, None)
        return result

    def _find(self, hook: str) -> list[_Implementation]:
        """Return who implements a hook, in calling order, and remember it until the next registration."""
        # pluggy keeps implementations in reverse order of calling.
        found = reversed(getattr(self.manager.hook, hook).get_hookimpls())
        implementations = [(self.records[impl.plugin_name], impl.function, impl.argnames) for impl in found]
        self._implementations[hook] = implementations
        return implementations

    def _timed(self, record: PluginRecord, hook: str, function: Callable[..., Any], arguments: list[Any]) -> Any:
        """Call, and book the time on the plugin, less that of the hooks it called meanwhile."""
        nested = self._nested
        outer_ns, nested.ns = nested.ns, 0
        started_ns = perf_counter_ns()
        try:
            return function(*arguments)
        finally:
            took_ns = perf_counter_ns() - started_ns
            own_ns, nested.ns = took_ns - nested.ns, outer_ns + took_ns
            # No lock: two threads that meet here in one plugin lose a call from the statistics, at worst.
            record.calls += 1
            record.busy_ns += own_ns
            if own_ns > record.slowest_ns:  # noqa: PLR1730 - max() would cost more than the rest
                record.slowest_ns = own_ns
            if own_ns >= SLOW_CALL_NS and hook not in UNHURRIED:
                self._book_slow(record, own_ns)

    def _book_slow(self, record: PluginRecord, own_ns: int) -> None:
        with self._lock:
            record.slow_calls += 1
        if record.slow_calls == 1:
            logger.warning("plugin %s held the agent for %.0f ms; see axonize plugins", record.name, own_ns / 1e6)

    def _failed(self, record: PluginRecord, hook: str, error: BaseException) -> None:
        text = _text(error)
        with self._lock:
            first = not record.failures
            record.failures += 1
            record.in_a_row[hook] += 1
            # Without its configuration a plugin cannot work; elsewhere a failure may pass.
            hopeless = hook == "axonize_configure" or record.in_a_row[hook] >= FAILURES_BEFORE_DISABLED
        if first:
            logger.error("plugin %s failed in %s: %s", record.name, hook, text, exc_info=error)
        record.reason = f"failed in {hook}: {text}"
        if hopeless and record.state == LOADED:
            record.state = DISABLED
            logger.error("plugin %s is disabled: it %s", record.name, record.reason)

    def _refuse(self, record: PluginRecord, reason: str) -> None:
        if self.manager.get_plugin(record.name) is not None:
            self.manager.unregister(name=record.name)
        self._implementations = {}
        record.state, record.reason = DISABLED, reason
        logger.error("plugin %s %s", record.name, reason)

    def _own_facts(self, name: str) -> dict[str, Any] | None:
        """Return what a plugin's ``facts()`` says, checked to be what can be sent."""
        try:
            tell = getattr(self.manager.get_plugin(name), "facts", None)
            if not callable(tell):
                return None
            found: dict[str, Any] = tell()
            msgspec.msgpack.encode(found)
            return dict(found)
        except BaseException as e:  # a plugin that cannot speak of itself must not silence the rest
            if isinstance(e, KeyboardInterrupt):
                raise
            self._failed(self.records[name], "facts", e)
            return None

    def _unused(self, name: str, origin: Origin | None) -> str:
        """Return the name, or one that says whose it is where two distributions use the same."""
        if name in self.records and origin is not None and origin.distribution:
            name = f"{name}@{origin.distribution}"
        number, unused = 1, name
        while unused in self.records:
            number += 1
            unused = f"{name}#{number}"
        return unused


def _name(plugin: object) -> str:
    return getattr(plugin, "__name__", None) or f"{type(plugin).__module__}.{type(plugin).__qualname__}"


def _text(error: BaseException) -> str:
    try:
        return " ".join(f"{type(error).__name__}: {error}".split())
    except Exception:  # noqa: BLE001 - the exception is somebody else's as well
        return type(error).__name__


def load_plugins(
    only: Sequence[str] | None = None,
    *,
    defaults: Sequence[str] = DEFAULT_PLUGINS,
    groups: Sequence[str] = ("axonize",),
) -> Plugins:
    """Return a manager with the built-in plugins and those that are installed; nothing of theirs is raised.

    Args:
        only: names of the entry points to load (AXONIZE_LOAD_PLUGINS); None loads all, empty loads none. What
            Axonize itself brings is always loaded.
        defaults: built-in plugin modules; they come in through the same door as everyone's.
        groups: entry point groups to look into.
    """
    plugins, own = Plugins(), Origin("axonize", _version("axonize"))
    for name in defaults:
        plugins.load(name, partial(import_module, name), own)
    for group in groups:
        for entry in metadata.entry_points(group=group):
            if only is None or entry.name in only or group in BUILT_IN_GROUPS:
                plugins.load(entry.name, entry.load, _origin(entry))
            else:
                _note(plugins, entry.name, NOT_ASKED_FOR, "not in AXONIZE_LOAD_PLUGINS", _origin(entry))
    installed = {entry.name for entry in metadata.entry_points(group="axonize")}
    for name in sorted({*(only or ())} - installed - {*DEFAULT_PLUGINS}):
        known = ", ".join(sorted(installed)) or "none"
        _note(plugins, name, NOT_INSTALLED, f"is named in AXONIZE_LOAD_PLUGINS but not installed (installed: {known})")
    return plugins


def _note(plugins: Plugins, name: str, state: str, reason: str, origin: Origin | None = None) -> None:
    plugins.records.setdefault(name, PluginRecord(name, origin or Origin(), state=state, reason=reason))


def _origin(entry: metadata.EntryPoint) -> Origin:
    try:
        return Origin(entry.dist.name, entry.dist.version) if entry.dist else Origin()
    except Exception:  # noqa: BLE001 - damaged metadata of somebody else's
        return Origin()


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
