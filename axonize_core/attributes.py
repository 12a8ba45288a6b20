"""Every attribute name Axonize emits, once, with its unit and where the name comes from.

OTel's own names come first (GenAI and hardware semantic conventions; ``gen_ai.latency.*`` as vLLM emits
them), then ours under ``ai.*`` and ``gpu.*``.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["ATTRIBUTES", "Attribute", "attributes_markdown"]


class Attribute(NamedTuple):
    """One attribute: its name, OTLP value type, unit, the spans that carry it, and what it says."""

    name: str
    type: str
    unit: str
    spans: str
    meaning: str


# OTel GenAI semantic conventions.
OPERATION = "gen_ai.operation.name"
PROVIDER = "gen_ai.provider.name"
MODEL = "gen_ai.request.model"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
FINISH_REASONS = "gen_ai.response.finish_reasons"
ERROR_TYPE = "error.type"
# Latencies under the names vLLM's own tracing uses.
LATENCY_QUEUE_S = "gen_ai.latency.time_in_queue"
LATENCY_TTFT_S = "gen_ai.latency.time_to_first_token"
LATENCY_E2E_S = "gen_ai.latency.e2e"
LATENCY_TPOT_S = "gen_ai.latency.time_per_output_token"
# Ours.
PHASE = "ai.phase"
ENGINE = "ai.engine"
REQUEST_ID = "ai.request.id"
REQUEST_SEQ = "ai.request.seq"
INCOMPLETE = "ai.incomplete"
ADAPTERS = "ai.adapters"
DRAFTED_TOKENS = "ai.speculative.drafted_tokens"
ACCEPTED_TOKENS = "ai.speculative.accepted_tokens"
CACHED_TOKENS = "gen_ai.usage.cache_read.input_tokens"
PREEMPTIONS = "ai.preemptions"
RECOMPUTED_TOKENS = "ai.recomputed_tokens"
DISCARDED_TOKENS = "ai.discarded_tokens"
FINISH_REASON_SOURCE = "ai.finish_reason.provenance"
FRONTEND_TTFT_S = "ai.frontend.time_to_first_token"
FRONTEND_E2E_S = "ai.frontend.e2e"
FRONTEND_INSTANCE = "ai.frontend.instance.id"
CHOICE_INDEX = "ai.request.choice.index"
KV_CACHE_BLOCKS = "ai.kv_cache.blocks"
CHUNK_STEP = "ai.prefill.chunk.batch_seq"
CHUNK_TOKENS = "ai.prefill.chunk.tokens"
RESPONSES = "ai.responses"
RESPONSE_GAP_P50_MS = "ai.responses.gap.p50_ms"
RESPONSE_GAP_P99_MS = "ai.responses.gap.p99_ms"
RESPONSE_GAP_MAX_MS = "ai.responses.gap.max_ms"
STEPS = "ai.steps"
DEVICE_TIME_MS = "ai.device_time_ms"
DEVICE_TIME_SOURCE = "ai.device_time.provenance"
ITL_P50_MS = "ai.itl.p50_ms"
ITL_P99_MS = "ai.itl.p99_ms"
ITL_MAX_MS = "ai.itl.max_ms"
BATCH_SEQ = "ai.batch.seq"
BATCH_SIZE = "ai.batch.size"
BATCH_PREFILL_TOKENS = "ai.batch.prefill_tokens"
BATCH_DECODE_TOKENS = "ai.batch.decode_tokens"
BATCH_SCHEDULE_MS = "ai.batch.schedule_ms"
BATCH_EXECUTE_MS = "ai.batch.execute_ms"
BATCH_UPDATE_MS = "ai.batch.update_ms"
BATCH_SAMPLES = "ai.batch.samples"
BATCH_RUNNING = "ai.batch.running"
BATCH_WAITING = "ai.batch.waiting"
BATCH_KV_CACHE_USAGE = "ai.batch.kv_cache.usage"
MEMBER_REQUEST_SEQ = "ai.batch.member.request_seq"
MEMBER_PREFILL_TOKENS = "ai.batch.member.prefill_tokens"
MEMBER_DECODE_TOKENS = "ai.batch.member.decode_tokens"
MEMBER_CONTEXT_TOKENS = "ai.batch.member.context_tokens"
# The device, by OTel's hardware conventions and the three layers of identity.
HW_ID = "hw.id"
HW_NAME = "hw.name"
GPU_COMPUTE_RESOURCE = "gpu.compute_resource.id"
GPU_COMPUTE_RESOURCES = "gpu.compute_resource.ids"
GPU_CONTEXT = "gpu.context.id"
GPU_PROVENANCE = "gpu.provenance"
GPU_UTILIZATION = "gpu.utilization.mean"
GPU_MEMORY_BYTES = "gpu.memory.used_bytes.mean"
GPU_POWER_W = "gpu.power.mean_w"
GPU_POWER_PROVENANCE = "gpu.power.provenance"

ATTRIBUTES: tuple[Attribute, ...] = (
    Attribute(PHASE, "string", "", "all", "request, queue, prefill, decode, preempted or batch"),
    Attribute(ENGINE, "string", "", "resource", "transformers, vllm, triton"),
    Attribute(MODEL, "string", "", "resource, request", "the model's name or path"),
    Attribute(PROVIDER, "string", "", "request", "who provides the model"),
    Attribute(OPERATION, "string", "", "request", "text_completion, chat, embeddings, classification …"),
    Attribute(INPUT_TOKENS, "int", "{token}", "request, prefill", "prompt tokens without padding"),
    Attribute(OUTPUT_TOKENS, "int", "{token}", "request, decode", "generated tokens without padding"),
    Attribute(FINISH_REASONS, "string[]", "", "request", "stop, length, error …"),
    Attribute(ERROR_TYPE, "string", "", "request", "exception class, or engine_lost"),
    Attribute(LATENCY_QUEUE_S, "double", "s", "request", "arrival to the first step"),
    Attribute(LATENCY_TTFT_S, "double", "s", "request", "arrival to the first visible token"),
    Attribute(LATENCY_E2E_S, "double", "s", "request", "arrival to the end"),
    Attribute(LATENCY_TPOT_S, "double", "s", "request", "(last - first token) / (tokens - 1)"),
    Attribute(REQUEST_ID, "string", "", "request", "the caller's id; clients reuse them, so never a key"),
    Attribute(
        REQUEST_SEQ, "int", "", "request, queue, prefill, decode, preempted", "unique within service.instance.id"
    ),
    Attribute(INCOMPLETE, "bool", "", "all", "records were lost; durations may be too short"),
    Attribute(ADAPTERS, "string[]", "", "request", "the adapters (LoRA …) that answered"),
    Attribute(DRAFTED_TOKENS, "int", "{token}", "request", "tokens an assistant proposed in speculative decoding"),
    Attribute(ACCEPTED_TOKENS, "int", "{token}", "request", "output tokens that were such proposals"),
    Attribute(CACHED_TOKENS, "int", "{token}", "request, prefill", "prompt tokens that a cache had"),
    Attribute(PREEMPTIONS, "int", "", "request", "times it was taken out of the batch to make room"),
    Attribute(RECOMPUTED_TOKENS, "int", "{token}", "prefill", "tokens computed again after it was preempted"),
    Attribute(DISCARDED_TOKENS, "int", "{token}", "request", "computed, but not given to the caller"),
    Attribute(
        FINISH_REASON_SOURCE, "string", "", "request", "frontend where it, not the engine, gave the finish reason"
    ),
    Attribute(FRONTEND_TTFT_S, "double", "s", "request", "arrival to the first token sent, at the API server"),
    Attribute(FRONTEND_E2E_S, "double", "s", "request", "arrival to the end, at the API server"),
    Attribute(FRONTEND_INSTANCE, "string", "", "request", "service.instance.id of that front end"),
    Attribute(CHOICE_INDEX, "int", "", "request", "which of several answers to one call, from 0"),
    Attribute(KV_CACHE_BLOCKS, "int", "{block}", "request", "blocks that its tokens fill in the KV cache"),
    Attribute(CHUNK_STEP, "bytes", "u64 LE each", "prefill", "steps (ai.batch.seq) that computed the prompt"),
    Attribute(CHUNK_TOKENS, "bytes", "u32 LE each", "prefill", "tokens each of these computed"),
    Attribute(RESPONSES, "int", "{response}", "request, decode", "responses that were sent, of any number of tokens"),
    Attribute(RESPONSE_GAP_P50_MS, "double", "ms", "decode", "median time between responses"),
    Attribute(RESPONSE_GAP_P99_MS, "double", "ms", "decode", "99th percentile of time between responses"),
    Attribute(RESPONSE_GAP_MAX_MS, "double", "ms", "decode", "longest time between responses"),
    Attribute(STEPS, "int", "{step}", "prefill, decode", "engine steps of the phase"),
    Attribute(
        DEVICE_TIME_MS, "double", "ms", "prefill, decode, batch", "by the device's own clock, idle gaps included"
    ),
    Attribute(DEVICE_TIME_SOURCE, "string", "", "prefill, decode, batch", "where that time is from: cuda_events"),
    Attribute(ITL_P50_MS, "double", "ms", "decode", "median time between tokens"),
    Attribute(ITL_P99_MS, "double", "ms", "decode", "99th percentile of time between tokens"),
    Attribute(ITL_MAX_MS, "double", "ms", "decode", "longest time between tokens"),
    Attribute(BATCH_SEQ, "int", "", "batch", "step number, unique within service.instance.id"),
    Attribute(BATCH_SIZE, "int", "{request}", "batch", "members of the step"),
    Attribute(BATCH_PREFILL_TOKENS, "int", "{token}", "batch", "prompt tokens computed in the step"),
    Attribute(BATCH_DECODE_TOKENS, "int", "{token}", "batch", "tokens decoded in the step"),
    Attribute(BATCH_SCHEDULE_MS, "double", "ms", "batch", "choosing the members"),
    Attribute(BATCH_EXECUTE_MS, "double", "ms", "batch", "until the model's output was there"),
    Attribute(BATCH_UPDATE_MS, "double", "ms", "batch", "taking the output over"),
    Attribute(BATCH_SAMPLES, "int", "{sample}", "batch", "inputs in the batch; a request may bring several"),
    Attribute(BATCH_RUNNING, "int", "{request}", "batch", "requests in the batch after the step"),
    Attribute(BATCH_WAITING, "int", "{request}", "batch", "requests that wait after the step"),
    Attribute(BATCH_KV_CACHE_USAGE, "double", "1", "batch", "share of the KV cache's blocks in use after the step"),
    Attribute(MEMBER_REQUEST_SEQ, "bytes", "u64 LE each", "batch", "the members' ai.request.seq"),
    Attribute(MEMBER_PREFILL_TOKENS, "bytes", "u32 LE each", "batch", "prompt tokens computed, by member"),
    Attribute(MEMBER_DECODE_TOKENS, "bytes", "u32 LE each", "batch", "tokens decoded, by member"),
    Attribute(MEMBER_CONTEXT_TOKENS, "bytes", "u32 LE each", "batch", "context tokens before the step, by member"),
    Attribute(HW_ID, "string", "", "request, prefill, decode, batch", "physical GPU uuid (GPU-…)"),
    Attribute(HW_NAME, "string", "", "request", "GPU model; says so when it is simulated"),
    Attribute(GPU_COMPUTE_RESOURCE, "string", "", "request, prefill, decode, batch", "full GPU or MIG instance uuid"),
    Attribute(
        GPU_COMPUTE_RESOURCES,
        "string[]",
        "",
        "request, prefill, decode, batch",
        "all of them by rank, where an engine spans several; the one above is the first",
    ),
    Attribute(GPU_CONTEXT, "string", "", "resource", "what the process calls its device: host/pid.instance/cuda:0"),
    Attribute(GPU_PROVENANCE, "string", "", "all", "measured, apportioned, estimated, simulated or unavailable"),
    Attribute(GPU_UTILIZATION, "double", "1", "prefill, decode, batch", "mean busy share over the span"),
    Attribute(GPU_MEMORY_BYTES, "int", "By", "prefill, decode, batch", "mean memory in use over the span"),
    Attribute(GPU_POWER_W, "double", "W", "prefill, decode, batch", "mean power of the device over the span"),
    Attribute(
        GPU_POWER_PROVENANCE,
        "string",
        "",
        "prefill, decode, batch",
        "measured, or apportioned: a MIG slice's part of its GPU's power, by multiprocessors",
    ),
)


def attributes_markdown() -> str:
    """Return ``docs/attributes.md``."""
    rows = [
        f"| `{name}` | {type_} | {unit} | {spans} | {meaning} |" for name, type_, unit, spans, meaning in ATTRIBUTES
    ]
    return "\n".join([*_INTRODUCTION, *rows])


_INTRODUCTION = (
    "# Attributes",
    "",
    "Every attribute Axonize emits, once. Generated from `axonize_core/attributes.py` by `make docs`. Standard names",
    "come first (OTel GenAI and hardware conventions), then `ai.*` and `gpu.*`. An unknown value is absent, never 0.",
    "",
    "| attribute | type | unit | spans | meaning |",
    "|---|---|---|---|---|",
)

if __name__ == "__main__":
    print(attributes_markdown())  # noqa: T201 - this is what running it is for
