"""A receiver process over real HTTP: good input, bad input, bad days."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import json
import socket
import threading
import time
from http.client import HTTPException

import pytest
from google.rpc.status_pb2 import Status
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult

from axonize_server.spool import messages, recover, sealed_segments
from axonize_server.stats import read_stats
from otlp_bodies import logs_body, metrics_body, trace_body

PROTOBUF = "application/x-protobuf"


def stored(receiver, signal="traces"):
    """The span ids in the sealed segments of a signal, in order."""
    found = []
    for segment in sealed_segments(receiver.settings.spool_dir):
        if segment.signal == signal:
            data = memoryview(segment.path.read_bytes())
            for message, _ in list(messages(data))[1:]:
                request = ExportTraceServiceRequest.FromString(bytes(message))
                found += [s.span_id for r in request.resource_spans for c in r.scope_spans for s in c.spans]
    return found


def span_ids(*bodies):
    return [
        s.span_id
        for body in bodies
        for r in ExportTraceServiceRequest.FromString(body).resource_spans
        for c in r.scope_spans
        for s in c.spans
    ]


def until(condition, timeout_s=30):
    """Wait for what happens within a second or two on a quiet machine."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, condition
        time.sleep(0.05)


def counted(receiver, name):
    """A counter as it was last published."""
    return next(iter(read_stats(receiver.settings.data_dir)), {}).get("counters", {}).get(name)


def all_sealed(receiver):
    return not list(receiver.settings.spool_dir.glob("*/*.open"))


def says(answer, status, text):
    """The answer is an error with a Status body that names the cause."""
    got, headers, body = answer
    assert got == status
    assert headers["content-type"] == PROTOBUF
    message = Status.FromString(body)
    assert text in message.message
    assert message.code > 0
    return True


def test_all_signals_are_taken_and_sealed_when_idle(make_receiver):
    """A success has an empty protobuf body; soon each signal's segment is ready to be stored."""
    receiver = make_receiver()
    body = trace_body(1)
    status, headers, answer = receiver.post(body)
    assert (status, headers["content-type"], answer) == (200, PROTOBUF, b"")
    assert receiver.post(metrics_body(), "/v1/metrics")[0] == 200
    assert receiver.post(logs_body(), "/v1/logs")[::2] == (200, b"")
    until(lambda: all_sealed(receiver))
    assert stored(receiver) == span_ids(body)
    assert sorted(s.signal for s in sealed_segments(receiver.settings.spool_dir)) == ["logs", "metrics", "traces"]
    until(lambda: counted(receiver, "acked_records.logs") == 3)


def test_an_empty_request_succeeds_and_is_not_stored(receiver):
    """No bytes are a valid request with nothing in it, plain or gzip."""
    assert receiver.post(b"")[0] == 200
    assert receiver.post(gzip.compress(b""), content_encoding="gzip")[0] == 200
    assert stored(receiver) == []


def test_gzip_in_several_members_is_taken(make_receiver):
    """Compressed bodies are stored inflated."""
    receiver = make_receiver()
    body = trace_body(2)
    packed = gzip.compress(body[:100]) + gzip.compress(body[100:])
    assert receiver.post(packed, content_encoding="gzip")[0] == 200
    receiver.stop()
    assert stored(receiver) == span_ids(body)


def test_a_malformed_body_is_refused_and_the_connection_lives(make_receiver):
    """400 with a Status, nothing stored, and the next request on the same connection is taken."""
    receiver = make_receiver()
    client = receiver.client()
    body = trace_body(3)
    assert says(receiver.post(b"\xff\xff\xff", client=client), 400, "no valid")
    opened = client.sock
    assert says(receiver.post(b"no gzip", client=client, content_encoding="gzip"), 400, "gzip")
    assert receiver.post(body, client=client)[0] == 200
    assert client.sock is opened
    client.close()
    receiver.stop()
    assert stored(receiver) == span_ids(body)


def test_wrong_types_routes_and_methods_are_named(receiver):
    """415 for other content, 404 for unknown paths, 405 with Allow; the connection lives through all."""
    client = receiver.client()
    assert says(receiver.post(b"{}", client=client, content_type="text/plain"), 415, "text/plain")
    assert says(receiver.post(b"x", client=client, content_encoding="br"), 415, "br")
    assert says(receiver.post(b"", "/v1/profiles", client=client), 404, "/v1/profiles")
    client.request("GET", "/v1/traces")
    answer = client.getresponse()
    assert (answer.status, answer.headers["allow"]) == (405, "POST")
    assert Status.FromString(answer.read()).message
    client.request("GET", "/healthz?x=1")
    answer = client.getresponse()
    assert answer.status == 200
    assert json.loads(answer.read())["status"] == "ok"
    assert receiver.post(b"", client=client, content_type=f"{PROTOBUF}; charset=utf-8")[0] == 200
    client.close()


