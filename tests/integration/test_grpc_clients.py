"""Clients of OTLP/gRPC that are slow, silent or too many: none keeps the others from being served, none stays for ever."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket

import pytest

from axonize_core.errors import ConfigurationError
from axonize_server import grpc_receiver
from axonize_server.buffers import Buffers
from axonize_server.intake import Intake
from axonize_server.receiver import _start_grpc
from axonize_server.settings import load_settings
from grpc_clients import LOGS, over_grpc
from otlp_bodies import logs_body

pytest.importorskip("grpc")
import grpc.aio


def test_slow_grpc_calls_keep_nobody_waiting(tmp_path):
    """A hundred calls that never send their message: another client is served, and they are ended."""

    async def scenario(door):
        async with grpc.aio.insecure_channel(door.address) as slow, grpc.aio.insecure_channel(door.address) as honest:
            calls = [slow.stream_unary(LOGS)() for _ in range(100)]
            for call in calls:
                await call.wait_for_connection()
            assert await honest.unary_unary(LOGS)(logs_body(), timeout=30) == b""
            for call in calls:
                assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert door.counters["refused_requests.grpc_deadline"] == 100

    over_grpc(tmp_path, scenario, body_s=1.0)


def test_a_grpc_call_without_a_message_is_refused(tmp_path):
    """It has nothing to acknowledge."""

    async def scenario(door):
        async with grpc.aio.insecure_channel(door.address) as channel:
            call = channel.stream_unary(LOGS)()
            await call.done_writing()
            assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "no message" in await call.details()

    over_grpc(tmp_path, scenario)


@pytest.mark.parametrize("said", [b"", b"PRI * HTT"], ids=["nothing", "half a preface"])
def test_a_grpc_client_that_says_nothing_is_ended(tmp_path, said):
    """A connection that does not become HTTP/2 in time is closed."""

    async def scenario(door):
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        writer.write(said)
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()

    over_grpc(tmp_path, scenario, handshake_s=0.3)


def test_grpc_connections_are_bounded(tmp_path):
    """Those beyond the bound are closed; those before it are served."""

    async def scenario(door):
        async with contextlib.AsyncExitStack() as stack:
            answered = []
            for number in itertools.count():
                options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
                channel = await stack.enter_async_context(grpc.aio.insecure_channel(door.address, options))
                call = channel.unary_unary(LOGS)(logs_body(number), timeout=10)
                answered.append(await call.code())
                if answered[-1] is not grpc.StatusCode.OK:
                    break
                assert number < 10
            assert answered[:-1] == [grpc.StatusCode.OK] * 3

    over_grpc(tmp_path, scenario, connections=3)


def test_a_port_that_nobody_asked_for_may_be_taken(tmp_path, monkeypatch):
    """Where another process has OTLP's port gRPC is off, and HTTP is served; a port that was asked for is an error."""

    async def start(**given):
        intake = Intake(settings := load_settings(data_dir=tmp_path, **given), asyncio.get_running_loop())
        server = await _start_grpc(settings, intake, Buffers(1 << 20))
        intake.close()
        return server

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(grpc_receiver, "_PORT", port)
        assert asyncio.run(start()) is None
        assert asyncio.run(start(grpc_port=0)) is None
        with pytest.raises(ConfigurationError, match="--grpc-port"):
            asyncio.run(start(grpc_port=port))
