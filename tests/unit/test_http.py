"""The HTTP server's patience and its bounds, over real sockets with small limits."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from axonize_server.buffers import Buffers
from axonize_server.http import Connection, HttpLimits, Response

SMALL = HttpLimits(connections=2, header_bytes=1000, buffered_bytes=3 << 20, header_s=0.2, body_s=0.4, idle_s=0.6)
POST = b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"


class Echo:
    """Answers with the body it got, at once or when told."""

    def __init__(self):
        self.limits, self.connections, self.stopping = SMALL, set(), False
        self.buffers = Buffers(SMALL.buffered_bytes)
        self.pending = asyncio.Queue()

    def body_limit(self, head):
        return 8 << 20

    def refusal(self, head, status, reason, counted=""):
        return Response(status.value, reason.encode())

    def serve(self, head, body, connection):
        if head.path == "/later":
            self.pending.put_nowait(connection)
        else:
            connection.respond(Response(200, bytes(body)))


def run(scenario):
    """Serve while `scenario(app, connect)` runs; deadlines are looked at every 50 ms."""

    async def main():
        app = Echo()
        server = await asyncio.get_running_loop().create_server(lambda: Connection(app), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        open_ = []

        async def connect():
            open_.append(await asyncio.open_connection("127.0.0.1", port))
            return open_[-1]

        async def sweep():
            while True:
                await asyncio.sleep(0.05)
                for connection in list(app.connections):
                    connection.check(asyncio.get_running_loop().time())

        sweeper = asyncio.create_task(sweep())
        try:
            await asyncio.wait_for(scenario(app, connect), 20)
        finally:
            sweeper.cancel()
            for _, writer in open_:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
            server.close()
            for connection in list(app.connections):
                connection._transport.abort()
            await asyncio.sleep(0.05)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("sent", "first"),
    [(b"GET / HT", b"HTTP/1.1 408 "), (POST % 10 + b"half", b"HTTP/1.1 408 "), (b"", b"")],
    ids=["head", "body", "nothing"],
)
def test_a_slow_client_is_not_waited_for(sent, first):
    """A head, a body that stops arriving, and silence each end the connection in their time."""

    async def scenario(_, connect):
        reader, writer = await connect()
        writer.write(sent)
        answer = await reader.read()
        assert answer.startswith(first)
        assert bool(answer) == bool(first)

    run(scenario)


def test_an_idle_connection_is_kept_for_a_while_without_a_buffer():
    """After a large body the buffer is given back; then the idle connection ends."""

    async def scenario(app, connect):
        reader, writer = await connect()
        for _ in range(2):
            writer.write(POST % 700_000 + b"x" * 700_000)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 OK")
            await reader.readexactly(700_000)
        await asyncio.sleep(0.15)
        assert [connection.buffered_bytes for connection in app.connections] == [0]
        assert await reader.read() == b""

    run(scenario)


def test_connections_are_bounded():
    """One too many is told to come back, and those before it are served."""

    async def scenario(_, connect):
        first, _ = await connect(), await connect()
        reader, _ = await connect()
        assert (await reader.read()).startswith(b"HTTP/1.1 503 ")
        first[1].write(POST % 2 + b"ok")
        assert (await first[0].readuntil(b"ok")).startswith(b"HTTP/1.1 200 ")

    run(scenario)


def test_bytes_under_way_are_bounded():
    """A body that would take the buffers of all connections over the bound is told to come back."""

    async def scenario(_, connect):
        _, slow = await connect()
        slow.write(POST % (2 << 20) + b"x" * (3 << 19))
        await slow.drain()
        await asyncio.sleep(0.1)
        reader, writer = await connect()
        writer.write(POST % (2 << 20))
        assert (await reader.read()).startswith(b"HTTP/1.1 503 ")

    run(scenario)


def test_what_comes_while_an_answer_is_pending_waits():
    """More than a buffer full of pipelined requests is served in order once the first is answered."""

    async def scenario(app, connect):
        reader, writer = await connect()
        writer.write(b"GET /later HTTP/1.1\r\nhost: x\r\n\r\n" + (POST % 30_000 + b"y" * 30_000) * 4)
        waiting = await app.pending.get()
        await asyncio.sleep(0.2)
        waiting.respond(Response(200, b"first"))
        assert (await reader.readuntil(b"first")).count(b"200 OK") == 1
        for _ in range(4):
            await reader.readuntil(b"\r\n\r\n")
            assert await reader.readexactly(30_000) == b"y" * 30_000

    run(scenario)


def test_a_client_that_leaves_is_forgotten():
    """Its late answer goes nowhere and disturbs nobody; one that only stops sending still gets it."""

    async def scenario(app, connect):
        _, writer = await connect()
        writer.write(b"GET /later HTTP/1.1\r\nhost: x\r\n\r\n")
        gone = await app.pending.get()
        gone._transport.abort()
        await asyncio.sleep(0.05)
        gone.respond(Response(200))
        assert not app.connections
        reader, writer = await connect()
        writer.write(b"GET /later HTTP/1.1\r\nhost: x\r\n\r\n")
        writer.write_eof()
        waiting = await app.pending.get()
        await asyncio.sleep(0.05)
        waiting.respond(Response(200, b"late"))
        assert (await reader.read()).endswith(b"late")

    run(scenario)


def test_a_second_message_behind_chunks_closes_the_connection():
    """It is not served, and the client sees that by the close."""

    async def scenario(_, connect):
        reader, writer = await connect()
        chunked = b"POST /x HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"
        writer.write(chunked + POST % 1 + b"z")
        answer = await reader.read()
        assert answer.count(b"HTTP/1.1") == 1
        assert b"connection: close" in answer
        assert answer.endswith(b"hi")

    run(scenario)


def test_stopping_closes_idle_connections_and_finishes_others():
    """An idle one ends at once, a busy one behind its answer."""

    async def scenario(app, connect):
        idle, _ = await connect()
        reader, writer = await connect()
        writer.write(b"GET /later HTTP/1.1\r\nhost: x\r\n\r\n")
        waiting = await app.pending.get()
        app.stopping = True
        for connection in list(app.connections):
            connection.stop()
        assert await idle.read() == b""
        assert [connection.under_way for connection in app.connections] == [True]
        waiting.respond(Response(200, b"done"))
        assert b"connection: close" in await reader.read()

    run(scenario)
