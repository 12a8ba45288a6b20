"""vLLM's own tracing beside ours: one trace, every token counted once."""

from __future__ import annotations

import time

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from axonize_core import attributes as names
from axonize_server.query import requests
from axonize_server.query_gpus import engines
from axonize_server.spool import INSERT_SETTINGS
from own_spans import as_requests, own_span, set_attributes

TRACE, CALLER = bytes.fromhex("4bf92f3577b34da6a3ce929d0e0e4736"), bytes.fromhex("00f067aa0ba902b7")
# As vLLM 0.32.0 sent it with --otlp-traces-endpoint, for a completion with the traceparent of these ids.
RECORDED = {
    "gen_ai.request.id": "cmpl-traced-0",
    "gen_ai.usage.prompt_tokens": 300,
    "gen_ai.usage.completion_tokens": 20,
    "gen_ai.request.max_tokens": 20,
    "gen_ai.request.n": 1,
    "gen_ai.latency.time_to_first_token": 0.03396940231323242,
    "gen_ai.latency.e2e": 0.07230234146118164,
    "gen_ai.latency.time_in_queue": 4.2683997889980674e-05,
    "gen_ai.latency.time_in_model_prefill": 0.030463249000604264,
    "gen_ai.latency.time_in_model_decode": 0.03869739700166974,
    "gen_ai.latency.time_in_model_inference": 0.069160646002274,
    "gen_ai.request.top_p": 1.0,
}
RESOURCE = {
    "telemetry.sdk.language": "python",
    "telemetry.sdk.name": "opentelemetry",
    "service.instance.id": "5566e755-1516-452f-859c-430a7356a83c",
    "service.name": "chat",
    "vllm.instrumenting_module_name": "vllm.llm_engine",
    "vllm.process_id": "21548",
}
BY_TODAYS_NAMES = {
    name.replace("prompt_tokens", "input_tokens").replace("completion_tokens", "output_tokens"): value
    for name, value in RECORDED.items()
}


def llm_request(start_ns, attributes):
    """The span of vLLM's own tracing, in its own resource and scope."""
    request = ExportTraceServiceRequest()
    resource_spans = request.resource_spans.add()
    set_attributes(resource_spans.resource.attributes, RESOURCE)
    scope_spans = resource_spans.scope_spans.add()
    scope_spans.scope.name = "vllm.tracing.otel"
    span = scope_spans.spans.add(
        trace_id=TRACE,
        span_id=bytes.fromhex("7cfd2c764b23d12e"),
        parent_span_id=CALLER,
        name="llm_request",
        kind=Span.SPAN_KIND_SERVER,
        start_time_unix_nano=start_ns,
        end_time_unix_nano=start_ns + 72_929_385,
    )
    set_attributes(span.attributes, attributes)
    return request


def our_spans(start_ns):
    """Request, prefill and decode of the same call as ours are, with the usage that each of them carries."""
    ours, usage_in, usage_out = bytes.fromhex("c00f67b412024838"), {names.INPUT_TOKENS: 300}, {names.OUTPUT_TOKENS: 20}
    inside = {"trace_id": TRACE, "parent_span_id": ours}
    end_ns = start_ns + 71_820_228
    return [
        own_span(
            "request", start_ns, end_ns, usage_in | usage_out, trace_id=TRACE, parent_span_id=CALLER, span_id=ours
        ),
        own_span("prefill", start_ns + 10, start_ns + 20, usage_in | {names.CACHED_TOKENS: 0}, **inside),
        own_span("preempted", start_ns + 20, start_ns + 30, {}, **inside),
        own_span("prefill", start_ns + 30, start_ns + 40, {names.RECOMPUTED_TOKENS: 310}, **inside),
        own_span("decode", start_ns + 40, end_ns, usage_out, **inside),
    ]


@pytest.mark.parametrize("attributes", [RECORDED, BY_TODAYS_NAMES], ids=["as recorded", "by the names of today"])
def test_vllms_own_span_counts_no_token_twice(store, write_segment, attributes):
    """Totals of the trace, the rollup, the list of requests and the rates are those of one request."""
    now = time.time_ns()
    ours = as_requests(our_spans(now), {"service.name": "chat", "service.instance.id": "i", names.ENGINE: "vllm"})
    segment = write_segment(*ours, llm_request(now, attributes))
    store.insert(segment.path, segment.signal, segment.id, INSERT_SETTINGS)
    sums = "sum(requests) AS requests, sum(input_tokens) AS tokens_in, sum(output_tokens) AS tokens_out"
    counted = {"requests": 1, "tokens_in": 300, "tokens_out": 20}
    assert store.query(f"SELECT {sums}, sum(spans) AS spans FROM {store.database}.traces") == [counted | {"spans": 6}]
    assert store.query(f"SELECT {sums} FROM {store.database}.requests_1m") == [counted]
    assert [row["span_id"] for row in requests(store, tenant="default")] == ["c00f67b412024838"]
    (rates,) = engines(store, tenant="default", window_s=60)
    assert (rates["requests_per_s"] * 60, rates["input_tokens_per_s"] * 60) == (1, 300)
