"""vLLM's front end as records: what only it sees of a request, on the thread of its event loop.

Stop strings are found here, clients go away here, and the caller's headers come in here. Methods of each AsyncLLM or
LLMEngine and of its OutputProcessor are recorded, not the classes; the engine core's own records need none of this.
"""

from __future__ import annotations

import functools
import logging
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from axonize_core import attributes as names
from axonize_core.frames import Kind
from axonize_core.recorder import get_recorder
from axonize_vllm import http, requests
from axonize_vllm.source import frontend_source

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["instrument", "record"]

logger = logging.getLogger("axonize")
_MARK = "_axonize_recorded"
_TRACE_HEADERS = 6
"""Position of ``trace_headers`` among the arguments of AsyncLLM.add_request."""

_AT_ONCE = "FINAL_ONLY"
"""vLLM's RequestOutputKind of an answer that does not come in pieces: what is sent of it first is all of it."""

_headers: ContextVar[Mapping[str, str] | None] = ContextVar("axonize_trace_headers", default=None)


def instrument() -> None:
    """Record every front end that this process makes from now on."""
    from vllm.v1.engine.async_llm import AsyncLLM  # noqa: PLC0415 - the user's
    from vllm.v1.engine.llm_engine import LLMEngine  # noqa: PLC0415 - same

    for front_end in (AsyncLLM, LLMEngine):
        if not hasattr(front_end.__init__, _MARK):
            front_end.__init__ = _recorded_init(front_end.__init__)


def _recorded_init(original: Any) -> Any:
    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807 - it is one
        original(self, *args, **kwargs)
        try:
            record(self)
        except Exception:
            get_recorder().count_error("vllm.frontend")
            logger.warning("axonize: this front end is not recorded", exc_info=True)

    setattr(__init__, _MARK, True)
    return __init__


def record(front_end: Any) -> None:
    """Record what this AsyncLLM or LLMEngine is asked and answers from now on."""
    processor = front_end.output_processor
    watch = _FrontEnd(processor, frontend_source(front_end.vllm_config))
    for name in ("add_request", "process_outputs", "abort_requests", "propagate_error"):
        setattr(processor, name, getattr(watch, name))
    # Before its first request: an engine's first one would not wait for a front end that nobody knows.
    get_recorder().start()
    if hasattr(front_end, "is_tracing_enabled"):
        _keep_headers(front_end)
    http.instrument()


def _keep_headers(front_end: Any) -> None:
    """Let the caller's trace headers reach the engine core while vLLM's own tracing is off.

    Up to 0.25 they are read only if the engine says that it traces; later they are read, and dropped by add_request.
    """
    original = front_end.add_request

    async def is_tracing_enabled() -> bool:
        return True

    async def add_request(*args: Any, **kwargs: Any) -> Any:
        given = kwargs.get("trace_headers") or (args[_TRACE_HEADERS] if len(args) > _TRACE_HEADERS else None)
        token = _headers.set(given)
        try:
            return await original(*args, **kwargs)
        finally:
            _headers.reset(token)

    front_end.is_tracing_enabled, front_end.add_request = is_tracing_enabled, add_request


