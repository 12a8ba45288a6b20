"""The whole plugin contract. Hooks run in the agent, never on an inference thread, and take sequences.

A plugin is a module or object with functions marked ``@axonize_core.hookimpl``; it is found by the entry point
group ``axonize``. A plugin that raises is isolated, counted, logged once and disabled after repeated failures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import click
    from opentelemetry.sdk.trace import ReadableSpan

    from axonize_core.events import BatchEvent, DecodeEvent, GpuSample, PrefillEvent, RequestEvent
    from axonize_core.plugins import AgentContext

__all__ = ["hookimpl", "hookspec"]

hookspec = pluggy.HookspecMarker("axonize")
hookimpl = pluggy.HookimplMarker("axonize")


@hookspec
def axonize_configure(context: AgentContext) -> None:
    """Fires once when the agent starts; a plugin registered later is told at once."""


@hookspec
def axonize_requests(events: Sequence[RequestEvent]) -> None:
    """Requests that ended; about ten times a second while there are any."""


@hookspec
def axonize_prefills(events: Sequence[PrefillEvent]) -> None:
    """Prompts that were computed, of requests that ended."""


@hookspec
def axonize_decodes(events: Sequence[DecodeEvent]) -> None:
    """Decode phases of requests that ended."""


@hookspec
def axonize_batches(events: Sequence[BatchEvent]) -> None:
    """Engine steps with their members, when their run ended."""


@hookspec
def axonize_gpu_samples(samples: Sequence[GpuSample]) -> None:
    """One reading of every compute resource, each AXONIZE_GPU_INTERVAL_MS; sampler thread."""


@hookspec
def axonize_span_attributes(events: Sequence[RequestEvent]) -> Sequence[Mapping[str, Any] | None]:  # type: ignore[empty-body] # a spec has no body
    """Return more attributes for each request's span, in the order of ``events``; later plugins win."""


@hookspec
def axonize_spans(spans: Sequence[ReadableSpan]) -> None:
    """Finished spans, ready for export."""


@hookspec(firstresult=True)
def axonize_gpu_provider(context: AgentContext) -> Any:
    """Return a GPU provider (``axonize_core.gpu.identity.Provider``), or None to leave it to the next plugin."""


@hookspec
def axonize_shutdown(timeout_s: float) -> None:
    """Fires once when the agent ends: hand over what is left, within ``timeout_s``."""


@hookspec
def axonize_register_commands(cli: click.Group) -> None:
    """Add commands to ``axonize``; fires in the command line's process only."""
