"""The other way to trace an engine's steps: a thread of the engine's own process builds OTel spans and encodes them."""

from __future__ import annotations

import threading
import time
from collections import deque

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.trace import set_span_in_context

PERIOD_S = 0.05
CHUNK = 512


class Ended(SpanProcessor):
    """Keeps ended spans until they are encoded."""

    def __init__(self):
        self.spans = []

    def on_end(self, span):
        self.spans.append(span)


class Naive:
    """One span per step and one per member of it, encoded as OTLP and thrown away; what is left at ``release`` too."""

    def __init__(self, scheduler) -> None:
        self.encoded = 0
        self._scheduler = scheduler
        self._steps = deque()
        self._ended = Ended()
        provider = TracerProvider()
        provider.add_span_processor(self._ended)
        self._tracer = provider.get_tracer("naive")

    def record(self) -> None:
        """Hook the two methods and start the thread."""
        schedule, update_from_output = self._scheduler.schedule, self._scheduler.update_from_output
        keep, clock, planned = self._steps.append, time.time_ns, deque()

        def recorded_schedule(*args, **kwargs):
            started_ns = clock()
            output = schedule(*args, **kwargs)
            planned.append((started_ns, clock()))
            return output

        def recorded_update(output, *args, **kwargs):
            updated_ns = clock()
            outputs = update_from_output(output, *args, **kwargs)
            keep((planned.popleft(), updated_ns, clock(), output.num_scheduled_tokens, len(self._scheduler.running)))
            return outputs

        self._scheduler.schedule, self._scheduler.update_from_output = recorded_schedule, recorded_update
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Take both away."""
        for name in ("schedule", "update_from_output"):
            del self._scheduler.__dict__[name]
        self._stop.set()
        self._thread.join()
        self._steps.clear()

    def _run(self) -> None:
        while not self._stop.wait(PERIOD_S):
            while self._steps and not self._stop.is_set():
                self._spans(*self._steps.popleft())
                if len(self._ended.spans) >= CHUNK:
                    self._encode()
            self._encode()

    def _spans(self, planned, updated_ns, ended_ns, members, running) -> None:
        started_ns, scheduled_ns = planned
        attributes = {
            "batch.size": len(members),
            "batch.tokens": sum(members.values()),
            "batch.running": running,
            "schedule_ms": (scheduled_ns - started_ns) / 1e6,
            "execute_ms": (updated_ns - scheduled_ns) / 1e6,
        }
        step = self._tracer.start_span("step", start_time=started_ns, attributes=attributes)
        context = set_span_in_context(step)
        for request_id, tokens in members.items():
            one = {"request.id": request_id, "tokens": tokens, "phase": "prefill" if tokens > 1 else "decode"}
            self._tracer.start_span("token", context, start_time=started_ns, attributes=one).end(ended_ns)
        step.end(ended_ns)

    def _encode(self) -> None:
        spans, self._ended.spans = self._ended.spans, []
        if spans:
            encode_spans(spans).SerializeToString()
            self.encoded += len(spans)