def test_bodies_over_the_limit_are_refused_before_and_after_inflation(make_receiver):
    """413 for too much as sent, too much compressed, and too much once inflated; then service goes on."""
    receiver = make_receiver(max_body_bytes=100_000, max_compressed_bytes=5_000)
    assert says(receiver.post(b"x" * 100_001), 413, "100000 bytes")
    assert says(receiver.post(b"x" * 5_001, content_encoding="gzip"), 413, "5000 bytes")
    bomb = gzip.compress(bytes(1_000_000))
    assert len(bomb) < 5_000
    assert says(receiver.post(bomb, content_encoding="gzip"), 413, "once inflated")
    large_chunks = (b"x" * 60_000 for _ in range(4))
    assert says(receiver.post(large_chunks), 413, "100000 bytes")
    assert receiver.post(trace_body())[0] == 200
    assert stored(receiver) == []


def test_a_large_upload_reads_its_refusal(make_receiver):
    """A client still sending when it is refused gets the 413, not a reset connection."""
    receiver = make_receiver(max_body_bytes=100_000)
    for _ in range(5):
        assert receiver.post(b"x" * 5_000_000)[0] == 413


def test_chunked_and_pipelined_requests_are_served(make_receiver):
    """A chunked body is put together; two requests in one packet get two answers in order."""
    receiver = make_receiver()
    first, second, third = (trace_body(seed) for seed in range(3))
    assert receiver.post(first[at : at + 100] for at in range(0, len(first), 100))[0] == 200
    head = (
        b"POST /v1/traces HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-protobuf\r\ncontent-length: %d\r\n%s\r\n"
    )
    close = b"connection: close\r\n"
    answer = receiver.raw(head % (len(second), b"") + second + head % (len(third), close) + third)
    assert answer.count(b"HTTP/1.1 200 OK\r\n") == 2
    receiver.stop()
    assert stored(receiver) == span_ids(first, second, third)


def test_a_body_in_small_pieces_is_put_together(make_receiver):
    """However the network cuts a request, head included, it arrives."""
    receiver = make_receiver()
    body = trace_body(5, spans=40)
    head = (
        b"POST /v1/traces HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-protobuf\r\n"
        b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
    )
    data = head + body
    cuts = [0, 1, 2, 50, len(head) - 2, len(head) - 1, len(head) + 1, 5000, len(data)]
    pieces = [data[a:b] for a, b in itertools.pairwise(cuts)]
    assert b" 200 OK" in receiver.raw(*pieces, pause_s=0.02)
    receiver.stop()
    assert stored(receiver) == span_ids(body)


def test_a_client_that_waits_to_be_asked_is_asked(receiver):
    """``Expect: 100-continue`` is answered before the body."""
    with socket.create_connection(("127.0.0.1", receiver.port), timeout=10) as to:
        to.sendall(
            b"POST /v1/traces HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-protobuf\r\n"
            b"expect: 100-continue\r\ncontent-length: 2\r\n\r\n"
        )
        assert to.recv(100).startswith(b"HTTP/1.1 100 Continue\r\n\r\n")
        to.sendall(b"\xff\xff")
        assert to.recv(1000).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"NONSENSE\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: x\r\nbig: " + b"x" * 20_000 + b"\r\n\r\n", 431),
        (b"GET /" + b"x" * 40_000, 431),
        (b"POST /v1/traces HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n", 400),
        (b"POST /v1/traces HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n", 400),
        (b"POST /v1/traces HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n", 400),
    ],
    ids=["nonsense", "large header", "endless line", "broken chunk", "both lengths", "two lengths", "upgrade"],
)
def test_what_is_no_http_is_refused_and_closed(receiver, sent, status):
    """A Status body even then, and the connection ends."""
    answer = receiver.raw(sent)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert Status.FromString(answer.partition(b"\r\n\r\n")[2]).message


def test_unknown_fields_are_kept_out_of_the_way(make_receiver):
    """A field of a newer OTLP does not make a request invalid."""
    receiver = make_receiver()
    assert receiver.post(trace_body() + b"\x9a\x06\x03new")[0] == 200


def test_a_full_spool_answers_503_until_there_is_room(make_receiver):
    """Acks go on to the bound; then 503 with Retry-After, and success again when the writer has caught up."""
    receiver = make_receiver(spool_max_bytes=60_000)
    body = trace_body(spans=20)
    answers = [receiver.post(body) for _ in range(4)]
    statuses = [status for status, _, _ in answers]
    assert statuses == sorted(statuses)
    assert set(statuses) == {200, 503}
    assert int(answers[-1][1]["retry-after"]) > 0
    assert says(answers[-1], 503, "AXONIZE_SPOOL_MAX_BYTES")
    until(lambda: all_sealed(receiver))
    assert stored(receiver) == span_ids(body) * statuses.count(200)
    for segment in sealed_segments(receiver.settings.spool_dir):
        segment.path.unlink()
    assert receiver.post(body)[0] == 200
    until(lambda: counted(receiver, "refused_requests.spool_full") == statuses.count(503))


def test_a_disk_that_refuses_answers_503(make_receiver):
    """While nothing can be written no request is acknowledged; afterwards they are again."""
    receiver = make_receiver()
    receiver.wait_ready()
    until(lambda: all_sealed(receiver))
    folder = receiver.settings.spool_dir / "traces"
    folder.rename(folder.with_name("away"))
    status, headers, _ = receiver.post(trace_body())
    assert status == 503
    assert "retry-after" in headers
    folder.with_name("away").rename(folder)
    assert receiver.post(trace_body())[0] == 200


