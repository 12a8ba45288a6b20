"""Batches over real HTTP and real gRPC: what is sent, and what each answer means."""

from __future__ import annotations

import gzip
import shutil
import ssl
import subprocess
import sys

import pytest
import requests
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from axonize_core.export.batch import pack
from axonize_core.export.endpoint import Endpoint
from axonize_core.export.http_sender import HttpSender
from axonize_core.export.senders import make_sender
from fix_otlp_script import ScriptedHttp

BODY = b"an OTLP body " * 100


def endpoint(url, signal="traces", **env):
    return Endpoint.from_env(
        signal,
        {"OTEL_EXPORTER_OTLP_ENDPOINT": url, **{f"OTEL_EXPORTER_OTLP_{name}": value for name, value in env.items()}},
    )


@pytest.fixture
def http(scripted_http):
    """A sender for the scripted endpoint."""
    sender = make_sender(endpoint(scripted_http.url, HEADERS="authorization=Bearer%20x,x-scope=1"))
    yield sender
    sender.close()


def test_a_body_arrives_as_it_was_encoded_with_the_users_headers(scripted_http, http):
    """Compressed above the threshold and plain below, on one connection."""
    for limit in (0, 10_000):
        assert http.send(pack(BODY, 3, 0, limit), 5) == (True, 0, "", "", None)
    assert scripted_http.bodies() == [BODY, BODY]
    (path, first, sent), (_, second, _) = scripted_http.requests
    assert path == "/v1/traces"
    assert gzip.decompress(sent) == BODY
    assert "Content-Encoding" not in second
    for headers in (first, second):
        assert headers["Content-Type"] == "application/x-protobuf"
        assert headers["User-Agent"].startswith("axonize/")
        assert (headers["authorization"], headers["x-scope"]) == ("Bearer x", "1")
    assert len(scripted_http.connections) == 1


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_what_may_be_retried_is_retried_after_what_was_asked_for(scripted_http, http, status):
    """The four codes of the specification, with and without Retry-After."""
    scripted_http.answers = [(status, {"Retry-After": "7"}, b""), (status, {}, b"\x12\x04full")]
    assert http.send(pack(BODY, 3, 0, 0), 5) == (False, 0, f"HTTP {status}", "", 7.0)
    assert http.send(pack(BODY, 3, 0, 0), 5) == (False, 0, f"HTTP {status}", "full", None)


@pytest.mark.parametrize("status", [301, 308, 400, 401, 404, 408, 413, 500, 501])
def test_every_other_answer_is_final(scripted_http, http, status):
    """Sent again they would be refused again, and block what is behind them; a redirect says where to."""
    scripted_http.answers = [(status, {"Location": "https://elsewhere/"} if status < 400 else {}, b"")]
    answer = http.send(pack(BODY, 3, 0, 0), 5)
    assert (answer.settled, answer.refused, answer.reason) == (True, 3, f"HTTP {status}")
    assert answer.detail == ("https://elsewhere/" if status < 400 else "")
    assert len(scripted_http.requests) == 1


def test_what_a_partial_success_rejects_is_counted(scripted_http, http):
    """Traces count spans, metrics data points; a warning rejects none; foreign bodies of a 200 mean success."""
    spans, points = ExportTraceServiceResponse(), ExportMetricsServiceResponse()
    spans.partial_success.rejected_spans, spans.partial_success.error_message = 2, "too old"
    points.partial_success.rejected_data_points = 4
    warning = ExportTraceServiceResponse()
    warning.partial_success.error_message = "deprecated"
    bodies = (spans.SerializeToString(), warning.SerializeToString(), b'{"ok": true}')
    scripted_http.answers = [(200, {}, body) for body in bodies] + [(200, {}, points.SerializeToString())]
    found = [http.send(pack(BODY, 3, 0, 0), 5) for _ in bodies]
    assert [(a.settled, a.refused, a.detail) for a in found] == [
        (True, 2, "too old"),
        (True, 0, "deprecated"),
        (True, 0, ""),
    ]
    metrics = HttpSender(endpoint(scripted_http.url, "metrics"))
    assert metrics.send(pack(BODY, 9, 0, 0), 5).refused == 4
    assert scripted_http.requests[-1][0] == "/v1/metrics"
    metrics.close()


def test_no_answer_is_an_exception_and_means_later(scripted_http, http):
    """Nobody there, or nobody who answers in time."""
    with pytest.raises(requests.RequestException):
        HttpSender(endpoint("http://127.0.0.1:9")).send(pack(BODY, 3, 0, 0), 5)
    scripted_http.answers = [(200, {"Content-Length": "10"}, b"")]
    with pytest.raises(Exception, match="timed out"):
        http.send(pack(BODY, 3, 0, 0), 0.2)


