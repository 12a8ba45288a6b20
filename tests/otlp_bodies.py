"""OTLP request bodies as a busy inference server sends them; each seed gives another one."""

from __future__ import annotations

import random
import time

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

ATTRIBUTES = 22


def trace_request(seed=0, spans=3):
    """About 1 KB a span: 22 attributes, a link, one or two events."""
    random_ = random.Random(seed)
    request = ExportTraceServiceRequest()
    resource = request.resource_spans.add()
    for index in range(10):
        _text(resource.resource.attributes.add(), f"service.resource{index}", random_)
    scope = resource.scope_spans.add()
    scope.scope.name = "axonize"
    scope.spans.extend(_span(random_, index) for index in range(spans))
    return request


def trace_body(seed=0, spans=3):
    return trace_request(seed, spans).SerializeToString()


def _span(random_, index):
    start_ns = time.time_ns() + index
    span = Span(
        trace_id=random_.randbytes(16),
        span_id=random_.randbytes(8),
        parent_span_id=random_.randbytes(8),
        name="decode",
        kind=1,
        start_time_unix_nano=start_ns,
        end_time_unix_nano=start_ns + random_.randrange(10**9),
    )
    for number in range(ATTRIBUTES):
        attribute = span.attributes.add()
        if number % 3 == 0:
            attribute.key, attribute.value.int_value = f"gen_ai.attribute.n{number}", random_.randrange(1 << 40)
        elif number % 3 == 1:
            attribute.key, attribute.value.double_value = f"gen_ai.attribute.n{number}", random_.random()
        else:
            _text(attribute, f"gen_ai.attribute.n{number}", random_)
    span.links.add(trace_id=random_.randbytes(16), span_id=random_.randbytes(8))
    for number in range(1 + index % 2):
        event = span.events.add(name="token", time_unix_nano=start_ns)
        event.attributes.add(key="index").value.int_value = number
    return span


def _text(attribute, key, random_):
    attribute.key, attribute.value.string_value = key, f"value-{random_.random()}"


def metrics_body(seed=0, points=3):
    request = ExportMetricsServiceRequest()
    metric = request.resource_metrics.add().scope_metrics.add().metrics.add(name="hw.gpu.utilization")
    for index in range(points):
        metric.gauge.data_points.add(time_unix_nano=time.time_ns(), as_double=seed + index)
    return request.SerializeToString()


def logs_body(seed=0, records=3):
    request = ExportLogsServiceRequest()
    scope = request.resource_logs.add().scope_logs.add()
    for index in range(records):
        record = scope.log_records.add(time_unix_nano=time.time_ns(), severity_number=9)
        record.body.string_value = f"record {index} of {seed}"
    return request.SerializeToString()
