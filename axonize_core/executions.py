"""Executions of a batch that answer at once or in a stream, as Triton's Python backend has them.

A request begins with the first execution it is in. It ends with that execution where this gave its response, else with
the response that is marked as the last one, which may come before the execution is over, or long after, from any
thread. What is counted are responses: how many tokens one holds only the model knows. Agent's main thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from axonize_core import attributes as names
from axonize_core.events import RequestRef
from axonize_core.frames import Kind
from axonize_core.live import parse_traceparent
from axonize_core.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from axonize_core.events import SourceInfo
    from axonize_core.live import LiveRequest
    from axonize_core.timeline import Events, Timeline

__all__ = ["FINAL", "RESPONSE", "Executions", "caller", "told"]

FINAL, RESPONSE = 1, 2
"""Flags of a RESPONSE record: it is the last one of its request; it holds a response."""


class _Execution(NamedTuple):
    source: SourceInfo
    seqs: tuple[int, ...]
    start_ns: int
    epoch_ns: int
    """What turns its times into epoch times: that of the frame in which it began."""
    samples: int | None
    joined: tuple[LiveRequest, ...]


class Executions:
    """The executions under way in one process; requests are the timeline's."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._running: dict[int, _Execution] = {}
        self.handlers: dict[int, Callable[[int, Any, int, Events], None]] = {
            Kind.EXECUTE: self._begin,
            Kind.EXECUTE_END: self._end,
            Kind.RESPONSE: self._response,
            Kind.REQUEST_FACT: self._fact,
        }

    def close(self, events: Events) -> None:
        """Tell of what still ran when the process ended, as far as it got."""
        for handle, execution in list(self._running.items()):
            last_ns = max([execution.start_ns, *(r.last_ns for r in execution.joined)])
            self._tell(handle, last_ns, events, incomplete=True)

    def expire(self, requests: dict[int, LiveRequest], before_ns: int, events: Events) -> None:
        """End the requests whose last response never came, and of which nothing was heard since ``before_ns``."""
        running = {seq for execution in self._running.values() for seq in execution.seqs}
        silent = [
            seq
            for seq, request in requests.items()
            if request.last_ns < before_ns and seq not in running
            if request.progress is not None and request.progress.responds
        ]
        for seq in silent:
            requests[seq].incomplete = True
            self._finish(seq, requests[seq].last_ns, events, error="no_final_response")

    def _begin(self, handle: int, payload: Any, t_ns: int, _: Events) -> None:
        source_id, seqs, ids, contexts, parameters, samples = payload
        requests = []
        for at, seq in enumerate(seqs):
            request = self._timeline.find(seq)
            if request is None:
                traceparent = caller(contexts[at] if contexts else None, parameters[at] if parameters else None)
                opened = (source_id, t_ns, ids[at] or None, traceparent, "inference", None, None)
                request = self._timeline.open(seq, opened, t_ns)
                request.progress = Progress(0, generates=False, responds=True)
                request.progress.place(0, t_ns)
                request.progress.cached_tokens = None  # nobody says
            if request.progress is None:
                raise KeyError(seq)  # a request of another kind
            request.progress.phases[-1].steps += 1
            request.last_ns = t_ns
            requests.append(request)
        source = self._timeline.source(source_id)
        self._running[handle] = _Execution(source, tuple(seqs), t_ns, self._timeline.epoch_ns, samples, tuple(requests))

    def _end(self, handle: int, payload: Any, t_ns: int, events: Events) -> None:
        error, answered, failed = payload
        execution = self._running[handle]
        self._tell(handle, t_ns, events)
        errors = dict(failed or ())
        done = range(len(execution.seqs)) if answered is True or error else answered or ()
        for at in {*done, *errors}:
            self._finish(execution.seqs[at], t_ns, events, error=error or errors.get(at))

    def _tell(self, handle: int, end_ns: int, events: Events, *, incomplete: bool = False) -> None:
        execution = self._running.pop(handle)
        events.batches.append(
            self._timeline.batches.of_execution(
                execution.source,
                execution.joined,
                (execution.start_ns, end_ns),
                execution.epoch_ns,
                samples=execution.samples,
                incomplete=incomplete,
            )
        )

    def _response(self, seq: int, payload: Any, t_ns: int, events: Events) -> None:
        flags, error = payload if isinstance(payload, list) else (payload, None)
        request = self._timeline.find(seq)
        if request is None or request.progress is None:
            raise KeyError(seq)
        request.last_ns = t_ns
        if flags & RESPONSE:
            request.progress.respond(t_ns)
        if error:
            request.error = error
        if flags & FINAL:
            self._finish(seq, t_ns, events)

    def _fact(self, seq: int, payload: Any, _: int, __: Events) -> None:
        what, value = payload
        request = self._timeline.find(seq)
        if request is None:
            raise KeyError(seq)
        if what == "cancelled":
            request.finish_reason = "cancelled"
        elif what == "tokens":
            input_tokens, request.output_tokens = value
            request.input_tokens = request.input_tokens if input_tokens is None else input_tokens
        elif what == "context":
            own = parse_traceparent(value)
            if own is not None:
                trace_id, span_id, _sampled = own
                request.ref = RequestRef(seq, trace_id, span_id, request.ref.sampled)

    def _finish(self, seq: int, t_ns: int, events: Events, *, error: str | None = None) -> None:
        request = self._timeline.find(seq)
        if request is None:
            return  # its last response came before the execution was over
        self._timeline.finish(seq, t_ns, told(request, error), events)


def told(request: LiveRequest, error: str | None = None) -> tuple[Any, ...]:
    """Return what a REQUEST_END record would tell of a request of which nothing more will come."""
    progress = request.progress
    responses = len(progress.token_ns) if progress is not None and progress.responds else 0
    attributes = ((names.RESPONSES, responses),) if responses else None
    return request.finish_reason, None, request.output_tokens, error or request.error, attributes


def caller(context: str | None, parameters: str | None) -> str | None:
    """Return the traceparent of who called.

    Triton's own span comes first; where there is none, what the caller sent, as a header that Triton forwards or as a
    parameter. Triton traces a request whose caller did not want that: then the caller's flag counts.

    Args:
        context: what ``request.trace().get_context()`` gave, a JSON object.
        parameters: what ``request.parameters()`` gave, a JSON object.
    """
    sent, own = _traceparent(parameters), _traceparent(context)
    wanted = parse_traceparent(sent)
    if own is not None and wanted is not None and not wanted[2]:
        return f"{own[:-2]}00"
    return own or sent


def _traceparent(text: str | None) -> str | None:
    if not text:
        return None
    try:
        found = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return None
    if not isinstance(found, dict):
        return None
    value = next((value for key, value in found.items() if key.lower() == "traceparent"), None)
    return value if isinstance(value, str) and parse_traceparent(value) else None
