"""``execute`` as records: one when a batch begins, one when it is over; on the model's thread.

What a request says of itself is read at once, since a reference to it would keep its shared memory. Reading Triton's
own trace context takes as long as all the rest, so it is only asked for where Triton makes one.
"""

from __future__ import annotations

import inspect
import os
from operator import methodcaller
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axonize_core.frames import Kind
from axonize_core.recorder import get_recorder
from axonize_core.settings import get_settings
from axonize_triton.failures import settle

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from axonize_triton.failures import Made
    from axonize_triton.senders import OpenRequests

__all__ = ["is_traced", "recorded_execute"]


def recorded_execute(
    original: Callable[..., Any], pb_utils: Any, source: int, open_requests: OpenRequests, *, decoupled: bool
) -> Callable[..., Any]:
    """Return an ``execute`` that records what the original does, a coroutine function where that is one."""
    begin, end, fail = _records(pb_utils, source, open_requests, decoupled=decoupled)

    def execute(requests: Sequence[Any]) -> Any:
        handle = begin(requests)
        try:
            responses = original(requests)
        except BaseException as e:
            fail(handle, e)
            raise
        end(handle, responses)
        return responses

    async def execute_async(requests: Sequence[Any]) -> Any:
        handle = begin(requests)
        try:
            responses = await original(requests)
        except BaseException as e:
            fail(handle, e)
            raise
        end(handle, responses)
        return responses

    return execute_async if inspect.iscoroutinefunction(original) else execute


def _records(
    pb_utils: Any, source: int, open_requests: OpenRequests, *, decoupled: bool
) -> tuple[Callable[[Sequence[Any]], int], Callable[[int, Any], None], Callable[[int, BaseException], None]]:
    """Return what is called when a batch begins, when it is over, and when it failed; none of them raises."""
    recorder = get_recorder()
    emit, next_handle, (request_id, trace, parameters) = recorder.emit, recorder.next_handle, _readers(pb_utils)
    begin_kind, end_kind, get_context = int(Kind.EXECUTE), int(Kind.EXECUTE_END), methodcaller("get_context")
    errors, number = open_requests.errors, open_requests.remember if decoupled else open_requests.run

    def begin(requests: Sequence[Any]) -> int:
        handle = next_handle()
        try:
            if len(requests) == 1:  # what a list of many takes would be a third of the time
                (request,) = requests
                seqs = number(requests, (next_handle(),))
                contexts = trace and (get_context(trace(request)),)
                sent = parameters and (parameters(request),)
                emit(begin_kind, handle, (source, seqs, (request_id(request),), contexts, sent, None))
            else:
                seqs = number(requests, [next_handle() for _ in requests])
                contexts = trace and [*map(get_context, map(trace, requests))]
                sent = parameters and [*map(parameters, requests)]
                emit(begin_kind, handle, (source, seqs, [*map(request_id, requests)], contexts, sent, None))
        except Exception:  # noqa: BLE001 - nothing of ours may reach the model
            recorder.count_error("triton.execute")
        return handle

    def end(handle: int, responses: Any) -> None:
        try:
            open_requests.running = None
            if responses is None:
                emit(end_kind, handle, (None, None, None))
            elif errors or not all(responses):
                emit(end_kind, handle, (None, *_answers(responses, errors)))
            else:
                emit(end_kind, handle, (None, True, None))
        except Exception:  # noqa: BLE001 - same
            recorder.count_error("triton.execute_end")

    def fail(handle: int, error: BaseException) -> None:
        try:
            open_requests.running = None
            settle(errors, len(errors))
            emit(end_kind, handle, (type(error).__name__, None, None))
        except Exception:  # noqa: BLE001 - same
            recorder.count_error("triton.execute_end")

    return begin, end, fail


def _answers(responses: Sequence[Any], errors: list[Made]) -> tuple[list[int], list[tuple[int, str]] | None]:
    """Return which requests have a response, and which of these are errors."""
    answered = [at for at, response in enumerate(responses) if response is not None]
    failed = [(at, "TritonError") for at in answered if errors and responses[at].has_error()]
    settle(errors, len(failed))
    return answered, failed or None


def _readers(pb_utils: Any) -> tuple[Any, Any, Any]:
    """Return what gives a request's id, Triton's trace of it and its parameters, None where that is not wanted."""
    request_class = pb_utils.InferenceRequest
    if get_settings().triton_detail == "ids":
        return request_class.request_id, None, None
    return request_class.request_id, request_class.trace if is_traced() else None, request_class.parameters


def is_traced(proc: Path = Path("/proc"), parent: int | None = None) -> bool:
    """Say whether the server may give requests a trace context: its mode is fixed on its command line."""
    try:
        command = (proc / str(os.getppid() if parent is None else parent) / "cmdline").read_bytes()
    except OSError:
        return True
    server = command.partition(b"\0")[0].rpartition(b"/")[2]
    return server != b"tritonserver" or b"mode=opentelemetry" in command
