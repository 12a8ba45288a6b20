"""What OTLP's specification asks of a server, clause by clause, in each encoding and over each transport.

https://opentelemetry.io/docs/specs/otlp/ (1.7 and later); partial success has a file of its own.
"""

from __future__ import annotations

import gzip
import json
import socket
import time
from importlib import import_module
from pathlib import Path

import pytest
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from axonize_server.otlp import Accepted
from axonize_server.otlp_answer import failure, success
from axonize_server.spool import messages, sealed_segments
from otlp_bodies import logs_body, metrics_body, trace_body
from otlp_json_bodies import as_json

PROTOBUF, JSON = "application/x-protobuf", "application/json"
SIGNALS = {
    "traces": (trace_body, ExportTraceServiceRequest, "trace.v1.TraceService"),
    "metrics": (metrics_body, ExportMetricsServiceRequest, "metrics.v1.MetricsService"),
    "logs": (logs_body, ExportLogsServiceRequest, "logs.v1.LogsService"),
}


def body_of(signal, encoding):
    make, kind, _ = SIGNALS[signal]
    body = make()
    return as_json(kind.FromString(body)) if encoding == JSON else body


def failed(answer, status, encoding):
    """The message of a failure, which is a Status in the encoding of the request."""
    got, headers, body = answer
    assert (got, headers["content-type"]) == (status, encoding)
    if encoding == JSON:
        told = json.loads(body)
        assert told["code"] > 0
        return told["message"]
    told = Status.FromString(body)
    assert told.code > 0
    return told.message


def stored(receiver):
    """How many requests are in the sealed segments, by signal."""
    return {
        segment.signal: len(list(messages(memoryview(segment.path.read_bytes())))) - 1
        for segment in sealed_segments(receiver.settings.spool_dir)
    }


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A receiver that takes little, over HTTP and gRPC."""
    from fix_receiver import Receiver

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    receiver = Receiver(
        tmp_path_factory.mktemp("small"), grpc_port=port, max_body_bytes=100_000, max_compressed_bytes=20_000
    )
    receiver.wait_ready()
    yield receiver
    receiver.close()


@pytest.fixture(scope="module")
def call(small):
    """Calls Export of a signal over gRPC with bytes."""
    grpc = pytest.importorskip("grpc")
    with grpc.insecure_channel(f"127.0.0.1:{small.settings.grpc_port}") as channel:

        def export(signal, body, **options):
            method = f"/opentelemetry.proto.collector.{SIGNALS[signal][2]}/Export"
            return channel.unary_unary(method)(body, timeout=20, **options)

        yield export


@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("encoding", [PROTOBUF, JSON])
@pytest.mark.parametrize("members", [0, 1, 3])
def test_both_encodings_and_compressions_on_one_port(receiver, signal, encoding, members):
    """MUST: none and gzip; a gzip body may have several members. Success is 200 with an empty response."""
    body = body_of(signal, encoding)
    headers = {"content_type": encoding}
    if members:
        cut = len(body) // members + 1
        body = b"".join(gzip.compress(body[at : at + cut]) for at in range(0, len(body), cut))
        headers["content_encoding"] = "gzip"
    status, answered, answer = receiver.post(body, f"/v1/{signal}", **headers)
    assert (status, answered["content-type"]) == (200, encoding)
    assert answer == (b"{}" if encoding == JSON else b"")


@pytest.mark.parametrize("signal", SIGNALS)
def test_an_empty_request_succeeds(small, call, signal):
    """SHOULD: nothing in it is nothing wrong with it."""
    assert small.post(b"", f"/v1/{signal}")[::2] == (200, b"")
    assert small.post(b"{}", f"/v1/{signal}", content_type=JSON)[::2] == (200, b"{}")
    assert call(signal, b"") == b""


@pytest.mark.parametrize("encoding", [PROTOBUF, JSON])
def test_a_body_over_a_limit_is_413(small, encoding):
    """MUST: as sent, as sent compressed, and once inflated; a client must not send it again."""
    for body, headers in (
        (b" " * 100_001, {}),
        (b"\x1f\x8b" + bytes(20_000), {"content_encoding": "gzip"}),
        (gzip.compress(bytes(10**6)), {"content_encoding": "gzip"}),
        (gzip.compress(bytes(60_000)) * 2, {"content_encoding": "GZIP"}),
    ):
        answer = small.post(body, content_type=encoding, **headers)
        assert "larger than" in failed(answer, 413, encoding)
        assert "retry-after" not in answer[1]
    assert (
        small.post(gzip.compress(body_of("traces", encoding)), content_encoding="gzip", content_type=encoding)[0] == 200
    )


def test_a_message_over_the_limit_is_resource_exhausted(small, call):
    """MUST: over gRPC without RetryInfo, plain, and once inflated."""
    grpc = pytest.importorskip("grpc")
    for body, options in ((bytes(100_001), {}), (bytes(50 << 20), {"compression": grpc.Compression.Gzip})):
        with pytest.raises(grpc.RpcError) as refused:
            call("traces", body, **options)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "grpc-status-details-bin" not in dict(refused.value.trailing_metadata())
    assert call("traces", trace_body(), compression=grpc.Compression.Gzip) == b""
    assert peak_bytes(small) < 400 << 20


def peak_bytes(receiver):
    """The most memory the receiver ever held."""
    status = Path(f"/proc/{receiver.child.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) << 10


def test_responses_are_small():
    """MUST: whatever there is to say, a response stays far below 4 MiB."""
    accepted = Accepted(1, set(), b"", {"too_old": 2**40}, "x" * 10_000_000)
    for encoding in (PROTOBUF, JSON):
        for signal in SIGNALS:
            assert 1000 < len(success(signal, accepted, encoding)) < 4096
        assert 1000 < len(failure(3, "ü" * 10_000_000, encoding)) < 10_000


@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("encoding", [PROTOBUF, JSON])
def test_bad_data_is_400(small, signal, encoding):
    """MUST: with a Status in the request's encoding; compressed badly it is bad data too."""
    path = f"/v1/{signal}"
    assert "no valid Export" in failed(small.post(b"\xff\xff", path, content_type=encoding), 400, encoding)
    for bad in (b"no gzip", gzip.compress(b"\xff" * 100)[:-9]):
        answer = small.post(bad, path, content_type=encoding, content_encoding="gzip")
        assert "gzip" in failed(answer, 400, encoding)


