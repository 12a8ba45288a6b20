"""Clients that are slow, silent, greedy or ten thousand: none keeps the others from being served, none stays for ever."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import time
from http.client import HTTPException
from pathlib import Path

import psutil
import pytest

from axonize_server.http import Connection, HttpLimits
from axonize_server.intake import Intake
from axonize_server.receiver import Receiver
from axonize_server.settings import load_settings
from axonize_server.stats import read_stats
from otlp_bodies import trace_body

SHORT = {"header_s": 0.2, "body_s": 0.4, "idle_s": 0.3, "answer_s": 0.3, "linger_s": 0.2}
POST = b"POST /v1/traces HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-protobuf\r\n%s\r\n"
SIZED = POST % b"content-length: %d\r\n"
CHUNKED = POST % b"transfer-encoding: chunked\r\n"
HEALTH = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
DRIP_S = 0.01


class Door:
    """A receiver's HTTP server on this loop, with the connections that a test opens."""

    def __init__(self, app, port, counters):
        self.app, self.port, self.counters = app, port, counters
        self._writers = []

    async def connect(self):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self._writers.append(writer)
        return reader, writer

    async def post(self, body):
        """Status line of the answer to an honest request on a connection of its own."""
        reader, writer = await self.connect()
        writer.write(SIZED % len(body) + body)
        line = await reader.readline()
        writer.close()
        return line

    async def close(self):
        for writer in self._writers:
            writer.close()
        for writer in self._writers:
            with contextlib.suppress(OSError):
                await writer.wait_closed()


def at_the_door(tmp_path, scenario, **limits):
    """Run `scenario(door)`; deadlines are looked at every 20 ms instead of every second."""

    async def main():
        loop = asyncio.get_running_loop()
        settings = load_settings(data_dir=tmp_path, max_body_bytes=4 << 20)
        intake = Intake(settings, loop)
        app = Receiver(settings, intake, HttpLimits(**{**SHORT, **limits}))
        server = await loop.create_server(lambda: Connection(app), "127.0.0.1", 0)
        door = Door(app, server.sockets[0].getsockname()[1], intake.counters)

        async def sweep():
            while True:
                await asyncio.sleep(0.02)
                intake.seal_due()
                for connection in list(app.connections):
                    connection.check(loop.time())

        sweeper = asyncio.create_task(sweep())
        try:
            await asyncio.wait_for(scenario(door), 60)
        finally:
            sweeper.cancel()
            await door.close()
            server.close()
            for connection in list(app.connections):
                connection._transport.abort()
            await asyncio.sleep(0.05)
            intake.close()

    asyncio.run(main())


async def until(condition):
    """Wait for what the server does next; the scenario has an end of its own."""
    while not condition():  # noqa: ASYNC110 - the server sets no event
        await asyncio.sleep(0.01)


async def drip(door, first, again):
    """Send the first bytes, then some more every 10 ms until the server ends it; what it said."""
    reader, writer = await door.connect()
    writer.write(first)
    ended = asyncio.ensure_future(reader.read())
    while not ended.done():
        with contextlib.suppress(OSError):
            writer.write(again)
        await asyncio.wait([ended], timeout=DRIP_S)
    try:
        return ended.result()
    except OSError:  # reset: it still sent
        return b""


async def never_read(door):
    """Ask on and on without reading an answer, until the server ends it."""
    loop = asyncio.get_running_loop()
    with socket.create_connection(("127.0.0.1", door.port)) as to:
        to.setblocking(False)
        with contextlib.suppress(OSError):
            while True:
                await loop.sock_sendall(to, HEALTH * 1000)


SLOW = {
    "nothing": (b"", b""),
    "head": (b"", b"x"),
    "header": (b"GET / HTTP/1.1\r\n", b"a: b\r\n"),
    "body": (SIZED % 100_000, b"x"),
    "chunks": (CHUNKED, b"1\r\nx\r\n"),
    "endless chunk": (CHUNKED + b"ffff\r\n", b"x"),
    "idle": (SIZED % 0, b""),
}


