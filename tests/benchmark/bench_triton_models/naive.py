"""The other way to trace an ``execute``: OTel spans of the SDK in it, as its documentation shows, one per request.

The exporter encodes as OTLP and throws away, which is less than a real one does.
"""

from __future__ import annotations

import json

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.propagate import extract
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult


class Encoding(SpanExporter):
    """Encodes, as the OTLP exporter does, and keeps nothing."""

    def export(self, spans):
        encode_spans(spans).SerializeToString()
        return SpanExportResult.SUCCESS


def naive_execute(execute):
    """Return an ``execute`` inside a span of the batch, with one span per request, child of its caller's."""
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(Encoding()))
    tracer = provider.get_tracer("naive")

    def traced(requests):
        spans = []
        for request in requests:
            carrier = json.loads(request.parameters() or "{}")
            attributes = {"request.id": request.request_id(), "batch.size": len(requests)}
            spans.append(tracer.start_span("request", context=extract(carrier), attributes=attributes))
        with tracer.start_as_current_span("batch", attributes={"batch.size": len(requests)}):
            responses = execute(requests)
        for span in spans:
            span.end()
        return responses

    return traced
