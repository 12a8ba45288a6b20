"""An OTLP endpoint that keeps the agent's spans as simple objects, by phase."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from fix_otlp import OtlpSink

__all__ = ["Capture", "CapturedSpan", "captured_span"]


@dataclass
class CapturedSpan:
    """A span as it was sent: ids in hex, times in epoch nanoseconds, attribute values as Python's."""

    phase: str
    trace_id: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    resource: dict[str, Any]
    scope: str
    error: str | None
    events: list[tuple[int, str, dict[str, Any]]] = field(default_factory=list)
    links: list[tuple[str, str]] = field(default_factory=list)

    @property
    def duration_ns(self) -> int:
        return self.end_ns - self.start_ns

    def __getitem__(self, name: str) -> Any:
        """Return an attribute, None where it was not sent."""
        return self.attributes.get(name)


class Capture(OtlpSink):
    """``phases["request"]`` and so on, in the order of arrival; spans of other instrumentations are in ``foreign``.

    ``total`` counts ours by phase, those that were forgotten too.
    """

    def __init__(self):
        self.phases: dict[str, list[CapturedSpan]] = defaultdict(list)
        self.foreign: list[CapturedSpan] = []
        self.total: Counter[str] = Counter()
        self._lock = threading.Lock()
        super().__init__()

    def take(self, path, headers, body):
        if path != "/v1/traces" or self.status != 200:
            super().take(path, headers, body)
            return
        found = list(_spans(ExportTraceServiceRequest.FromString(body)))
        with self._lock:
            self.requests.append((path, headers))
            for span in found:
                (self.phases[span.phase] if span.scope == "axonize" else self.foreign).append(span)
                self.total[span.phase] += span.scope == "axonize"

    def of(self, phase: str) -> list[CapturedSpan]:
        """Return the spans of a phase that are here so far."""
        with self._lock:
            return list(self.phases[phase])

    def forget(self) -> None:
        """Let go of what is here; ``total`` still counts it."""
        with self._lock:
            self.phases.clear()
            self.foreign.clear()
            self.requests.clear()

    def wait_for(self, requests: int, timeout_s: float = 30.0) -> list[CapturedSpan]:
        """Wait until there are so many request spans, and nothing more for half a second; return them.

        Raises:
            AssertionError: there are fewer when the time is over, or there are more.
        """
        deadline, before = time.monotonic() + timeout_s, (0, 0.0)
        while True:
            with self._lock:
                seen, all_spans = len(self.phases["request"]), sum(map(len, self.phases.values()))
            if all_spans != before[0]:
                before = (all_spans, time.monotonic())
            if seen >= requests and time.monotonic() - before[1] > 0.5:
                break
            assert time.monotonic() < deadline, f"{seen} of {requests} requests in {timeout_s} s, {all_spans} spans"
            time.sleep(0.05)
        assert seen == requests, f"{seen} request spans instead of {requests}"
        return self.of("request")


def captured_span(span) -> CapturedSpan:
    """Return a span of this process in the form of those that were sent."""
    return CapturedSpan(
        phase=span.name,
        trace_id=f"{span.context.trace_id:032x}",
        span_id=f"{span.context.span_id:016x}",
        parent_id=f"{span.parent.span_id:016x}" if span.parent else "",
        start_ns=span.start_time,
        end_ns=span.end_time,
        attributes=dict(span.attributes),
        resource=dict(span.resource.attributes),
        scope=span.instrumentation_scope.name,
        error=span.status.description,
        links=[(f"{link.context.trace_id:032x}", f"{link.context.span_id:016x}") for link in span.links],
    )


def _spans(request):
    for resource_spans in request.resource_spans:
        resource = _attributes(resource_spans.resource.attributes)
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                yield CapturedSpan(
                    phase=span.name,
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent_id=span.parent_span_id.hex(),
                    start_ns=span.start_time_unix_nano,
                    end_ns=span.end_time_unix_nano,
                    attributes=_attributes(span.attributes),
                    resource=resource,
                    scope=scope_spans.scope.name,
                    error=span.status.message if span.status.code == 2 else None,
                    events=[(e.time_unix_nano, e.name, _attributes(e.attributes)) for e in span.events],
                    links=[(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
                )


def _attributes(given):
    return {a.key: _value(a.value) for a in given}


def _value(value):
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(v) for v in value.array_value.values]
    return getattr(value, kind) if kind else None
