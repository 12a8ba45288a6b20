"""What must hold of any bytes, at each door: each oracle raises when it does not.

Used by the fuzzer (`run.py`) and, over the corpus, by `tests/integration/test_fuzz_corpus.py`. The clock stands still,
so that bytes mean the same on every day.
"""

from __future__ import annotations

import asyncio
import gzip
import itertools
import shutil
import tempfile
import zlib
from pathlib import Path
from types import SimpleNamespace

from google.protobuf.message import DecodeError
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ResponseReceived, TrailersReceived
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from axonize_server import grpc_receiver, http2, otlp_json
from axonize_server.buffers import Buffers
from axonize_server.http import Connection, HttpLimits
from axonize_server.otlp import VALIDATORS, Accepted, InvalidRequestError
from axonize_server.otlp_rules import DAY_NS, Window, log_fault, place_log, point_fault, span_fault
from axonize_server.receiver import Receiver
from axonize_server.settings import Settings
from axonize_server.spool import UnknownVersionError, frames, header_message, messages, read_header, recover, requests
from axonize_server.spool import request_frame as framing

NOW_NS = 1_790_000_000 * 10**9
WINDOW = Window.around(NOW_NS, 7)
SIGNALS = ("traces", "metrics", "logs")
KINDS = {
    "traces": ExportTraceServiceRequest,
    "metrics": ExportMetricsServiceRequest,
    "logs": ExportLogsServiceRequest,
}
JSON, GZIPPED, CHUNKED, RAW, TO_GZIP = 1 << 2, 1 << 3, 1 << 4, 1 << 5, 1 << 6
"""How the first byte says that the rest is sent; its low two bits are the signal."""
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
STATUSES = {200, 400, 404, 405, 408, 413, 415, 431, 503}
_SETTINGS = Settings(data_dir="/nowhere", max_body_bytes=1 << 20, max_compressed_bytes=1 << 18)


class FakeIntake:
    """Validates with the clock that stands still, and stores nothing."""

    def __init__(self):
        self.taken = []

    def accept(self, signal, body, done):
        body = bytes(body)
        accepted = VALIDATORS[signal](body, WINDOW)
        agrees(signal, body, accepted)
        self.taken.append((signal, body))
        done(accepted)

    def refused(self, reason):
        assert reason


class FakeTransport:
    """Takes what is answered; never full."""

    def __init__(self):
        self.sent, self.closed = bytearray(), False

    def write(self, data):
        self.sent += data

    def can_write_eof(self):
        return True

    def write_eof(self):
        self.closed = True

    close = abort = write_eof

    def pause_reading(self):
        pass

    resume_reading = pause_reading


