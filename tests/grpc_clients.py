"""A gRPC server of given limits, and a client that says what it likes to it: bytes, or frames made by h2."""

from __future__ import annotations

import asyncio
import contextlib

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, ResponseReceived, StreamEnded, StreamReset, TrailersReceived

from axonize_server.buffers import Buffers
from axonize_server.grpc_receiver import serve_grpc
from axonize_server.http2_calls import Http2Limits
from axonize_server.intake import Intake
from axonize_server.local import free_port
from axonize_server.settings import load_settings

LOGS = "/opentelemetry.proto.collector.logs.v1.LogsService/Export"


def over_grpc(tmp_path, scenario, *, buffered_bytes=512 << 20, given=None, **limits):
    """Run `scenario(door)` beside a gRPC server of these limits, whose clock ticks fast."""

    async def main():
        door = await Door.open(tmp_path, Buffers(buffered_bytes), Http2Limits(**limits), given or {})
        try:
            await asyncio.wait_for(scenario(door), 60)
        finally:
            await door.close()

    asyncio.run(main())


class Door:
    """The server, and what can be seen of it."""

    @classmethod
    async def open(cls, tmp_path, buffers, limits, given):
        self, loop = cls(), asyncio.get_running_loop()
        settings = load_settings(data_dir=tmp_path, grpc_port=free_port(), **given)
        self.port, self.buffers, self.intake = settings.grpc_port, buffers, Intake(settings, loop)
        self.server = await serve_grpc(settings, self.intake, buffers, limits)

        async def tick():
            while True:
                await asyncio.sleep(0.05)
                self.server.check(loop.time())

        self._ticking, self._clients = asyncio.ensure_future(tick()), []
        return self

    async def close(self):
        for client in self._clients:
            client.writer.close()
            with contextlib.suppress(OSError):
                await client.writer.wait_closed()
        self._ticking.cancel()
        await self.server.stop(0)
        await self.empty()
        self.intake.close()

    async def empty(self):
        """Until no connection is left."""
        while self.server.connections:  # noqa: ASYNC110 - a test
            await asyncio.sleep(0.01)

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"

    @property
    def counters(self):
        return self.intake.counters

    async def client(self, **settings):
        """A raw client, connected; it has not looked at what the server announces."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self._clients.append(RawClient(reader, writer, settings))
        return self._clients[-1]


class RawClient:
    """HTTP/2 by h2's client side."""

    def __init__(self, reader, writer, settings):
        self.reader, self.writer = reader, writer
        self.h2 = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self.h2.local_settings.update(settings)
        self.h2.initiate_connection()
        self.goaway, self.ended, self.left = None, False, False
        self.answers = {}
        self._read = b""
        self.flush()

    def flush(self):
        self.writer.write(self.h2.data_to_send())

    def leave(self):
        """Send no more, read on."""
        self.writer.write_eof()
        self.left = True

    def begin(self, path=LOGS, **headers):
        """The headers of a call; gives the stream's number."""
        stream_id = self.h2.get_next_available_stream_id()
        named = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "x", "te": "trailers"}
        named |= {"content-type": "application/grpc"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        self.h2.send_headers(stream_id, [(name, value) for name, value in named.items() if value is not None])
        self.flush()
        return stream_id

    def send(self, stream_id, data=b"", *, end=False, **how):
        self.h2.send_data(stream_id, data, end_stream=end, **how)
        self.flush()

    async def send_all(self, stream_id, data, piece=16_384):
        """A whole body, in pieces, as fast as the windows allow."""
        for at in range(0, len(data), piece):
            part = data[at : at + piece]
            while self.h2.local_flow_control_window(stream_id) < len(part):
                await self.read()
            self.send(stream_id, part, end=at + piece >= len(data))

    async def read(self):
        """One read; False at the end."""
        try:
            data = await self.reader.read(65536)
        except ConnectionError:
            data = b""
        if not data:
            self.ended = True
            return False
        for event in self._events(data):
            if isinstance(event, (ResponseReceived, TrailersReceived)):
                self.answers.setdefault(event.stream_id, {}).update(event.headers)
            elif isinstance(event, DataReceived):
                answer = self.answers[event.stream_id]
                answer["body"] = answer.get("body", b"") + event.data
            elif isinstance(event, (StreamEnded, StreamReset)):
                self.answers.setdefault(event.stream_id, {})[type(event).__name__] = True
        if not self.writer.is_closing() and not self.left:
            self.flush()
        return True

    def _events(self, data):
        """What h2 makes of it, GOAWAY aside: it would take no more after that."""
        self._read += data
        while len(self._read) >= 9 and len(self._read) >= (end := 9 + int.from_bytes(self._read[:3], "big")):
            frame, self._read = self._read[:end], self._read[end:]
            if frame[3] == 7:
                self.goaway = int.from_bytes(frame[13:17], "big")
            else:
                yield from self.h2.receive_data(frame)

    async def answer(self, stream_id):
        """All that comes for a call."""
        while not self.answers.get(stream_id, {}).keys() & {"StreamEnded", "StreamReset"} and await self.read():
            pass
        return self.answers.get(stream_id, {})

    async def call(self, message, path=LOGS, **headers):
        """A whole call, its message framed."""
        stream_id = self.begin(path, **headers)
        await self.send_all(stream_id, framed(message))
        return await self.answer(stream_id)

    async def until_ended(self):
        """Read until the server closes; the code of its GOAWAY."""
        while await self.read():
            pass
        return self.goaway


def framed(message, flag=0):
    return bytes([flag]) + len(message).to_bytes(4, "big") + message
