from __future__ import annotations

import struct
from struct import pack

import pytest
from opentelemetry.trace import SpanKind, StatusCode

from axonize_core import attributes as names
from axonize_core import hookimpl
from axonize_core.events import BatchEvent, DecodeEvent, PrefillEvent, RequestEvent, RequestRef, SourceInfo
from axonize_core.gpu.identity import ComputeResource, PhysicalGpu
from axonize_core.gpu.sampler import Sampler
from axonize_core.gpu.simulated import SimulatedProvider
from axonize_core.plugins import AgentContext, Plugins
from axonize_core.settings import Settings
from axonize_core.spans import Spans
from axonize_core.testing import CapturedEvents, CountingIds, FakeClock

SOURCE = SourceInfo("inst", "transformers", "svc", "tiny", "hf", ("cpu", 0, None), {"service.name": "svc"}, 42)
REF = RequestRef(7, 1, 2)


@pytest.fixture
def captured():
    return CapturedEvents()


@pytest.fixture
def spans(captured):
    clock = FakeClock(1_000)
    plugins = Plugins()
    sampler = Sampler(SimulatedProvider(clock), 1.0)
    sampler.sample_once()
    plugins.register(captured)
    return Spans(AgentContext(Settings(), plugins, sampler), CountingIds())


def request(**more):
    return RequestEvent(
        SOURCE, REF, more.pop("parent_span_id", 0), "r1", "chat", 1_000, 500, queue_ns=100, ttft_ns=200, **more
    )


def test_a_request_is_a_server_span_with_its_queue_inside(spans, captured):
    """Times, ids, kind, status and the field's standard names."""
    spans.axonize_requests([request(input_tokens=3, output_tokens=0, finish_reason="stop", tpot_ns=50.0)])
    root, queue = captured.spans
    assert root.name == "request"
    assert root.kind is SpanKind.SERVER
    assert (root.start_time, root.end_time) == (1000, 1500)
    assert root.status.status_code is StatusCode.OK
    assert root.attributes[names.LATENCY_TTFT_S] == 200 / 1e9
    assert root.attributes[names.OUTPUT_TOKENS] == 0, "zero is not unknown"
    assert root.attributes[names.FINISH_REASONS] == ["stop"]
    assert root.attributes[names.GPU_PROVENANCE] == "simulated"
    assert root.parent is None
    assert queue.parent == root.context
    assert (queue.start_time, queue.end_time) == (1000, 1100)
    assert queue.attributes[names.REQUEST_SEQ] == 7


def test_unknown_values_are_absent(spans, captured):
    """An attribute whose value is unknown is not there, rather than 0."""
    spans.axonize_requests([RequestEvent(SOURCE, REF, 0, None, "chat", 1, 2)])
    (root,) = captured.spans
    for name in (names.REQUEST_ID, names.INPUT_TOKENS, names.LATENCY_TTFT_S, names.LATENCY_QUEUE_S, names.INCOMPLETE):
        assert name not in root.attributes


def test_errors_and_remote_parents_are_said(spans, captured):
    """A failed request is an error with its type; the caller's span is a remote parent."""
    spans.axonize_requests([request(error="ValueError", parent_span_id=99, incomplete=True)])
    root = captured.spans[0]
    assert root.status.status_code is StatusCode.ERROR
    assert root.attributes[names.ERROR_TYPE] == "ValueError"
    assert root.attributes[names.INCOMPLETE] is True
    assert root.parent.span_id == 99
    assert root.parent.is_remote


def test_phases_carry_the_devices_readings(spans, captured):
    """prefill and decode name the device and what it did meanwhile."""
    spans.axonize_prefills([PrefillEvent(SOURCE, REF, 1_100, 100, 3, 1)])
    spans.axonize_decodes([DecodeEvent(SOURCE, REF, 1_200, 300, 4, 3, 10_000_000, 20_000_000, 30_000_000)])
    prefill, decode = captured.spans
    assert prefill.parent.span_id == decode.parent.span_id == REF.span_id
    assert prefill.attributes[names.INPUT_TOKENS] == 3
    assert prefill.attributes[names.GPU_COMPUTE_RESOURCE] == "GPU-simulated-0"
    assert 0 <= prefill.attributes[names.GPU_UTILIZATION] <= 1
    assert (decode.attributes[names.ITL_P50_MS], decode.attributes[names.ITL_MAX_MS]) == (10, 30)
    assert decode.attributes[names.STEPS] == 3