def expected(signal, body):
    """The request as the official parser reads it, without records that break a rule; None if it reads none."""
    try:
        request = KINDS[signal].FromString(body)
    except DecodeError:
        return None
    request.DiscardUnknownFields()
    days = set()
    for records, rule in _record_lists(signal, request):
        kept = []
        for record in records:
            if signal == "logs":
                place_log(record, WINDOW)
            time_ns, fault = rule(record, WINDOW)
            if fault is None:
                kept.append(type(record).FromString(record.SerializeToString()))
                days.add(time_ns // DAY_NS)
        del records[:]
        records.extend(kept)
    return request, days


def _record_lists(signal, request):
    if signal == "traces":
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                yield scope.spans, span_fault
    elif signal == "logs":
        for resource in request.resource_logs:
            for scope in resource.scope_logs:
                yield scope.log_records, log_fault
    else:
        for resource in request.resource_metrics:
            for metric in itertools.chain.from_iterable(scope.metrics for scope in resource.scope_metrics):
                if metric.WhichOneof("data"):
                    yield getattr(metric, metric.WhichOneof("data")).data_points, point_fault


def agrees(signal, body, accepted: Accepted):
    """What was accepted is what the official parser and the rules leave of it, whichever way it went."""
    found = expected(signal, body)
    assert found is not None, "accepted what the official parser refuses"
    request, days = found
    stored = KINDS[signal].FromString(bytes(accepted.body))
    stored.DiscardUnknownFields()
    assert _canonical(stored) == _canonical(request)
    assert accepted.records == sum(len(records) for records, _ in _record_lists(signal, request))
    assert days <= accepted.days


def _canonical(message):
    return message.SerializeToString(deterministic=True)


def _inflated(body):
    """By Python's own zlib; None where it is no gzip."""
    out, rest = b"", body
    while rest or not out:
        inflater = zlib.decompressobj(wbits=31)
        try:
            out += inflater.decompress(rest, (1 << 20) + 1)
        except zlib.error:
            return None
        if not inflater.eof or len(out) > 1 << 20:
            return None
        if not inflater.unused_data:
            return out
        rest = inflater.unused_data
    return out


def json_agrees(signal, text):
    """A trace body that goes the short way is read as on the long one; the protobuf bytes, None if it is no JSON."""
    try:
        found = otlp_json.to_protobuf(signal, text)
    except InvalidRequestError:
        return None
    request = KINDS[signal].FromString(found)
    if signal == "traces" and otlp_json.usual_trace_body(text) is not None:
        short, otlp_json.usual_trace_body = otlp_json.usual_trace_body, lambda _: None
        try:
            assert _canonical(KINDS[signal].FromString(otlp_json.to_protobuf(signal, text))) == _canonical(request)
        finally:
            otlp_json.usual_trace_body = short
    return found


def _request(data):
    """The HTTP bytes that the input stands for, the signal, and the protobuf body that should come out of them."""
    flags, body = data[0], data[1:]
    signal = SIGNALS[(flags & 3) % 3]
    sent = gzip.compress(body, 1, mtime=0) if flags & TO_GZIP else body
    inflated = _inflated(sent) if flags & (GZIPPED | TO_GZIP) else body
    if inflated is not None:
        inflated = json_agrees(signal, inflated) if flags & JSON else inflated
    head = b"POST /v1/%b HTTP/1.1\r\nhost: x\r\nconnection: close\r\n" % signal.encode()
    head += b"content-type: application/%b\r\n" % (b"json" if flags & JSON else b"x-protobuf")
    if flags & (GZIPPED | TO_GZIP):
        head += b"content-encoding: gzip\r\n"
    if not flags & CHUNKED:
        return head + b"content-length: %d\r\n\r\n" % len(sent) + sent, signal, inflated
    half = len(sent) // 2
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (sent[:half], sent[half:]) if part)
    return head + b"transfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n", signal, inflated


def http(data):
    """The protocol, fed without a socket: answers have a known status, and 200 means what the official parser reads."""
    if not data:
        return
    raw = data[0] & RAW
    stream, signal, body = (data[1:], "", None) if raw else _request(data)
    intake = FakeIntake()
    app = Receiver(_SETTINGS, intake, HttpLimits())
    transport, later = FakeTransport(), []
    loop = SimpleNamespace(time=lambda: 0.0, call_soon=later.append)
    asyncio._set_running_loop(loop)
    try:
        connection = Connection(app)
        connection.connection_made(transport)
        step = 1 if data[0] >> 7 and len(stream) < 4_000 else len(stream)
        for at in range(0, len(stream), step or 1):
            _feed(connection, stream[at : at + step])
        while later:
            later.pop(0)()
        connection.eof_received()
        while later:
            later.pop(0)()
        connection.check(1e9)
        connection.connection_lost(None)
    finally:
        asyncio._set_running_loop(None)
    assert not app.connections
    assert app.buffers.held_bytes == 0
    statuses = _statuses(bytes(transport.sent))
    assert set(statuses) <= STATUSES
    if not raw:
        taken = body is not None and len(body) <= 1 << 20 and expected(signal, body) is not None
        assert statuses == [200] if taken else statuses and statuses[0] in (400, 413), (statuses, taken)
        assert intake.taken == ([(signal, body)] if taken else [])


def _feed(connection, data):
    while data:
        room = connection.get_buffer(-1)
        assert len(room)
        piece = data[: len(room)]
        room[: len(piece)] = piece
        connection.buffer_updated(len(piece))
        data = data[len(piece) :]


def _statuses(sent):
    """The statuses of the answers, each of which has the length it says."""
    found = []
    while sent:
        head, _, rest = sent.partition(b"\r\n\r\n")
        status = int(head[9:12])
        if status == 100:
            sent = rest
            continue
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        assert len(rest) >= length
        found.append(status)
        sent = rest[length:]
    return found


