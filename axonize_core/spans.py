"""Built-in plugin: events → OTel spans (request, queue, prefill, decode, preempted, batch).

Spans are built directly as ``ReadableSpan``: they begin and end at times long past, and a tracer would walk every
attribute again (13.9 us a span against 4).
"""

from __future__ import annotations

from struct import pack
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from axonize_core import __version__
from axonize_core import attributes as names
from axonize_core.cpus import yielding
from axonize_core.hookspecs import hookimpl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from axonize_core.events import BatchEvent, DecodeEvent, PrefillEvent, RequestEvent, RequestRef, SourceInfo
    from axonize_core.plugins import AgentContext

__all__ = ["Spans"]

_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_OK, _UNSET = Status(StatusCode.OK), Status(StatusCode.UNSET)


class _ByIdentity:
    """Hash and compare as one object: the exporter groups by resource, and OTel's own hash renders JSON each time."""

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


class _Resource(_ByIdentity, Resource):
    pass


class _Scope(_ByIdentity, InstrumentationScope):
    pass


class Spans:
    """Turns the events of one agent into spans and passes them to ``axonize_spans``. Agent's main thread."""

    def __init__(self, context: AgentContext, ids: RandomIdGenerator | None = None) -> None:
        self._plugins = context.plugins
        self._annotate = context.sampler.annotate
        self._identity = context.sampler.identity
        self._context_id = context.sampler.context
        self._ids = ids or RandomIdGenerator()
        self._scope = _Scope("axonize", __version__)
        self._resources: dict[int, tuple[SourceInfo, Resource]] = {}

    @hookimpl
    def axonize_requests(self, events: Sequence[RequestEvent]) -> None:
        """Build the request span, and inside it those of the times in which no step worked on it."""
        sampled = [e for e in events if e.ref.sampled]
        extra = self._plugins.call("axonize_span_attributes", events=sampled)
        spans = [self._request(e, [m[i] for m in extra]) for i, e in enumerate(yielding(sampled))]
        spans += [self._part(e, "queue", e.start_ns, e.queue_ns) for e in yielding(sampled) if e.queue_ns is not None]
        spans += [self._part(e, "preempted", *preemption) for e in sampled for preemption in e.preemptions]
        self._publish(spans)

    @hookimpl
    def axonize_prefills(self, events: Sequence[PrefillEvent]) -> None:
        """Build prefill spans."""
        self._publish(
            [self._phase("prefill", names.INPUT_TOKENS, e, _chunks(e)) for e in yielding(events) if e.ref.sampled]
        )

    @hookimpl
    def axonize_decodes(self, events: Sequence[DecodeEvent]) -> None:
        """Build decode spans with the statistics of the times between tokens."""
        self._publish(
            [self._phase("decode", names.OUTPUT_TOKENS, e, _gaps(e)) for e in yielding(events) if e.ref.sampled]
        )

    @hookimpl
    def axonize_batches(self, events: Sequence[BatchEvent]) -> None:
        """Build one span per engine step, with its members as packed bytes."""
        self._publish([self._batch(e) for e in yielding(events)])

    def _publish(self, spans: list[ReadableSpan]) -> None:
        if spans:
            self._plugins.call("axonize_spans", spans=spans)

    def _request(self, event: RequestEvent, extra: list[Any]) -> ReadableSpan:
        source = event.source
        attributes: dict[str, Any] = {
            names.OPERATION: event.operation,
            names.MODEL: source.model,
            names.PROVIDER: source.provider,
            **self._identity(source)[0],
            **self._device_name(source),
            **dict(event.attributes),
            **{key: value for more in extra for key, value in (more or {}).items()},
        }
        _add(
            attributes,
            (names.REQUEST_ID, event.request_id),
            (names.INPUT_TOKENS, event.input_tokens),
            (names.OUTPUT_TOKENS, event.output_tokens),
            (names.CACHED_TOKENS, event.cached_tokens),
            (names.DRAFTED_TOKENS, event.drafted_tokens),
            (names.ACCEPTED_TOKENS, event.accepted_tokens),
            (names.PREEMPTIONS, len(event.preemptions) or None),
            (names.FINISH_REASONS, [event.finish_reason] if event.finish_reason else None),
            (names.ERROR_TYPE, event.error),
            (names.LATENCY_QUEUE_S, _seconds(event.queue_ns)),
            (names.LATENCY_TTFT_S, _seconds(event.ttft_ns)),
            (names.LATENCY_TPOT_S, _seconds(event.tpot_ns)),
            (names.LATENCY_E2E_S, _seconds(event.duration_ns)),
        )
        parent = _context(event.ref.trace_id, event.parent_span_id, remote=True) if event.parent_span_id else None
        status = Status(StatusCode.ERROR, event.error) if event.error else _OK
        span = self._span("request", event, attributes, _context(event.ref.trace_id, event.ref.span_id), parent)
        span._kind, span._status = SpanKind.SERVER, status  # noqa: SLF001 - ReadableSpan has no setters
        return span

    def _device_name(self, source: SourceInfo) -> dict[str, Any]:
        resource = self._identity(source)[1]
        return {names.HW_NAME: resource.gpu.name} if resource else {}

    def _part(self, event: RequestEvent, phase: str, start_ns: int, duration_ns: int) -> ReadableSpan:
        provenance = self._identity(event.source)[0][names.GPU_PROVENANCE]
        attributes: dict[str, Any] = {names.GPU_PROVENANCE: provenance}
        context = _context(event.ref.trace_id, self._ids.generate_span_id())
        span = self._span(phase, event, attributes, context, _parent(event.ref))
        span._start_time, span._end_time = start_ns, start_ns + duration_ns  # noqa: SLF001 - same
        return span

    def _phase(
        self, phase: str, tokens_name: str, event: PrefillEvent | DecodeEvent, attributes: dict[str, Any]
    ) -> ReadableSpan:
        _add(attributes, (tokens_name, event.tokens), (names.STEPS, event.steps))
        attributes.update(self._annotate(event.source, event.start_ns, event.start_ns + event.duration_ns))
        context = _context(event.ref.trace_id, self._ids.generate_span_id())
        return self._span(phase, event, attributes, context, _parent(event.ref))

    def _batch(self, event: BatchEvent) -> ReadableSpan:
        attributes = {
            names.BATCH_SEQ: event.seq,
            names.BATCH_SIZE: event.counts[0] if event.counts else len(event.request_seqs),
            names.MEMBER_REQUEST_SEQ: pack(f"<{len(event.request_seqs)}Q", *event.request_seqs),
            **self._annotate(event.source, event.start_ns, event.start_ns + event.duration_ns),
        }
        _add(
            attributes,
            (names.BATCH_SCHEDULE_MS, _ms(event.schedule_ns)),
            (names.BATCH_EXECUTE_MS, _ms(event.execute_ns)),
            (names.BATCH_UPDATE_MS, _ms(event.update_ns)),
            (names.BATCH_SAMPLES, event.samples),
            (names.BATCH_RUNNING, event.running),
            (names.BATCH_WAITING, event.waiting),
            (names.BATCH_KV_CACHE_USAGE, event.kv_cache_usage),
        )
        if event.counts:
            _, attributes[names.BATCH_PREFILL_TOKENS], attributes[names.BATCH_DECODE_TOKENS] = event.counts
        if event.prefill_tokens:
            attributes[names.BATCH_PREFILL_TOKENS] = sum(event.prefill_tokens)
            attributes[names.MEMBER_PREFILL_TOKENS] = _u32(event.prefill_tokens)
        if event.decode_tokens:
            attributes[names.BATCH_DECODE_TOKENS] = sum(event.decode_tokens)
            attributes[names.MEMBER_DECODE_TOKENS] = _u32(event.decode_tokens)
        if event.context_tokens:
            attributes[names.MEMBER_CONTEXT_TOKENS] = _u32(event.context_tokens)
        span = self._span("batch", event, attributes, _context(event.trace_id, event.span_id), None)
        span._links = [Link(_context(r.trace_id, r.span_id)) for r in event.joined]  # noqa: SLF001 - same
        return span

    def _span(
        self,
        phase: str,
        event: RequestEvent | PrefillEvent | DecodeEvent | BatchEvent,
        attributes: dict[str, Any],
        context: SpanContext,
        parent: SpanContext | None,
    ) -> ReadableSpan:
        attributes[names.PHASE] = phase
        if phase != "batch":
            attributes[names.REQUEST_SEQ] = event.ref.seq  # type: ignore[union-attr] # only batches have none
        device_ns = getattr(event, "device_ns", None)
        if device_ns is not None:
            attributes[names.DEVICE_TIME_MS], attributes[names.DEVICE_TIME_SOURCE] = device_ns / 1e6, "cuda_events"
        if event.incomplete:
            attributes[names.INCOMPLETE] = True
        return ReadableSpan(
            name=phase,
            context=context,
            parent=parent,
            resource=self._resource(event.source),
            attributes=attributes,
            status=_UNSET,
            start_time=event.start_ns,
            end_time=event.start_ns + event.duration_ns,
            instrumentation_scope=self._scope,
        )

    def _resource(self, source: SourceInfo) -> Resource:
        known = self._resources.get(id(source))
        if known is None or known[0] is not source:
            # What all spans of a source share stands here once: encoding attributes is most of the agent's work.
            shared = {
                names.ENGINE: source.engine,
                names.MODEL: source.model,
                names.GPU_CONTEXT: self._context_id(source),
                "telemetry.distro.name": "axonize",
            }
            known = (source, _Resource({**source.resource, **shared}))
            self._resources[id(source)] = known
        return known[1]