@pytest.mark.parametrize("name", SLOW)
def test_a_slow_client_is_ended_whatever_it_drips(tmp_path, name):
    """A byte every 10 ms buys nobody more time: each wait has an end of its own, and none begins anew."""

    async def scenario(door):
        await drip(door, *SLOW[name])
        await until(lambda: not door.app.connections)
        assert door.app.buffers.held_bytes == 0

    at_the_door(tmp_path, scenario)


def test_slow_clients_keep_nobody_waiting(tmp_path):
    """Beside seventy of them, that come back as they are ended, every honest request is taken."""

    async def again(first, more, door):
        while True:
            await drip(door, first, more)

    async def scenario(door):
        slow = [asyncio.create_task(again(*SLOW[name], door)) for name in SLOW for _ in range(10)]
        try:
            for seed in range(50):
                assert (await door.post(trace_body(seed))).startswith(b"HTTP/1.1 200 ")
        finally:
            for task in slow:
                task.cancel()
            await asyncio.gather(*slow, return_exceptions=True)

    at_the_door(tmp_path, scenario, header_s=2, body_s=2, idle_s=2)


def test_a_client_that_never_reads_is_not_answered_without_end(tmp_path):
    """What it is sent waits in no memory of ours: it gets no more answers until it reads, and is ended."""

    async def scenario(door):
        await never_read(door)
        await until(lambda: not door.app.connections)
        assert door.app.buffers.held_bytes == 0
        assert (await door.post(trace_body())).startswith(b"HTTP/1.1 200 ")

    at_the_door(tmp_path, scenario)


def test_a_client_that_reads_late_gets_all_its_answers(tmp_path):
    """Ten thousand requests in one go are answered, one for each, also to a client that sends no more."""

    async def scenario(door):
        reader, writer = await door.connect()
        writer.write(HEALTH * 10_000)
        writer.write_eof()
        assert (await reader.read()).count(b"HTTP/1.1 200 OK") == 10_000

    at_the_door(tmp_path, scenario, answer_s=30, idle_s=30)


def test_what_stands_behind_a_chunked_body_is_bounded_and_ignored(tmp_path):
    """Trailers say nothing about the request, and an endless one is refused."""

    async def scenario(door):
        body = trace_body()
        reader, writer = await door.connect()
        whole = CHUNKED + b"%x\r\n%b\r\n0\r\ncontent-type: text/plain\r\n\r\n" % (len(body), body)
        writer.write(whole)
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        answer = await drip(door, CHUNKED + b"0\r\nendless: ", b"x" * 5_000)
        assert answer.startswith(b"HTTP/1.1 431 ")

    at_the_door(tmp_path, scenario, body_s=30, linger_s=30)


def test_chunked_bodies_are_bounded_together(tmp_path):
    """Bodies without a length count as they arrive; one too many is told to come back, and counted."""

    async def scenario(door):
        reader, writer = await door.connect()
        writer.write(CHUNKED + b"200000\r\n" + b"x" * (2 << 20) + b"\r\n")
        await until(lambda: door.app.buffers.held_bytes >= 2 << 20)
        answer = await drip(door, CHUNKED + b"200000\r\n", b"x" * 100_000)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert door.counters["refused_requests.buffers"] == 1
        writer.write(b"0\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 400 ")  # it is no OTLP, but it arrived

    at_the_door(tmp_path, scenario, buffered_bytes=3 << 20, body_s=30, linger_s=30)


def test_small_bodies_are_bounded_together(tmp_path):
    """Many below the size that is asked about beforehand: those beyond the bound are told to come back."""

    async def scenario(door):
        ends = [await door.connect() for _ in range(12)]
        for _, writer in ends:
            writer.write(SIZED % 900_000 + b"x" * 800_000)
        await until(lambda: door.counters["refused_requests.buffers"])
        assert door.app.buffers.held_bytes <= 3 << 20
        assert any(connection.under_way for connection in door.app.connections)

    at_the_door(tmp_path, scenario, buffered_bytes=3 << 20, body_s=30, linger_s=30)