def call(signal, message):
    """What a client of h2 sends for a call, and the client."""
    client = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
    client.initiate_connection()
    service = next(path for path, name in grpc_receiver._PATHS.items() if name == signal).decode()
    head = {
        ":method": "POST",
        ":scheme": "http",
        ":path": service,
        ":authority": "x",
        "content-type": "application/grpc",
    }
    client.send_headers(1, list(head.items()))
    body = b"\0" + len(message).to_bytes(4, "big") + message
    for at in range(0, len(body), 16_384):
        client.send_data(1, body[at : at + 16_384])
        client.increment_flow_control_window(1)
        client.outbound_flow_control_window = client.streams[1].outbound_flow_control_window = 1 << 20
    client.end_stream(1)
    return client.data_to_send(), client


def _grpc_status(client, sent):
    """The status of the one call, as the client reads it."""
    status = [
        dict(event.headers)["grpc-status"]
        for event in client.receive_data(sent)
        if isinstance(event, (ResponseReceived, TrailersReceived)) and "grpc-status" in dict(event.headers)
    ]
    assert len(status) == 1
    return status[0]


def grpc_call(data):
    """A call is answered with a status or, if and only if the official parser reads its message, with success.

    Other bytes than those of a call, behind the preface, are survived.
    """
    if not data:
        return
    signal, body, raw = SIGNALS[(data[0] & 3) % 3], data[1:], data[0] & RAW
    stream, client = (PREFACE + body, None) if raw else call(signal, body)
    intake = FakeIntake()
    app = grpc_receiver.GrpcReceiver(_SETTINGS, intake, Buffers())
    transport, later = FakeTransport(), []
    asyncio._set_running_loop(SimpleNamespace(time=lambda: 0.0, call_soon=later.append))
    try:
        connection = http2.Connection(app)
        connection.connection_made(transport)
        step = 1 if data[0] >> 7 and len(stream) < 4_000 else len(stream)
        for at in range(0, len(stream), step):
            _feed(connection, stream[at : at + step])
            while later:
                later.pop(0)()
        connection.eof_received()
        connection.check(1e9)
        connection.connection_lost(None)
    finally:
        asyncio._set_running_loop(None)
    assert not app.connections
    assert (app.calls, app.buffers.held_bytes) == (0, 0)
    if client is not None:
        taken = len(body) <= _SETTINGS.max_body_bytes and expected(signal, body) is not None
        assert _grpc_status(client, bytes(transport.sent)) in (("0",) if taken else ("3", "8"))
        assert intake.taken == ([(signal, body)] if taken else [])


def segment(bodies):
    """A segment's bytes, as a receiver writes them."""
    parts = [header_message("traces")]
    for number, body in enumerate(bodies):
        before, trailer = framing(body, tenant="fuzz", received_ns=NOW_NS + number)
        parts += [before, body, trailer]
    return b"".join(parts)


def _whole(data):
    """The messages of a segment up to the first that is not whole, told apart plainly."""
    found, at = [], 0
    while at < len(data):
        length = shift = 0
        for byte in data[at : at + 5]:
            at += 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        else:
            return found
        message = data[at : at + length]
        at += length
        checked = b"\xdd\x3e" + zlib.crc32(message[:-6]).to_bytes(4, "little")
        if at > len(data) or message[-6:] != checked:
            return found
        found.append(message)
    return found


_HOME = Path(tempfile.mkdtemp(prefix="axonize-fuzz-"))


def spool(data):
    """However a segment is damaged, readers and recovery yield its messages up to the first that is not whole."""
    whole = _whole(data)
    view = memoryview(data)
    assert [bytes(message) for message, _ in messages(view)] == whole
    assert [bytes(message) for message in requests(view)] == whole[1:]
    for message, end, holds in frames(view):
        assert bytes(view[end - len(message) : end]) == message
        assert not holds or zlib.crc32(message[:-6]).to_bytes(4, "little") == message[-4:]
    folder = _HOME / "traces"
    folder.mkdir(exist_ok=True)
    path = folder / "1-x.open"
    path.write_bytes(data)
    try:
        header = read_header(path)
    except UnknownVersionError:
        pass
    except ValueError as error:
        assert str(path) in str(error)
    else:
        assert isinstance(header, dict)
        assert data[: 64 << 10].find(b"version") > 0
    (done,) = recover(_HOME)
    assert done.kept_messages == max(len(whole) - 1, 0)
    sealed = folder / "1-x.pb"
    assert sealed.exists() == (len(whole) > 1)
    if sealed.exists():
        assert _whole(sealed.read_bytes()) == whole
        sealed.unlink()


def close():
    """Remove what the oracles left."""
    shutil.rmtree(_HOME, ignore_errors=True)


ORACLES = {"http": http, "grpc": grpc_call, "spool": spool}