def test_a_batch_packs_its_members_and_links_who_joins(spans, captured):
    """Members are little-endian fixed width; unknown member columns are absent."""
    event = BatchEvent(SOURCE, 5, 9, 8, 1_100, 100, (7, 2**40), (3, 0), (0, 1), (0, 12), joined=(REF,))
    spans.axonize_batches([event, BatchEvent(SOURCE, 6, 9, 8, 1_100, 100, (7,), (0,), (), ())])
    first, second = captured.spans
    assert struct.unpack("<2Q", first.attributes[names.MEMBER_REQUEST_SEQ]) == (7, 2**40)
    assert struct.unpack("<2I", first.attributes[names.MEMBER_CONTEXT_TOKENS]) == (0, 12)
    assert first.attributes[names.BATCH_PREFILL_TOKENS] == 3
    assert first.attributes[names.BATCH_DECODE_TOKENS] == 1
    assert first.attributes[names.BATCH_SIZE] == 2
    assert [link.context.span_id for link in first.links] == [REF.span_id]
    assert first.parent is None
    assert names.MEMBER_DECODE_TOKENS not in second.attributes
    assert names.BATCH_DECODE_TOKENS not in second.attributes


def test_the_callers_sampling_is_honoured(spans, captured):
    """A request whose caller did not sample it makes no spans; its steps are still there."""
    ref = RequestRef(7, 1, 2, sampled=False)
    spans.axonize_requests([RequestEvent(SOURCE, ref, 0, None, "chat", 1, 2, queue_ns=1)])
    spans.axonize_prefills([PrefillEvent(SOURCE, ref, 1, 1)])
    spans.axonize_decodes([DecodeEvent(SOURCE, ref, 1, 1)])
    assert captured.spans == []


def test_plugins_can_add_attributes(captured):
    """axonize_span_attributes adds to each request's span, in order; later plugins win."""

    class Enricher:
        @hookimpl
        def axonize_span_attributes(self, events):
            return [{"team": f"t{e.ref.seq}"} if e.ref.seq == 7 else None for e in events]

    plugins = Plugins()
    plugins.register(captured)
    plugins.register(Enricher())
    spans = Spans(AgentContext(Settings(), plugins, Sampler(None, 1.0)))
    other = RequestEvent(SOURCE, RequestRef(8, 1, 3), 0, None, "chat", 1, 2)
    spans.axonize_requests([RequestEvent(SOURCE, REF, 0, None, "chat", 1, 2), other])
    assert [s.attributes.get("team") for s in captured.spans] == ["t7", None]
    assert captured.spans[0].attributes[names.GPU_PROVENANCE] == "unavailable"


def test_every_emitted_attribute_is_in_the_table(spans, captured):
    """Each attribute is defined once, with its unit."""
    said = [(name, 1) for name in (names.RESPONSES, names.DISCARDED_TOKENS, names.CHOICE_INDEX, names.KV_CACHE_BLOCKS)]
    said += [(name, "x") for name in (names.FINISH_REASON_SOURCE, names.FRONTEND_INSTANCE)]
    said += [(names.ADAPTERS, ("a",)), (names.FRONTEND_TTFT_S, 0.1), (names.FRONTEND_E2E_S, 0.2)]
    full = {"input_tokens": 1, "output_tokens": 2, "tpot_ns": 1.0, "finish_reason": "stop", "error": "E"}
    counted = {"cached_tokens": 1, "drafted_tokens": 2, "accepted_tokens": 1, "preemptions": ((1, 2),)}
    spans.axonize_requests([request(**full, **counted, incomplete=True, attributes=tuple(said))])
    again = {"cached_tokens": 1, "recomputed_tokens": 2, "chunks": ((4, 1), (5, 1))}
    spans.axonize_prefills([PrefillEvent(SOURCE, REF, 1, 1, 1, 1, device_ns=1, **again)])
    spans.axonize_decodes([DecodeEvent(SOURCE, REF, 1, 1, 1, 1, 1, 1, 1, device_ns=1)])
    spans.axonize_decodes([DecodeEvent(SOURCE, REF, 1, 1, None, 1, 1, 1, 1, responses=3)])
    told = {
        "schedule_ns": 1,
        "execute_ns": 2,
        "update_ns": 3,
        "running": 1,
        "waiting": 0,
        "kv_cache_usage": 0.5,
        "samples": 2,
    }
    spans.axonize_batches([BatchEvent(SOURCE, 5, 9, 8, 1, 1, (7,), (3,), (1,), (0,), device_ns=2_500_000, **told)])
    assert captured.spans[-1].attributes[names.DEVICE_TIME_MS] == 2.5
    emitted = {(name, span.name) for span in captured.spans for name in span.attributes}
    where = ("request", "prefill", "decode", "batch")
    emitted |= {(names.GPU_COMPUTE_RESOURCES, phase) for phase in where}  # an engine of several, see below
    phases = ("request", "queue", "preempted", "prefill", "decode", "batch")
    table = {
        (a.name, phase) for a in names.ATTRIBUTES for phase in (phases if a.spans == "all" else a.spans.split(", "))
    }
    on_spans = {(name, where) for name, where in table if where != "resource"}
    assert emitted == on_spans - {(names.INCOMPLETE, phase) for phase in phases[3:]}
    assert {name for name, where in table if where == "resource"} <= captured.spans[0].resource.attributes.keys()


