"""HTTP/2 for calls with bodies of some hundred KB: h2 says what the bytes mean, here is how much of them is taken.

h2 gets whole frames, some of them in a turn of the event loop, so that no connection keeps the others waiting. A large
frame size and large windows let a client send a body at once. Every wait for a client has a deadline, for its reading
of answers too; what all clients make us hold is bounded; frames that lead nowhere are paid from a purse that only calls
and time fill. Runs on one event loop thread.
"""

from __future__ import annotations

import asyncio
import contextlib
from enum import Enum, auto
from typing import TYPE_CHECKING, Final, cast

from h2.errors import ErrorCodes
from h2.events import (
    DataReceived,
    RemoteSettingsChanged,
    RequestReceived,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from h2.exceptions import ProtocolError
from hyperframe.frame import GoAwayFrame, WindowUpdateFrame

from axonize_server.http2_buffer import HEAD_BYTES, Incoming
from axonize_server.http2_calls import Call, Fault
from axonize_server.http2_engine import Engine

if TYPE_CHECKING:
    from h2.events import Event

    from axonize_server.http2_calls import Answer, Application

__all__ = ["Connection"]

_PREFACE_BYTES: Final = 24
_DATA, _HEADERS, _GOAWAY, _CONTINUATION = 0x0, 0x1, 0x7, 0x9
_LINGER_BYTES = 4096
_FRAMES_A_TURN = 64  # a body in one frame takes about a millisecond, a PING 20 us
_PURSE_FULL, _PURSE_A_SECOND, _PURSE_A_CALL = 4096, 100, 16  # frames; and one for each KiB of a body


class _State(Enum):
    HANDSHAKE = auto()
    OPEN = auto()
    LEAVING = auto()  # no more calls
    LINGER = auto()
    CLOSED = auto()


_ENDED: Final = (_State.LINGER, _State.CLOSED)


class Connection(asyncio.BufferedProtocol):
    """One client connection."""

    def __init__(self, application: Application) -> None:
        self._app, self._limits = application, application.limits
        self._loop = asyncio.get_running_loop()
        limits = self._limits
        self._h2 = Engine(
            streams=limits.streams,
            header_bytes=limits.header_bytes,
            frame_bytes=limits.frame_bytes,
            window_bytes=limits.window_bytes,
        )
        self._calls: dict[int, Call] = {}
        self._incoming = Incoming(application.buffers, limits)
        self._unreturned = self._block_bytes = 0
        self._purse = _PURSE_FULL
        self._begun = self._unread = False
        self._state = _State.HANDSHAKE
        self._deadline = self._loop.time() + limits.handshake_s

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Join the application's connections and say what a client may do."""
        self._transport = cast("asyncio.Transport", transport)
        self._app.connections.add(self)
        if len(self._app.connections) > self._limits.connections:
            self._app.refused("connections")
            self._state = _State.CLOSED
            self._transport.abort()
        else:
            self._flush()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Leave; answers that are still to come go nowhere."""
        self._state = _State.CLOSED
        self._forget_all()
        self._app.connections.discard(self)
        self._incoming.let_go()

    @property
    def under_way(self) -> bool:
        """Whether a call is arriving or waits for its answer."""
        return bool(self._calls)

    # What arrives.

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        """Where the next bytes go; never empty."""
        return self._incoming.room()

    def buffer_updated(self, nbytes: int) -> None:
        """Go on with what arrived."""
        if self._state in _ENDED:
            return
        self._incoming.arrived(nbytes)
        self._take()
        self._flush()

    def _take(self) -> None:
        """Hand h2 the frames that are here, as many as one turn of the loop is for."""
        incoming = self._incoming
        for _ in range(_FRAMES_A_TURN):
            size = self._next_bytes()
            if self._state in _ENDED or self._unread:
                return
            if incoming.here < size:
                if not incoming.wait_for(size, idle=not self._calls):
                    self._skip_frame(size)
                return
            frame = incoming.take(size)
            if self._admit(frame):
                self._feed(frame)
        self._transport.pause_reading()
        self._loop.call_soon(self._go_on)

    def _next_bytes(self) -> int:
        """The length of the next frame, or of as much of it as tells."""
        if not self._begun:
            return _PREFACE_BYTES
        if self._incoming.here < HEAD_BYTES:
            return HEAD_BYTES
        head = self._incoming.peek(HEAD_BYTES)
        length, kind = int.from_bytes(head[:3], "big"), head[3]
        if length > (self._limits.frame_bytes if kind == _DATA else self._limits.header_bytes):
            self._end(ErrorCodes.FRAME_SIZE_ERROR, "http2_protocol")
        return HEAD_BYTES + length

    def _skip_frame(self, size: int) -> None:
        """Drop a frame of DATA for which there is no room, unseen by h2, and give the client its window back."""
        stream_id = int.from_bytes(self._incoming.peek(HEAD_BYTES)[5:], "big") & 0x7FFFFFFF
        self._incoming.skip(size)
        self._purse -= 1
        if (call := self._calls.get(stream_id)) is not None:
            self._app.fault(call, Fault.NO_ROOM, self)
        self._transport.write(WindowUpdateFrame(0, size - HEAD_BYTES).serialize())

    def _admit(self, frame: memoryview) -> bool:
        """Whether h2 is to see a frame; ends a connection whose frames lead nowhere."""
        if not self._begun:
            self._begun = True
            return True
        kind = frame[3]
        self._purse -= 1
        if kind in (_HEADERS, _CONTINUATION):
            self._block_bytes = len(frame) + (self._block_bytes if kind == _CONTINUATION else 0)
        if self._purse < 0 or self._block_bytes > self._limits.header_bytes + HEAD_BYTES:
            self._end(ErrorCodes.ENHANCE_YOUR_CALM, "http2_flood")
            return False
        if kind == _GOAWAY:  # h2 would let no call end any more
            self._leave()
            return False
        return True

    def _feed(self, frame: memoryview) -> None:
        try:
            events = self._h2.receive_frame(frame)
        except Exception:  # noqa: BLE001 - whatever bytes make of it, they were the client's
            self._end(None, "http2_protocol")
            return
        for event in events:
            self._on(event)

    def _on(self, event: Event) -> None:
        if isinstance(event, DataReceived):
            self._on_data(event)
        elif isinstance(event, RequestReceived):
            self._on_request(event)
        elif isinstance(event, TrailersReceived):
            if (call := self._calls.get(event.stream_id)) is not None:
                self._serve(call, self._incoming.body(call))
        elif isinstance(event, StreamReset):
            if (call := self._calls.get(event.stream_id)) is not None:
                self._forget(call)
        elif isinstance(event, (WindowUpdated, RemoteSettingsChanged)):
            if self._state is _State.HANDSHAKE and isinstance(event, RemoteSettingsChanged):
                self._state, self._deadline = _State.OPEN, self._loop.time() + self._limits.idle_s
            for call in [call for call in self._calls.values() if call.trailers]:
                self._send_body(call)

    def _on_request(self, event: RequestReceived) -> None:
        if self._state is _State.LEAVING:
            self._h2.reset_stream(event.stream_id, ErrorCodes.REFUSED_STREAM)
            return
        call = self._calls[event.stream_id] = Call(event.stream_id, self._loop.time() + self._limits.body_s)
        self._app.calls += 1
        call.arrived = event.stream_ended is not None
        self._app.begin(call, dict(event.headers), self)
        if call.arrived and call.stream_id in self._calls:
            self._serve(call, b"")

    def _on_data(self, event: DataReceived) -> None:
        self._purse = min(self._purse + (len(event.data) >> 10), _PURSE_FULL)
        self._unreturned += event.flow_controlled_length
        if self._unreturned >= 2 * self._limits.window_bytes:
            self._h2.increment_flow_control_window(self._unreturned)
            self._unreturned = 0
        if (call := self._calls.get(event.stream_id)) is None:
            return
        call.arrived = event.stream_ended is not None
        if call.size + len(event.data) > call.limit_bytes:
            self._app.fault(call, Fault.TOO_LARGE, self)
        elif call.arrived and not call.size:
            self._serve(call, event.data)
        else:
            self._collect(call, event)

    def _collect(self, call: Call, event: DataReceived) -> None:
        """Put a piece to a call's body."""
        self._incoming.collect(call, event.data, padded=event.flow_controlled_length > len(event.data))
        call.unreturned += event.flow_controlled_length
        if call.arrived:
            self._serve(call, self._incoming.body(call))
        elif not self._app.buffers.has_room():
            self._app.fault(call, Fault.NO_ROOM, self)
        elif call.unreturned >= self._limits.window_bytes // 2:
            self._h2.increment_flow_control_window(call.unreturned, call.stream_id)
            call.unreturned = 0

    def _serve(self, call: Call, body: bytes | bytearray | memoryview) -> None:
        call.arrived, call.deadline = True, self._loop.time() + self._limits.ack_s
        self._app.serve(call, body, self)
        self._incoming.drop_body(call)

    # What is answered.

    def respond(self, call: Call, answer: Answer) -> None:
        """Answer a call, unless it has gone."""
        if self._calls.get(call.stream_id) is not call or call.trailers:
            return
        if call.arrived and answer.trailers and (whole := self._h2.whole_answer(call.stream_id, *answer)):
            self._flush(whole)
            self._ended(call)
            return
        try:
            self._h2.send_headers(call.stream_id, answer.headers, end_stream=not answer.trailers)
            call.left, call.trailers = answer.body, answer.trailers
            self._send_body(call)
        except ProtocolError:  # it is h2's view that there is nobody to answer
            self._end(None, "http2_protocol")
        self._flush()

    def _send_body(self, call: Call) -> None:
        """Send as much as the client takes now, then the end."""
        while call.left:
            room = min(self._h2.local_flow_control_window(call.stream_id), self._h2.max_outbound_frame_size)
            if room <= 0:
                call.deadline = self._loop.time() + self._limits.answer_s
                return
            self._h2.send_data(call.stream_id, call.left[:room])
            call.left = call.left[room:]
        if call.trailers:
            self._h2.send_headers(call.stream_id, call.trailers, end_stream=True)
        if not call.arrived:
            self._h2.reset_stream(call.stream_id, ErrorCodes.NO_ERROR)
        self._ended(call)

    def _ended(self, call: Call) -> None:
        if call.arrived:
            self._purse = min(self._purse + _PURSE_A_CALL, _PURSE_FULL)
        self._forget(call)

    def _flush(self, more: bytes = b"") -> None:
        if self._state is not _State.CLOSED and (data := self._h2.data_to_send() + more):
            self._transport.write(data)

    def pause_writing(self) -> None:
        """The client does not read its answers; nothing more is read from it until it does."""
        self._unread, self._unread_until = True, self._loop.time() + self._limits.answer_s
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """It has read them."""
        self._unread = False
        self._go_on()

    def _go_on(self) -> None:
        """Turn to what is left of an earlier turn."""
        if self._state in _ENDED or self._unread:
            return
        self._transport.resume_reading()
        self._take()
        self._flush()

    # How calls and connections end.

    def _forget(self, call: Call) -> None:
        self._incoming.drop_body(call)
        del self._calls[call.stream_id]
        self._app.calls -= 1
        if not self._calls:
            self._deadline = self._loop.time() + self._limits.idle_s
            if self._state is _State.LEAVING:
                self._linger()

    def _forget_all(self) -> None:
        for call in list(self._calls.values()):
            self._forget(call)

    def _leave(self) -> None:
        """Let the calls under way end, then close."""
        self._state = _State.LEAVING
        if not self._calls:
            self._linger()

    def stop(self) -> None:
        """Tell the client to send its further calls elsewhere, and close when those under way have ended."""
        if self._state in (_State.HANDSHAKE, _State.OPEN):
            self._transport.write(GoAwayFrame(0, self._h2.highest_inbound_stream_id).serialize())
            self._leave()

    def close(self) -> None:
        """Close now; calls that are still under way were never acknowledged."""
        if self._calls:
            self._transport.abort()
        else:
            self._transport.close()

    def _end(self, code: ErrorCodes | None, reason: str = "") -> None:
        """Close for an error or silence; without a code h2 has said which."""
        if self._state in _ENDED:
            return
        if reason:
            self._app.refused(reason)
        if code is not None:
            with contextlib.suppress(ProtocolError):
                self._h2.close_connection(code)
        self._linger()

    def _linger(self) -> None:
        """Read on for a while: closing upon unread bytes would reset the last answer away."""
        self._flush()
        self._state, self._deadline = _State.LINGER, self._loop.time() + self._limits.linger_s
        self._forget_all()
        self._incoming.let_go(_LINGER_BYTES)
        self._transport.resume_reading()
        with contextlib.suppress(OSError):  # the client may have gone
            self._transport.write_eof()

    def eof_received(self) -> bool:
        """A client that sends no more may still read its answers."""
        if self._state in _ENDED:
            return False
        for call in [call for call in self._calls.values() if not call.arrived]:
            self._forget(call)
        self._state = _State.LEAVING
        return bool(self._calls)

    def check(self, now: float) -> None:
        """End what has passed its deadline, free an idle connection's buffer; called about once a second."""
        self._purse = min(self._purse + _PURSE_A_SECOND, _PURSE_FULL)
        if self._unread:
            if now >= self._unread_until:
                self._transport.abort()
        elif self._calls:
            for call in [call for call in self._calls.values() if now >= call.deadline]:
                self._overdue(call)
        elif now >= self._deadline:
            if self._state is _State.LINGER:
                self._transport.abort()
            else:
                self._end(ErrorCodes.NO_ERROR)
        elif self._state is not _State.LINGER:
            self._incoming.let_go_if_empty()

    def _overdue(self, call: Call) -> None:
        if call.trailers:
            self._transport.abort()  # it does not take its answer
        else:
            self._app.fault(call, Fault.UNSYNCED if call.arrived else Fault.LATE, self)