@pytest.fixture
def certificate(tmp_path):
    """A key and a self-signed certificate for localhost, which is its own CA."""
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    key, own = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    extension = ["-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*command, *extension, "-keyout", key, "-out", own], check=True, capture_output=True)
    return key, own


def test_certificates_of_both_sides_are_used(certificate):
    """CERTIFICATE is what the collector's is checked with; CLIENT_KEY and CLIENT_CERTIFICATE say who we are."""
    key, own = certificate
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(own, key)
    tls.load_verify_locations(own)
    tls.verify_mode = ssl.CERT_REQUIRED
    server = ScriptedHttp(tls)
    ours = {"CERTIFICATE": str(own), "CLIENT_KEY": str(key), "CLIENT_CERTIFICATE": str(own)}
    try:
        good = HttpSender(endpoint(server.url, **ours))
        assert good.send(pack(BODY, 3, 0, 0), 5).settled
        good.close()
        for missing in ({"CERTIFICATE": str(own)}, {}):
            stranger = HttpSender(endpoint(server.url, **missing))
            with pytest.raises(requests.RequestException):
                stranger.send(pack(BODY, 3, 0, 0), 5)
            stranger.close()
    finally:
        server.close()
    assert server.bodies() == [BODY]


@pytest.fixture
def grpc_sender(scripted_grpc):
    """A sender for the scripted gRPC endpoint."""
    sender = make_sender(endpoint(f"http://{scripted_grpc.address}", PROTOCOL="grpc", HEADERS="Authorization=secret"))
    yield sender
    sender.close()


def test_a_body_arrives_over_grpc_as_it_was_encoded(scripted_grpc, grpc_sender):
    """Whether it was stored compressed or not; headers travel as metadata."""
    for limit in (0, None):
        assert grpc_sender.send(pack(BODY, 3, 0, limit), 5).settled
    assert [body for _, _, body in scripted_grpc.requests] == [BODY, BODY]
    method, metadata, _ = scripted_grpc.requests[0]
    assert method == "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
    assert metadata["authorization"] == "secret"


def test_grpc_codes_mean_what_the_specification_says(scripted_grpc, grpc_sender):
    """Retryable ones are retried, RESOURCE_EXHAUSTED only when it says when, the others are final."""
    import grpc
    from google.protobuf.any_pb2 import Any
    from google.rpc.error_details_pb2 import RetryInfo
    from google.rpc.status_pb2 import Status

    info, wrapped = RetryInfo(), Any()
    info.retry_delay.seconds, info.retry_delay.nanos = 3, 500_000_000
    wrapped.Pack(info)
    later = (("grpc-status-details-bin", Status(code=8, details=[wrapped]).SerializeToString()),)
    code = grpc.StatusCode
    retried = [
        code.CANCELLED,
        code.DEADLINE_EXCEEDED,
        code.ABORTED,
        code.OUT_OF_RANGE,
        code.UNAVAILABLE,
        code.DATA_LOSS,
    ]
    final = [code.INVALID_ARGUMENT, code.UNAUTHENTICATED, code.UNIMPLEMENTED, code.INTERNAL, code.RESOURCE_EXHAUSTED]
    scripted_grpc.answers = [(c, "why", ()) for c in retried + final]
    scripted_grpc.answers += [(code.RESOURCE_EXHAUSTED, "later", later), (code.UNAVAILABLE, "later", later)]
    found = [grpc_sender.send(pack(BODY, 3, 0, 0), 5) for _ in range(len(retried) + len(final) + 2)]
    assert [a.settled for a in found] == [False] * len(retried) + [True] * len(final) + [False] * 2
    assert [a.refused for a in found] == [0] * len(retried) + [3] * len(final) + [0] * 2
    assert [a.wait_s for a in found[-2:]] == [3.5, 3.5]
    assert (found[0].reason, found[0].detail) == ("gRPC CANCELLED", "why")


def test_a_partial_success_over_grpc_is_counted(scripted_grpc, grpc_sender):
    """The same answer message as over HTTP."""
    answer = ExportTraceServiceResponse()
    answer.partial_success.rejected_spans = 2
    scripted_grpc.answers = [answer.SerializeToString()]
    assert grpc_sender.send(pack(BODY, 3, 0, 0), 5).refused == 2


def test_nobody_at_the_grpc_endpoint_means_later():
    """The lane tries again; gRPC's own backoff stays short."""
    pytest.importorskip("grpc")
    sender = make_sender(endpoint("http://127.0.0.1:9", PROTOCOL="grpc"))
    answer = sender.send(pack(BODY, 3, 0, 0), 1)
    assert (answer.settled, answer.reason) == (False, "gRPC UNAVAILABLE")
    sender.close()


def test_without_the_grpc_extra_batches_wait_and_the_extra_is_named():
    """Nothing is sent elsewhere and nothing is lost: the same queue is sent once the extra is there."""
    code = """
import sys
sys.modules["grpc"] = None
from axonize_core.export.endpoint import Endpoint
from axonize_core.export.senders import make_sender
print(make_sender(Endpoint.from_env("traces", {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})).send(None, 1))
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "settled=False" in said
    assert "pip install 'axonize[grpc]'" in said


def test_a_certificate_that_is_not_there_is_named():
    """gRPC reads its files at once; the batches wait."""
    pytest.importorskip("grpc")
    sender = make_sender(endpoint("https://localhost:1", PROTOCOL="grpc", CERTIFICATE="/nonexistent/ca.pem"))
    assert "/nonexistent/ca.pem" in sender.send(pack(BODY, 3, 0, 0), 1).reason
