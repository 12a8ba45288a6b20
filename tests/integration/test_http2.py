"""HTTP/2 as raw clients speak it to the gRPC receiver: usual, unusual, broken and hostile."""

from __future__ import annotations

import asyncio
import base64
import gzip
import itertools

import pytest
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from h2.errors import ErrorCodes
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from grpc_clients import framed, over_grpc
from otlp_bodies import logs_body

BIG = 600_000


def large(size=BIG):
    """A logs request of about this many bytes."""
    request = ExportLogsServiceRequest.FromString(logs_body(1, 1))
    request.resource_logs[0].scope_logs[0].log_records[0].body.string_value = "x" * size
    return request.SerializeToString()


def taken(answer):
    """Whether an answer is an empty success."""
    return (answer[":status"], answer["grpc-status"], answer["body"]) == ("200", "0", bytes(5))


def retry_s(answer):
    """After how many seconds an answer says to try again; None when it does not."""
    if "grpc-status-details-bin" not in answer:
        return None
    details = answer["grpc-status-details-bin"]
    status, hint = Status.FromString(base64.b64decode(details + "=" * (-len(details) % 4))), RetryInfo()
    assert status.code == int(answer["grpc-status"])
    assert status.details[0].Unpack(hint)
    return hint.retry_delay.seconds


@pytest.mark.parametrize("piece", [16_384, 1 << 20, 9_999])
def test_a_body_arrives_in_frames_of_any_size(tmp_path, piece):
    """One or many, of what the server announces or of what every server takes; calls follow each other."""

    async def scenario(door):
        client = await door.client()
        client.h2.max_outbound_frame_size = 16_384
        body = large()
        while piece > client.h2.max_outbound_frame_size and await client.read():
            pass
        for _ in range(3):
            stream_id = client.begin()
            await client.send_all(stream_id, framed(body), piece)
            assert taken(await client.answer(stream_id))
        assert door.counters["acked_records.logs"] == 3
        assert door.counters["received_bytes.logs"] == 3 * len(body)

    over_grpc(tmp_path, scenario)


def test_a_body_larger_than_every_window_arrives(tmp_path):
    """The windows are opened as the body comes."""

    async def scenario(door):
        body = large(20 << 20)
        assert taken(await (await door.client()).call(body))
        assert door.counters["received_bytes.logs"] == len(body)

    over_grpc(tmp_path, scenario)


def test_bodies_that_come_at_once_are_kept_apart(tmp_path):
    """Frames of many streams in turn: each body is whole."""

    async def scenario(door):
        client = await door.client()
        bodies = [framed(large(40_000 + 1000 * number)) for number in range(10)]
        calls = [client.begin() for _ in bodies]
        for at in range(0, 60_000, 7000):
            for stream_id, body in zip(calls, bodies, strict=True):
                if at < len(body):
                    while client.h2.local_flow_control_window(stream_id) < 7000:
                        await client.read()
                    client.send(stream_id, body[at : at + 7000], end=at + 7000 >= len(body))
        for stream_id in calls:
            assert taken(await client.answer(stream_id))
        assert door.counters["received_bytes.logs"] == sum(len(body) - 5 for body in bodies)

    over_grpc(tmp_path, scenario)