def test_sigterm_finishes_what_is_under_way(make_receiver):
    """A request half sent is completed and acknowledged, everything is sealed, and the exit code is 0."""
    receiver = make_receiver()
    body = trace_body(9, spans=200)
    client = receiver.client()
    client.putrequest("POST", "/v1/traces")
    client.putheader("content-type", PROTOBUF)
    client.putheader("content-length", str(len(body)))
    client.endheaders(body[:1000])
    receiver.wait_ready()  # connections are accepted in order
    receiver.child.terminate()
    time.sleep(0.5)
    client.send(body[1000:])
    answer = client.getresponse()
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    client.close()
    assert receiver.stop() == 0
    assert stored(receiver) == span_ids(body)
    assert list(receiver.settings.spool_dir.glob("*/*.open")) == []


def test_killed_under_load_nothing_acknowledged_is_lost(make_receiver):
    """Ten rounds of kill -9: every acknowledged span is in the spool after recovery, and only once."""
    acked, sent = [], set()
    for round_ in range(10):
        receiver = make_receiver(segment_max_records=500)
        stop = threading.Event()
        lock = threading.Lock()

        def load(number, receiver=receiver, stop=stop, lock=lock, round_=round_):
            with contextlib.closing(receiver.client()) as client, contextlib.suppress(OSError, HTTPException):
                for step in range(100_000):
                    body = trace_body(round_ * 1_000_000 + number * 100_000 + step, spans=2)
                    with lock:
                        sent.update(span_ids(body))
                    if receiver.post(body, client=client)[0] == 200:
                        with lock:
                            acked.extend(span_ids(body))
                    if stop.is_set():
                        return

        receiver.wait_ready()
        threads = [threading.Thread(target=load, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(0.15 + 0.03 * round_)
        receiver.kill()
        receiver.listener.close()
        stop.set()
        for thread in threads:
            thread.join()
        recover(receiver.settings.spool_dir)
    found = stored(receiver)
    assert len(acked) > 100
    assert len(found) == len(set(found))
    assert set(acked) <= set(found) <= sent


def test_the_official_exporter_is_served(make_receiver):
    """Spans of the OpenTelemetry SDK arrive, compressed, and are counted."""
    from opentelemetry.exporter.otlp.proto.http import Compression

    receiver = make_receiver()
    exporter = OTLPSpanExporter(f"{receiver.url}/v1/traces", compression=Compression.Gzip)
    provider = TracerProvider(resource=Resource({"service.name": "test"}))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    spans = [tracer.start_span(f"span {number}") for number in range(50)]
    for span in spans:
        span.set_attribute("list", [1, 2])
        span.end()
    provider.shutdown()
    until(lambda: counted(receiver, "acked_records.traces") == 50)
    receiver.stop()
    assert {int.from_bytes(i, "big") for i in stored(receiver)} == {span.context.span_id for span in spans}


def test_the_official_grpc_exporter_is_served(make_receiver):
    """The same over gRPC; what breaks a rule is INVALID_ARGUMENT, what is too large RESOURCE_EXHAUSTED."""
    grpc = pytest.importorskip("grpc")
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    receiver = make_receiver(grpc_port=port, max_body_bytes=50_000)
    receiver.wait_ready()
    provider = TracerProvider()
    span = provider.get_tracer("test").start_span("over gRPC")
    span.end()
    exporter = GrpcExporter(f"http://127.0.0.1:{port}", insecure=True)
    assert exporter.export([span]) is SpanExportResult.SUCCESS
    exporter.shutdown()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        export = channel.unary_unary("/opentelemetry.proto.collector.logs.v1.LogsService/Export")
        assert export(logs_body(), timeout=10) == b""
        export = channel.unary_unary("/opentelemetry.proto.collector.metrics.v1.MetricsService/Export")
        assert export(metrics_body(), timeout=10) == b""
        for body, code in ((b"\xff", "INVALID_ARGUMENT"), (bytes(60_000), "RESOURCE_EXHAUSTED")):
            with pytest.raises(grpc.RpcError) as refused:
                export(body, timeout=10)
            assert refused.value.code().name == code
    receiver.stop()
    assert [int.from_bytes(i, "big") for i in stored(receiver)] == [span.context.span_id]
    assert len(sealed_segments(receiver.settings.spool_dir)) == 3


def test_acks_of_many_clients_share_a_sync(make_receiver):
    """Concurrent requests are all acknowledged and all stored, in far fewer segments than requests."""
    receiver = make_receiver()
    bodies = [trace_body(seed, spans=2) for seed in range(80)]
    statuses = []

    def send(mine):
        client = receiver.client()
        statuses.extend(receiver.post(body, client=client)[0] for body in mine)
        client.close()

    threads = [threading.Thread(target=send, args=(bodies[number::8],)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 80
    receiver.stop()
    assert sorted(stored(receiver)) == sorted(span_ids(*bodies))
    assert len(sealed_segments(receiver.settings.spool_dir)) <= 4
