"""An HTTP/2 connection without a socket: what it does when its client does not read."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from h2.connection import H2Connection

from axonize_server.buffers import Buffers
from axonize_server.http2 import Connection
from axonize_server.http2_calls import Http2Limits


class Transport:
    """Notes what is done to it."""

    def __init__(self):
        self.sent, self.done = b"", []

    def write(self, data):
        self.sent += data

    def __getattr__(self, name):
        return lambda: self.done.append(name)


@pytest.fixture
def connection():
    """One whose clock stands at 0, past its handshake."""
    asyncio._set_running_loop(SimpleNamespace(time=lambda: 0.0, call_soon=lambda _: None))
    app = SimpleNamespace(limits=Http2Limits(), buffers=Buffers(), connections=set(), calls=0, refused=lambda _: None)
    connection, client = Connection(app), H2Connection()
    connection.connection_made(Transport())
    client.initiate_connection()
    feed(connection, client.data_to_send())
    yield connection
    asyncio._set_running_loop(None)


def feed(connection, data):
    connection.get_buffer(-1)[: len(data)] = data
    connection.buffer_updated(len(data))


def test_answers_that_are_not_read_end_the_connection(connection):
    """After 30 s; nothing more is read from such a client meanwhile."""
    connection.pause_writing()
    connection.check(29.0)
    assert connection._transport.done == ["pause_reading"]
    connection.check(30.0)
    assert connection._transport.done == ["pause_reading", "abort"]


def test_frames_wait_until_the_answers_are_read(connection):
    """What came before reading stopped is not answered until then."""
    ping = b"\0\0\x08\6\0\0\0\0\0" + b"12345678"
    connection.pause_writing()
    before = connection._transport.sent
    feed(connection, ping)
    assert connection._transport.sent == before
    connection.resume_writing()
    assert connection._transport.sent.endswith(b"12345678")
    connection.check(31.0)
    assert "abort" not in connection._transport.done
