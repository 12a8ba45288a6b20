"""What hooks receive: finished facts about requests, their phases, engine steps and devices.

All times are epoch nanoseconds of the engine's host; all durations are differences of its monotonic clock.
An unknown value is None, never 0. Trace and span ids are integers as in OpenTelemetry. ``device_ns`` is what the
device took by its own clock, where that was measured.
"""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = [
    "BatchEvent",
    "DecodeEvent",
    "GpuInfo",
    "GpuProcess",
    "GpuSample",
    "PrefillEvent",
    "RequestEvent",
    "RequestRef",
    "SourceInfo",
]


class SourceInfo(msgspec.Struct, frozen=True, gc=False):
    """Who emitted: one instrumented model in one process."""

    instance_id: str
    engine: str
    service_name: str
    model: str
    provider: str
    device: tuple[str, int, str | None]
    resource: dict[str, str]
    pid: int


class RequestRef(msgspec.Struct, frozen=True, gc=False):
    """The identity of a request and of its span."""

    seq: int
    trace_id: int
    span_id: int
    sampled: bool = True


class RequestEvent(msgspec.Struct, frozen=True, gc=False):
    """A request ended."""

    source: SourceInfo
    ref: RequestRef
    parent_span_id: int
    request_id: str | None
    operation: str
    start_ns: int
    duration_ns: int
    queue_ns: int | None = None
    ttft_ns: int | None = None
    tpot_ns: float | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    finish_reason: str | None = None
    error: str | None = None
    incomplete: bool = False
    attributes: tuple[tuple[str, Any], ...] = ()
    cached_tokens: int | None = None
    """Prompt tokens whose keys and values a cache had."""
    drafted_tokens: int | None = None
    accepted_tokens: int | None = None
    preemptions: tuple[tuple[int, int], ...] = ()
    """Start (epoch) and duration of each time it was taken out of the batch and lost its keys and values."""
    engine_id: str | None = None
    """What the engine's own processes call it."""


class PrefillEvent(msgspec.Struct, frozen=True, gc=False):
    """The prompt of a request was computed: first step until the first token was visible.

    A request that was preempted has another one for what is computed again (``recomputed_tokens``, prompt and answer).
    ``chunks`` are the steps (``BatchEvent.seq``) that worked on it, each with its number of tokens.
    """

    source: SourceInfo
    ref: RequestRef
    start_ns: int
    duration_ns: int
    tokens: int | None = None
    steps: int | None = None
    incomplete: bool = False
    device_ns: int | None = None
    cached_tokens: int | None = None
    recomputed_tokens: int | None = None
    chunks: tuple[tuple[int, int], ...] = ()


class DecodeEvent(msgspec.Struct, frozen=True, gc=False):
    """A request's tokens after the first one, with the statistics of the times between them.

    A request that was preempted has one before and one after; ``tokens`` then are those that came in it.
    """

    source: SourceInfo
    ref: RequestRef
    start_ns: int
    duration_ns: int
    tokens: int | None = None
    steps: int | None = None
    itl_p50_ns: int | None = None
    itl_p99_ns: int | None = None
    itl_max_ns: int | None = None
    incomplete: bool = False
    device_ns: int | None = None
    responses: int | None = None
    """Where these are counted and not tokens; the statistics then are of the times between them."""


class BatchEvent(msgspec.Struct, frozen=True, gc=False):
    """One engine step and its members; the four member tuples have the same length.

    Tokens are those the step computed: rows that finished early and ride along as padding count.
    ``joined`` names the requests that take part for the first time. Where the engine tells them, the step's duration is
    ``schedule_ns`` + ``execute_ns`` + ``update_ns``; ``running`` and ``waiting`` count requests when it was over,
    ``kv_cache_usage`` is the share of its blocks in use, 0 to 1.
    """

    source: SourceInfo
    seq: int
    trace_id: int
    span_id: int
    start_ns: int
    duration_ns: int
    request_seqs: tuple[int, ...]
    prefill_tokens: tuple[int, ...]
    decode_tokens: tuple[int, ...]
    context_tokens: tuple[int, ...]
    joined: tuple[RequestRef, ...] = ()
    incomplete: bool = False
    device_ns: int | None = None
    schedule_ns: int | None = None
    execute_ns: int | None = None
    update_ns: int | None = None
    running: int | None = None
    waiting: int | None = None
    kv_cache_usage: float | None = None
    engine_step: int | None = None
    """What the engine's own processes number it."""
    counts: tuple[int, int, int] | None = None
    """Members, prompt tokens and tokens decoded, where the engine tells these and not its members."""
    samples: int | None = None
    """Inputs in the batch, where a request may bring several."""


class GpuProcess(msgspec.Struct, frozen=True, gc=False):
    """What one process takes of a compute resource; ``utilization`` is its share of multiprocessor time, 0 to 1."""

    pid: int
    memory_bytes: int | None = None
    utilization: float | None = None


class GpuSample(msgspec.Struct, frozen=True, gc=False):
    """One reading of one compute resource; a field that is None has its reason in ``unavailable``.

    Times are epoch nanoseconds. ``utilization`` and ``memory_utilization`` are shares of time, 0 to 1. ``power_w`` is
    what the driver calls its usage (from Ampere on, but not on A100, the average of the last second),
    ``power_instant_w`` that of the moment. ``energy_j`` only grows: wraps and resets of the counter are added up.
    It was true at ``energy_time_ns``, half a refresh of the counter ago, and counts on from a first reading at
    ``energy_start_ns``. ``throttle_reasons`` are NVML's ``nvmlClocksEventReason*`` bits. Throughputs are of the last
    20 ms; NVLink's and errors are counters.
    """

    compute_resource: str
    physical_gpu: str
    name: str
    time_ns: int
    provenance: str
    utilization: float | None = None
    memory_used_bytes: int | None = None
    power_w: float | None = None
    energy_j: float | None = None
    temperature_c: float | None = None
    memory_utilization: float | None = None
    memory_total_bytes: int | None = None
    power_instant_w: float | None = None
    energy_time_ns: int | None = None
    energy_start_ns: int | None = None
    sm_clock_hz: int | None = None
    memory_clock_hz: int | None = None
    throttle_reasons: int | None = None
    pcie_transmit_bytes_per_s: int | None = None
    pcie_receive_bytes_per_s: int | None = None
    nvlink_transmit_bytes: int | None = None
    nvlink_receive_bytes: int | None = None
    ecc_corrected_errors: int | None = None
    ecc_uncorrected_errors: int | None = None
    xid_errors: tuple[tuple[int, int], ...] | None = None
    """Each XID with how often it came since the agent watches."""
    processes: tuple[GpuProcess, ...] | None = None
    hw_type: str = "gpu"
    unavailable: dict[str, str] = {}
    """Field → why it is None, in the driver's words."""


class GpuInfo(msgspec.Struct, frozen=True, gc=False):
    """Something of the three layers is there (or, ``present`` False, no more) since ``time_ns`` (epoch).

    ``name`` is the metric it travels as: ``axonize.gpu.info``, ``axonize.gpu.compute_resource.info`` or
    ``axonize.gpu.context.info``; attributes that are not known are left out.
    """

    name: str
    time_ns: int
    present: bool
    attributes: dict[str, Any]
