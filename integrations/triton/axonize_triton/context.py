"""What a model may say of its requests: how many tokens they are, and that a call of another model belongs to one."""

from __future__ import annotations

import hashlib
from typing import Any

from axonize_core.executions import caller
from axonize_core.frames import Kind
from axonize_core.live import parse_traceparent
from axonize_core.recorder import get_recorder

__all__ = ["call", "tokens"]

_FACT = int(Kind.REQUEST_FACT)


def tokens(request: Any, *, input: int | None = None, output: int | None = None) -> None:  # noqa: A002 - of the request
    """Say how many tokens a request's prompt has, and its answer so far. Never raises.

    Args:
        request: one that ``execute`` was given and that has not had its last response yet.
        input: tokens of the prompt.
        output: tokens of the answer; the last word counts.
    """
    try:
        if (seq := _seq(request)) is not None:
            get_recorder().emit(_FACT, seq, ("tokens", (input, output)))
    except Exception:  # noqa: BLE001 - nothing of ours may reach the model
        get_recorder().count_error("triton.tokens")


def call(request: Any, parameters: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return arguments for ``pb_utils.InferenceRequest`` so that the call of another model belongs to this request.

    ``pb_utils.InferenceRequest(model_name="other", inputs=[...], requested_output_names=[...], **call(request))``.
    May be asked for any number of calls. Never raises; where nothing is recorded, only Triton's own trace goes along.

    Args:
        request: the one being executed.
        parameters: further parameters of the call.
    """
    arguments: dict[str, Any] = {"parameters": dict(parameters or {})}
    try:
        trace = request.trace()
        arguments["trace"] = trace
        if (seq := _seq(request)) is not None:
            own = _own_context(seq, trace.get_context(), request.parameters())
            get_recorder().emit(_FACT, seq, ("context", own))
            arguments["parameters"].setdefault("traceparent", own)
    except Exception:  # noqa: BLE001 - the call goes on without
        get_recorder().count_error("triton.call")
    return arguments


def _own_context(seq: int, context: str | None, parameters: str | None) -> str:
    """Return a traceparent for this request's span, in the caller's trace where there is one; the same each time."""
    made = hashlib.sha256(f"{get_recorder().instance_id}/{seq}".encode()).digest()
    parent = parse_traceparent(caller(context, parameters))
    trace_id, _, sampled = parent or (int.from_bytes(made[:16], "big"), 0, True)
    return f"00-{trace_id:032x}-{made[16:24].hex()}-{int(sampled):02x}"


def _seq(request: Any) -> int | None:
    known = getattr(type(request), "_axonize_senders", None)
    return None if known is None else known.find(request)
