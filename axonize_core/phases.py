"""What an ended request's time went into: queue, prefill, decode, preempted; and the latencies that follow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from axonize_core.events import DecodeEvent, PrefillEvent
from axonize_core.runs import Run

if TYPE_CHECKING:
    from axonize_core.live import LiveRequest
    from axonize_core.progress import Phase, Progress

__all__ = ["Phases", "of_progress", "of_run", "stamped_run"]


class Phases(NamedTuple):
    """The phases of one request; durations in ns, ``preemptions`` are start (epoch) and duration of each."""

    queue_ns: int | None = None
    ttft_ns: int | None = None
    tpot_ns: float | None = None
    prefills: tuple[PrefillEvent, ...] = ()
    decodes: tuple[DecodeEvent, ...] = ()
    preemptions: tuple[tuple[int, int], ...] = ()


def _since_arrival(request: LiveRequest, time_ns: int | None) -> int | None:
    return None if time_ns is None else max(0, time_ns - request.arrived_ns)


def of_run(request: LiveRequest, run: Run, output_tokens: int | None) -> Phases:
    """Return the phases of a request that was served by a run, or by several taken as one."""
    first_ns = run.first_visible_ns()
    phases = Phases(
        queue_ns=_since_arrival(request, run.start_ns),
        ttft_ns=None if first_ns is None or run.mode == "forward" else first_ns - request.arrived_ns,
        tpot_ns=run.tpot_ns(output_tokens),
    )
    if first_ns is None:
        return phases
    prefill = PrefillEvent(
        source=request.source,
        ref=request.ref,
        start_ns=run.start_ns + request.epoch_ns,
        duration_ns=first_ns - run.start_ns,
        tokens=request.input_tokens,
        steps=run.prefill_steps,
        device_ns=run.phase_device_ns(0, run.prompt_steps),
        incomplete=request.incomplete,
    )
    last_ns = run.last_visible_ns(output_tokens)
    if last_ns is None or last_ns <= first_ns:
        return phases._replace(prefills=(prefill,))
    steps = run.decode_steps(output_tokens)
    p50_ns, p99_ns, max_ns = run.gap_statistics(output_tokens) or (None, None, None)
    decode = DecodeEvent(
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
    return phases._replace(prefills=(prefill,), decodes=(decode,))


def stamped_run(request: LiveRequest, times: Any, output_tokens: int | None) -> Run | None:
    """Return a request's own run, by the times of its tokens that its engine stamped; its steps are shared.

    An engine that stamps fewer than there are, the first and the last, leaves the times between them unknown.
    """
    started_s, *tokens_s = times
    started_ns = request.first_step_ns if started_s is None else round(started_s * 1e9)
    tokens_ns = [round(time_s * 1e9) for time_s in tokens_s]
    if started_ns is None:
        return None
    run = Run(request.source, (request.ref.seq,), (), "generate", started_ns, request.epoch_ns)
    run.times.extend((started_ns, *tokens_ns[:-1]))
    run.end_ns, run.new_tokens, run.counted_steps = tokens_ns[-1], len(tokens_ns), request.steps
    if 1 < len(tokens_ns) < (output_tokens or 0):
        run.mode = "speculative"
    return run


def of_progress(request: LiveRequest, progress: Progress, end_ns: int, output_tokens: int | None) -> Phases:
    """Return the phases of a request that was told step by step; with its queue they fill its time without a gap."""
    progress.end(end_ns, told=output_tokens is not None)
    tokens_ns = progress.token_ns
    queued_until_ns = end_ns if progress.first_step_ns is None else progress.first_step_ns
    tokens = (output_tokens or 0) if progress.responds else len(tokens_ns)
    return Phases(
        queue_ns=None if progress.responds else _since_arrival(request, queued_until_ns),
        ttft_ns=_since_arrival(request, tokens_ns[0] if tokens_ns else None),
        tpot_ns=(tokens_ns[-1] - tokens_ns[0]) / (tokens - 1) if tokens > 1 and len(tokens_ns) > 1 else None,
        prefills=tuple(_prefill(request, progress, phase) for phase in progress.phases if phase.kind == "prefill"),
        decodes=tuple(_decode(request, progress, phase) for phase in progress.phases if phase.kind == "decode"),
        preemptions=tuple(
            (phase.start_ns + request.epoch_ns, phase.end_ns - phase.start_ns)
            for phase in progress.phases
            if phase.kind == "preempted"
        ),
    )


def _prefill(request: LiveRequest, progress: Progress, phase: Phase) -> PrefillEvent:
    return PrefillEvent(
        source=request.source,
        ref=request.ref,
        start_ns=phase.start_ns + request.epoch_ns,
        duration_ns=phase.end_ns - phase.start_ns,
        tokens=None if phase.again else request.input_tokens,
        steps=phase.steps or None,
        cached_tokens=None if phase.again else progress.cached_tokens,
        recomputed_tokens=phase.recomputed if phase.again else None,
        chunks=tuple(phase.chunks),
        incomplete=request.incomplete,
    )


def _decode(request: LiveRequest, progress: Progress, phase: Phase) -> DecodeEvent:
    p50_ns, p99_ns, max_ns = progress.gap_statistics(phase) or (None, None, None)
    return DecodeEvent(
        source=request.source,
        ref=request.ref,
        start_ns=phase.start_ns + request.epoch_ns,
        duration_ns=phase.end_ns - phase.start_ns,
        tokens=None if progress.responds else phase.last_token - phase.first_token,
        responses=phase.last_token - phase.first_token if progress.responds else None,
        steps=phase.steps or None,
        itl_p50_ns=p50_ns,
        itl_p99_ns=p99_ns,
        itl_max_ns=max_ns,
        incomplete=request.incomplete,
    )
