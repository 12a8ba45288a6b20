"""Records → events: one small state per live request and per live run of one inference process.

Runs in the agent, on its main thread. Times inside are the engine's perf_counter; they become epoch times by
the anchor of the frame in which the request or run opened, so phases are monotonic differences and add up.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import repeat
from typing import TYPE_CHECKING, Any, Protocol

from axonize_core.answers import Answer
from axonize_core.batches import Batches
from axonize_core.chunks import as_one
from axonize_core.cpus import yielding
from axonize_core.events import BatchEvent, DecodeEvent, PrefillEvent, RequestEvent, RequestRef, SourceInfo
from axonize_core.executions import Executions, told
from axonize_core.frames import Kind
from axonize_core.live import LiveRequest, parse_traceparent
from axonize_core.phases import Phases, of_progress, of_run, stamped_run
from axonize_core.progress import Progress
from axonize_core.runs import Run
from axonize_core.steps import Steps

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from axonize_core.frames import Hello, Records

__all__ = ["Events", "IdSource", "Timeline"]

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
    answers: list[Answer] = field(default_factory=list)
    """What front ends know of requests; the pipeline joins them to the requests of their engines."""
    device_times: list[tuple[str, int, int]] = field(default_factory=list)
    """Engine, step and ns, as workers measured; the pipeline joins them to the steps."""


class Timeline:
    """The live requests and runs of one inference process (one connection).

    ``epoch_ns`` turns a time of the frame that is being fed into an epoch time.
    """

    def __init__(self, hello: Hello, ids: IdSource) -> None:
        self.epoch_ns = 0
        self._hello = hello
        self._ids = ids
        self._sources: dict[int, SourceInfo] = {}
        self._requests: dict[int, LiveRequest] = {}
        self._runs: dict[int, Run] = {}
        self.batches = Batches(ids)
        self._steps_of: dict[int, Steps] = {}
        self._next_seq = 0
        self.dropped_total = 0
        self.errors: Mapping[str, int] = {}
        self.unknown_records = 0
        self.orphan_records = 0
        self._executions = Executions(self)
        self._handlers: dict[int, Callable[[int, Any, int, Events], None]] = {
            Kind.REQUEST: self._request,
            Kind.RUN: self._run,
            Kind.RUN_TIMES: self._run_times,
            Kind.RUN_END: self._run_end,
            Kind.REQUEST_END: self._request_end,
            Kind.MANY: self._many,
            Kind.STEP: self._step,
            Kind.ANSWER: self._answer,
            Kind.STEP_DEVICE: self._step_device,
            Kind.STEP_COUNTS: self._step_counts,
            **self._executions.handlers,
        }

    def feed(self, frame: Records) -> Events:
        """Take one frame and return what it completed. Malformed records are counted, never raised."""
        events = Events()
        self.epoch_ns = frame.wall_ns - frame.mono_ns
        if frame.seq != self._next_seq or frame.dropped_total != self.dropped_total:
            self._mark_incomplete()
        self._next_seq, self.dropped_total, self.errors = frame.seq + 1, frame.dropped_total, frame.errors
        for source_id, value in frame.sources:
            self._source(source_id, value)
        for record in yielding(frame.records):
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
        self._executions.close(events)
        for seq, request in list(self._requests.items()):
            request.incomplete = True
            self.finish(seq, request.last_ns, told(request, error or "not_finished"), events)
        self._runs.clear()
        return events

    def sources(self) -> list[SourceInfo]:
        """Return the models this process told of."""
        return list(self._sources.values())

    @property
    def instance_id(self) -> str:
        """Return the id of the process."""
        return self._hello.instance_id

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

    def find(self, seq: int) -> LiveRequest | None:
        """Return a live request."""
        return self._requests.get(seq)

    def source(self, source_id: int) -> SourceInfo:
        """Return one of the sources.

        Raises:
            KeyError: nobody told of it.
        """
        return self._sources[source_id]

    def _request(self, handle: int, payload: Any, t_ns: int, _: Events) -> None:
        self.open(handle, payload, t_ns)

    def open(self, handle: int, payload: Any, t_ns: int) -> LiveRequest:
        """Begin a request, as a REQUEST record tells of one.

        Raises:
            KeyError, TypeError, ValueError: this is not what such a record holds.
        """
        source_id, arrived_ns, request_id, traceparent, operation, input_tokens, attributes, *engine_id = payload
        parent = parse_traceparent(traceparent)
        trace_id, parent_span_id, sampled = parent or (self._ids.generate_trace_id(), 0, True)
        request = LiveRequest(
            source=self._sources[source_id],
            ref=RequestRef(handle, trace_id, self._ids.generate_span_id(), sampled),
            parent_span_id=parent_span_id,
            request_id=request_id,
            operation=operation,
            arrived_ns=min(arrived_ns or t_ns, t_ns),
            epoch_ns=self.epoch_ns,
            input_tokens=input_tokens,
            attributes=_pairs(attributes),
            last_ns=t_ns,
        )
        self._requests[handle] = request
        if engine_id:
            (request.engine_id,) = engine_id
            request.progress = Progress(input_tokens or 0, generates=operation != "embeddings")
            self._steps_of.setdefault(source_id, Steps()).open(request.engine_id, request)
        return request

    def _run(self, handle: int, payload: Any, t_ns: int, _: Events) -> None:
        source_id, seqs, prompt_tokens, mode, *context = payload
        run = Run(self._sources[source_id], tuple(seqs), tuple(prompt_tokens), mode, t_ns, self.epoch_ns)
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
        events.batches += self.batches.of_run(run, self._members(run.seqs))

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

    def _step(self, engine_step: int, payload: Any, t_ns: int, events: Events) -> None:
        source_id, start_ns, scheduled_ns, update_ns, members, started, preempted, drafts, *state = payload
        source, steps = self._sources[source_id], self._steps_of.setdefault(source_id, Steps())
        number = self.batches.next_step()
        found = steps.take(number, (members, started, preempted, drafts, start_ns), t_ns)
        if found is None or found.unknown:
            self.orphan_records += 1
        if found is None or not found.requests:
            return
        times = (start_ns, scheduled_ns, update_ns, t_ns)
        named = _state(state, engine_step)
        events.batches.append(self.batches.of_step(source, number, found, times, self.epoch_ns, **named))

    def _step_device(self, _: int, payload: Any, __: int, events: Events) -> None:
        engine, measured = payload
        events.device_times += [(engine, step, device_ns) for step, device_ns in measured]

    def _step_counts(self, engine_step: int, payload: Any, t_ns: int, events: Events) -> None:
        source_id, duration_ns, prefills, prefill_tokens, decodes, decode_tokens, *state = payload
        start_ns, counts = t_ns - duration_ns + self.epoch_ns, (prefills + decodes, prefill_tokens, decode_tokens)
        named = {"duration_ns": duration_ns, "counts": counts, **_state(state, engine_step)}
        events.batches.append(self.batches.of_counts(self._sources[source_id], start_ns, **named))

    def _answer(self, handle: int, payload: Any, t_ns: int, events: Events) -> None:
        engine_id, what, *more = payload
        events.answers.append(Answer(self._sources[handle], engine_id, what, t_ns + self.epoch_ns, tuple(more)))

    def _members(self, seqs: tuple[int, ...]) -> list[LiveRequest]:
        return [self._requests[seq] for seq in seqs if seq in self._requests]

    def _request_end(self, handle: int, payload: Any, t_ns: int, events: Events) -> None:
        self.finish(handle, t_ns, payload, events)

    def finish(self, seq: int, end_ns: int, payload: Any, events: Events) -> None:
        """End a request, as a REQUEST_END record tells of it.

        Raises:
            KeyError, TypeError, ValueError: it is not live, or this is not what such a record holds.
        """
        request = self._requests.pop(seq)
        finish_reason, input_tokens, output_tokens, error, attributes, *times = payload
        if request.engine_id is not None and request.progress is not None:
            for steps in self._steps_of.values():
                steps.close(request.engine_id)
            seen = len(request.progress.token_ns)
            if request.progress.extended:
                output_tokens = seen
            elif output_tokens is not None and output_tokens != seen:
                request.incomplete = True
        if input_tokens is not None:
            request.input_tokens = input_tokens
        phases = self._phases(request, times[0] if times else None, output_tokens, end_ns)
        events.prefills += phases.prefills
        events.decodes += phases.decodes
        events.requests.append(
            RequestEvent(
                source=request.source,
                ref=request.ref,
                parent_span_id=request.parent_span_id,
                request_id=request.request_id,
                operation=request.operation,
                start_ns=request.arrived_ns + request.epoch_ns,
                duration_ns=max(0, end_ns - request.arrived_ns),
                queue_ns=phases.queue_ns,
                ttft_ns=phases.ttft_ns,
                tpot_ns=phases.tpot_ns,
                input_tokens=request.input_tokens,
                output_tokens=output_tokens,
                finish_reason=finish_reason,
                error=error,
                incomplete=request.incomplete,
                attributes=request.attributes + _pairs(attributes),
                preemptions=phases.preemptions,
                engine_id=request.engine_id,
                **_counted(request.progress),
            )
        )

    def _phases(self, request: LiveRequest, times: Any, output_tokens: int | None, end_ns: int) -> Phases:
        if request.progress is not None:
            return of_progress(request, request.progress, end_ns, output_tokens)
        run = stamped_run(request, times, output_tokens) if times else as_one(request.runs)
        if run is None:
            started_ns = request.first_step_ns
            return Phases(None if started_ns is None else max(0, started_ns - request.arrived_ns))
        request.incomplete = request.incomplete or run.incomplete
        return of_run(request, run, output_tokens)

    def _mark_incomplete(self) -> None:
        for request in self._requests.values():
            request.incomplete = True
        for run in self._runs.values():
            run.incomplete = True
        for steps in self._steps_of.values():
            steps.forget_members()

    def _expire(self, now_ns: int, events: Events) -> None:
        """Close what lost records and has not moved for long, so that a lost end cannot leak state."""
        stale = [s for s, r in self._requests.items() if r.incomplete and now_ns - r.last_ns > EXPIRY_NS]
        for seq in stale:
            self.finish(seq, self._requests[seq].last_ns, told(self._requests[seq], "records_lost"), events)
        self._executions.expire(self._requests, now_ns - EXPIRY_NS, events)
        orphaned = [h for h, run in self._runs.items() if run.incomplete and not self._members(run.seqs)]
        for handle in orphaned:
            del self._runs[handle]


def _state(state: Sequence[Any], engine_step: int) -> dict[str, Any]:
    running, waiting, kv_cache_usage = state
    return {"running": running, "waiting": waiting, "kv_cache_usage": kv_cache_usage, "engine_step": engine_step}


def _counted(progress: Progress | None) -> dict[str, int | None]:
    if progress is None:
        return {}
    drafts = {"drafted_tokens": progress.drafted, "accepted_tokens": progress.accepted} if progress.drafted else {}
    return {"cached_tokens": progress.cached_tokens, **drafts}


def _pairs(attributes: Any) -> tuple[tuple[str, Any], ...]:
    return tuple((str(key), value) for key, value in attributes or ())