@hookimpl
def axonize_configure(context: AgentContext) -> None:
    """Register the spans of this agent."""
    context.plugins.register(Spans(context), "axonize_core.spans.Spans")


def _context(trace_id: int, span_id: int, *, remote: bool = False) -> SpanContext:
    return SpanContext(trace_id, span_id, remote, _SAMPLED)


def _parent(ref: RequestRef) -> SpanContext:
    return _context(ref.trace_id, ref.span_id)


def _add(attributes: dict[str, Any], *pairs: tuple[str, Any]) -> None:
    attributes.update({name: value for name, value in pairs if value is not None})


def _u32(values: tuple[int, ...]) -> bytes:
    return pack(f"<{len(values)}I", *values)


def _seconds(duration_ns: float | None) -> float | None:
    return None if duration_ns is None else duration_ns / 1e9


def _ms(duration_ns: int | None) -> float | None:
    return None if duration_ns is None else duration_ns / 1e6


def _chunks(event: PrefillEvent) -> dict[str, Any]:
    found: dict[str, Any] = {}
    _add(found, (names.CACHED_TOKENS, event.cached_tokens), (names.RECOMPUTED_TOKENS, event.recomputed_tokens))
    if event.chunks:
        steps, tokens = zip(*event.chunks, strict=True)
        found[names.CHUNK_STEP], found[names.CHUNK_TOKENS] = pack(f"<{len(steps)}Q", *steps), _u32(tokens)
    return found


_TOKEN_GAPS = (names.ITL_P50_MS, names.ITL_P99_MS, names.ITL_MAX_MS)
_RESPONSE_GAPS = (names.RESPONSE_GAP_P50_MS, names.RESPONSE_GAP_P99_MS, names.RESPONSE_GAP_MAX_MS)


def _gaps(event: DecodeEvent) -> dict[str, Any]:
    pairs = zip(
        _TOKEN_GAPS if event.responses is None else _RESPONSE_GAPS,
        (event.itl_p50_ns, event.itl_p99_ns, event.itl_max_ns),
        strict=True,
    )
    found: dict[str, Any] = {name: value / 1e6 for name, value in pairs if value is not None}
    _add(found, (names.RESPONSES, event.responses))
    return found
