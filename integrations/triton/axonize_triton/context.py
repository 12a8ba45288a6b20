"""What a model may say of its requests: how many tokens they are, and that a call of another model belongs to one."""

from __future__ import annotations

import secrets
from typing import Any

from axonize_core.executions import caller
from axonize_core.frames import Kind
from axonize_core.live import parse_traceparent
from axonize_core.recorder import get_recorder

__all__ = ["call", "tokens"]


def tokens(request: Any, *, input: int | None = None, output: int | None = None) -> None:  # noqa: A002 - of the request
    """Say how many tokens a request's prompt has, and its answer so far. Never raises.

    Args:
        request: one that ``execute`` was given and that has not had its last response yet.
        input: tokens of the prompt.
        output: tokens of the answer; the last word counts.
    """
    _tell(request, "tokens", (input, output))


def call(request: Any, parameters: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return arguments for ``pb_utils.InferenceRequest`` so that the call of another model belongs to this request.

    ``pb_utils.InferenceRequest(model_name="other", inputs=[...], requested_output_names=[...], **call(request))``.
    Never raises; where nothing is recorded only the parameters come back.

    Args:
        request: the one being executed.
        parameters: further parameters of the call.
    """
    arguments: dict[str, Any] = {"parameters": dict(parameters or {})}
    try:
        trace = request.trace()
        own = _own_context(trace.get_context(), request.parameters())
        if _tell(request, "context", own):
            arguments["parameters"].setdefault("traceparent", own)
        arguments["trace"] = trace
    except Exception:  # noqa: BLE001 - the call goes on without
        get_recorder().count_error("triton.call")
    return arguments


def _own_context(context: str | None, parameters: str | None) -> str:
    """Return a traceparent for this request's span, in the caller's trace where there is one."""
    parent = parse_traceparent(caller(context, parameters))
    trace_id, _, sampled = parent or (secrets.randbits(128) | 1, 0, True)
    return f"00-{trace_id:032x}-{secrets.randbits(64) | 1:016x}-{int(sampled):02x}"


def _tell(request: Any, what: str, value: Any) -> bool:
    try:
        known = getattr(type(request), "_axonize_senders", None)
        seq = known.find(request) if known is not None else None
        if seq is None:
            return False
        get_recorder().emit(int(Kind.REQUEST_FACT), seq, (what, value))
    except Exception:  # noqa: BLE001 - nothing of ours may reach the model
        get_recorder().count_error(f"triton.{what}")
        return False
    return True