class _FrontEnd:
    """The open requests of one output processor, by the ids that the engine core knows them by."""

    def __init__(self, processor: Any, source: int) -> None:
        self._source = source
        self._recorder = get_recorder()
        self._add_request = processor.add_request
        self._process_outputs = processor.process_outputs
        self._abort_requests = processor.abort_requests
        self._propagate_error = processor.propagate_error
        self._live: dict[str, Any] = processor.request_states
        """vLLM's own; ours are those of them that came since."""
        self._open: dict[str, tuple[Any, http.Call | None]] = {}

    def add_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        """Record that a request came; the engine core hears of it next."""
        try:
            if request.trace_headers is None:
                request.trace_headers = _headers.get()
        except Exception:  # noqa: BLE001 - nothing of ours may reach the server
            self._recorder.count_error("vllm.frontend.headers")
        result = self._add_request(request, *args, **kwargs)
        try:
            if request.request_id not in self._open:
                call = http.current()
                if call is not None:
                    call.requests += 1
                self._open[request.request_id] = self._live[request.request_id], call
                self._emit(request.request_id, "opened", *self._opened(request))
        except Exception:  # noqa: BLE001 - same
            self._recorder.count_error("vllm.frontend.add_request")
        return result

    def process_outputs(self, outputs: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
        """Record the requests that ended by these outputs, by their length or by what their text says.

        Most steps end none: then nothing is looked at but how many there are.
        """
        before = len(self._live)
        result = self._process_outputs(outputs, *args, **kwargs)
        if (gone := before - len(self._live)) > 0:
            told = self._told(kwargs.get("iteration_stats") or (args[1] if len(args) > 1 else None), gone)
            try:
                self._end_finished(outputs, result, told)
            except Exception:  # noqa: BLE001 - same
                self._recorder.count_error("vllm.frontend.process_outputs")
        return result

    def abort_requests(self, *args: Any, **kwargs: Any) -> Any:
        """Record the requests that their clients gave up."""
        result = self._abort_requests(*args, **kwargs)
        try:
            for engine_id in result:
                self._end(engine_id, "abort", None, None)
        except Exception:  # noqa: BLE001 - same
            self._recorder.count_error("vllm.frontend.abort_requests")
        return result

    def propagate_error(self, e: Exception, *args: Any, **kwargs: Any) -> Any:
        """Record that the engine died under all that is open."""
        try:
            for engine_id in list(self._open):
                self._end(engine_id, None, None, type(e).__name__)
        except Exception:  # noqa: BLE001 - same
            self._recorder.count_error("vllm.frontend.propagate_error")
        return self._propagate_error(e, *args, **kwargs)

    def _told(self, statistics: Any, gone: int) -> Sequence[Any]:
        """Return what vLLM's statistics say of those that are gone, which they list last; nothing without any."""
        try:
            return () if statistics is None else statistics.finished_requests[-gone:]
        except Exception:  # noqa: BLE001 - same
            self._recorder.count_error("vllm.frontend.statistics")
            return ()

    def _end_finished(self, outputs: Sequence[Any], result: Any, told: Sequence[Any]) -> None:
        """Record those that are open no more; what is told of all that are gone is in the same order."""
        live, stopped = self._live, set(result.reqs_to_abort)
        ended = [
            output
            for output in outputs
            if (output.finish_reason is not None or output.request_id in stopped)
            and output.request_id in self._open
            and output.request_id not in live
        ]
        for at, output in enumerate(ended):
            if len(told) == len(ended):
                self._end(output.request_id, str(told[at].finish_reason), told[at].e2e_latency, None)
            else:
                reason = "stop" if output.request_id in stopped else str(output.finish_reason)
                self._end(output.request_id, reason, None, None)

    def _opened(self, request: Any) -> tuple[Any, ...]:
        request_id = getattr(request, "external_req_id", None) or requests.caller_id(request.request_id)[0]
        state, _ = self._open[request.request_id]
        attributes = () if state.parent_req is None else ((names.CHOICE_INDEX, state.request_index),)
        return (
            self._recorder.next_handle(),
            request_id,
            round(request.arrival_time * 1e9),
            (request.trace_headers or {}).get("traceparent"),
            requests.operation(request_id, pooling=request.pooling_params is not None),
            state.prompt_len,
            attributes,
        )

    def _end(self, engine_id: str, reason: str | None, e2e_s: float | None, error: str | None) -> None:
        opened = self._open.pop(engine_id, None)
        if opened is None:
            return
        state, call = opened
        tokens = ttft_s = None
        if state.stats is not None:
            tokens = state.stats.num_generation_tokens if state.detokenizer is not None else None
            ttft_s = state.stats.first_token_latency or None
        if call is None or state.output_kind.name == _AT_ONCE:
            self._emit(engine_id, "ended", reason, tokens, ttft_s, e2e_s, error)
        else:
            call.when_begun(
                lambda: self._emit(engine_id, "ended", reason, tokens, call.time_to_first_s() or ttft_s, e2e_s, error)
            )

    def _emit(self, engine_id: str, what: str, *facts: Any) -> None:
        self._recorder.emit(Kind.ANSWER, self._source, (engine_id, what, *facts))
