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


class PrefillEvent(msgspec.Struct, frozen=True, gc=False):
    """The prompt of a request was computed: first step until the first token was visible."""

    source: SourceInfo
    ref: RequestRef
    start_ns: int
    duration_ns: int
    tokens: int | None = None
    steps: int | None = None
    incomplete: bool = False
    device_ns: int | None = None


class DecodeEvent(msgspec.Struct, frozen=True, gc=False):
    """A request's tokens after the first one, with the statistics of the times between them."""

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


class BatchEvent(msgspec.Struct, frozen=True, gc=False):
    """One engine step and its members; the four member tuples have the same length.

    Tokens are those the step computed: rows that finished early and ride along as padding count.
    ``joined`` names the requests that take part for the first time.
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


class GpuSample(msgspec.Struct, frozen=True, gc=False):
    """One reading of one compute resource; a field the device does not support is None."""

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
