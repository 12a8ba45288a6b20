"""What arrived on an HTTP/2 connection: frames that are not taken yet, and the bodies of calls that are not whole.

The body of a call stays in the receive buffer, its pieces moved together, as long as nothing else needs the place: the
one client that sends half a megabyte in two frames pays for no copy. One event loop thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from axonize_server.buffers import Buffers
    from axonize_server.http2_calls import Call, Http2Limits

__all__ = ["HEAD_BYTES", "Incoming"]

HEAD_BYTES: Final = 9
"""Of a frame."""
_FIRST_BYTES = 8 << 10
_SPARE_BYTES = 4096


class Incoming:
    """The receive buffer of one connection, on the account of all."""

    def __init__(self, buffers: Buffers, limits: Http2Limits) -> None:
        self._account_of_all = buffers
        self._head_bytes, self._frame_bytes = limits.header_bytes + HEAD_BYTES, limits.frame_bytes + _SPARE_BYTES
        self._data, self._at, self._have = bytearray(), 0, 0
        self._skip = 0  # bytes still to come that nobody wants
        self._open: Call | None = None  # the one whose body lies here, in one piece, between these:
        self._open_at = self._open_end = 0
        self._bodies = self._held = 0

    def room(self) -> memoryview:
        """Where the next bytes go; never empty."""
        if self._have == len(self._data):
            self._resize(self._have + _FIRST_BYTES)
        return memoryview(self._data)[self._have :]

    def arrived(self, count: int) -> None:
        """Count what came, but for what is skipped."""
        self._have += count
        dropped = min(self._skip, self._have - self._at)
        self._skip, self._at = self._skip - dropped, self._at + dropped

    @property
    def here(self) -> int:
        """How many bytes are here and not taken."""
        return self._have - self._at

    def peek(self, count: int) -> memoryview:
        """The first of them."""
        return memoryview(self._data)[self._at : self._at + count]

    def take(self, count: int) -> memoryview:
        """Take so many; they stay as they are until there is more room to be made."""
        taken = self.peek(count)
        self._at += count
        return taken

    def wait_for(self, size: int, *, idle: bool) -> bool:
        """Make room for a frame of which only a part is here; False where there is none.

        Args:
            size: of the whole frame.
            idle: whether no call is under way, and the buffer might be let go of where bytes are short.
        """
        if self._open:
            if self._at + size <= len(self._data):
                return True
            self._close_body()
        if not self.here:
            self._at = self._have = 0
            if idle and self._account_of_all.is_busy:
                self.let_go()
        elif size > len(self._data):
            if size <= self._head_bytes:
                self._resize(size + _SPARE_BYTES)
            elif self._account_of_all.has_room(self._frame_bytes):
                self._resize(self._frame_bytes)
            else:
                return False
        elif self._at + size > len(self._data):
            self._at, self._have = 0, self._move(self._data)
        return True

    def skip(self, size: int) -> None:
        """Want nothing of a frame that begins here."""
        self._skip = size - self.here
        self._at = self._have = 0

    def collect(self, call: Call, data: bytes | memoryview, *, padded: bool) -> None:
        """Put the data of the frame taken last to a call's body.

        Args:
            call: whose body it is.
            data: of the frame.
            padded: whether anything but the data was in it.
        """
        if self._open is not call:
            self._close_body()
            if not call.body:
                self._open = call
                self._open_at = self._open_end = self._at - len(data)
        call.size += len(data)
        if self._open is not call:
            call.body += data
            self._bodies += len(data)
            self._account()
            return
        end = self._open_end + len(data)
        if padded or end != self._at:  # padding is behind this piece, or a frame's head before it
            memoryview(self._data)[self._open_end : end] = data
        self._open_end = end

    def body(self, call: Call) -> bytearray | memoryview:
        """The body of a call as far as it is here, valid until more room is made."""
        return memoryview(self._data)[self._open_at : self._open_end] if self._open is call else call.body

    def drop_body(self, call: Call) -> None:
        """Let go of a call's body."""
        if self._open is call:
            self._open = None
        if call.body:
            self._bodies -= len(call.body)
            call.body = bytearray()
            self._account()

    def let_go(self, keep_bytes: int = 0) -> None:
        """Drop what is here, and the buffer, but for a small one to read on into."""
        self._data, self._at, self._have = bytearray(keep_bytes), 0, 0
        self._account()

    def let_go_if_empty(self) -> None:
        """Free the buffer of a connection that says nothing."""
        if self._data and not self.here:
            self.let_go()

    def _close_body(self) -> None:
        """Take the body that lies here out of the way."""
        if (call := self._open) is not None:
            self._open = None
            call.body += memoryview(self._data)[self._open_at : self._open_end]
            self._bodies += len(call.body)
            self._account()

    def _resize(self, size: int) -> None:
        """Put what is not taken yet to the front of a new buffer: the event loop may hold a view of this one."""
        self._close_body()
        larger = bytearray(size)
        self._have = self._move(larger)
        self._data, self._at = larger, 0
        self._account()

    def _move(self, to: bytearray) -> int:
        """Put what is not taken to the front; return how much that is."""
        here = self.here
        memoryview(to)[:here] = memoryview(self._data)[self._at : self._have]
        return here

    def _account(self) -> None:
        """Note what is held now, here and among that of all connections."""
        held = len(self._data) + self._bodies
        self._account_of_all.held_bytes += held - self._held
        self._held = held