@pytest.mark.parametrize("signal", SIGNALS)
def test_bad_data_is_invalid_argument(call, signal):
    """MUST NOT be retried, over gRPC either."""
    grpc = pytest.importorskip("grpc")
    with pytest.raises(grpc.RpcError) as refused:
        call(signal, b"\xff\xff")
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "no valid Export" in refused.value.details()


@pytest.mark.parametrize("headers", [{"content_type": "text/plain"}, {"content_type": ""}], ids=str)
def test_another_type_is_415(small, headers):
    """A Status in protobuf names what would be taken."""
    assert "application/json" in failed(small.post(trace_body(), **headers), 415, PROTOBUF)


@pytest.mark.parametrize("encoding", [PROTOBUF, JSON])
def test_another_compression_is_415(small, encoding):
    """In the encoding of the request."""
    answer = small.post(trace_body(), content_type=encoding, content_encoding="zstd")
    assert "zstd" in failed(answer, 415, encoding)


@pytest.mark.parametrize("encoding", [PROTOBUF, JSON])
def test_overload_is_503_with_retry_after(make_receiver, encoding):
    """SHOULD: an overloaded server says when to try again, over gRPC by RetryInfo."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    receiver = make_receiver(spool_max_bytes=1024, grpc_port=port)
    body = body_of("traces", encoding)
    answer = receiver.post(body, content_type=encoding)
    assert "AXONIZE_SPOOL_MAX_BYTES" in failed(answer, 503, encoding)
    assert int(answer[1]["retry-after"]) > 0
    grpc = pytest.importorskip("grpc")
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel, pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary("/opentelemetry.proto.collector.trace.v1.TraceService/Export")(trace_body(), timeout=20)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    status = Status.FromString(dict(refused.value.trailing_metadata())["grpc-status-details-bin"])
    hint = RetryInfo()
    assert (status.code, status.details[0].Unpack(hint)) == (14, True)
    assert hint.retry_delay.seconds > 0


def official(transport, signal, receiver, grpc_port):
    """The official exporter of a signal; there is none for JSON in OpenTelemetry for Python."""
    module, name, path = {
        "traces": ("trace_exporter", "OTLPSpanExporter", "/v1/traces"),
        "metrics": ("metric_exporter", "OTLPMetricExporter", "/v1/metrics"),
        "logs": ("_log_exporter", "OTLPLogExporter", "/v1/logs"),
    }[signal]
    exporter = getattr(import_module(f"opentelemetry.exporter.otlp.proto.{transport}.{module}"), name)
    return exporter(receiver.url + path) if transport == "http" else exporter(f"127.0.0.1:{grpc_port}", insecure=True)


@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_the_official_exporters_are_served(make_receiver, transport):
    """Spans, metrics and logs of the OpenTelemetry SDK are acknowledged and stored."""
    from opentelemetry._logs import LogRecord
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor

    pytest.importorskip("grpc")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    receiver = make_receiver(grpc_port=port)
    receiver.wait_ready()
    exporters = {signal: official(transport, signal, receiver, port) for signal in SIGNALS}
    tracing = TracerProvider()
    tracing.add_span_processor(SimpleSpanProcessor(exporters["traces"]))
    tracing.get_tracer("t").start_span("span").end()
    metering = MeterProvider([PeriodicExportingMetricReader(exporters["metrics"], export_interval_millis=10**6)])
    metering.get_meter("m").create_counter("requests").add(3, {"model": "m"})
    metering.get_meter("m").create_histogram("latency").record(0.5)
    logging = LoggerProvider()
    logging.add_log_record_processor(SimpleLogRecordProcessor(exporters["logs"]))
    logging.get_logger("l").emit(LogRecord(timestamp=time.time_ns(), body="hello"))
    for provider in (tracing, metering, logging):
        provider.shutdown()
    receiver.stop()
    assert stored(receiver) == {"traces": 1, "metrics": 1, "logs": 1}