def test_a_preempted_request_has_spans_for_what_it_lost(spans, captured):
    """Each time it was taken out of the batch is a span of its own; the prefill after it says what was computed again."""
    spans.axonize_requests([request(preemptions=((1_000, 50), (2_000, 70)))])
    spans.axonize_prefills([PrefillEvent(SOURCE, REF, 1, 1, None, 2, recomputed_tokens=9, chunks=((4, 8), (5, 1)))])
    first, second = [span for span in captured.spans if span.name == "preempted"]
    assert (first.start_time, first.end_time) == (1_000, 1_050)
    assert (second.start_time, second.end_time) == (2_000, 2_070)
    assert captured.spans[0].attributes[names.PREEMPTIONS] == 2
    prefill = captured.spans[-1].attributes
    assert names.INPUT_TOKENS not in prefill
    assert prefill[names.RECOMPUTED_TOKENS] == 9
    assert prefill[names.CHUNK_STEP] == pack("<2Q", 4, 5)
    assert prefill[names.CHUNK_TOKENS] == pack("<2I", 8, 1)


def test_an_engine_names_the_devices_of_its_workers(captured):
    """The engine core drives none: its spans name those of its workers by rank, with their sums and means."""

    class TwoGpus(SimulatedProvider):
        def resources(self):
            second = PhysicalGpu("GPU-1", "Simulated GPU", 1, None)
            return [*super().resources(), ComputeResource(second.uuid, second)]

        def resolve(self, source):
            return self.resources()[source.device[1]] if source.device[0] != "workers" else None

    def source(role, rank, device):
        return SourceInfo(
            "i", "vllm", "s", "m", "vllm", device, {"ai.engine.id": "e/0", "ai.role": role, "ai.rank": rank}, 1
        )

    clock, plugins = FakeClock(1_000), Plugins()
    sampler = Sampler(TwoGpus(clock), 1.0, clock)
    core, lonely = source("engine", "", ("workers", 0, None)), source("engine", "", ("workers", 0, None))
    lonely.resource["ai.engine.id"] = "another/0"
    sampler.contexts.appear([core, source("worker", "1", ("cuda", 1, None)), source("worker", "0", ("cuda", 0, None))])
    sampler.sample_once()
    plugins.register(captured)
    spans = Spans(AgentContext(Settings(), plugins, sampler), CountingIds())
    batch = (5, 9, 8, 1_000, 1, (7,), (3,), (1,), (0,))
    spans.axonize_batches([BatchEvent(SOURCE, *batch), BatchEvent(core, *batch), BatchEvent(lonely, *batch)])
    one, both, none = (span.attributes for span in captured.spans)
    assert both[names.GPU_COMPUTE_RESOURCES] == ["GPU-simulated-0", "GPU-1"]
    assert both[names.GPU_COMPUTE_RESOURCE] == "GPU-simulated-0"
    assert both[names.GPU_POWER_W] == pytest.approx(2 * one[names.GPU_POWER_W])
    assert both[names.GPU_UTILIZATION] == pytest.approx(one[names.GPU_UTILIZATION])
    assert names.GPU_COMPUTE_RESOURCES not in one
    assert none[names.GPU_PROVENANCE] == "unavailable"
    assert captured.spans[1].resource.attributes[names.GPU_CONTEXT].endswith("/cuda:0")
    assert [context.source.device[0] for context in sampler.contexts.live()] == ["cuda", "cuda"]
    spans.axonize_batches([BatchEvent(core, 6, 9, 8, 1_000, 1, (), (), (), (), counts=(4, 8, 3))])
    counted = captured.spans[-1].attributes
    assert [counted[name] for name in (names.BATCH_SIZE, names.BATCH_PREFILL_TOKENS, names.BATCH_DECODE_TOKENS)] == [
        4,
        8,
        3,
    ]
