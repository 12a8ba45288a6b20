"""HTTP/2 clients that mean harm, break the rules, or leave in the middle: they end themselves, and nobody else."""

from __future__ import annotations

import asyncio

import pytest
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from grpc_clients import RawClient, framed, over_grpc
from otlp_bodies import logs_body


async def flooded(client, frames, batch=200):
    """Send until the server has enough; the code it says."""
    ending = asyncio.ensure_future(client.until_ended())
    for at in range(0, 20_000, batch):
        client.writer.write(b"".join(frames(number) for number in range(at, at + batch)))
        try:
            await client.writer.drain()
        except ConnectionError:
            break
        await asyncio.sleep(0)
        if ending.done():
            break
    return await ending


def test_streams_begun_and_reset_end_the_connection(tmp_path):
    """Rapid reset: the purse is soon empty; others are served."""

    async def scenario(door):
        client, honest = await door.client(), await door.client()

        def begun_and_reset(_):
            stream_id = client.h2.get_next_available_stream_id()
            client.h2.send_headers(
                stream_id, [(":method", "POST"), (":path", "/x"), (":scheme", "http"), (":authority", "x")]
            )
            client.h2.reset_stream(stream_id, ErrorCodes.CANCEL)
            return client.h2.data_to_send()

        assert await flooded(client, begun_and_reset) == ErrorCodes.ENHANCE_YOUR_CALM
        assert door.counters["refused_requests.http2_flood"] == 1
        assert (await honest.call(logs_body()))["grpc-status"] == "0"

    over_grpc(tmp_path, scenario)


FLOODS = {
    "ping": PingFrame(0, b"12345678").serialize(),
    "settings": SettingsFrame(0, {1: 4096}).serialize(),
    "priority": PriorityFrame(1, depends_on=0).serialize(),
    "windows": WindowUpdateFrame(0, 1).serialize(),
    "empty data": DataFrame(1, b"").serialize(),
    "tiny data": DataFrame(1, b"x").serialize(),
    "unknown": b"\0\0\0\x42\0\0\0\0\0",
}


@pytest.mark.parametrize("name", FLOODS)
def test_frames_that_lead_nowhere_end_the_connection(tmp_path, name):
    """However they look; what they would be answered piles up nowhere."""

    async def scenario(door):
        client = await door.client()
        client.begin()
        assert await flooded(client, lambda _: FLOODS[name]) == ErrorCodes.ENHANCE_YOUR_CALM
        assert door.counters["refused_requests.http2_flood"] == 1

    over_grpc(tmp_path, scenario)


@pytest.mark.parametrize("length", [0, 16_000])
def test_headers_without_an_end_are_bounded(tmp_path, length):
    """Neither many empty pieces nor a few large ones."""

    async def scenario(door):
        client = await door.client()
        client.flush()
        client.writer.write(HeadersFrame(1, b"").serialize())
        piece = ContinuationFrame(1, b"\x10" * length).serialize()
        assert await flooded(client, lambda _: piece, 10) in (ErrorCodes.ENHANCE_YOUR_CALM, ErrorCodes.PROTOCOL_ERROR)

    over_grpc(tmp_path, scenario)


def test_a_header_list_that_grows_when_decoded_is_refused(tmp_path):
    """A small block may say one long header many times."""

    async def scenario(door):
        client = await door.client()
        client.begin(x_long="x" * 4000, x_again="y")
        for _ in range(20):
            client.h2.send_headers(
                client.h2.get_next_available_stream_id(),
                [(":method", "POST"), (":path", "/"), (":scheme", "http"), (":authority", "x")]
                + [("x-long", "x" * 3000)] * 100,
            )
        client.flush()
        assert await client.until_ended() == ErrorCodes.ENHANCE_YOUR_CALM
        assert door.counters["refused_requests.http2_protocol"] == 1

    over_grpc(tmp_path, scenario)


