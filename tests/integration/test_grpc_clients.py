"""Clients of OTLP/gRPC that are slow, silent or too many: none keeps the others from being served, none stays for ever."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket

import pytest

from axonize_server.intake import Intake
from axonize_server.settings import load_settings
from otlp_bodies import logs_body

LOGS = "/opentelemetry.proto.collector.logs.v1.LogsService/Export"


def over_grpc(tmp_path, scenario, **given):
    """Run `scenario(address, counters)` beside a gRPC server of these limits."""
    pytest.importorskip("grpc")
    from axonize_server.grpc_receiver import GrpcLimits, serve_grpc

    async def main():
        settings = load_settings(data_dir=tmp_path)
        intake = Intake(settings, asyncio.get_running_loop())
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        server = await serve_grpc(settings, port, intake, GrpcLimits(**given))
        try:
            await asyncio.wait_for(scenario(f"127.0.0.1:{port}", intake.counters), 60)
        finally:
            await server.stop(0)
            intake.close()

    asyncio.run(main())


def test_slow_grpc_calls_keep_nobody_waiting(tmp_path):
    """A hundred calls that never send their message: another client is served, and they are ended."""

    async def scenario(address, counters):
        import grpc.aio

        async with grpc.aio.insecure_channel(address) as slow, grpc.aio.insecure_channel(address) as honest:
            calls = [slow.stream_unary(LOGS)() for _ in range(100)]
            for call in calls:
                await call.wait_for_connection()
            assert await honest.unary_unary(LOGS)(logs_body(), timeout=30) == b""
            for call in calls:
                assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert counters["refused_requests.grpc_deadline"] == 100

    over_grpc(tmp_path, scenario, body_s=1.0)


def test_a_grpc_call_without_a_message_is_refused(tmp_path):
    """It has nothing to acknowledge."""

    async def scenario(address, _):
        import grpc.aio

        async with grpc.aio.insecure_channel(address) as channel:
            call = channel.stream_unary(LOGS)()
            await call.done_writing()
            assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "no message" in await call.details()

    over_grpc(tmp_path, scenario)


@pytest.mark.parametrize("said", [b"", b"PRI * HTT"], ids=["nothing", "half a preface"])
def test_a_grpc_client_that_says_nothing_is_ended(tmp_path, said):
    """A connection that does not become HTTP/2 in time is closed."""

    async def scenario(address, _):
        host, _, port = address.partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(said)
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()

    over_grpc(tmp_path, scenario, handshake_s=0.3)


def test_grpc_connections_are_bounded(tmp_path):
    """Those beyond the bound are closed; those before it are served."""

    async def scenario(address, _):
        import grpc.aio

        async with contextlib.AsyncExitStack() as stack:
            answered = []
            for number in itertools.count():
                options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
                channel = await stack.enter_async_context(grpc.aio.insecure_channel(address, options))
                call = channel.unary_unary(LOGS)(logs_body(number), timeout=10)
                answered.append(await call.code())
                if answered[-1] is not grpc.StatusCode.OK:
                    break
                assert number < 10
            assert answered[:-1] == [grpc.StatusCode.OK] * 3

    over_grpc(tmp_path, scenario, connections=3)
