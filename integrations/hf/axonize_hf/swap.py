"""Swaps an object's class for a subclass of it, and back.

Instance attributes would break ``copy.deepcopy`` silently (the copy runs the original's weights), and pickle
loudly; a subclass under the same name breaks neither. Copies and pickles are of the original class.
"""

from __future__ import annotations

import copyreg
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["is_swapped", "original_class", "swap", "unswap"]

_ORIGINAL = "_axonize_original"
_subclasses: dict[type, type] = {}
_newobj: Any = copyreg.__newobj__  # type: ignore[attr-defined]  # typeshed leaves it out


def is_swapped(target: object) -> bool:
    """Say whether the object's class was swapped."""
    return _ORIGINAL in vars(type(target))


def original_class(target: object) -> type:
    """Return the class the object had before the swap."""
    original: type = vars(type(target)).get(_ORIGINAL, type(target))
    return original


def swap(target: Any, overrides: Callable[[type], dict[str, Any]]) -> None:
    """Give the object a subclass of its class with these overrides, made once per class.

    Raises:
        TypeError: the object's class cannot be swapped.
    """
    if is_swapped(target):
        return
    original = type(target)
    if original not in _subclasses:
        _subclasses[original] = _subclass(original, overrides(original))
    target.__class__ = _subclasses[original]


def unswap(target: Any) -> None:
    """Give the object its own class back."""
    target.__class__ = original_class(target)


def _subclass(original: type[Any], overrides: dict[str, Any]) -> type:
    def __reduce_ex__(self: Any, protocol: Any) -> Any:  # noqa: N807 - it is that method
        reduced: Any = original.__reduce_ex__(self, protocol)  # type: ignore[call-arg]  # unbound, so with self
        if isinstance(reduced, str):
            return reduced
        make, arguments, *rest = reduced
        if make is _newobj:
            # pickle insists that __newobj__ makes the object's own class.
            make = original.__new__
        mine = type(self)
        return make, tuple(original if item is mine else item for item in arguments), *rest

    namespace = {
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
        "__reduce_ex__": __reduce_ex__,
        _ORIGINAL: original,
        **overrides,
    }
    metaclass: Any = type(original)
    subclass: type = metaclass(original.__name__, (original,), namespace)
    return subclass
