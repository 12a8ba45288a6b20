"""What a vLLM ``Request`` says of itself, as the payloads of REQUEST and REQUEST_END."""

from __future__ import annotations

import re
import time
from typing import Any

from axonize_core import attributes as names

__all__ = ["caller_id", "ended", "opened", "operation"]

_ID = re.compile(r"(?:(\d+)_)?(.+?)(?:-[0-9a-f]{8})?")
"""Internal id: which of n answers, the caller's id, and the random part that vLLM adds."""


def caller_id(engine_id: str) -> tuple[str, int | None]:
    """Return the id a caller knows, and which of several answers to one call this is (None: the only one)."""
    found = _ID.fullmatch(engine_id)
    if found is None:
        return engine_id, None
    return found[2], None if found[1] is None else int(found[1])


def operation(request_id: str, *, pooling: bool) -> str:
    """Return the operation by the names of OTel's GenAI conventions; vLLM's ids begin with the endpoint's kind."""
    if pooling:
        return "embeddings"
    return "chat" if request_id.startswith("chatcmpl-") else "text_completion"


def opened(source: int, request: Any, now_ns: int) -> tuple[Any, ...]:
    """Return the payload of REQUEST.

    Args:
        source: of the engine.
        request: as the scheduler got it; ``arrival_time`` is epoch seconds, from the front end.
        now_ns: perf_counter.
    """
    request_id, choice = caller_id(request.request_id)
    attributes: list[tuple[str, Any]] = [] if choice is None else [(names.CHOICE_INDEX, choice)]
    if request.lora_request is not None:
        attributes.append((names.ADAPTERS, (request.lora_request.lora_name,)))
    headers = request.trace_headers or {}
    return (
        source,
        now_ns - round((time.time() - request.arrival_time) * 1e9),
        request_id,
        headers.get("traceparent"),
        operation(request_id, pooling=request.pooling_params is not None),
        request.num_prompt_tokens,
        tuple(attributes),
        request.request_id,
    )


def ended(request: Any, block_size: int | None) -> tuple[Any, ...]:
    """Return the payload of REQUEST_END for a request that the scheduler let go of."""
    reason = request.get_finished_reason()
    blocks = -(-request.num_computed_tokens // block_size) if block_size else 0
    return (
        None if reason is None else str(reason),
        request.num_prompt_tokens,
        request.num_output_tokens if request.pooling_params is None else None,
        "engine_error" if str(reason) == "error" else None,
        ((names.KV_CACHE_BLOCKS, blocks),) if blocks else None,
    )
