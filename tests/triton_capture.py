"""Where spans of a Triton server arrive: Axonize's and, in its OpenTelemetry mode, Triton's own."""

from __future__ import annotations

import json
import struct
import time
from collections import defaultdict

from vllm_capture import Capture, CapturedSpan

__all__ = ["TritonCapture", "by_model", "key_of", "members", "model_of"]


class TritonCapture(Capture):
    """As ``Capture``; ``foreign`` are the spans that Triton sends, as OTLP in JSON."""

    def take(self, path, headers, body):
        if headers.get("Content-Type") != "application/json":
            super().take(path, headers, body)
            return
        found = list(_tritons(json.loads(body)))
        with self._lock:
            self.foreign += found

    def tritons(self) -> list[CapturedSpan]:
        """Return Triton's own spans that are here so far."""
        with self._lock:
            return list(self.foreign)

    def named(self, prefix: str, count: int, timeout_s: float = 20.0) -> dict[str, CapturedSpan]:
        """Wait for so many request spans whose request ids begin so, and whether more come; return them by their ids.

        Raises:
            AssertionError: there are fewer when the time is over, or more, or two of one id.
        """
        deadline, seen_at = time.monotonic() + timeout_s, None
        while seen_at is None or time.monotonic() < seen_at + 0.3:
            found = [span for span in self.of("request") if (span["ai.request.id"] or "").startswith(prefix)]
            if len(found) >= count and seen_at is None:
                seen_at = time.monotonic()
            assert seen_at or time.monotonic() < deadline, (
                f"{len(found)} of {count} requests {prefix}… in {timeout_s} s"
            )
            time.sleep(0.05)
        by_id = {span["ai.request.id"]: span for span in found}
        assert len(found) == len(by_id) == count, f"{len(found)} spans of {len(by_id)} requests instead of {count}"
        return by_id

    def children(self, parent: CapturedSpan) -> dict[str, CapturedSpan]:
        """Return the phases of a request that are here so far, by their names."""
        spans = [s for phase in ("queue", "prefill", "decode") for s in self.of(phase) if s.parent_id == parent.span_id]
        assert len({s.phase for s in spans}) == len(spans), spans
        return {span.phase: span for span in spans}

    def batches(self, model: str) -> list[CapturedSpan]:
        """Return the batches of a model that are here so far."""
        return [span for span in self.of("batch") if model_of(span) == model]

    def wait_for_batch(self, request: CapturedSpan, timeout_s: float = 10.0) -> CapturedSpan:
        """Wait for the first batch that a request was in, which tells its end when it is over itself."""
        deadline = time.monotonic() + timeout_s
        while not (found := [b for b in self.of("batch") if (request.trace_id, request.span_id) in b.links]):
            assert time.monotonic() < deadline, f"no batch of {request}"
            time.sleep(0.05)
        assert len(found) == 1
        return found[0]


def model_of(span: CapturedSpan) -> str:
    """Return the model whose process told of a span."""
    return span.resource["gen_ai.request.model"]


def key_of(request: CapturedSpan) -> tuple[str, int]:
    """Return what a request is unique by: its process and its number there."""
    return request.resource["service.instance.id"], request["ai.request.seq"]


def members(batch: CapturedSpan) -> list[tuple[str, int]]:
    """Return the requests of a batch, as ``key_of`` names them."""
    packed = batch["ai.batch.member.request_seq"]
    return [(batch.resource["service.instance.id"], seq) for (seq,) in struct.iter_unpack("<Q", packed)]


def by_model(spans: list[CapturedSpan]) -> dict[str, list[CapturedSpan]]:
    """Return spans by the models they are of."""
    found = defaultdict(list)
    for span in spans:
        found[model_of(span)].append(span)
    return dict(found)


def _tritons(said):
    for resource_spans in said["resourceSpans"]:
        for scope_spans in resource_spans["scopeSpans"]:
            for span in scope_spans["spans"]:
                yield CapturedSpan(
                    phase=span["name"],
                    trace_id=span["traceId"],
                    span_id=span["spanId"],
                    parent_id=span.get("parentSpanId", ""),
                    start_ns=int(span["startTimeUnixNano"]),
                    end_ns=int(span["endTimeUnixNano"]),
                    attributes={a["key"]: next(iter(a["value"].values()), None) for a in span.get("attributes", ())},
                    resource={},
                    scope=scope_spans["scope"]["name"],
                    error=None,
                )
