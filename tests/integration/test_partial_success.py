"""What a request holds that cannot be stored is counted and told to its sender; the rest of it is stored."""

from __future__ import annotations

import json
import secrets
import socket
import time

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from axonize_server.spool import messages, sealed_segments
from axonize_server.stats import read_stats
from otlp_json_bodies import as_json

DAY_NS = 86_400 * 10**9
HOUR_NS = 3_600 * 10**9


def spans(*times):
    request = ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add()
    for at in times:
        scope.spans.add(trace_id=secrets.token_bytes(16), span_id=secrets.token_bytes(8), start_time_unix_nano=at)
    return request


def points(*times):
    request = ExportMetricsServiceRequest()
    metric = request.resource_metrics.add().scope_metrics.add().metrics.add(name="m")
    for at in times:
        metric.gauge.data_points.add(time_unix_nano=at, as_int=1)
    return request


def logs(*times):
    request = ExportLogsServiceRequest()
    scope = request.resource_logs.add().scope_logs.add()
    for at in times:
        scope.log_records.add(time_unix_nano=at)
    return request


SIGNALS = {
    "traces": (spans, ExportTraceServiceResponse, "rejected_spans"),
    "metrics": (points, ExportMetricsServiceResponse, "rejected_data_points"),
    "logs": (logs, ExportLogsServiceResponse, "rejected_log_records"),
}


def spooled(receiver):
    """The requests in the sealed segments, without our own fields."""
    found = []
    for segment in sealed_segments(receiver.settings.spool_dir):
        for message, _ in list(messages(memoryview(segment.path.read_bytes())))[1:]:
            request = SIGNALS[segment.signal][0]().FromString(bytes(message))
            request.DiscardUnknownFields()
            found.append(request)
    return found


def posted_json(receiver, request, signal):
    status, headers, answer = receiver.post(as_json(request), f"/v1/{signal}", content_type="application/json")
    assert headers["content-type"] == "application/json"
    return status, json.loads(answer)


@pytest.mark.parametrize("signal", SIGNALS)
def test_json_is_stored_as_protobuf_and_answered_in_json(make_receiver, signal):
    """The spool holds what the same request in protobuf would have left there; counts are text, as 64 bits are."""
    make, _, field = SIGNALS[signal]
    receiver, now = make_receiver(), time.time_ns()
    request, first, *words = make(now, now + 1), *field.split("_")
    assert posted_json(receiver, request, signal) == (200, {})
    status, answer = posted_json(receiver, make(1), signal)
    assert (status, answer["partialSuccess"][first + "".join(map(str.title, words))]) == (200, "1")
    assert "older than they are kept" in answer["partialSuccess"]["errorMessage"]
    status, answer = posted_json(receiver, make(), signal)
    assert (status, answer) == (200, {})
    receiver.stop()
    assert spooled(receiver) == [request]


def counters(receiver):
    return read_stats(receiver.settings.data_dir)[0]["counters"]


@pytest.mark.parametrize("signal", SIGNALS)
def test_the_rest_is_stored(make_receiver, signal):
    """Records past the days of keeping or an hour ahead are rejected with counts and reasons, and only they."""
    make, response, field = SIGNALS[signal]
    receiver = make_receiver(ttl_spans_days=2, ttl_metrics_days=2, ttl_gpu_metrics_days=1, ttl_logs_days=2)
    now = time.time_ns()
    good = (now - DAY_NS, now, now + HOUR_NS // 2)
    request = make(now - 2 * DAY_NS - HOUR_NS, good[0], now + HOUR_NS + 60 * 10**9, *good[1:], now - 30 * DAY_NS)
    status, _, answer = receiver.post(request.SerializeToString(), f"/v1/{signal}")
    partial = response.FromString(answer).partial_success
    assert (status, getattr(partial, field)) == (200, 3)
    assert "2 " in partial.error_message
    assert "older than they are kept" in partial.error_message
    assert "more than 1 h ahead" in partial.error_message
    receiver.stop()
    (kept,) = spooled(receiver)
    assert times(kept, signal) == list(good)
    found = counters(receiver)
    assert found[f"rejected_records.{signal}.too_old"] == 2
    assert found[f"rejected_records.{signal}.ahead"] == 1
    assert found[f"acked_records.{signal}"] == 3


def times(request, signal):
    if signal == "traces":
        return [span.start_time_unix_nano for span in request.resource_spans[0].scope_spans[0].spans]
    if signal == "logs":
        return [record.time_unix_nano for record in request.resource_logs[0].scope_logs[0].log_records]
    metric = request.resource_metrics[0].scope_metrics[0].metrics[0]
    return [point.time_unix_nano for point in metric.gauge.data_points]


@pytest.mark.parametrize("signal", SIGNALS)
def test_all_may_be_rejected(receiver, signal):
    """A request of which nothing can be stored succeeds, so that nobody sends it again, and says how many that was."""
    make, response, field = SIGNALS[signal]
    status, _, answer = receiver.post(make(1, 2).SerializeToString(), f"/v1/{signal}")
    assert (status, getattr(response.FromString(answer).partial_success, field)) == (200, 2)
    assert spooled(receiver) == []


def test_a_warning_rejects_nothing(receiver):
    """A count of zero with a message: all was stored, but the sender should look at it."""
    request = logs(time.time_ns())
    request.resource_logs[0].scope_logs[0].log_records[0].trace_id = b"short"
    status, _, answer = receiver.post(request.SerializeToString(), "/v1/logs")
    partial = ExportLogsServiceResponse.FromString(answer).partial_success
    assert (status, partial.rejected_log_records) == (200, 0)
    assert "without their ids" in partial.error_message


@pytest.mark.parametrize("signal", SIGNALS)
def test_grpc_says_the_same(make_receiver, signal):
    """Partial success is part of the answer there too."""
    grpc = pytest.importorskip("grpc")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    make_receiver(grpc_port=port).wait_ready()
    make, response, field = SIGNALS[signal]
    service = response.DESCRIPTOR.file.package
    name = {"traces": "Trace", "metrics": "Metrics", "logs": "Logs"}[signal]
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        export = channel.unary_unary(f"/{service}.{name}Service/Export")
        answer = export(make(time.time_ns(), 1).SerializeToString(), timeout=10)
    assert getattr(response.FromString(answer).partial_success, field) == 1
