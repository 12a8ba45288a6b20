"""h2 as our connections use it: it speaks HTTP/2, HPACK and flow control; nothing here does."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.frame_buffer import FrameBuffer
from h2.settings import SettingCodes, Settings
from hpack import Encoder
from hyperframe.frame import DataFrame, HeadersFrame, WindowUpdateFrame

if TYPE_CHECKING:
    from h2.events import Event
    from hyperframe.frame import Frame

__all__ = ["Engine", "Headers"]

Headers = tuple[tuple[bytes, bytes], ...]

_HEAD_BYTES, _PADDED, _STREAM_ID = 9, 0x8, 0x7FFFFFFF
_FIRST_WINDOW_BYTES: Final = 65_535  # of a connection, until we open it further


class Engine(H2Connection):
    """The server's side of one connection."""

    MAX_CLOSED_STREAMS = 1024  # what it remembers of them; 65,536 would be megabytes for each connection

    def __init__(self, *, streams: int, header_bytes: int, frame_bytes: int, window_bytes: int) -> None:
        """Announce these limits; a connection's window is four times a stream's."""
        # What we send is made of constants and quoted text; of what we get, headers are compared and never handed on.
        configuration = H2Configuration(
            client_side=False,
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
            validate_inbound_headers=False,
            normalize_inbound_headers=False,
        )
        super().__init__(configuration)
        announced = {
            SettingCodes.MAX_CONCURRENT_STREAMS: streams,
            SettingCodes.MAX_HEADER_LIST_SIZE: header_bytes,
            SettingCodes.MAX_FRAME_SIZE: frame_bytes,
            SettingCodes.INITIAL_WINDOW_SIZE: window_bytes,
        }
        self.local_settings = Settings(client=False, initial_values=announced)
        self.decoder.max_header_list_size = header_bytes
        self.max_inbound_frame_size = frame_bytes
        self.incoming_buffer = self._frames = _Frames(server=True)
        self.initiate_connection()
        self.increment_flow_control_window(4 * window_bytes - _FIRST_WINDOW_BYTES)

    def receive_frame(self, frame: memoryview) -> list[Event]:
        """Take one whole frame and say what it means; of DATA the event holds a view, valid as long as this one.

        h2 4.4 copies DATA three times, and describes every frame for a log line that goes nowhere, all of it in
        hexadecimal: together 0.5 ms for half a MB. So it gets these parsed by hyperframe's rules, and sees nothing else
        of it: states, windows and lengths are its own business.
        """
        kind, stream_id = frame[3], int.from_bytes(frame[5:_HEAD_BYTES], "big") & _STREAM_ID
        ended = 0 < stream_id <= self.highest_inbound_stream_id and stream_id not in self.streams
        if ended and kind == WindowUpdateFrame.type:
            return []  # h2 would do nothing either: nobody waits for the window of a stream that has ended
        if kind != DataFrame.type or frame[4] & _PADDED:
            return self.receive_data(frame)
        data = DataFrame(stream_id, frame[_HEAD_BYTES:])  # type: ignore[arg-type]
        data.parse_flags(frame[4])
        data.body_len = len(data.data)
        data.serialize_body = bytes  # type: ignore[method-assign]  # what the description asks for
        return self.receive_data(b"" if self._frames.hand_over(data) else frame)

    def whole_answer(self, stream_id: int, headers: Headers, body: bytes, trailers: Headers) -> bytes:
        """The frames of an answer to a whole request, or nothing when the client's windows are too small for them.

        By h2 it would take 0.07 ms more, every time for the same headers. Their blocks are made once, of literals that
        are in no table, so h2's compression goes on beside them; the stream is one that it has closed and forgotten.
        """
        stream = self.streams.get(stream_id)
        if stream is None or len(body) > min(self.local_flow_control_window(stream_id), self.max_outbound_frame_size):
            return b""
        self.outbound_flow_control_window -= len(body)
        del self.streams[stream_id]
        at = stream_id.to_bytes(4, "big")
        (head, block), (tail, last_block) = (
            _headers(headers, "END_HEADERS"),
            _headers(trailers, "END_HEADERS", "END_STREAM"),
        )
        return b"".join((head, at, block, len(body).to_bytes(3, "big"), b"\0\0", at, body, tail, at, last_block))


@lru_cache(maxsize=64)
def _headers(headers: Headers, *flags: str) -> tuple[bytes, bytes]:
    """A HEADERS frame, without the stream's number: what is before that and what is behind."""
    block = Encoder().encode([(name, value, True) for name, value in headers])
    frame = HeadersFrame(1, block, flags=flags).serialize()
    return frame[:5], frame[_HEAD_BYTES:]


class _Frames(FrameBuffer):
    """h2's own reader of frames, and a way past it for those of DATA, which are large."""

    _data_frame: DataFrame | None = None

    def hand_over(self, frame: DataFrame) -> bool:
        """Let `frame` be the next one; not within a header block, where h2 has something to say."""
        if self._data or self._headers_buffer or self._preamble_len:
            return False
        self._data_frame = frame
        return True

    def __next__(self) -> Frame:
        frame, self._data_frame = self._data_frame, None
        return super().__next__() if frame is None else frame
