"""What is going on in this thread: the outermost run, the batch a pipeline is about to run, and their records."""

from __future__ import annotations

import functools
from contextvars import ContextVar
from itertools import repeat
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from axonize_core.frames import Kind
from axonize_core.recorder import get_recorder
from axonize_hf.context import context_at, current_contexts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from axonize_hf.context import RequestContext
    from axonize_hf.device_time import DeviceTime
    from axonize_hf.tokens import StopRules

__all__ = [
    "Batch",
    "Run",
    "append_step",
    "close_request",
    "close_rows",
    "current_batch",
    "current_run",
    "guarded",
    "open_request",
    "open_rows",
]

P = ParamSpec("P")
R = TypeVar("R")
Output = tuple["int | None", "str | None"]
"""``(tokens, finish reason)`` of an answer."""


class Batch:
    """Requests that are run together, and the tokens of each one's prompt (empty where one is unknown).

    ``rules``, and ``prefix`` (how many tokens of its output are not new), come from the ``generate`` that serves a
    pipeline's batch.
    """

    def __init__(self, source: int, seqs: tuple[int, ...], prompt_tokens: Sequence[int | None]) -> None:
        self.source = source
        self.seqs = seqs
        self.prompt_tokens = tuple(n for n in prompt_tokens if n is not None)
        if len(self.prompt_tokens) != len(seqs):
            self.prompt_tokens = ()
        self.rules: StopRules | None = None
        self.prefix = 0


current_run: ContextVar[Run | None] = ContextVar("axonize_hf_run", default=None)
current_batch: ContextVar[Batch | None] = ContextVar("axonize_hf_batch", default=None)
append_step: ContextVar[Callable[[int], None] | None] = ContextVar("axonize_hf_append_step", default=None)


class Run:
    """One outermost ``generate`` or forward of ``owner``: announced when made, current until ``leave``."""

    def __init__(self, owner: object, batch: Batch, mode: str, device: DeviceTime | None = None) -> None:
        recorder = get_recorder()
        self.owner = owner
        self.mode = mode
        self.times: list[int] = []
        self.drafted: list[int] = []
        """A time for each token that an instrumented assistant proposed; empty where it is not."""
        self._handle = recorder.next_handle()
        payload = (batch.source, batch.seqs, batch.prompt_tokens, mode, self.times)
        recorder.emit(Kind.RUN, self._handle, payload)
        self._run_token = current_run.set(self)
        self._device = device
        append = self.times.append if device is None else device.marking(self.times.append)
        self._step_token = append_step.set(None if mode == "forward" else append)

    def leave(self) -> int:
        """Stop being the current run, close the live list and return the number of steps. Same thread."""
        append_step.reset(self._step_token)
        current_run.reset(self._run_token)
        steps = len(self.times)
        if self._device is not None:
            self._device.mark()
        self.times.append(-get_recorder().clock())
        return steps

    def end(self, new_tokens: int | None, error: str | None, attributes: tuple[Any, ...] | None = None) -> None:
        """Record the end; ``new_tokens`` is per row, padding included; ``attributes`` are each member's."""
        payload: tuple[Any, ...] = (new_tokens, error)
        if self._device is not None:
            payload = (new_tokens, error, attributes, self._device.take())
        elif attributes is not None:
            payload = (new_tokens, error, attributes)
        get_recorder().emit(Kind.RUN_END, self._handle, payload)


def open_request(
    source: int,
    context: RequestContext,
    arrived_ns: int,
    operation: str,
    input_tokens: int | None,
    request_id: str | None = None,
) -> int:
    """Record a request and return its seq; the context's arrival (perf_counter_ns) and id count if it has them."""
    recorder = get_recorder()
    seq = recorder.next_handle()
    recorder.emit(Kind.REQUEST, seq, _opening(source, context, arrived_ns, operation, input_tokens, request_id))
    return seq


def open_rows(source: int, arrived_ns: int, operation: str, input_tokens: Sequence[int | None]) -> tuple[int, ...]:
    """Record a request for each row of one call, with the contexts of this thread, and return their seqs."""
    recorder, contexts = get_recorder(), current_contexts()
    seqs = tuple(recorder.next_handle() for _ in input_tokens)
    openings = [
        _opening(source, context_at(contexts, row), arrived_ns, operation, tokens)
        for row, tokens in enumerate(input_tokens)
    ]
    recorder.emit_many(Kind.REQUEST, seqs, openings)
    return seqs


def close_request(
    seq: int,
    input_tokens: int | None,
    output: Output = (None, None),
    error: BaseException | None = None,
) -> None:
    """Record the end of a request; ``output`` is its token count and finish reason."""
    get_recorder().emit(Kind.REQUEST_END, seq, _ending(input_tokens, output, error))


def close_rows(
    seqs: Sequence[int],
    input_tokens: Sequence[int | None],
    outputs: Iterable[Output] = repeat((None, None)),
    error: BaseException | None = None,
) -> None:
    """Record the ends of the requests of one call, row by row."""
    endings = [_ending(tokens, output, error) for tokens, output in zip(input_tokens, outputs, strict=False)]
    get_recorder().emit_many(Kind.REQUEST_END, seqs[: len(endings)], endings)


def _opening(
    source: int,
    context: RequestContext,
    arrived_ns: int,
    operation: str,
    input_tokens: int | None,
    request_id: str | None = None,
) -> tuple[Any, ...]:
    if context.arrived_ns is not None:
        arrived_ns = min(int(context.arrived_ns), get_recorder().clock())
    identity = (source, arrived_ns, context.request_id or request_id, context.traceparent)
    return (*identity, operation, input_tokens, context.pairs())


def _ending(input_tokens: int | None, output: Output, error: BaseException | None) -> tuple[Any, ...]:
    tokens, reason = output if error is None else (output[0], "error")
    return (reason, input_tokens, tokens, None if error is None else type(error).__name__, None)


def guarded(where: str) -> Callable[[Callable[P, R]], Callable[P, R | None]]:
    """Make a function of ours return None instead of raising; failures are counted under ``where``."""

    def decorate(function: Callable[P, R]) -> Callable[P, R | None]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R | None:
            try:
                return function(*args, **kwargs)
            except Exception:  # noqa: BLE001 - nothing of ours may reach the user's call
                get_recorder().count_error(where)
                return None

        return call

    return decorate
