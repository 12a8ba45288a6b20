"""Continuous batching: what a ``ContinuousBatchingManager`` serves, read at its two ends and once per engine step.

A request is known when it is put into the manager's input queue, and done when its output is delivered; the times of
its tokens are the library's own (``GenerationOutput.timestamps``). Nothing of ours runs per token.
"""

from __future__ import annotations

import functools
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from axonize_core.frames import Kind
from axonize_core.recorder import get_recorder
from axonize_hf.context import context_at, current_contexts
from axonize_hf.continuous_steps import Steps
from axonize_hf.run import current_batch, current_run, guarded, open_request
from axonize_hf.tokens import end_tokens

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["instrument_manager", "managers", "uninstrument_manager"]

managers: WeakKeyDictionary[Any, Serving] = WeakKeyDictionary()
"""What is recorded of each instrumented manager."""

_position: ContextVar[int] = ContextVar("axonize_hf_position", default=0)
"""Which of the inputs of one ``add_requests`` is being added; the library adds them in an order of its own."""

_CHILD = "__child#"
_OTHER = "_OTHER"
"""``error.type`` of an error whose class is not known, by OpenTelemetry's conventions; outputs carry a message only."""

_LONG_NS = 60_000_000_000


def instrument_manager(manager: Any, source: int) -> None:
    """Record what a manager serves from now on; a second time changes nothing."""
    if manager not in managers:
        managers[manager] = Serving(manager, source)


def uninstrument_manager(manager: Any) -> None:
    """Undo ``instrument_manager``; requests under way are ended with nothing known about how."""
    serving = managers.pop(manager, None)
    if serving is not None:
        serving.detach()


class _Request:
    """One call of ``add_request``; ``missing`` counts the sequences of it that were not delivered yet."""

    def __init__(self, state: Any, seq: int) -> None:
        self.seq = seq
        self.input_tokens = len(_first(state, "initial_tokens", "full_prompt_ids"))
        self.ends = end_tokens(state.eos_token_id)
        self.missing = 1 + (getattr(state, "num_children", 0) or 0)
        self.hidden = False
        self.tokens: int | None = None
        self.reason: str | None = None
        self.times: tuple[float | None, ...] | None = None
        self.failed = False

    def add(self, output: Any) -> None:
        """Count a finished sequence; an end token can only be its last."""
        tokens = output.generated_tokens
        self.missing -= 1
        self.tokens = (self.tokens or 0) + len(tokens)
        self.failed = self.failed or output.error is not None
        ended = bool(tokens) and tokens[-1] in self.ends
        self.reason = "stop" if ended and self.reason != "length" else "length"


