"""Axonize plugin: looks up each request's tenant in a file and adds what stands there to its span; see README.md."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axonize_core import hookimpl
from axonize_tenant.directory import Directory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from axonize_core.events import RequestEvent
    from axonize_core.plugins import AgentContext

__all__ = ["Enricher", "axonize_configure"]

VARIABLE = "AXONIZE_PLUGIN_TENANT_FILE"


class Enricher:
    """Adds attributes; runs on the agent's main thread."""

    def __init__(self, directory: Directory) -> None:
        self.counts: Counter[str] = Counter()
        self._directory = directory

    @hookimpl
    def axonize_span_attributes(self, events: Sequence[RequestEvent]) -> list[dict[str, Any] | None]:
        """Return what is known of each request's tenant, and what the request cost it."""
        self._directory.refresh()
        return [self._attributes(event) for event in events]

    def _attributes(self, event: RequestEvent) -> dict[str, Any] | None:
        key = dict(event.attributes).get(self._directory.attribute)
        tenant = self._directory.tenants.get(str(key)) if key is not None else None
        self.counts["tenants_unknown"] += key is not None and tenant is None
        if tenant is None:
            return None
        if tenant.usd_per_1k_output_tokens is None or event.output_tokens is None:
            return tenant.attributes
        return {**tenant.attributes, "tenant.cost_usd": event.output_tokens / 1000 * tenant.usd_per_1k_output_tokens}

    def facts(self) -> dict[str, Any]:
        """Return the counters, for ``axonize doctor``."""
        return {**self.counts, "tenants": len(self._directory.tenants), "tenant_file_error": self._directory.error}


@hookimpl
def axonize_configure(context: AgentContext) -> None:
    """Read the file.

    Raises:
        ValueError: no file is named, or it holds something else.
        OSError: it cannot be read.
    """
    path = context.settings.plugin_settings.get(VARIABLE)
    if not path:
        raise ValueError(f"set {VARIABLE} to a JSON or YAML file of tenants")
    context.plugins.register(Enricher(Directory(Path(path))), "axonize_tenant.Enricher")
