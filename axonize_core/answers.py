"""What front ends know of requests, joined to what engines know of them.

An engine whose front end is another process does not see stop strings, clients that went away, or what a client waited
for. Both name a request by the same id. A request that ended in the engine waits a moment for its front end, whose
finish reason and tokens are what the caller got; one that only the front end ever told of is counted and told of,
incomplete. Agent's main thread.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from axonize_core import attributes as names
from axonize_core.events import RequestEvent, RequestRef
from axonize_core.live import parse_traceparent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from axonize_core.events import SourceInfo
    from axonize_core.timeline import IdSource

__all__ = ["Answer", "Answers"]

WAIT_S = 1.0
"""How long an ended request waits for its front end: both processes ship ten times a second."""
MISSING_S = 3.0
"""After this a request that ended at the front end and that no engine told of is told of by the front end alone."""
MOST = 65_536
OPENED, ENDED = "opened", "ended"


class Answer(NamedTuple):
    """One ANSWER record: ``what`` is opened or ended, ``time_ns`` is epoch, ``facts`` are as in ARCHITECTURE.md §3."""

    source: SourceInfo
    engine_id: str
    what: str
    time_ns: int
    facts: tuple[Any, ...]


class _Opened(NamedTuple):
    answer: Answer
    ended: Answer | None
    deadline: float


class Answers:
    """The requests that front ends of one machine have open, and the ended ones that wait for them."""

    def __init__(self, ids: IdSource, clock: Callable[[], float] = time.monotonic, first_s: float = 0.0) -> None:
        self._ids = ids
        self._clock = clock
        self._first_s = clock() + first_s
        """Until then a front end may still be on its way: processes connect in any order once there is an agent."""
        self._front_ends: set[str] = set()
        self._known: dict[str, _Opened] = {}
        self._waiting: dict[str, tuple[RequestEvent, float]] = {}
        self._engine_here = False
        self._told: dict[str, None] = {}
        """Those an engine told of, for a front end that is late."""
        self._told_alone: dict[str, None] = {}
        """Those a front end alone told of, for an engine that is late: its span would be a second one."""
        self.counts: Counter[str] = Counter()

    def meet(self, sources: Iterable[SourceInfo]) -> None:
        """Wait for these front ends from now on, though they said nothing yet, and know which engines are here."""
        for source in sources:
            role = source.resource.get("ai.role")
            if role == "frontend":
                self._front_ends.add(source.instance_id)
            self._engine_here = self._engine_here or role == "engine"

    def hear(self, answers: Iterable[Answer]) -> None:
        """Take what front ends say."""
        for answer in answers:
            self._front_ends.add(answer.source.instance_id)
            known = self._known.get(answer.engine_id)
            if answer.what == OPENED:
                if len(self._known) < MOST:
                    self._known[answer.engine_id] = _Opened(answer, None, 0.0)
                else:
                    self.counts["answers_dropped"] += 1
            elif known is not None and known.ended is None:
                self._known[answer.engine_id] = _Opened(known.answer, answer, self._clock() + MISSING_S)

    def gone(self, instance_id: str) -> None:
        """A front end ended: what it had open ends with it, and nobody waits for it any more."""
        if instance_id not in self._front_ends:
            return
        self._front_ends.discard(instance_id)
        for engine_id, (answer, ended, _) in self._known.items():
            if answer.source.instance_id == instance_id and ended is None:
                last = answer._replace(what=ENDED, time_ns=time.time_ns(), facts=(None, None, None, None, None))
                self._known[engine_id] = _Opened(answer, last, self._clock() + MISSING_S)

    def join(self, requests: Sequence[RequestEvent]) -> list[RequestEvent]:
        """Return the requests that need not wait, each with what its front end knows; the others come from ``due``."""
        ready = []
        for request in requests:
            if request.engine_id is None:
                ready.append(request)
                continue
            if request.engine_id in self._told_alone:
                self.counts["requests_late"] += 1
                continue
            _remember(self._told, request.engine_id)
            if not (self._front_ends or request.engine_id in self._known or self._clock() < self._first_s):
                ready.append(request)
                continue
            known = self._known.get(request.engine_id)
            if known is not None and known.ended is not None:
                del self._known[request.engine_id]
                ready.append(_joined(request, known.answer, known.ended))
            else:
                self._waiting[request.engine_id] = (request, max(self._clock() + WAIT_S, self._first_s))
        return ready

    def due(self, *, closing: bool = False) -> list[RequestEvent]:
        """Return the requests whose front end spoke meanwhile or took too long, and those no engine told of."""
        now, ready = self._clock(), []
        for engine_id, (request, deadline) in list(self._waiting.items()):
            known = self._known.get(engine_id)
            if known is not None and known.ended is not None:
                ready.append(_joined(request, known.answer, known.ended))
            elif closing or now >= deadline:
                self.counts["requests_without_front_end"] += 1
                ready.append(request)
            else:
                continue
            del self._waiting[engine_id]
            self._known.pop(engine_id, None)
        for engine_id, known in list(self._known.items()):
            if known.ended is not None and (closing or now >= known.deadline):
                del self._known[engine_id]
                if not self._engine_here:
                    # It is on another machine, whose agent tells of the request.
                    self.counts["requests_of_engines_elsewhere"] += 1
                elif engine_id not in self._told:
                    self.counts["requests_without_engine"] += 1
                    _remember(self._told_alone, engine_id)
                    ready.append(self._alone(known.answer, known.ended))
        return ready

    def _alone(self, opened: Answer, ended: Answer) -> RequestEvent:
        seq, request_id, arrived_ns, traceparent, operation, input_tokens, attributes = opened.facts
        parent = parse_traceparent(traceparent)
        trace_id, parent_span_id, sampled = parent or (self._ids.generate_trace_id(), 0, True)
        start_ns = min(arrived_ns or opened.time_ns, opened.time_ns)
        event = RequestEvent(
            source=opened.source,
            ref=RequestRef(seq, trace_id, self._ids.generate_span_id(), sampled),
            parent_span_id=parent_span_id,
            request_id=request_id,
            operation=operation,
            start_ns=start_ns,
            duration_ns=max(0, ended.time_ns - start_ns),
            input_tokens=input_tokens,
            incomplete=True,
            attributes=tuple((str(key), value) for key, value in attributes or ()),
            engine_id=opened.engine_id,
            error=None if ended.facts[0] else "engine_lost",
        )
        return _joined(event, opened, ended)


def _remember(known: dict[str, None], engine_id: str) -> None:
    known[engine_id] = None
    if len(known) > MOST:
        del known[next(iter(known))]


def _joined(request: RequestEvent, opened: Answer, ended: Answer) -> RequestEvent:
    """Return the request with what the caller got; what the engine computed beyond that stays as an attribute."""
    reason, tokens, ttft_s, e2e_s, error = ended.facts
    found = (
        (names.FINISH_REASON_SOURCE, "frontend" if reason else None),
        (names.FRONTEND_TTFT_S, ttft_s),
        (names.FRONTEND_E2E_S, e2e_s),
        (names.DISCARDED_TOKENS, _beyond(request.output_tokens, tokens)),
        (names.FRONTEND_INSTANCE, opened.source.instance_id),
    )
    return msgspec.structs.replace(
        request,
        finish_reason=reason or request.finish_reason,
        output_tokens=request.output_tokens if tokens is None else tokens,
        error=request.error or error,
        attributes=request.attributes + tuple((name, value) for name, value in found if value is not None),
    )


def _beyond(computed: int | None, delivered: int | None) -> int | None:
    return computed - delivered if computed is not None and delivered is not None and computed > delivered else None