def test_one_client_too_many_is_counted(tmp_path):
    """Beyond the bound of connections a client is told so at once, under a reason of its own."""

    async def scenario(door):
        first, _ = await door.connect(), await door.connect()
        reader, _ = await door.connect()
        assert (await reader.readline()).startswith(b"HTTP/1.1 503 ")
        assert door.counters["refused_requests.connections"] == 1
        first[1].write(HEALTH)
        assert (await first[0].readline()).startswith(b"HTTP/1.1 200 ")

    at_the_door(tmp_path, scenario, connections=2, header_s=30, idle_s=30)


WANTED = 10_000
AT_ONCE = 500
OWN_FILES = 500
MIB = 1 << 20


@pytest.fixture
def clients():
    """How many connections this process may open: its limit is raised as far as it goes, and set back."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = WANTED + OWN_FILES
    raised = max(soft, enough if hard == resource.RLIM_INFINITY else min(hard, enough))
    resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
    yield min(WANTED, raised - OWN_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def ask_all(connections, body):
    """One request on each, some hundred at a time, while all the others stay open; how many were acknowledged."""
    acked = 0
    for at in range(0, len(connections), AT_ONCE):
        some = connections[at : at + AT_ONCE]
        for to in some:
            to.sendall(SIZED % len(body) + body)
        acked += sum(to.recv(1000).startswith(b"HTTP/1.1 200 ") for to in some)
    return acked


def memory_bytes(receiver, what):
    """A line of the receiver's status in /proc, such as VmHWM."""
    status = Path(f"/proc/{receiver.child.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(what)).split()[1]) << 10


def test_ten_thousand_connections_are_served_by_one_process(make_receiver, clients, record_property):
    """Each is acknowledged twice while all are open; memory stays bounded, and what was acknowledged is counted."""
    receiver = make_receiver()
    receiver.wait_ready()
    before = memory_bytes(receiver, "VmRSS")
    body = trace_body(spans=1)
    with contextlib.ExitStack() as stack:
        connections = []
        while len(connections) < clients:
            more = min(AT_ONCE, clients - len(connections))
            opened = [
                stack.enter_context(socket.create_connection(("127.0.0.1", receiver.port), 60)) for _ in range(more)
            ]
            assert ask_all(opened, body) == more
            connections += opened
        assert ask_all(connections, body) == clients
        after = memory_bytes(receiver, "VmHWM")
        print(f"{clients} connections: {before / MIB:.0f} MiB before, {after / MIB:.0f} MiB at most")
        record_property("connections", clients)
        assert after - before < clients * 24 * 1024
    assert receiver.stop() == 0
    (counters,) = [facts["counters"] for facts in read_stats(receiver.settings.data_dir)]
    assert counters["acked_records.traces"] == 2 * clients


def test_a_receiver_without_file_numbers_recovers(make_receiver):
    """At its limit of open files it neither ends nor spins: who is connected is answered, later clients again too."""
    receiver = make_receiver()
    receiver.wait_ready()
    process = psutil.Process(receiver.child.pid)
    with contextlib.closing(receiver.client()) as first:
        assert receiver.post(trace_body(), client=first)[0] == 200
        limit = process.num_fds() + 20
        process.rlimit(psutil.RLIMIT_NOFILE, (limit, limit))
        with contextlib.ExitStack() as stack:
            for _ in range(100):
                stack.enter_context(socket.create_connection(("127.0.0.1", receiver.port), 20))
            spent = sum(process.cpu_times()[:2])
            for seed in range(20):
                assert receiver.post(trace_body(seed), client=first)[0] in (200, 503)
                time.sleep(0.05)
            assert sum(process.cpu_times()[:2]) - spent < 0.6  # of the second and more that this took
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, HTTPException):
            if receiver.post(trace_body())[0] == 200:
                break
        time.sleep(0.05)
    assert receiver.post(trace_body())[0] == 200
    assert receiver.stop() == 0
