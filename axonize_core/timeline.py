"""Records → events: one small state per live request and per live run of one inference process.

Runs in the agent, on its main thread. Times inside are the engine's perf_counter; they become epoch times by
the anchor of the frame in which the request or run opened, so phases are monotonic differences and add up.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import repeat
from typing import TYPE_CHECKING, Any, Protocol

from axonize_core.chunks import as_one
from axonize_core.events import BatchEvent, DecodeEvent, PrefillEvent, RequestEvent, RequestRef, SourceInfo
from axonize_core.frames import Kind
from axonize_core.runs import Run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from axonize_core.frames import Hello, Records

__all__ = ["Events", "IdSource", "Timeline", "parse_traceparent"]

_MINUTE_NS = 60_000_000_000
EXPIRY_NS = 600_000_000_000
"""How long a request that lost records is kept open for an end that may never come."""


class IdSource(Protocol):
    """Makes ids as OpenTelemetry's IdGenerator does."""

    def generate_trace_id(self) -> int:
        """Return 128 random bits, not zero."""

    def generate_span_id(self) -> int:
        """Return 64 random bits, not zero."""


@dataclass
class Events:
    """What one look at the records produced, by kind, in order."""

    requests: list[RequestEvent] = field(default_factory=list)
    prefills: list[PrefillEvent] = field(default_factory=list)
    decodes: list[DecodeEvent] = field(default_factory=list)
    batches: list[BatchEvent] = field(default_factory=list)


@dataclass
class _Request:
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
    first_step_ns: int | None = None
    steps: tuple[int, int] = (0, 0)
    """Those of continuous batching in which its prompt was computed, and those after."""
    runs: tuple[Run, ...] = ()
    joined: bool = False
    incomplete: bool = False


