"""A request while it lives: what was told when it became known, and what its engine did to it since."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from axonize_core.events import RequestRef, SourceInfo
    from axonize_core.progress import Progress
    from axonize_core.runs import Run

__all__ = ["LiveRequest", "parse_traceparent"]


@dataclass
class LiveRequest:
    """One live request; times are the engine's perf_counter, ``epoch_ns`` turns them into epoch times."""

    source: SourceInfo
    ref: RequestRef
    parent_span_id: int
    request_id: str | None
    operation: str
    arrived_ns: int
    epoch_ns: int
    input_tokens: int | None
    attributes: tuple[tuple[str, Any], ...]
    last_ns: int
    engine_id: str | None = None
    """What the engine's own processes call it, where it is told step by step."""
    progress: Progress | None = None
    first_step_ns: int | None = None
    steps: tuple[int, int] = (0, 0)
    """Those of continuous batching in which its prompt was computed, and those after."""
    runs: tuple[Run, ...] = ()
    joined: bool = False
    incomplete: bool = False
    output_tokens: int | None = None
    finish_reason: str | None = None
    error: str | None = None
    """What was told of its answer before its end."""


def parse_traceparent(text: Any) -> tuple[int, int, bool] | None:
    """Return trace id, span id and the sampled flag of a W3C traceparent; None when it is not valid."""
    parts = text.strip().split("-") if isinstance(text, str) else []
    if [len(part) for part in parts[:4]] != [2, 32, 16, 2] or parts[0] == "ff":
        return None
    try:
        trace_id, span_id, flags = int(parts[1], 16), int(parts[2], 16), int(parts[3], 16)
    except ValueError:
        return None
    return (trace_id, span_id, bool(flags & 1)) if trace_id and span_id else None
