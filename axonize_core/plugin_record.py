"""What is known of one plugin: where it came from, its state, its failures and the time it takes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

__all__ = ["DISABLED", "LOADED", "NOT_ASKED_FOR", "NOT_INSTALLED", "Origin", "PluginRecord"]

LOADED, DISABLED, NOT_ASKED_FOR, NOT_INSTALLED = "loaded", "disabled", "not asked for", "not installed"


class Origin(NamedTuple):
    """The distribution that a plugin came with; None where it was registered by hand."""

    distribution: str | None = None
    version: str | None = None


@dataclass
class PluginRecord:
    """One plugin's state and cost; times are its own, without the hooks it calls itself."""

    name: str
    origin: Origin = field(default_factory=Origin)
    hooks: tuple[str, ...] = ()
    state: str = LOADED
    reason: str = ""
    calls: int = 0
    failures: int = 0
    slow_calls: int = 0
    busy_ns: int = 0
    slowest_ns: int = 0
    in_a_row: Counter[str] = field(default_factory=Counter)

    def is_missing(self) -> bool:
        """Say whether it was asked for, or takes itself to be, and does not take part."""
        return self.state in (DISABLED, NOT_INSTALLED)

    def facts(self) -> dict[str, Any]:
        """Return it with units in the names, for ``axonize plugins``."""
        return {
            "name": self.name,
            "distribution": self.origin.distribution,
            "version": self.origin.version,
            "hooks": list(self.hooks),
            "state": self.state,
            "reason": self.reason or None,
            "calls": self.calls,
            "failures": self.failures,
            "slow_calls": self.slow_calls,
            "busy_ms": self.busy_ns / 1e6,
            "slowest_ms": self.slowest_ns / 1e6,
        }