class Serving:
    """The requests of one manager. Requests come on any thread, steps and outputs on the manager's own."""

    def __init__(self, manager: Any, source: int) -> None:
        self._source = source
        self._requests: dict[str, _Request] = {}
        self._steps = Steps(source, self._seq_of)
        self._wrapped: list[tuple[Any, str, Any, Any]] = []
        self._wrap(manager, "add_requests", self._add_requests)
        self._wrap(manager, "add_request", self._add_request)
        self._wrap(manager, "cancel_request", self._cancel)
        self._wrap(manager, "stop", self._stop)
        self._wrap(manager, "_generation_step", functools.partial(self._steps.run, manager))
        self._wrap(manager.input_queue, "put", self._put)
        outputs = getattr(manager, "output_router", None)
        if outputs is None:
            self._wrap(manager.output_queue, "put", self._deliver)
        else:
            self._wrap(outputs, "deliver", self._deliver)
            self._wrap(outputs, "deliver_batch", self._deliver_batch)

    def detach(self) -> None:
        """Give every method back and end what is open."""
        for owner, name, call, before in self._wrapped:
            if vars(owner).get(name) is call:
                delattr(owner, name)
                if before is not None:
                    setattr(owner, name, before)
        self._abandon()

    def _wrap(self, owner: Any, name: str, record: Callable[..., Any]) -> None:
        """Put ``record(original, args, kwargs)`` in front of a method, on the instance: these are never copied."""
        original = getattr(owner, name, None)
        if original is None:
            return
        before = vars(owner).get(name)

        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            return record(original, args, kwargs)

        setattr(owner, name, call)
        self._wrapped.append((owner, name, call, before))

    def _add_requests(self, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        inputs = args[0] if args else kwargs.get("inputs", ())
        token = _inputs.set({id(given): index for index, given in enumerate(inputs)})
        try:
            return original(*args, **kwargs)
        finally:
            _inputs.reset(token)

    def _add_request(self, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        given = args[0] if args else kwargs.get("input_ids")
        token = _position.set(_inputs.get().get(id(given), 0))
        try:
            return original(*args, **kwargs)
        finally:
            _position.reset(token)

    def _put(self, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        name = self._arrive(args[0] if args else kwargs.get("item"))
        try:
            return original(*args, **kwargs)
        except BaseException as error:
            self._end(name, type(error).__name__)
            raise

    def _deliver(self, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        self._take(args[:1])
        return original(*args, **kwargs)

    def _deliver_batch(self, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        self._take(args[0] if args else kwargs.get("outputs", ()))
        return original(*args, **kwargs)

    def _cancel(self, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Cancel; the library delivers nothing for a request that was cancelled."""
        result = original(*args, **kwargs)
        self._end(args[0] if args else kwargs.get("request_id"), None, "cancelled")
        return result

    def _stop(self, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        manager = original.__self__  # type: ignore[attr-defined]  # a bound method
        result = original(*args, **kwargs)
        if not manager.is_running():
            self._abandon()
        return result

    @guarded("hf.continuous.abandon")
    def _abandon(self) -> None:
        """End what is open; how it would have ended is unknown."""
        self._steps.close()
        for name in list(self._requests):
            self._end(name, None)

    @guarded("hf.continuous.arrive")
    def _arrive(self, state: Any) -> str | None:
        # Inside a generate or a pipeline the request is theirs.
        if current_batch.get() is not None or current_run.get() is not None:
            return None
        context = context_at(current_contexts(), _position.get())
        tokens = len(_first(state, "initial_tokens", "full_prompt_ids"))
        name = str(state.request_id)
        seq = open_request(self._source, context, _created_ns(state), "text_completion", tokens, request_id=name)
        request = _Request(state, seq)
        # Stamped by the library itself, 0.1 us a token; who did not ask for them does not get to see them.
        if getattr(state, "record_timestamps", None) is False:
            state.record_timestamps = request.hidden = True
        self._end(name, None)
        self._requests[name] = request
        return name

    @guarded("hf.continuous.output")
    def _take(self, outputs: Any) -> None:
        """Note finished sequences, and close the requests that got all of theirs."""
        for output in outputs:
            name = output.request_id.partition(_CHILD)[0]
            request = self._requests.get(name)
            if request is None:
                continue
            if output.status.name in ("FINISHED", "FAILED"):
                self._sequence(name, request, output)
            if request.hidden:
                output.timestamps = None

    def _sequence(self, name: str, request: _Request, output: Any) -> None:
        request.add(output)
        if output.request_id == name:
            request.times = _times(output)
        if not request.missing:
            self._steps.close()
            # Another thread may have cancelled it meanwhile.
            self._end(name, _OTHER if request.failed else None)

    @guarded("hf.continuous.end")
    def _end(self, name: Any, error: str | None, reason: str | None = None) -> None:
        request = self._requests.pop(name, None)
        if request is not None:
            self._close(request, error, reason)

    def _close(self, request: _Request, error: str | None, reason: str | None = None) -> None:
        reason = "error" if error else reason or request.reason
        payload = (reason, request.input_tokens, request.tokens, error, None, request.times)
        get_recorder().emit(Kind.REQUEST_END, request.seq, payload)

    def _seq_of(self, request_id: str) -> int | None:
        request = self._requests.get(request_id.partition(_CHILD)[0])
        return None if request is None else request.seq


_inputs: ContextVar[dict[int, int]] = ContextVar("axonize_hf_inputs", default={})  # noqa: B039 - never written to


def _first(state: Any, *names: str) -> Any:
    """Return the first of these attributes that the library's version has."""
    return next(getattr(state, name) for name in names if hasattr(state, name))


def _created_ns(state: Any) -> int:
    """Return when the library made the request; 4.57 stamps it with another clock, then it is now."""
    now_ns = get_recorder().clock()
    created_ns = round(state.created_time * 1e9)
    return created_ns if now_ns - _LONG_NS < created_ns <= now_ns else now_ns


def _times(output: Any) -> tuple[float | None, ...] | None:
    """Return when the request began to be served and when each of its tokens came, in perf_counter seconds.

    None where not every token was stamped: old versions, and requests the library began anew for want of memory.
    """
    stamps, tokens = getattr(output, "timestamps", None), len(output.generated_tokens)
    if not stamps or not 0 < tokens <= len(stamps):
        return None
    started = getattr(output, "lifespan", (-1, -1))[0]
    return (started if started > 0 else None, *stamps[:tokens])
