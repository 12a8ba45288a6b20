"""Axonize core: what runs beside inference.

Importing this package imports nothing heavy; ``hookimpl`` and ``hookspec`` are loaded on first use, because
pluggy belongs in the agent and not in the inference process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from axonize_core.hookspecs import hookimpl

__all__ = ["__version__", "hookimpl"]
__version__ = "0.1.0.dev0"


def __getattr__(name: str) -> Any:
    if name == "hookimpl":
        from axonize_core.hookspecs import hookimpl  # noqa: PLC0415

        return hookimpl
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