class Timeline:
    """The live requests and runs of one inference process (one connection)."""

    def __init__(self, hello: Hello, ids: IdSource) -> None:
        self._hello = hello
        self._ids = ids
        self._sources: dict[int, SourceInfo] = {}
        self._requests: dict[int, _Request] = {}
        self._runs: dict[int, Run] = {}
        self._engine_traces: dict[int, tuple[int, int]] = {}
        self._next_seq = 0
        self._steps = 0
        self.dropped_total = 0
        self.errors: Mapping[str, int] = {}
        self.unknown_records = 0
        self.orphan_records = 0
        self._handlers: dict[int, Callable[[int, Any, int, Events], None]] = {
            Kind.REQUEST: self._request,
            Kind.RUN: self._run,
            Kind.RUN_TIMES: self._run_times,
            Kind.RUN_END: self._run_end,
            Kind.REQUEST_END: self._request_end,
            Kind.MANY: self._many,
        }

    def feed(self, frame: Records) -> Events:
        """Take one frame and return what it completed. Malformed records are counted, never raised."""
        events = Events()
        self._epoch_ns = frame.wall_ns - frame.mono_ns
        if frame.seq != self._next_seq or frame.dropped_total != self.dropped_total:
            self._mark_incomplete()
        self._next_seq, self.dropped_total, self.errors = frame.seq + 1, frame.dropped_total, frame.errors
        for source_id, value in frame.sources:
            self._source(source_id, value)
        for record in frame.records:
            self._take(record.kind, record.handle, record.payload, record.t_ns, events)
        self._expire(frame.mono_ns, events)
        return events

    def _take(self, kind: int, handle: int, payload: Any, t_ns: int, events: Events) -> None:
        handler = self._handlers.get(kind)
        if handler is None:
            self.unknown_records += 1
            return
        try:
            handler(handle, payload, t_ns, events)
        except (TypeError, ValueError, KeyError, IndexError):
            self.orphan_records += 1

    def _many(self, _: int, payload: Any, t_ns: int, events: Events) -> None:
        kind, handles, payloads = payload
        # Handles and payloads that do not match are counted as one orphan, after those that do.
        for handle, one in zip(handles, repeat(0, len(handles)) if payloads is None else payloads, strict=True):
            self._take(kind, handle, one, t_ns, events)

    def close(self, error: str | None) -> Events:
        """End everything still open at its last known time; ``error`` is what became of the engine."""
        events = Events()
        for run in self._runs.values():
            # The number of tokens is not known any more, but the steps were seen.
            run.new_tokens, run.incomplete = len(run.times) or None, True
            self._finish_run(run, run.last_ns, events)
        for request in self._requests.values():
            request.incomplete = True
            self._finish_request(request, request.last_ns, (None, None, None, error or "not_finished", None), events)
        self._requests.clear()
        self._runs.clear()
        return events

    def sources(self) -> list[SourceInfo]:
        """Return the models this process told of."""
        return list(self._sources.values())

    def live_requests(self) -> int:
        """Return the number of open requests."""
        return len(self._requests)

    def _source(self, source_id: int, value: Any) -> None:
        engine, service_name, model, provider, device, attributes = value
        resource = dict(self._hello.resource)
        resource.update({str(k): str(v) for k, v in attributes or ()})
        service = service_name or resource.get("service.name") or f"unknown_service:{engine}"
        resource["service.name"] = service
        self._sources[source_id] = SourceInfo(
            self._hello.instance_id,
            engine,
            service,
            model,
            provider,
            tuple(device),
            resource,
            self._hello.pid,
        )

    def _request(self, handle: int, payload: Any, t_ns: int, _: Events) -> None:
        source_id, arrived_ns, request_id, traceparent, operation, input_tokens, attributes = payload
        parent = parse_traceparent(traceparent)
        trace_id, parent_span_id, sampled = parent or (self._ids.generate_trace_id(), 0, True)
        self._requests[handle] = _Request(
            source=self._sources[source_id],
            ref=RequestRef(handle, trace_id, self._ids.generate_span_id(), sampled),
            parent_span_id=parent_span_id,
            request_id=request_id,
            operation=operation,
            arrived_ns=min(arrived_ns or t_ns, t_ns),
            epoch_ns=self._epoch_ns,
            input_tokens=input_tokens,
            attributes=_pairs(attributes),
            last_ns=t_ns,
        )

    def _run(self, handle: int, payload: Any, t_ns: int, _: Events) -> None:
        source_id, seqs, prompt_tokens, mode, *context = payload
        run = Run(self._sources[source_id], tuple(seqs), tuple(prompt_tokens), mode, t_ns, self._epoch_ns)
        members = self._members(run.seqs)
        run.incomplete = len(members) != len(run.seqs)
        self._runs[handle] = run
        if mode == "continuous":
            run.context_tokens = tuple(context[0])
        for request in members:
            request.last_ns = t_ns
            if mode != "continuous":
                request.runs += (run,)
            elif request.first_step_ns is None:
                request.first_step_ns = t_ns

    def _run_times(self, handle: int, times: Any, _: int, __: Events) -> None:
        run = self._runs[handle]
        # A negative time is the sentinel that closes the list; RUN_END says the same with more detail.
        if times[-1] < 0:
            run.end_ns = -times[-1]
            times = times[:-1]
        run.times.extend(times)
        self._moved(run)

    def _run_end(self, handle: int, payload: Any, t_ns: int, events: Events) -> None:
        run = self._runs.pop(handle)
        run.new_tokens, error, *more = payload
        attributes, device_ns = (*more, None, None)[:2]
        if run.mode == "generate" and run.new_tokens is None and error is None:
            run.mode = "speculative"  # steps that are known, tokens that are not theirs
        run.device_ns = tuple(device_ns or ())
        for seq, pairs in zip(run.seqs, attributes or (), strict=False):
            if seq in self._requests:
                self._requests[seq].attributes += _pairs(pairs)
        self._finish_run(run, run.end_ns or t_ns, events)

    def _finish_run(self, run: Run, end_ns: int, events: Events) -> None:
        run.end_ns = end_ns
        self._moved(run)
        if run.mode == "continuous" and run.prompt_tokens:
            self._count_steps(run)
        events.batches.extend(self._batches(run))

    def _count_steps(self, run: Run) -> None:
        for seq, prefill_tokens in zip(run.seqs, run.prompt_tokens, strict=True):
            request = self._requests.get(seq)
            if request is not None:
                prefill, decode = request.steps
                added = len(run.times)
                request.steps = (prefill + added, decode) if prefill_tokens else (prefill, decode + added)

    def _moved(self, run: Run) -> None:
        for request in self._members(run.seqs):
            request.last_ns = run.last_ns

    def _batches(self, run: Run) -> list[BatchEvent]:
        return [
            BatchEvent(
                source=run.source,
                seq=self._next_step(),
                trace_id=self._engine_trace(run.source, step.start_ns + run.epoch_ns),
                span_id=self._ids.generate_span_id(),
                start_ns=step.start_ns + run.epoch_ns,
                duration_ns=step.end_ns - step.start_ns,
                request_seqs=run.seqs,
                prefill_tokens=step.prefill_tokens,
                decode_tokens=step.decode_tokens,
                context_tokens=step.context_tokens,
                joined=() if index else self._joining(run.seqs),
                device_ns=run.step_device_ns(index),
                incomplete=run.incomplete,
            )
            for index, step in enumerate(run.steps())
        ]

    def _joining(self, seqs: tuple[int, ...]) -> tuple[RequestRef, ...]:
        joining = [r for r in self._members(seqs) if not r.joined]
        for request in joining:
            request.joined = True
        return tuple(request.ref for request in joining)

    def _members(self, seqs: tuple[int, ...]) -> list[_Request]:
        return [self._requests[seq] for seq in seqs if seq in self._requests]

    def _next_step(self) -> int:
        self._steps += 1
        return self._steps

    def _engine_trace(self, source: SourceInfo, start_ns: int) -> int:
        """Return the engine's own trace: a new one every minute, so that none grows without bound."""
        minute = start_ns // _MINUTE_NS
        known = self._engine_traces.get(id(source))
        if known is None or known[0] != minute:
            known = (minute, self._ids.generate_trace_id())
            self._engine_traces[id(source)] = known
        return known[1]

    def _request_end(self, handle: int, payload: Any, t_ns: int, events: Events) -> None:
        self._finish_request(self._requests.pop(handle), t_ns, payload, events)

    def _finish_request(self, request: _Request, end_ns: int, payload: Any, events: Events) -> None:
        finish_reason, input_tokens, output_tokens, error, attributes, *times = payload
        if input_tokens is not None:
            request.input_tokens = input_tokens
        run = self._own_run(request, times[0]) if times and times[0] else as_one(request.runs)
        if run is not None:
            request.incomplete = request.incomplete or run.incomplete
            self._phases(request, run, output_tokens, events)
        first_ns = run.first_visible_ns() if run and run.mode != "forward" else None
        started_ns = run.start_ns if run else request.first_step_ns
        events.requests.append(
            RequestEvent(
                source=request.source,
                ref=request.ref,
                parent_span_id=request.parent_span_id,
                request_id=request.request_id,
                operation=request.operation,
                start_ns=request.arrived_ns + request.epoch_ns,
                duration_ns=max(0, end_ns - request.arrived_ns),
                queue_ns=None if started_ns is None else max(0, started_ns - request.arrived_ns),
                ttft_ns=first_ns - request.arrived_ns if first_ns is not None else None,
                tpot_ns=run.tpot_ns(output_tokens) if run else None,
                input_tokens=request.input_tokens,
                output_tokens=output_tokens,
                finish_reason=finish_reason,
                error=error,
                incomplete=request.incomplete,
                attributes=request.attributes + _pairs(attributes),
            )
        )

    def _own_run(self, request: _Request, times: Any) -> Run | None:
        """Return the request's own run, by the times of its tokens that its engine stamped; its steps are shared."""
        started_s, *tokens_s = times
        started_ns = request.first_step_ns if started_s is None else round(started_s * 1e9)
        tokens_ns = [round(time_s * 1e9) for time_s in tokens_s]
        if started_ns is None:
            return None
        run = Run(request.source, (request.ref.seq,), (), "generate", started_ns, request.epoch_ns)
        run.times.extend((started_ns, *tokens_ns[:-1]))
        run.end_ns, run.new_tokens, run.counted_steps = tokens_ns[-1], len(tokens_ns), request.steps
        return run

    def _phases(self, request: _Request, run: Run, output_tokens: int | None, events: Events) -> None:
        first_ns = run.first_visible_ns()
        if first_ns is None:
            return
        events.prefills.append(
            PrefillEvent(
                source=request.source,
                ref=request.ref,
                start_ns=run.start_ns + request.epoch_ns,
                duration_ns=first_ns - run.start_ns,
                tokens=request.input_tokens,
                steps=run.prefill_steps,
                device_ns=run.phase_device_ns(0, run.prompt_steps),
                incomplete=request.incomplete,
            )
        )
        last_ns = run.last_visible_ns(output_tokens)
        if last_ns is None or last_ns <= first_ns:
            return
        steps = run.decode_steps(output_tokens)
        p50_ns, p99_ns, max_ns = run.gap_statistics(output_tokens) or (None, None, None)
        events.decodes.append(
            DecodeEvent(
                source=request.source,
                ref=request.ref,
                start_ns=first_ns + request.epoch_ns,
                duration_ns=last_ns - first_ns,
                tokens=output_tokens,
                steps=steps,
                device_ns=run.phase_device_ns(run.prompt_steps, steps or 0),
                itl_p50_ns=p50_ns,
                itl_p99_ns=p99_ns,
                itl_max_ns=max_ns,
                incomplete=request.incomplete,
            )
        )

    def _mark_incomplete(self) -> None:
        for request in self._requests.values():
            request.incomplete = True
        for run in self._runs.values():
            run.incomplete = True

    def _expire(self, now_ns: int, events: Events) -> None:
        """Close what lost records and has not moved for long, so that a lost end cannot leak state."""
        stale = [s for s, r in self._requests.items() if r.incomplete and now_ns - r.last_ns > EXPIRY_NS]
        for seq in stale:
            request = self._requests.pop(seq)
            self._finish_request(request, request.last_ns, (None, None, None, "records_lost", None), events)
        orphaned = [h for h, run in self._runs.items() if run.incomplete and not self._members(run.seqs)]
        for handle in orphaned:
            del self._runs[handle]


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


def _pairs(attributes: Any) -> tuple[tuple[str, Any], ...]:
    return tuple((str(key), value) for key, value in attributes or ())