def test_padding_empty_frames_and_trailers_are_no_part_of_a_body(tmp_path):
    """What HTTP/2 allows around a message changes nothing."""

    async def scenario(door):
        client, body = await door.client(), framed(large(30_000))
        stream_id = client.begin()
        for at in range(0, len(body), 5000):
            client.send(stream_id, body[at : at + 5000], pad_length=9 + at // 200)
            client.send(stream_id)
        client.h2.send_headers(stream_id, [("x-checksum", "1")], end_stream=True)
        client.flush()
        assert taken(await client.answer(stream_id))
        stream_id = client.begin()
        client.send(stream_id, body[:9])
        client.send(stream_id, body[9:16_000])
        client.send(stream_id, body[16_000:])
        client.send(stream_id, end=True)
        assert taken(await client.answer(stream_id))
        assert door.counters["received_bytes.logs"] == 2 * (len(body) - 5)

    over_grpc(tmp_path, scenario)


@pytest.mark.parametrize("members", [1, 3])
def test_a_gzip_message_is_taken(tmp_path, members):
    """As grpc-encoding says, in one member or several."""

    async def scenario(door):
        client, body = await door.client(), large(30_000)
        cut = len(body) // members + 1
        zipped = b"".join(gzip.compress(body[at : at + cut]) for at in range(0, len(body), cut))
        stream_id = client.begin(grpc_encoding="gzip")
        client.send(stream_id, framed(zipped, flag=1), end=True)
        assert taken(await client.answer(stream_id))
        assert door.counters["received_bytes.logs"] == len(body)
        assert taken(await client.call(logs_body(), grpc_encoding="gzip"))

    over_grpc(tmp_path, scenario)


GZIP = {"grpc_encoding": "gzip"}


@pytest.mark.parametrize(
    ("headers", "body", "status", "said"),
    [
        ({}, b"", "3", "no message"),
        ({}, b"\0\0", "3", "cut short"),
        ({}, framed(bytes(10))[:-1], "3", "cut short"),
        ({}, framed(logs_body()) * 2, "3", "more than one message"),
        ({}, framed(b"\xff\xff"), "3", "no valid Export"),
        ({}, framed(gzip.compress(b""), 1), "3", "compressed"),
        ({}, framed(b"", 7), "3", "compressed"),
        (GZIP, framed(b"no gzip", 1), "3", "gzip"),
        (GZIP, framed(gzip.compress(bytes(200_000)), 1), "8", "larger"),
        ({}, framed(bytes(100_001)), "8", "larger"),
        ({"grpc_encoding": "zstd"}, framed(b""), "12", "zstd"),
        ({"path": "/opentelemetry.proto.collector.logs.v1.LogsService/Import"}, framed(b""), "12", "Import"),
        ({"path": "/%/\u00e9"}, framed(b""), "12", "%25"),
    ],
    ids=itertools.count(),
)
def test_a_call_that_is_none_is_told_why(tmp_path, headers, body, status, said):
    """By a status that no client retries; the connection goes on."""

    async def scenario(door):
        client = await door.client()
        stream_id = client.begin(**headers)
        await client.send_all(stream_id, body) if body else client.send(stream_id, end=True)
        answer = await client.answer(stream_id)
        assert (answer[":status"], answer["grpc-status"], retry_s(answer)) == ("200", status, None)
        assert said in answer["grpc-message"]
        if status == "12":
            assert answer["grpc-accept-encoding"] == "identity,gzip"
        assert taken(await client.call(logs_body()))

    over_grpc(tmp_path, scenario, given={"max_body_bytes": 100_000})


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content_type": "application/json"}, "415"),
        ({"content_type": None}, "415"),
        ({"content_type": "application/grpc+json"}, "415"),
        ({":method": "GET"}, "405"),
    ],
)
def test_what_is_no_grpc_is_answered_in_http(tmp_path, headers, status):
    """With a status of HTTP, and counted."""

    async def scenario(door):
        client = await door.client()
        assert (await client.answer(client.begin(**headers)))[":status"] == status
        assert door.counters[f"refused_requests.http_{status}"] == 1

    over_grpc(tmp_path, scenario)


@pytest.mark.parametrize("kind", ["application/grpc+proto", "Application/GRPC; charset=x"])
def test_the_ways_to_say_grpc_are_known(tmp_path, kind):
    """With the encoding of messages, parameters, in any case."""

    async def scenario(door):
        assert taken(await (await door.client()).call(logs_body(), content_type=kind))

    over_grpc(tmp_path, scenario)


def test_requests_are_bounded(tmp_path):
    """Those beyond the bound are told to try again, over all connections; later ones are served."""

    async def scenario(door):
        one, two = await door.client(), await door.client()
        begun = [one.begin(), one.begin()]
        await asyncio.sleep(0.2)
        answer = await two.answer(two.begin())
        assert (answer["grpc-status"], retry_s(answer)) == ("8", 2)
        for stream_id in begun:
            one.send(stream_id, framed(logs_body()), end=True)
            assert taken(await one.answer(stream_id))
        assert taken(await two.call(logs_body()))
        assert door.counters["refused_requests.requests"] == 1

    over_grpc(tmp_path, scenario, requests=2)


def test_streams_of_a_connection_are_bounded(tmp_path):
    """A client that opens more than was announced is ended."""

    async def scenario(door):
        client = await door.client()
        for _ in range(5):
            client.begin()
        assert await client.until_ended() == ErrorCodes.PROTOCOL_ERROR
        assert door.counters["refused_requests.http2_protocol"] == 1

    over_grpc(tmp_path, scenario, streams=4)


def test_bytes_of_bodies_are_bounded_over_all_connections(tmp_path):
    """Beyond the bound a call is told to try again, its connection goes on, and no byte stays on the account."""

    async def scenario(door):
        clients = [await door.client() for _ in range(8)]
        answers = []
        for client in clients:
            stream_id = client.begin()
            client.h2.max_outbound_frame_size = 1 << 20
            while client.h2.local_flow_control_window(stream_id) < 1_000_000 and await client.read():
                pass
            client.send(stream_id, bytes(1_000_000))
            reading = asyncio.ensure_future(client.answer(stream_id))
            await asyncio.wait([reading], timeout=0.3)
            assert door.buffers.held_bytes <= 5 << 20
            if reading.done():
                answers.append(reading.result())
                assert taken(await client.call(logs_body()))
            else:
                reading.cancel()
        assert len(answers) >= 3
        for answer in answers:
            assert (answer["grpc-status"], retry_s(answer)) == ("14", 2)
        assert door.counters["refused_requests.buffers"] == len(answers)
        for client in clients:
            client.writer.close()
        await door.empty()
        assert door.buffers.held_bytes == 0

    over_grpc(tmp_path, scenario, buffered_bytes=4 << 20)
