"""Spans as our own agent sends them, for a made-up continuous-batching server: random ids, plausible times.

Everything a compressor could exploit and production would not have is random: ids, arrival, lengths, step times.
"""

from __future__ import annotations

import random
import struct
import uuid
from typing import TYPE_CHECKING, Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from axonize_core import attributes as names

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["OwnLoad", "as_requests", "own_span", "set_attributes"]

_SPANS_PER_REQUEST = 512
_MODEL = "meta-llama/Llama-3.1-8B-Instruct"


def set_attributes(target: Any, attributes: dict[str, Any]) -> None:
    """Add attributes of scalar, bytes or list-of-string type."""
    for key, value in attributes.items():
        encoded = target.add(key=key).value
        if isinstance(value, bool):
            encoded.bool_value = value
        elif isinstance(value, int):
            encoded.int_value = value
        elif isinstance(value, float):
            encoded.double_value = value
        elif isinstance(value, bytes):
            encoded.bytes_value = value
        elif isinstance(value, list):
            for item in value:
                encoded.array_value.values.add(string_value=item)
        else:
            encoded.string_value = value


def own_span(phase: str, start_ns: int, end_ns: int, attributes: dict[str, Any], **fields: Any) -> Span:
    """One span of ours; ids are random unless given."""
    kind = Span.SPAN_KIND_SERVER if phase == "request" else Span.SPAN_KIND_INTERNAL
    ids = {"trace_id": random.randbytes(16), "span_id": random.randbytes(8), "flags": 257}
    span = Span(name=phase, kind=kind, start_time_unix_nano=start_ns, end_time_unix_nano=end_ns, **{**ids, **fields})
    set_attributes(span.attributes, {**attributes, names.PHASE: phase})
    return span


def as_requests(spans: Iterable[Span], resource: dict[str, Any]) -> Iterator[ExportTraceServiceRequest]:
    """Pack spans as the exporter does: 512 to a request, one resource, one scope."""
    pending = list(spans)
    for at in range(0, len(pending), _SPANS_PER_REQUEST):
        request = ExportTraceServiceRequest()
        resource_spans = request.resource_spans.add()
        set_attributes(resource_spans.resource.attributes, resource)
        scope_spans = resource_spans.scope_spans.add()
        scope_spans.scope.name, scope_spans.scope.version = "axonize", "0.1.0"
        scope_spans.spans.extend(pending[at : at + _SPANS_PER_REQUEST])
        yield request