BROKEN = {
    "too long a frame": (b"\xff\xff\xff\0\0\0\0\0\1", ErrorCodes.FRAME_SIZE_ERROR),
    "too long a PING": (b"\0\x80\0\6\0\0\0\0\0", ErrorCodes.FRAME_SIZE_ERROR),
    "data on a stream that is none": (DataFrame(7, b"x").serialize(), ErrorCodes.PROTOCOL_ERROR),
    "an even stream": (HeadersFrame(2, b"\x82", flags=["END_HEADERS"]).serialize(), ErrorCodes.PROTOCOL_ERROR),
    "no HPACK": (HeadersFrame(1, b"\xff" * 30, flags=["END_HEADERS"]).serialize(), ErrorCodes.PROTOCOL_ERROR),
    "data within headers": (
        HeadersFrame(1, b"").serialize() + DataFrame(1, b"x").serialize(),
        ErrorCodes.PROTOCOL_ERROR,
    ),
    "too much padding": (b"\0\0\2\0\x08\0\0\0\1\xffx", ErrorCodes.PROTOCOL_ERROR),
    "a window of nothing": (b"\0\0\4\x08\0\0\0\0\0\0\0\0\0", ErrorCodes.PROTOCOL_ERROR),
    "a reset of nothing": (RstStreamFrame(9).serialize(), ErrorCodes.PROTOCOL_ERROR),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_breaks_the_rules_ends_the_connection(tmp_path, name):
    """With a word on why; other connections go on."""

    async def scenario(door):
        client, honest = await door.client(), await door.client()
        sent, code = BROKEN[name]
        if name == "too much padding":
            client.begin()
        client.writer.write(sent)
        assert await client.until_ended() == code
        assert door.counters["refused_requests.http2_protocol"] == 1
        assert (await honest.call(logs_body()))["grpc-status"] == "0"

    over_grpc(tmp_path, scenario)


def test_a_client_that_takes_no_answer_is_ended(tmp_path):
    """It leaves no window for one: the answer waits for a while, then nobody does."""

    async def scenario(door):
        client = await door.client()
        client.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 0})
        answer = await client.call(logs_body())
        assert "grpc-status" not in answer
        assert client.ended
        await door.empty()

    over_grpc(tmp_path, scenario, answer_s=0.3)


def test_an_answer_waits_for_the_window_it_needs(tmp_path):
    """Byte by byte, if the client likes that."""

    async def scenario(door):
        client = await door.client()
        client.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 2})
        stream_id = client.begin()
        client.send(stream_id, framed(logs_body()), end=True)
        while client.answers.get(stream_id, {}).get("body") != b"\0\0":
            assert await client.read()
        for _ in range(3):
            client.h2.increment_flow_control_window(1, stream_id)
            client.flush()
        answer = await client.answer(stream_id)
        assert (answer["grpc-status"], answer["body"]) == ("0", bytes(5))

    over_grpc(tmp_path, scenario)


def test_what_is_not_durable_in_time_is_to_be_sent_again(tmp_path):
    """The call does not wait for ever; the acknowledgement that comes later goes nowhere."""

    async def scenario(door):
        taken = []
        door.intake.accept = lambda _signal, _body, done: taken.append(done)
        answer = await (await door.client()).call(logs_body())
        assert answer["grpc-status"] == "14"
        assert "grpc-status-details-bin" in answer
        taken[0](None)

    over_grpc(tmp_path, scenario, ack_s=0.3)


def test_silence_between_calls_ends_a_connection(tmp_path):
    """PINGs do not count as calls."""

    async def scenario(door):
        client = await door.client()
        assert (await client.call(logs_body()))["grpc-status"] == "0"
        client.writer.write(FLOODS["ping"])
        assert await client.until_ended() == ErrorCodes.NO_ERROR

    over_grpc(tmp_path, scenario, idle_s=0.3)


def test_a_stop_lets_the_calls_under_way_end(tmp_path):
    """GOAWAY first; the call that had begun is answered, a later one is to go elsewhere, then the connection closes."""

    async def scenario(door):
        client, body = await door.client(), framed(logs_body())
        stream_id = client.begin()
        client.send(stream_id, body[:10])
        await asyncio.sleep(0.2)
        stopping = asyncio.ensure_future(door.server.stop(20))
        while client.goaway is None:
            assert await client.read()
        late = client.begin()
        client.send(stream_id, body[10:], end=True)
        assert (await client.answer(stream_id))["grpc-status"] == "0"
        assert client.goaway == ErrorCodes.NO_ERROR
        await client.until_ended()
        assert "grpc-status" not in client.answers[late]
        await stopping
        with pytest.raises(OSError, match=r"refused|reset|failed"):
            await asyncio.open_connection("127.0.0.1", door.port)

    over_grpc(tmp_path, scenario)


def test_a_client_that_leaves_gets_the_answers_it_waits_for(tmp_path):
    """GOAWAY of a client, or the end of what it sends: what it had asked for is answered, then the connection closes."""

    async def scenario(door):
        for leaves in (lambda one: one.writer.write(GoAwayFrame(0).serialize()), RawClient.leave):
            client = await door.client()
            stream_id = client.begin()
            client.send(stream_id, framed(logs_body()), end=True)
            leaves(client)
            assert (await client.answer(stream_id))["grpc-status"] == "0"
            await client.until_ended()

    over_grpc(tmp_path, scenario)


def test_a_call_that_its_client_gives_up_leaves_nothing(tmp_path):
    """Neither bytes nor a place among the requests."""

    async def scenario(door):
        client = await door.client()
        for _ in range(3):
            stream_id = client.begin()
            client.send(stream_id, bytes(10_000))
            client.h2.reset_stream(stream_id)
            client.flush()
        assert (await client.call(logs_body()))["grpc-status"] == "0"
        client.writer.close()
        await door.empty()
        assert door.buffers.held_bytes == 0

    over_grpc(tmp_path, scenario, requests=1)
