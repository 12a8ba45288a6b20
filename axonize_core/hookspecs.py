"""The whole plugin contract. Hooks run in the agent, never on an inference thread, and take sequences.

A plugin is a module or object with functions marked ``@axonize_core.hookimpl``, found by the entry point group
``axonize``. One that raises is isolated, counted, logged once and disabled when it goes on. The guide is docs/hooks.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import click
    from opentelemetry.sdk.trace import ReadableSpan

    from axonize_core.events import BatchEvent, DecodeEvent, GpuInfo, GpuSample, PrefillEvent, RequestEvent
    from axonize_core.plugins import AgentContext

__all__ = ["hookimpl", "hookspec"]

hookspec = pluggy.HookspecMarker("axonize")
hookimpl = pluggy.HookimplMarker("axonize")


@hookspec
def axonize_configure(context: AgentContext) -> None:
    """Begin: fires once when the agent starts; a plugin registered later is told at once.

    A plugin that fails here is disabled, since it could not work.
    """


@hookspec
def axonize_requests(events: Sequence[RequestEvent]) -> None:
    """Take requests that ended; ten times a second while there are any.

    Last of a dispatch: the phases and steps of the same moment were handed over before. Agent's main thread.
    """


@hookspec
def axonize_prefills(events: Sequence[PrefillEvent]) -> None:
    """Take the prefill phases of requests that ended, and of passes without tokens; ten times a second.

    Agent's main thread.
    """


@hookspec
def axonize_decodes(events: Sequence[DecodeEvent]) -> None:
    """Take the decode phases of requests that ended; ten times a second.

    Agent's main thread.
    """


@hookspec
def axonize_batches(events: Sequence[BatchEvent]) -> None:
    """Take engine steps with their members, when their run ended; ten times a second.

    The most frequent events: one per step, not per token. Agent's main thread.
    """


@hookspec
def axonize_gpu_samples(samples: Sequence[GpuSample]) -> None:
    """Take one reading of every compute resource; each AXONIZE_GPU_INTERVAL_MS.

    Sampler thread: it may overlap with the other hooks.
    """


@hookspec
def axonize_gpu_infos(infos: Sequence[GpuInfo]) -> None:
    """Take what appeared, changed or went of GPUs, slices and contexts; on a change, and once a minute.

    Sampler thread: it may overlap with the other hooks. The last call, for processes that went, is on the main thread.
    """


@hookspec
def axonize_span_attributes(events: Sequence[RequestEvent]) -> Sequence[Mapping[str, Any] | None]:  # type: ignore[empty-body] # a spec has no body
    """Return more attributes for each request's span, in the order of ``events``; before the spans are built.

    Called with the sampled requests of a dispatch, ten times a second while there are any. Agent's main thread.

    Returns:
        One mapping per event, or None for an event (or altogether) where there is nothing to add. Values are
        text, bool, 64-bit int, float, bytes or lists of these. Where two plugins give the same key, the one that
        was called later wins.
    """


@hookspec
def axonize_spans(spans: Sequence[ReadableSpan]) -> None:
    """Take finished spans, ready for export; several times per dispatch, grouped by kind.

    Agent's main thread. Spans are shared by all plugins and must not be changed.
    """


@hookspec(firstresult=True)
def axonize_gpu_provider(context: AgentContext) -> Any:
    """Return a GPU provider, or None to leave it to the next plugin; once, before ``axonize_configure``.

    The first that is not None is used (``axonize_core.gpu.identity.Provider``). Agent's main thread; the provider is
    read on the sampler thread.
    """


@hookspec
def axonize_shutdown(timeout_s: float) -> None:
    """End: fires once when the agent ends; hand over what is left within ``timeout_s`` seconds.

    Agent's main thread, after the last events.
    """


@hookspec
def axonize_register_commands(cli: click.Group) -> None:
    """Add commands to ``axonize``; once per command line, which is a process of its own.

    A name that Axonize itself uses cannot be taken.
    """