class OwnLoad:
    """One serving process that runs steps of about 20 ms over at most `slots` requests at once."""

    def __init__(self, seed: int, *, slots: int = 48, start_ns: int, mean_output: int = 160) -> None:
        self.random = random.Random(seed)
        self.slots = slots
        self.now = start_ns
        self.mean_output = mean_output
        self.seq = self.random.randrange(1000)
        self.step_seq = 0
        self.members = 0
        gpu = f"GPU-{uuid.UUID(int=self.random.getrandbits(128))}"
        instance = str(uuid.UUID(int=self.random.getrandbits(128)))
        self.identity = {
            names.HW_ID: gpu,
            names.GPU_COMPUTE_RESOURCE: gpu,
            names.GPU_PROVENANCE: "measured",
        }
        self.resource = {
            "telemetry.sdk.language": "python",
            "telemetry.sdk.name": "opentelemetry",
            "telemetry.sdk.version": "1.45.2",
            "service.name": "chat",
            "service.instance.id": instance,
            "host.name": f"node-{seed}",
            "process.pid": 1000 + seed,
            names.ENGINE: "vllm",
            names.MODEL: _MODEL,
            names.GPU_CONTEXT: f"node-{seed}/{1000 + seed}/cuda:0",
            "telemetry.distro.name": "axonize",
        }
        self._sample: tuple[int, dict[str, Any]] = (-1, {})
        self._engine_trace = (-1, b"")

    def run(self, requests: int) -> tuple[list[Span], list[Span]]:
        """Serve so many requests; give the spans of requests (4 each) and the spans of steps."""
        live: list[dict[str, Any]] = []
        served: list[Span] = []
        steps: list[Span] = []
        waiting = [self._arrive() for _ in range(requests)]
        while waiting or live:
            while waiting and len(live) < self.slots and (waiting[0]["arrived"] <= self.now or not live):
                live.append(waiting.pop(0))
                self.now = max(self.now, live[-1]["arrived"])
            begin = self.now
            self.now += int(self.random.gauss(18e6, 1.5e6) + 2e4 * sum(r["input"] for r in live if not r["times"]))
            steps.append(self._step(live, begin))
            for request in live:
                request.setdefault("began", begin)
                request["times"].append(self.now)
            done = [r for r in live if len(r["times"]) == r["output"]]
            live = [r for r in live if len(r["times"]) < r["output"]]
            for request in done:
                served += self._spans(request)
        return served, steps

    def _arrive(self) -> dict[str, Any]:
        self.seq += 1
        # Four fifths of what the server can do: a step costs 18 ms for all slots, a prompt another 8 ms.
        busy_s = self.mean_output * 0.018 / self.slots + 0.008
        gap_ns = self.random.expovariate(0.8 / busy_s) * 1e9
        self._arrived = getattr(self, "_arrived", self.now) + int(gap_ns)
        return {
            "seq": self.seq,
            "arrived": self._arrived,
            "input": max(3, int(self.random.lognormvariate(5.5, 0.9))),
            "output": max(2, int(self.random.expovariate(1 / self.mean_output))),
            "times": [],
            "id": f"chatcmpl-{uuid.UUID(int=self.random.getrandbits(128)).hex}",
            "trace_id": self.random.randbytes(16),
            "span_id": self.random.randbytes(8),
        }

    def _device(self) -> dict[str, Any]:
        """Readings as of the last sample, taken once a second."""
        second = self.now // 10**9
        if self._sample[0] != second:
            readings = {
                names.GPU_UTILIZATION: self.random.randrange(70, 100) / 100,
                names.GPU_MEMORY_BYTES: 70 * 2**30 + self.random.randrange(64) * 2**20,
                names.GPU_POWER_W: self.random.randrange(380_000, 690_000) / 1000,
            }
            self._sample = (second, readings)
        return {**self.identity, **self._sample[1]}

    def _spans(self, r: dict[str, Any]) -> list[Span]:
        first, last, n = r["times"][0], r["times"][-1], r["output"]
        gaps = sorted((b - a) / 1e6 for a, b in zip(r["times"], r["times"][1:], strict=False)) or [0.0]
        itl = {names.ITL_P50_MS: gaps[len(gaps) // 2], names.ITL_P99_MS: gaps[int(len(gaps) * 0.99)]}
        latency = {
            names.LATENCY_QUEUE_S: (r["began"] - r["arrived"]) / 1e9,
            names.LATENCY_TTFT_S: (first - r["arrived"]) / 1e9,
            names.LATENCY_TPOT_S: (last - first) / (n - 1) / 1e9,
            names.LATENCY_E2E_S: (last - r["arrived"]) / 1e9,
        }
        tokens = {names.INPUT_TOKENS: r["input"], names.OUTPUT_TOKENS: n}
        own = {
            names.OPERATION: "chat",
            names.MODEL: _MODEL,
            names.PROVIDER: "vllm",
            names.REQUEST_ID: r["id"],
            **tokens,
            **latency,
        }
        own[names.FINISH_REASONS] = ["length" if n % 7 == 0 else "stop"]
        common = {names.REQUEST_SEQ: r["seq"]}
        ids = {"trace_id": r["trace_id"]}
        inside = {**ids, "parent_span_id": r["span_id"]}
        device = self._device()
        prefill = {names.INPUT_TOKENS: r["input"], names.STEPS: 1, **device}
        decode = {names.OUTPUT_TOKENS: n, names.STEPS: n - 1, **itl, names.ITL_MAX_MS: gaps[-1], **device}
        named = {**self.identity, names.HW_NAME: "NVIDIA H100 80GB HBM3"}
        request = own_span("request", r["arrived"], last, {**own, **named, **common}, **ids, span_id=r["span_id"])
        request.status.code = 1
        spans = [
            request,
            own_span("queue", r["arrived"], r["began"], {names.GPU_PROVENANCE: "measured", **common}, **inside),
            own_span("prefill", r["began"], first, {**prefill, **common}, **inside),
            own_span("decode", first, last, {**decode, **common}, **inside),
        ]
        for span in spans[1:]:
            span.span_id = self.random.randbytes(8)
        return spans

    def _step(self, live: list[dict[str, Any]], begin: int) -> Span:
        self.step_seq += 1
        self.members += len(live)
        minute = begin // (60 * 10**9)
        if self._engine_trace[0] != minute:
            self._engine_trace = (minute, self.random.randbytes(16))
        prefill = [0 if r["times"] else r["input"] for r in live]
        decode = [1 if r["times"] else 0 for r in live]
        context = [r["input"] + len(r["times"]) if r["times"] else 0 for r in live]
        size = len(live)
        attributes = {
            names.BATCH_SEQ: self.step_seq,
            names.BATCH_SIZE: size,
            names.BATCH_PREFILL_TOKENS: sum(prefill),
            names.BATCH_DECODE_TOKENS: sum(decode),
            names.MEMBER_REQUEST_SEQ: struct.pack(f"<{size}Q", *(r["seq"] for r in live)),
            names.MEMBER_PREFILL_TOKENS: struct.pack(f"<{size}I", *prefill),
            names.MEMBER_DECODE_TOKENS: struct.pack(f"<{size}I", *decode),
            names.MEMBER_CONTEXT_TOKENS: struct.pack(f"<{size}I", *context),
            **self._device(),
        }
        span = own_span(
            "batch", begin, self.now, attributes, trace_id=self._engine_trace[1], span_id=self.random.randbytes(8)
        )
        for request in live:
            if not request["times"]:
                span.links.add(trace_id=request["trace_id"], span_id=request["span_id"], flags=257)
        return span
