"""What a plugin must keep to: hooks that exist, written as plain functions, with results of the right shape."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pluggy

__all__ = ["check_result", "hooks_of", "objections"]

_PROVIDER = ("resources", "sample", "resolve", "close")
_INT64 = range(-(2**63), 2**63)


def hooks_of(manager: pluggy.PluginManager, plugin: object) -> tuple[str, ...]:
    """Return the names of the hooks that a registered plugin implements, known to us or not."""
    return tuple(sorted(caller.name for caller in manager.get_hookcallers(plugin) or ()))


def objections(manager: pluggy.PluginManager, plugin: object) -> str:
    """Return why a registered plugin cannot take part, as the rest of a sentence; empty when it can."""
    return "; ".join(_objections(manager, plugin))


def _objections(manager: pluggy.PluginManager, plugin: object) -> Iterator[str]:
    known = sorted(
        name for name, caller in vars(manager.hook).items() if name.startswith("axonize_") and caller.has_spec()
    )
    for caller in manager.get_hookcallers(plugin) or ():
        for impl in caller.get_hookimpls():
            if impl.plugin is not plugin:
                continue
            if not caller.has_spec() and not impl.optionalhook:
                yield f"implements {caller.name!r}, which is no hook{_nearest(caller.name, known)}"
            if not _is_plain(impl):
                yield f"implements {caller.name!r} as a wrapper, generator or coroutine; hooks are plain functions"


def _nearest(name: str, known: Sequence[str]) -> str:
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {found[0]!r}?" if found else f" (hooks are {', '.join(known)})"


def _is_plain(impl: pluggy.HookImpl) -> bool:
    function: Any = impl.function
    odd = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)
    return not (impl.wrapper or impl.hookwrapper or any(is_odd(function) for is_odd in odd))


def check_result(hook: str, result: Any, arguments: Mapping[str, Any]) -> None:
    """Check what a hook returned, so that whoever asked can rely on it.

    Raises:
        TypeError: it has the wrong type, length or values.
    """
    if result is None:
        return
    if hook == "axonize_span_attributes":
        _check_span_attributes(result, len(arguments["events"]))
    elif hook == "axonize_gpu_provider":
        lacking = [name for name in _PROVIDER if not callable(getattr(result, name, None))]
        if lacking or not isinstance(getattr(result, "provenance", None), str):
            raise TypeError(f"{type(result).__name__} is no GPU provider: lacks {', '.join(lacking) or 'provenance'}")


def _check_span_attributes(result: Any, expected: int) -> None:
    if not isinstance(result, Sequence) or isinstance(result, (str, bytes)):
        raise TypeError(f"must return a sequence with one mapping or None per event, not {type(result).__name__}")
    if len(result) != expected:
        raise TypeError(f"returned {len(result)} results for {expected} events; one each, None for nothing")
    for attributes in result:
        if attributes is not None:
            _check_attributes(attributes)


def _check_attributes(attributes: Any) -> None:
    if not isinstance(attributes, Mapping):
        raise TypeError(f"must return a mapping or None per event, not {type(attributes).__name__}")
    for key, value in attributes.items():
        if not isinstance(key, str) or not key:
            raise TypeError(f"{key!r} is no attribute name")
        values = value if isinstance(value, (list, tuple)) else (value,)
        if not all(_is_attribute_value(v) for v in values):
            raise TypeError(f"{value!r} of {key!r} is no attribute value (text, bool, 64-bit int, float, bytes, lists)")


def _is_attribute_value(value: Any) -> bool:
    if isinstance(value, int):
        return value in _INT64
    return isinstance(value, (str, float, bytes))
