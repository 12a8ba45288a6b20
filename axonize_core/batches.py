"""Engine steps as events: their numbers, their traces, and who joined in which of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from axonize_core.events import BatchEvent

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from axonize_core.events import RequestRef, SourceInfo
    from axonize_core.live import LiveRequest
    from axonize_core.runs import Run
    from axonize_core.steps import Members
    from axonize_core.timeline import IdSource

__all__ = ["Batches"]

_MINUTE_NS = 60_000_000_000


class Batches:
    """Makes the batch events of one inference process; agent's main thread."""

    def __init__(self, ids: IdSource) -> None:
        self._ids = ids
        self._traces: dict[int, tuple[int, int]] = {}
        self._steps = 0

    def next_step(self) -> int:
        """Return the number of one more step, unique in the process."""
        self._steps += 1
        return self._steps

    def of_run(self, run: Run, members: Sequence[LiveRequest]) -> list[BatchEvent]:
        """Return the steps of an ended run; ``members`` are those of its requests that live."""
        return [
            self._event(
                run.source,
                self.next_step(),
                step.start_ns + run.epoch_ns,
                duration_ns=step.end_ns - step.start_ns,
                request_seqs=run.seqs,
                prefill_tokens=step.prefill_tokens,
                decode_tokens=step.decode_tokens,
                context_tokens=step.context_tokens,
                joined=() if index else _joining(members),
                device_ns=run.step_device_ns(index),
                incomplete=run.incomplete,
            )
            for index, step in enumerate(run.steps())
        ]

    def of_step(
        self,
        source: SourceInfo,
        number: int,
        members: Members,
        times: tuple[int, int, int, int],
        epoch_ns: int,
        **state: Any,
    ) -> BatchEvent:
        """Return a step that its scheduler told.

        Args:
            source: who told it.
            number: from ``next_step``.
            members: who took part.
            times: when it began, was scheduled, was executed, and was over, perf_counter.
            epoch_ns: what turns these into epoch times.
            state: the engine's, after it.
        """
        start_ns, scheduled_ns, executed_ns, end_ns = times
        return self._event(
            source,
            number,
            start_ns + epoch_ns,
            duration_ns=end_ns - start_ns,
            request_seqs=tuple(request.ref.seq for request in members.requests),
            prefill_tokens=members.prefill_tokens,
            decode_tokens=members.decode_tokens,
            context_tokens=members.context_tokens,
            joined=_joining(members.requests),
            incomplete=bool(members.unknown),
            schedule_ns=scheduled_ns - start_ns,
            execute_ns=executed_ns - scheduled_ns,
            update_ns=end_ns - executed_ns,
            **state,
        )

    def of_execution(
        self,
        source: SourceInfo,
        members: Sequence[LiveRequest],
        times: tuple[int, int],
        epoch_ns: int,
        *,
        samples: int | None,
        incomplete: bool,
    ) -> BatchEvent:
        """Return the execution of a batch, whose tokens nobody counts; ``times`` are start and end, perf_counter."""
        start_ns, end_ns = times
        return self._event(
            source,
            self.next_step(),
            start_ns + epoch_ns,
            duration_ns=end_ns - start_ns,
            request_seqs=tuple(request.ref.seq for request in members),
            prefill_tokens=(),
            decode_tokens=(),
            context_tokens=(),
            joined=_joining(members),
            incomplete=incomplete,
            samples=samples,
        )

    def of_counts(self, source: SourceInfo, start_ns: int, **state: Any) -> BatchEvent:
        """Return a step of which only counts are known; ``start_ns`` is epoch."""
        nobody: dict[str, Any] = {
            "request_seqs": (),
            "prefill_tokens": (),
            "decode_tokens": (),
            "context_tokens": (),
        }
        return self._event(source, self.next_step(), start_ns, **nobody, **state)

    def _event(self, source: SourceInfo, number: int, start_ns: int, **more: Any) -> BatchEvent:
        return BatchEvent(
            source=source,
            seq=number,
            trace_id=self._trace(source, start_ns),
            span_id=self._ids.generate_span_id(),
            start_ns=start_ns,
            **more,
        )

    def _trace(self, source: SourceInfo, start_ns: int) -> int:
        """Return the engine's own trace: a new one every minute, so that none grows without bound."""
        minute = start_ns // _MINUTE_NS
        known = self._traces.get(id(source))
        if known is None or known[0] != minute:
            known = (minute, self._ids.generate_trace_id())
            self._traces[id(source)] = known
        return known[1]


def _joining(requests: Iterable[LiveRequest]) -> tuple[RequestRef, ...]:
    joining = [request for request in requests if not request.joined]
    for request in joining:
        request.joined = True
    return tuple(request.ref for request in joining)
